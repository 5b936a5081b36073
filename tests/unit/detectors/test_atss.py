"""ATSS: its choice of positives by hand and against a loop, and its losses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from lgd.detectors import build_detector
from lgd.detectors.atss import ATSS
from lgd.detectors.batched import PaddedObjects, pad_objects
from lgd.detectors.fcos_fast import centerness
from tests.helpers import CLASSES, batch, instances, one_thread, tiny_settings


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with one_thread(), EventStorage(0) as opened:
        yield opened


def _atss(candidates: int = 9) -> ATSS:
    torch.manual_seed(0)
    detector = build_detector(tiny_settings("atss"), CLASSES)
    assert isinstance(detector, ATSS)
    assert detector.candidates == 9
    detector.candidates = candidates
    return detector


def _padded(boxes: Boxes) -> PaddedObjects:
    """One image's objects, and an empty slot."""
    objects = Instances((16, 32), gt_boxes=boxes, gt_classes=torch.zeros(len(boxes), dtype=torch.long))
    return PaddedObjects(*(torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in pad_objects([objects])))


def _row_of_anchors() -> list[Boxes]:
    """Four anchors of 16 x 16 pixels, their centres at x = 4, 12, 20 and 28, y = 4."""
    return [Boxes(torch.tensor([[x - 8.0, -4.0, x + 8.0, 12.0] for x in (4, 12, 20, 28)]))]


def test_by_hand() -> None:
    """The box's centre is at x = 14: anchors 1, 2 and 0 are candidates with IoU 14/18, 10/22, 6/26.

    Mean 0.488, deviation 0.275: only the first is at least 0.763.
    """
    box = Boxes(torch.tensor([[6.0, -4.0, 22.0, 12.0]]))
    assert _atss(candidates=3).match(_row_of_anchors(), _padded(box))[0].tolist() == [-1, 0, -1, -1]
    # One candidate is its own threshold.
    assert _atss(candidates=1).match(_row_of_anchors(), _padded(box))[0].tolist() == [-1, 0, -1, -1]


def test_the_centre_must_lie_inside_the_box() -> None:
    # The nearest anchor's centre (x = 12) lies left of the box.
    box = Boxes(torch.tensor([[13.0, 0.0, 17.0, 8.0]]))
    assert _atss(candidates=1).match(_row_of_anchors(), _padded(box))[0].tolist() == [-1, -1, -1, -1]


def test_an_anchor_of_two_objects_goes_to_the_larger_overlap() -> None:
    # Both have anchor 1 as their best; the first overlaps it by 14/18, the second by 15/17.
    boxes = Boxes(torch.tensor([[6.0, -4.0, 22.0, 12.0], [3.0, -4.0, 19.0, 12.0]]))
    assert _atss(candidates=1).match(_row_of_anchors(), _padded(boxes))[0].tolist() == [-1, 1, -1, -1]


def test_candidates_come_from_every_level() -> None:
    coarse = Boxes(torch.tensor([[-8.0, -8.0, 24.0, 24.0]]))
    # Level two's only anchor fits the box best, though it is none of the three nearest.
    box = Boxes(torch.tensor([[-7.0, -7.0, 23.0, 23.0]]))
    assert _atss(candidates=2).match([*_row_of_anchors(), coarse], _padded(box))[0].tolist() == [-1, -1, -1, -1, 0]


@pytest.mark.parametrize("seed", range(8))
def test_against_a_loop(seed: int) -> None:
    detector = _atss(candidates=(1, 4, 9)[seed % 3])
    features = [torch.zeros(1, 1, h, w) for h, w in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))]
    anchors = detector.anchor_generator(features)
    found = instances([1 + 2 * seed], (64, 96), seed=seed)[0]
    ours = detector.match(anchors, pad_objects([found]))[0]
    assert ours.tolist() == _loop(anchors, found.gt_boxes.tensor, detector.candidates)
    labels, boxes = detector.label_anchors(anchors, [found])
    positive = ours >= 0
    assert seed == 0 or positive.any()
    assert torch.equal(labels[0][positive], found.gt_classes[ours[positive]])
    assert torch.equal(boxes[0][positive], found.gt_boxes.tensor[ours[positive]])
    assert (labels[0][~positive] == CLASSES).all()


