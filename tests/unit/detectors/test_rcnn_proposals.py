"""R-CNN's proposals of all images at once against detectron2's, bit for bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Instances
from torch import Tensor

from benchmarks.wait_counter import WaitCounter, as_on_gpu
from lgd.detectors.rcnn_proposals import Candidates, Proposals, choose_at_once, choose_by_image, find_candidates

SIZES = [(160, 96), (128, 128), (64, 200)]
"""Height and width of each image."""

LIMITS = {"pre_nms_topk": {True: 300}, "post_nms_topk": {True: 120}, "nms_thresh": 0.7, "min_box_size": 0.0}


def _predictions(seed: int, images: int) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes of three levels in clusters, some of them outside of the image and some without an area, and their scores,
    a quarter of them equal to others."""
    draw = torch.Generator().manual_seed(seed)
    boxes, logits = [], []
    for number, side in ((600, 12.0), (200, 30.0), (40, 70.0)):
        centres = torch.rand(images, number // 10, 1, 2, generator=draw) * 220 - 20
        centres = (centres + torch.randn(images, number // 10, 10, 2, generator=draw) * side / 12).flatten(1, 2)
        sides = side * (1 + 0.1 * torch.randn(images, number, 2, generator=draw))
        boxes.append(torch.cat([centres - sides / 2, centres + sides / 2], dim=-1))
        scores = torch.randn(images, number, generator=draw)
        logits.append(torch.where(scores < -0.7, -1.0, scores))
    return boxes, logits


def _rpn(boxes: list[Tensor]) -> Any:
    return SimpleNamespace(**LIMITS, _decode_proposals=lambda *_: boxes)


def _candidates(boxes: list[Tensor], logits: list[Tensor]) -> Candidates:
    return find_candidates(_rpn(boxes), [], logits, [], SIZES[: len(logits[0])])


def _instances(proposals: Proposals, sizes: list[tuple[int, int]]) -> list[Instances]:
    assert proposals.valid.sum(1).tolist() == proposals.counts.tolist()
    return proposals.instances(sizes, proposals.counts.tolist())


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_both_ways_choose_what_detectron2_chooses(seed: int, images: int) -> None:
    boxes, logits = _predictions(seed, images)
    sizes = SIZES[:images]
    with as_on_gpu():
        theirs = find_top_rpn_proposals([x.clone() for x in boxes], logits, sizes, 0.7, 300, 120, 0.0, training=True)
    for choose in (choose_at_once, choose_by_image):
        with as_on_gpu():
            ours = _instances(choose(_candidates(boxes, logits), 0.7, 120), sizes)
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine.image_size == expected.image_size
            assert 20 < len(expected) <= 120
            assert torch.equal(mine.proposal_boxes.tensor, expected.proposal_boxes.tensor)
            assert torch.equal(mine.objectness_logits, expected.objectness_logits)


def test_an_image_whose_boxes_have_no_area_has_no_proposals() -> None:
    boxes, logits = _predictions(0, 2)
    for level in boxes:
        level[1] = -5.0
    found = _instances(choose_at_once(_candidates(boxes, logits), 0.7, 120), SIZES[:2])
    assert [len(x) > 0 for x in found] == [True, False]


def test_that_of_all_images_is_not_waited_for() -> None:
    boxes, logits = _predictions(1, 3)
    with WaitCounter() as counter:
        choose_at_once(_candidates(boxes, logits), 0.7, 120)
    assert not counter.waits
