"""The class scores of a detector in a training pass, and divergences between those of two detectors.

Like feature capture (lgd/methods/feature_capture.py) this hooks calls that detectron2's detectors make, so that no
detector has to be subclassed or changed.

Shape suffixes: R regions of all images together, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from lgd.distributed.ranks import mean_over_workers
from lgd.errors import InputError
from lgd.methods.feature_capture import patched_method
from lgd.methods.norms import without_autocast


@dataclass
class DenseScores:
    """Class logits and targets of a dense detector's training pass."""

    logits: list[Tensor]
    """One map a level, (B, anchors * K, h, w)."""
    positives: Tensor | None = None
    """How many anchors or locations of the batch are an object's, a scalar."""


@dataclass
class RegionScores:
    """Class logits and targets of R-CNN's training pass."""

    logits: Tensor
    """(R, K + 1), the background last."""
    classes: Tensor
    """Labels (R,), K for background."""
    boxes: list[Boxes]
    """The sampled regions of each image, pixels."""


class ScoreCapture:
    """The class scores of a detector's training pass, once it is done."""

    dense: DenseScores | None = None
    regions: RegionScores | None = None


@contextmanager
def capture_scores(detector: nn.Module) -> Iterator[ScoreCapture]:
    """Capture the class scores of the detector's training pass inside the block, without changing anything."""
    with _regions(detector) if hasattr(detector, "roi_heads") else _dense(detector) as capture:
        yield capture


@contextmanager
def _regions(detector: Any) -> Iterator[ScoreCapture]:
    capture, predictor = ScoreCapture(), detector.roi_heads.box_predictor
    losses = predictor.losses

    def keep(predictions: Any, proposals: Any) -> Any:
        classes, boxes = torch.cat([x.gt_classes for x in proposals]), [x.proposal_boxes for x in proposals]
        capture.regions = RegionScores(predictions[0], classes, boxes)
        return losses(predictions, proposals)

    with patched_method(predictor, "losses", keep):
        yield capture


@contextmanager
def _dense(detector: Any) -> Iterator[ScoreCapture]:
    capture, scores = ScoreCapture(), DenseScores([])
    label_anchors, forward_training = detector.label_anchors, detector.forward_training

    def count(*arguments: Any) -> Any:
        labels, boxes = label_anchors(*arguments)
        all_labels = torch.stack(list(labels))
        scores.positives = ((all_labels >= 0) & (all_labels != detector.num_classes)).sum()
        return labels, boxes

    def keep(images: Any, features: Any, predictions: Any, gt_instances: Any) -> Any:
        scores.logits = list(predictions[0])
        losses = forward_training(images, features, predictions, gt_instances)
        if scores.positives is None:
            # POTO, which labels no anchors: each object has one location of its own, as long as there are any left.
            locations = sum(x.shape[-2:].numel() for x in scores.logits)
            matched = sum(min(len(x), locations) for x in gt_instances)
            scores.positives = torch.full((), matched, device=scores.logits[0].device)
        capture.dense = scores
        return losses

    with patched_method(detector, "label_anchors", count), patched_method(detector, "forward_training", keep):
        yield capture


def check_scores(detector: nn.Module, method: str) -> None:
    """Raise InputError, naming the method, where a detector's class scores are not of a kind that is known here.

    Known are detectron2's dense detectors, which have a sigmoid for each class, and its R-CNN with a softmax.
    """
    heads = getattr(detector, "roi_heads", None)
    predictor: Any = getattr(heads, "box_predictor", None)
    softmax = type(predictor) is FastRCNNOutputLayers and not predictor.use_sigmoid_ce
    if not (isinstance(detector, DenseDetector) or (isinstance(heads, StandardROIHeads) and softmax)):
        raise InputError(
            f"{method} compares class scores, of detectron2's dense detectors or of its R-CNN with a softmax; it does"
            f" not know those of {type(detector).__name__}"
        )


def check_comparable(student: nn.Module, teacher: nn.Module, method: str) -> None:
    """Raise InputError, naming the method, where two detectors' scores are not of the same anchors and classes."""
    check_scores(student, method)
    own, theirs = _described(student), _described(teacher)
    if own != theirs:
        raise InputError(f"{method} compares class scores: those of the student are {own}, of the teacher {theirs}")


def _described(detector: nn.Module) -> str:
    known = cast(Any, detector)
    if hasattr(detector, "roi_heads"):
        return f"a {type(detector).__name__}'s, {known.roi_heads.num_classes} classes"
    scores = known.head.cls_score.bias.numel() if hasattr(detector, "head") else 0
    return f"a {type(detector).__name__}'s, {scores} at a location of {', '.join(known.head_in_features)}"


def other_logits(detector: nn.Module, features: Mapping[str, Tensor], scores: ScoreCapture) -> list[Tensor]:
    """Class logits of another detector, from its own features: of the same anchors, or of the same regions.

    One tensor a level, or a single one for R-CNN, whose head reads the regions that were sampled in ``scores``.
    """
    other = cast(Any, detector)
    if scores.regions is None:
        return list(other.head([features[x] for x in other.head_in_features])[0])
    heads = other.roi_heads
    pooled = heads.box_pooler([features[x] for x in heads.box_in_features], scores.regions.boxes)
    return [heads.box_predictor(heads.box_head(pooled))[0]]


def divergence(scores: ScoreCapture, other: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """T^2 times the KL divergence from a detector's class scores to another's (scalar, float32).

    ``other``: logits of :func:`other_logits`, which get no gradient. Dense detectors: of the two outcomes of each class
    at each anchor, the sum divided by the number of positives (the mean over the workers, at least 1). R-CNN: of the
    softmax over classes and background, the mean over the regions.
    """
    if scores.regions is not None:
        log_p, log_q = (
            F.log_softmax(x.float() / temperature, dim=1) for x in (other[0].detach(), scores.regions.logits)
        )
        total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total * (temperature**2 / max(1, len(log_q)))
    if scores.dense is None or scores.dense.positives is None:
        raise RuntimeError("the detector computed no losses inside capture_scores")
    summed = [
        BinaryDivergence.apply(own, theirs.detach(), temperature)
        for own, theirs in zip(scores.dense.logits, other, strict=True)
    ]
    return temperature**2 * torch.stack(summed).sum() / mean_over_workers(scores.dense.positives.float())


class BinaryDivergence(torch.autograd.Function):
    """Sum of KL(p || q) of Bernoulli distributions p = sigmoid(other / T) and q = sigmoid(logits / T), in float32.

    Its gradient, (q - p) / T, is computed in the forward pass and kept in the logits' type: a dense detector's scores
    are the largest tensors of a step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, other: Tensor, temperature: float) -> Tensor:
        with without_autocast(logits):
            x, y = logits.float() / temperature, other.float() / temperature
            p = y.sigmoid()
            total = (F.softplus(x) - F.softplus(y) - p * (x - y)).sum()
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(((x.sigmoid() - p) / temperature).to(logits.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0]).to(gradient.dtype), None, None