def _loop(anchors: list[Boxes], objects: Tensor, k: int) -> list[int]:
    """Algorithm 1 written out."""
    total = sum(len(x) for x in anchors)
    owner, owned = [-1] * total, [-1.0] * total
    for g, box in enumerate(objects.tolist()):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        chosen: list[tuple[int, float, tuple[float, float]]] = []
        start = 0
        for level in anchors:
            near = []
            for i, anchor in enumerate(level.tensor.tolist()):
                centre = ((anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2)
                near.append((math.dist(centre, middle), start + i, _iou(anchor, box), centre))
            chosen += [(i, iou, centre) for _, i, iou, centre in sorted(near)[:k]]
            start += len(level)
        overlaps = [iou for _, iou, _ in chosen]
        mean = sum(overlaps) / len(overlaps)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in overlaps) / max(1, len(overlaps) - 1))
        for i, iou, (x, y) in chosen:
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if iou >= mean + deviation and inside and iou > owned[i]:
                owner[i], owned[i] = g, iou
    return owner


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def test_anchors_are_squares_around_the_middle_of_their_cells() -> None:
    settings = tiny_settings("atss").model_copy(update={"anchor_scale": "auto"})
    detector = build_detector(settings, CLASSES)
    anchors = detector.anchor_generator([torch.zeros(1, 1, 2, 2)] * 5)  # type: ignore[operator]
    for stride, level in zip((8, 16, 32, 64, 128), anchors, strict=True):
        assert level.tensor[0].tolist() == [stride / 2 - 4 * stride] * 2 + [stride / 2 + 4 * stride] * 2
        assert len(level) == 4


def test_centerness() -> None:
    """Centre (4, 4) in a box from (0, 2) to (16, 8): sqrt(4/12 * 2/4); in the middle it is 1."""
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 8.0]])
    boxes = torch.tensor([[0.0, 2.0, 16.0, 8.0], [-4.0, 0.0, 12.0, 8.0]])
    torch.testing.assert_close(centerness(anchors, boxes), torch.tensor([math.sqrt(1 / 6), 1.0]))


def test_a_perfect_prediction_has_no_box_loss_and_images_without_objects_only_a_class_loss() -> None:
    detector = _atss(candidates=3)
    anchors = _row_of_anchors()
    found = instances([1], (16, 32))[0]
    found.gt_boxes = Boxes(torch.tensor([[6.0, -4.0, 22.0, 12.0]]))
    labels, boxes = detector.label_anchors(anchors, [found])
    deltas = detector.box2box_transform.get_deltas(anchors[0].tensor, boxes[0].clamp(min=-4) + _unit(boxes[0]))
    logits = torch.full((1, 4, CLASSES), -4.0)
    losses = detector.losses(anchors, [logits], labels, [deltas[None]], boxes, [torch.zeros(1, 4, 1)])
    assert losses["loss_box_reg"] == pytest.approx(0.0, abs=1e-5)
    # One positive, its centerness target sqrt(6/10): cross-entropy with a logit of 0 is log 2 whatever the target.
    assert losses["loss_centerness"] == pytest.approx(math.log(2))
    empty = detector.train()(batch([0, 0]))
    assert empty["loss_cls"] > 0
    assert empty["loss_box_reg"] == empty["loss_centerness"] == 0


def _unit(boxes: Tensor) -> Tensor:
    """A box of one pixel in place of the zero ones that stand for no object: they have no logarithm."""
    return (boxes.abs().sum(dim=1, keepdim=True) == 0) * torch.tensor([0.0, 0.0, 1.0, 1.0])


def test_the_box_loss_is_the_weighted_mean_doubled() -> None:
    """Two positives at their own anchors: GIoU loss of each, weighted by the centerness targets, times 2."""
    detector = _atss(candidates=1)
    anchors = _row_of_anchors()
    found = instances([2], (16, 40))[0]
    found.gt_boxes = Boxes(torch.tensor([[6.0, -4.0, 22.0, 12.0], [19.0, -4.0, 35.0, 12.0]]))
    labels, boxes = detector.label_anchors(anchors, [found])
    assert (labels[0] != CLASSES).tolist() == [False, True, False, True]
    losses = detector.losses(
        anchors, [torch.zeros(1, 4, CLASSES)], labels, [torch.zeros(1, 4, 4)], boxes, [torch.zeros(1, 4, 1)]
    )
    # Predicted are the anchors themselves, of the boxes' size and in line with them: the hull adds nothing.
    weights = [math.sqrt(6 / 10), math.sqrt(7 / 9)]
    wanted = 2 * (weights[0] * (1 - 14 / 18) + weights[1] * (1 - 15 / 17)) / max(1, sum(weights))
    assert losses["loss_box_reg"] == pytest.approx(wanted, rel=1e-5)
