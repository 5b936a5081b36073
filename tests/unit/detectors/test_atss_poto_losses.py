"""ATSS's and POTO's losses of a whole batch against fvcore's, of one image and its positives at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from fvcore.nn import giou_loss, sigmoid_focal_loss
from torch import Tensor

from lgd.detectors import build_detector
from lgd.detectors.batched import pad_objects
from tests.helpers import CLASSES, batch, one_thread, tiny_settings


def _focal(detector: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of an image's logits (R, K); labels (R,), K for background."""
    positive = labels < CLASSES
    targets = torch.zeros_like(logits)
    targets[positive, labels[positive]] = 1
    loss: Tensor = sigmoid_focal_loss(
        logits, targets, alpha=detector.focal_loss_alpha, gamma=detector.focal_loss_gamma, reduction="sum"
    )
    return loss


def _centerness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's equation 3 at the centres of anchors (P, 4) inside their boxes (P, 4)."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = centres - boxes[:, :2], boxes[:, 2:] - centres
    return (torch.minimum(before, after) / torch.maximum(before, after)).prod(dim=1).sqrt()


def _atss_losses(
    detector: Any,
    anchors: list[Boxes],
    logits: list[Tensor],
    labels: list[Tensor],
    deltas: list[Tensor],
    boxes: list[Tensor],
    centerness: list[Tensor],
) -> dict[str, Tensor]:
    """In place of ATSS.losses."""
    every_anchor = Boxes.cat(anchors).tensor
    focal, giou, entropy, weights = [], [], [], []
    for i, image_labels in enumerate(labels):
        positive = image_labels < CLASSES
        focal.append(_focal(detector, torch.cat([x[i] for x in logits]), image_labels))
        anchor, box = every_anchor[positive], boxes[i][positive]
        found = detector.box2box_transform.apply_deltas(torch.cat([x[i] for x in deltas])[positive], anchor)
        weight = _centerness(anchor, box)
        giou.append((giou_loss(found, box) * weight).sum())
        central = torch.cat([x[i] for x in centerness])[positive, 0]
        entropy.append(F.binary_cross_entropy_with_logits(central, weight, reduction="sum"))
        weights.append(weight)
    positives = max(1, len(torch.cat(weights)))
    return {
        "loss_cls": torch.stack(focal).sum() / positives,
        "loss_box_reg": 2 * torch.stack(giou).sum() / torch.cat(weights).sum().clamp(min=1),
        "loss_centerness": torch.stack(entropy).sum() / positives,
    }


def _poto_losses(detector: Any, _: Any, features: Any, predictions: Any, instances: list[Any]) -> dict[str, Tensor]:
    """In place of POTO.forward_training. The matching, tested elsewhere, is its own, of one image at a time."""
    logits, deltas = (
        torch.cat([x.flatten(2).transpose(1, 2) for x in prediction], dim=1) for prediction in predictions
    )
    anchors = Boxes.cat(detector.anchor_generator(features)).tensor
    focal, giou, positives = [], [], 0
    for image_logits, image_deltas, objects in zip(logits, deltas, instances, strict=True):
        boxes = detector.box2box_transform.apply_deltas(image_deltas, anchors)
        padded = pad_objects([objects])
        (matched,) = detector.assign(anchors, image_logits[None].detach(), boxes[None].detach(), padded)
        positive = matched >= 0
        labels = torch.full_like(matched, CLASSES)
        labels[positive] = objects.gt_classes[matched[positive]]
        focal.append(_focal(detector, image_logits, labels))
        targets = objects.gt_boxes.tensor[matched[positive]]
        giou.append(giou_loss(boxes[positive], targets, reduction="sum"))
        positives += len(targets)
    return {
        "loss_cls": torch.stack(focal).sum() / max(1, positives),
        "loss_box_reg": 2 * torch.stack(giou).sum() / max(1, positives),
    }


REFERENCES: dict[str, tuple[str, Callable[..., dict[str, Tensor]]]] = {
    "atss": ("losses", _atss_losses),
    "poto": ("forward_training", _poto_losses),
}


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0], [1, 12]])
@pytest.mark.parametrize("name", ["atss", "poto"])
def test_losses_and_gradients_are_those_of_one_image_at_a_time(name: str, counts: list[int]) -> None:
    found: list[tuple[dict[str, float], dict[str, Tensor]]] = []
    method, reference = REFERENCES[name]
    for replaced in (False, True):
        torch.manual_seed(0)
        detector: Any = build_detector(tiny_settings(name), CLASSES).train()
        if replaced:
            setattr(detector, method, partial(reference, detector))
        with one_thread(), EventStorage(0) as storage:
            losses = detector(batch(counts, seed=1))
            sum(losses.values()).backward()
        # Only our own losses log it.
        assert ("num_pos_anchors" in storage.latest()) != replaced
        gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
        found.append(({k: float(v.detach()) for k, v in losses.items()}, gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert theirs["loss_cls"] > 0
    assert (theirs["loss_box_reg"] > 0) == any(counts)
    assert our_gradients.keys() == their_gradients.keys()
    assert any("bbox_pred" in name for name in our_gradients)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-3, atol=1e-6)
