"""R-CNN's proposals by matrix operations against detectron2's, bit for bit."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Instances
from torch import Tensor

from benchmarks.wait_counter import WaitCounter, as_on_gpu
from lgd.detectors.rcnn_proposals import ROUNDS, Candidates, GreedyNMS, MatrixNMS, find_candidates

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


def _proposals(nms: GreedyNMS | MatrixNMS, sizes: list[tuple[int, int]]) -> list[Instances]:
    final = False
    while not final:
        proposals, is_final = nms.advance()
        final = bool(is_final)
    assert proposals.valid.sum(1).tolist() == proposals.counts.tolist()
    return proposals.instances(sizes, proposals.counts.tolist())


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_both_ways_choose_what_detectron2_chooses(seed: int, images: int) -> None:
    boxes, logits = _predictions(seed, images)
    sizes = SIZES[:images]
    with as_on_gpu():
        theirs = find_top_rpn_proposals([x.clone() for x in boxes], logits, sizes, 0.7, 300, 120, 0.0, training=True)
    for kind in (MatrixNMS, GreedyNMS):
        with as_on_gpu():
            ours = _proposals(kind(_candidates(boxes, logits), 0.7, 120), sizes)
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine.image_size == expected.image_size
            assert 20 < len(expected) <= 120
            assert torch.equal(mine.proposal_boxes.tensor, expected.proposal_boxes.tensor)
            assert torch.equal(mine.objectness_logits, expected.objectness_logits)


def test_an_image_whose_boxes_have_no_area_has_no_proposals() -> None:
    boxes, logits = _predictions(0, 2)
    for level in boxes:
        level[1] = -5.0
    found = _proposals(MatrixNMS(_candidates(boxes, logits), 0.7, 120), SIZES[:2])
    assert [len(x) > 0 for x in found] == [True, False]


def test_a_chain_longer_than_the_rounds_is_followed_to_its_end() -> None:
    """Each box overlaps the next one only, so that every other box is kept, which n rounds find for n boxes."""
    number = 101
    x = torch.arange(number) * 1.0
    boxes_14 = torch.stack([x, torch.zeros(number), x + 10, torch.full((number,), 10.0)], dim=-1)[None]
    scores = torch.linspace(1, 0, number)[None]
    assert 9 / 11 > 0.7 > 8 / 12
    nms = MatrixNMS(_candidates_of_one_level(boxes_14, scores), 0.7, number)
    rounds = 1
    while not nms.advance()[1]:
        rounds += 1
    assert rounds == math.ceil(number / ROUNDS)
    (found,) = nms.advance()[0].instances([(200, 200)], [51])
    assert torch.equal(found.proposal_boxes.tensor, boxes_14[0, ::2])


def _candidates_of_one_level(boxes_BP4: Tensor, logits_BP: Tensor) -> Candidates:
    valid = torch.ones_like(logits_BP, dtype=torch.bool)
    return Candidates(boxes_BP4, logits_BP, valid, (logits_BP.shape[1],), torch.ones((), dtype=torch.bool))


def test_the_matrix_is_not_waited_for() -> None:
    boxes, logits = _predictions(1, 3)
    with WaitCounter() as counter:
        MatrixNMS(_candidates(boxes, logits), 0.7, 120).advance()
    assert not counter.waits
