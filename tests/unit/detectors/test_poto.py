"""POTO: quality and assignment by hand and against a search through all, and inference without NMS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest
import torch
import torchvision
from detectron2.modeling.meta_arch import fcos as stock_fcos
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from lgd.detectors import build_detector
from lgd.detectors.batched import pad_objects
from lgd.detectors.poto import POTO
from tests.helpers import CLASSES, batch, instances, one_thread, tiny_settings


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with one_thread(), EventStorage(0) as opened:
        yield opened


def _poto() -> POTO:
    torch.manual_seed(0)
    detector = build_detector(tiny_settings("poto"), CLASSES)
    assert isinstance(detector, POTO)
    assert (detector.alpha, detector.center_sampling_radius) == (0.8, 1.5)
    return detector


def _objects(boxes: list[list[float]], classes: list[int]) -> Instances:
    return Instances((64, 96), gt_boxes=Boxes(torch.tensor(boxes)), gt_classes=torch.tensor(classes))


def _quality(detector: POTO, anchors: Tensor, scores: Tensor, boxes: Tensor, found: Instances) -> Tensor:
    """The quality (N, R) of one image, as a batch with another one whose objects are others."""
    objects = pad_objects([found, instances([len(found) + 2], (64, 96))[0]])
    objects = objects._replace(classes=objects.classes % scores.shape[1])
    return detector.quality(anchors, scores.expand(2, -1, -1), boxes.expand(2, -1, -1), objects)[0, : len(found)]


def _match(detector: POTO, quality: Tensor) -> Tensor:
    """The object of each location (R,), found from every object's best locations, beside an image without objects."""
    best, location = quality.expand(2, -1, -1).topk(min(quality.shape), dim=2)
    valid = torch.tensor([True, False])[:, None].expand(2, len(quality))
    matched = detector.match(best, location, valid, quality.shape[1])
    assert (matched[1] == -1).all()
    return matched[0]


def test_quality_by_hand() -> None:
    """Locations at x = 4, 12 and 20 of stride 8; a box from 0 to 16, its centre at (8, 4), of class 1.

    The third location is 12 pixels from the centre, which is not within 1.5 strides, and outside the box.
    """
    anchors = torch.tensor([[x - 4.0, 0.0, x + 4.0, 8.0] for x in (4, 12, 20)])
    scores = torch.tensor([[0.9, 0.5], [0.9, 0.25], [0.9, 1.0]])
    predicted = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 8.0]])
    found = _quality(_poto(), anchors, scores, predicted, _objects([[0.0, 0.0, 16.0, 8.0]], [1]))
    wanted = [0.5**0.2 * 0.5**0.8, 0.25**0.2, -2.0]
    torch.testing.assert_close(found, torch.tensor([wanted]))


def test_the_best_total_wins_over_the_best_first() -> None:
    """0.8 + 0.85 > 0.9 + 0.1: the first object leaves its best location to the second."""
    assert _match(_poto(), torch.tensor([[0.9, 0.8, 0.0], [0.85, 0.1, 0.0]])).tolist() == [1, 0, -1]


@pytest.mark.parametrize("seed", range(6))
def test_against_loops(seed: int) -> None:
    detector = _poto()
    generator = torch.Generator().manual_seed(seed)
    features = [torch.zeros(1, 1, h, w) for h, w in ((4, 5), (2, 3), (1, 2))]
    anchors = Boxes.cat(detector.anchor_generator(features)[:3]).tensor
    found = instances([1 + seed % 3], (32, 40), seed=seed)[0]
    scores = torch.rand(len(anchors), CLASSES, generator=generator)
    shifts = torch.rand(len(anchors), 4, generator=generator) * 2
    predicted = detector.box2box_transform.apply_deltas(shifts, anchors)
    ours = _quality(detector, anchors, scores, predicted, found)
    wanted = _quality_loop(anchors, scores, predicted, found)
    torch.testing.assert_close(ours, wanted)

    matched = _match(detector, ours)
    assert sorted(matched[matched >= 0].tolist()) == list(range(len(found)))
    places = [matched.tolist().index(i) for i in range(len(found))]
    best = max(
        sum(ours[i, place].item() for i, place in enumerate(way))
        for way in itertools.permutations(range(len(anchors)), len(found))
    )
    assert sum(ours[i, place].item() for i, place in enumerate(places)) == pytest.approx(best)


def _quality_loop(anchors: Tensor, scores: Tensor, predicted: Tensor, found: Instances) -> Tensor:
    quality = torch.zeros(len(found), len(anchors))
    for i, (box, label) in enumerate(zip(found.gt_boxes.tensor.tolist(), found.gt_classes.tolist(), strict=True)):
        x1, y1, x2, y2 = box
        away = []
        for x, y in Boxes(anchors).get_centers().tolist():
            away.append(max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)))
        for j, (x, y) in enumerate(Boxes(anchors).get_centers().tolist()):
            stride = float(anchors[j, 2] - anchors[j, 0])
            if x1 < x < x2 and y1 < y < y2 and away[j] < 1.5 * stride:
                p = predicted[j].tolist()
                common = max(0.0, min(p[2], x2) - max(p[0], x1)) * max(0.0, min(p[3], y2) - max(p[1], y1))
                iou = common / ((p[2] - p[0]) * (p[3] - p[1]) + (x2 - x1) * (y2 - y1) - common)
                quality[i, j] = float(scores[j, label]) ** (1 - 0.8) * iou**0.8
            else:
                quality[i, j] = -1 - away[j] / max(away)
    return quality


