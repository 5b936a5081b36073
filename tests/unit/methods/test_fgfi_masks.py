"""FGFI's masks and anchors: by hand and against detectron2's IoU."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from lgd.methods.fgfi.imitation import Anchors, ImitationDistance, anchors_of, imitation_masks
from lgd.methods.fgfi.levels import LevelRule
from tests.helpers import DETECTORS, instances
from tests.helpers_methods import DenseParts, drawn, seeded_detector

pytestmark = pytest.mark.usefixtures("storage")

each_detector = pytest.mark.parametrize("name", DETECTORS)
each_rule = pytest.mark.parametrize("rule", get_args(LevelRule))


def _square(side: float, stride: int) -> Anchors:
    half = side / 2
    return Anchors(torch.tensor([[-half, -half, half, half]]), stride, 0.5)


def test_one_anchor_by_hand() -> None:
    """A box of 16 x 16 pixels around the corner of four cells, whose anchors of its size it overlaps by 144 / 368.

    Their neighbours share 4 x 12 with it (48 / 464 = 0.10), those at the corners 4 x 4 (16 / 496 = 0.03).
    """
    box = torch.tensor([[[8.0, 8.0, 24.0, 24.0]]])
    wanted = {
        0.5: ["....", ".##.", ".##.", "...."],
        # 0.10 is more than a quarter of 0.39, and 0.03 is more than a twentieth.
        0.25: [".##.", "####", "####", ".##."],
        0.05: ["####", "####", "####", "####"],
    }
    for threshold, rows in wanted.items():
        masks = imitation_masks(box, {"p3": _square(16, 8)}, {"p3": (4, 4)}, threshold=threshold)
        assert masks["p3"].dtype == torch.bool
        assert drawn(masks["p3"][0]) == rows


def test_a_cell_needs_one_of_its_anchors_only() -> None:
    """Anchors of 16 x 16 and of 32 x 8, and a box of 32 x 8 in the second row.

    The wide ones of that row overlap it by 224 / 288 = 0.78 in the middle and 160 / 352 = 0.45 at the ends; the squares
    by 128 / 384 = 0.33 at most, which is less than half of 0.78.
    """
    box = torch.tensor([[[0.0, 8.0, 32.0, 16.0]]])
    square, wide = [-8.0, -8.0, 8.0, 8.0], [-16.0, -4.0, 16.0, 4.0]
    both = Anchors(torch.tensor([square, wide]), 8, 0.5)
    assert drawn(imitation_masks(box, {"p3": both}, {"p3": (3, 4)})["p3"][0]) == ["....", "####", "...."]
    # Above 0.7 * 0.78 = 0.54 only the middle is left; the squares' own best, 0.33, counts for nothing.
    masks = imitation_masks(box, {"p3": both}, {"p3": (3, 4)}, threshold=0.7)
    assert drawn(masks["p3"][0]) == ["....", ".##.", "...."]


def test_each_box_has_its_own_threshold() -> None:
    """A small box, 4 x 4 in a corner (0.06 at best, where the anchor covers it), beside one of 16 x 16 (0.39)."""
    boxes = torch.tensor([[[8.0, 8.0, 24.0, 24.0], [30.0, 0.0, 34.0, 4.0]]])
    masks = imitation_masks(boxes, {"p3": _square(16, 8)}, {"p3": (4, 5)})
    assert drawn(masks["p3"][0]) == ["...##", ".##..", ".##..", "....."]


@pytest.mark.parametrize(
    ("rule", "side", "marked"),
    [
        # Anchors of 16 and 32 pixels: the finer overlaps boxes up to 22.6 = sqrt(16 * 32) pixels most.
        ("best", 22, {"p3"}),
        ("best", 23, {"p4"}),
        # floor(4 + log2(side / 224)) is 3 from 112 and 4 from 224 pixels; 0 becomes 3, the finest level, 6 becomes 4.
        ("fpn", 16, {"p3"}),
        ("fpn", 223, {"p3"}),
        ("fpn", 224, {"p4"}),
        ("fpn", 900, {"p4"}),
        ("all", 16, {"p3", "p4"}),
        ("all", 224, {"p3", "p4"}),
    ],
)
def test_level_rules_by_hand(rule: LevelRule, side: float, marked: set[str]) -> None:
    # In the middle of a cell of either level, so that both have an anchor around the box's centre.
    anchors = {"p3": Anchors(torch.tensor([[-8.0, -8.0, 8.0, 8.0]]), 8, 0.0), "p4": Anchors(_half(32), 16, 0.0)}
    corners = torch.tensor([[[512 - side / 2] * 2 + [512 + side / 2] * 2]])
    masks = imitation_masks(corners, anchors, {"p3": (128, 128), "p4": (64, 64)}, levels=rule)
    assert {name for name, x in masks.items() if x.any()} == marked


@pytest.mark.parametrize(("side", "level"), [(16, "a"), (100, "a"), (130, "b"), (300, "b"), (490, "c")])
def test_an_object_of_a_level_that_is_not_there_is_the_nearests(side: float, level: str) -> None:
    """Strides 4, 8 and 32: what FPN would give to stride 16 goes to one beside it, and no object is left out."""
    anchors = {name: _square(side=4 * stride, stride=stride) for name, stride in (("a", 4), ("b", 8), ("c", 32))}
    sizes = {name: (512 // stride, 512 // stride) for name, stride in (("a", 4), ("b", 8), ("c", 32))}
    boxes = torch.tensor([[[0.0, 0.0, side, side]]])
    masks = imitation_masks(boxes, anchors, sizes, levels="fpn")
    assert {name for name, mask in masks.items() if mask.any()} == {level}


def _half(side: float) -> Tensor:
    return torch.tensor([[-side, -side, side, side]]) / 2


@each_detector
@each_rule
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_masks_against_detectron2s_overlaps(name: str, rule: LevelRule, threshold: float) -> None:
    student = seeded_detector(name, anchor_scale="auto")
    distance = ImitationDistance(student, student, levels=rule, threshold=threshold)
    shapes = student.backbone.output_shape()
    # No multiples of the coarser strides: levels have cells beyond the image.
    features = {k: torch.zeros(4, 32, -(-136 // x.stride), -(-200 // x.stride)) for k, x in shapes.items()}
    found = instances([3, 0, 12, 1], (136, 200), seed=3)
    found[2].gt_boxes.tensor[:6, 2:] = found[2].gt_boxes.tensor[:6, :2] + torch.linspace(3, 40, 6)[:, None]
    masks = distance.masks(features, found)
    assert list(masks) == list(features)
    for image, objects in enumerate(found):
        wanted = _brute_force(student, features, objects.gt_boxes, rule, threshold)
        for level, mask in masks.items():
            assert torch.equal(mask[image], wanted[level]), (image, level)
    total = sum(int(x.sum()) for x in masks.values())
    assert 0 < total < sum(x.numel() for x in masks.values()) / 2


def _brute_force(
    detector: Any, features: dict[str, Tensor], boxes: Boxes, rule: LevelRule, threshold: float
) -> dict[str, Tensor]:
    """Section 3.1 written out for one image."""
    generator = detector.proposal_generator.anchor_generator if hasattr(detector, "proposal_generator") else None
    if generator is None:
        generator = detector.anchor_generator
    strides = [x.stride for x in detector.backbone.output_shape().values()]
    if type(detector).__name__ in ("FCOS", "POTO"):
        generator = DefaultAnchorGenerator(sizes=[[8.0 * x] for x in strides], aspect_ratios=[1.0], strides=strides)
    overlaps = [pairwise_iou(boxes, x) for x in generator(list(features.values()))]
    masks = {name: torch.zeros(x.shape[-2:], dtype=torch.bool) for name, x in features.items()}
    for g, box in enumerate(boxes):
        peaks = [float(x[g].max()) for x in overlaps]
        side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        numbers = [round(math.log2(x)) for x in strides]
        level = min(max(math.floor(4 + math.log2(side / 224)), numbers[0]), numbers[-1])
        allowed = {"best": [peaks.index(max(peaks))], "fpn": [numbers.index(level)], "all": range(len(strides))}[rule]
        for i, mask in enumerate(masks.values()):
            if i in allowed:
                mask |= (overlaps[i][g].view(*mask.shape, -1) > threshold * peaks[i]).any(dim=-1)
    return masks


def test_padding_slots_and_images_without_objects_mark_nothing() -> None:
    distance = ImitationDistance(seeded_detector("retinanet"), seeded_detector("retinanet"))
    found = instances([1, 0, 9], (64, 96))
    sizes = {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)}
    together = distance.masks({k: torch.zeros(3, 1, *x) for k, x in sizes.items()}, found)
    alone = [distance.masks({k: torch.zeros(1, 1, *x) for k, x in sizes.items()}, [x]) for x in found]
    for name, mask in together.items():
        assert torch.equal(mask, torch.cat([x[name] for x in alone]))
        assert not mask[1].any()
    assert together["p3"][0].any()
    nothing = distance.masks({k: torch.zeros(2, 1, *x) for k, x in sizes.items()}, [found[1]] * 2)
    assert not any(x.any() for x in nothing.values())


def test_which_anchors() -> None:
    # One square of eight strides for each of FCOS's points, as ATSS has it.
    for name in ("fcos", "poto", "atss"):
        anchors = anchors_of(seeded_detector(name, anchor_scale="auto"))
        assert list(anchors) == ["p3", "p4", "p5", "p6", "p7"]
        for x in anchors.values():
            assert x.offset == 0.5
            assert x.cells.tolist() == [[-4.0 * x.stride] * 2 + [4.0 * x.stride] * 2]
    # ATSS's own scale is respected.
    assert anchors_of(seeded_detector("atss"))["p3"].cells.tolist() == [[-8.0, -8.0, 8.0, 8.0]]
    assert [len(x.cells) for x in anchors_of(seeded_detector("retinanet")).values()] == [9] * 5
    assert list(anchors_of(seeded_detector("mask_rcnn"))) == ["p2", "p3", "p4", "p5", "p6"]


def test_a_detector_without_upright_anchors_has_squares_on_the_levels_of_fpns_rule(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = DenseParts(8, {"p3": 8})
    del plain.anchor_generator
    assert anchors_of(plain)["p3"].cells.tolist() == [[-32.0, -32.0, 32.0, 32.0]]
    plain.anchor_generator = RotatedAnchorGenerator(sizes=[[8]], aspect_ratios=[1.0], strides=[8], angles=[0.0])
    assert anchors_of(plain)["p3"].cells.tolist() == [[-32.0, -32.0, 32.0, 32.0]]
    without = seeded_detector("faster_rcnn")
    without.proposal_generator = None
    assert ImitationDistance(without, without).levels == "fpn"
    assert ImitationDistance(without, without, levels="all").levels == "all"
    assert "FGFI: GeneralizedRCNN has no anchors" in caplog.text