def test_an_object_too_small_for_any_location_gets_the_nearest() -> None:
    detector = _poto()
    anchors = Boxes.cat(detector.anchor_generator([torch.zeros(1, 1, 4, 4)] * 5)).tensor
    scores = torch.rand(len(anchors), CLASSES, generator=torch.Generator().manual_seed(0))
    tiny = _objects([[13.0, 21.0, 14.0, 22.0]], [2])
    matched = _match(detector, _quality(detector, anchors, scores, anchors, tiny))
    where = (matched == 0).nonzero().flatten()
    assert Boxes(anchors[where]).get_centers().tolist() == [[12.0, 20.0]]


@pytest.mark.parametrize("counts", [[3, 0, 5], [40, 1, 7], [0, 0, 0]])
def test_every_object_has_one_positive(storage: EventStorage, counts: list[int]) -> None:
    _poto().train()(batch(counts))
    assert storage.latest()["num_pos_anchors"][0] * 3 == pytest.approx(sum(counts))


def test_more_objects_than_locations() -> None:
    matched = _match(_poto(), torch.rand(5, 3, generator=torch.Generator().manual_seed(0)))
    assert len(set(matched.tolist())) == 3
    assert (matched >= 0).all()


def test_broken_predictions_do_not_stop_the_assignment() -> None:
    detector = _poto()
    anchors = Boxes.cat(detector.anchor_generator([torch.zeros(1, 1, 4, 4)] * 5)).tensor
    nothing = torch.full((len(anchors), CLASSES), torch.nan)
    found = _objects([[0.0, 0.0, 20.0, 20.0], [8.0, 8.0, 30.0, 30.0]], [0, 1])
    matched = _match(detector, _quality(detector, anchors, nothing, torch.full_like(anchors, torch.nan), found))
    assert sorted(matched[matched >= 0].tolist()) == [0, 1]


def test_inference_never_calls_nms(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("NMS was called")

    detectors = {}
    for name in ("poto", "fcos"):
        torch.manual_seed(0)
        detectors[name] = build_detector(tiny_settings(name), CLASSES).eval()
        nn.init.constant_(detectors[name].head.cls_score.bias, 0.0)  # type: ignore[union-attr, arg-type]
    for module, function in (
        (stock_fcos, "batched_nms"),
        (torchvision.ops, "nms"),
        (torchvision.ops, "batched_nms"),
        (torchvision.ops.boxes, "nms"),
        (torchvision.ops.boxes, "batched_nms"),
    ):
        monkeypatch.setattr(module, function, forbidden)
    with pytest.raises(AssertionError, match="NMS was called"):
        detectors["fcos"](batch([1]))
    with torch.no_grad():
        found = detectors["poto"](batch([1, 2]))
    for x in found:
        scores = x["instances"].scores
        assert 0 < len(scores) <= 100
        assert torch.equal(scores, scores.sort(descending=True).values)


def test_inference_keeps_the_highest_scores_of_all_levels() -> None:
    detector = _poto().eval()
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(1, CLASSES, s, s, generator=generator) for s in (8, 4, 2, 1, 1)]
    distances = [torch.ones(1, 4, *x.shape[-2:]) for x in logits]
    images = type("Images", (), {"image_sizes": [(64, 64)]})()
    found = detector.forward_inference(images, logits, [logits, distances])[0]
    every = torch.cat([x.flatten() for x in logits]).sigmoid().sort(descending=True).values
    assert len(found) == 100
    torch.testing.assert_close(found.scores, every[:100])
    # A distance of 1 is one stride, to each side of the location.
    sides = found.pred_boxes.tensor[:, 2:] - found.pred_boxes.tensor[:, :2]
    assert set(sides.flatten().tolist()) <= {16.0, 32.0, 64.0, 128.0, 256.0}


def test_the_loss_of_an_object_found_perfectly_is_in_its_class_alone() -> None:
    detector = _poto().train()
    features = [torch.zeros(1, 1, s, s) for s in (8, 4, 2, 1, 1)]
    logits = [torch.full((1, CLASSES, *x.shape[-2:]), -4.0) for x in features]
    distances = [torch.ones(1, 4, *x.shape[-2:]) for x in features]
    # The box that the location (20, 12) of the first level predicts.
    found = _objects([[12.0, 4.0, 28.0, 20.0]], [3])
    losses = detector.forward_training(None, features, [logits, distances], [found])
    assert losses["loss_box_reg"] == pytest.approx(0.0, abs=1e-6)
    score = torch.tensor(-4.0).sigmoid()
    places = sum(s * s for s in (8, 4, 2, 1, 1))
    positive = -0.25 * (1 - score) ** 2 * score.log()
    negative = -0.75 * score**2 * (1 - score).log()
    assert losses["loss_cls"] == pytest.approx(float(positive + (places * CLASSES - 1) * negative), rel=1e-5)
