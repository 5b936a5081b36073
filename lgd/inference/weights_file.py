"""A trained detector's weights for detectron2 and torchvision, and how they are loaded there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lgd.config.detector_source import kind_of
from lgd.config.experiment import split_assignment
from lgd.data.images import Pixels
from lgd.detectors.torchvision_models import builder_of, name_of
from lgd.errors import InputError
from lgd.inference.build_snippet import build_snippet
from lgd.inference.onnx_file import AGREEING, same_objects
from lgd.training.export import TrainedStudent, consented
from lgd.training.tensor_file import save_tensors

__all__ = ["export_detectron2", "export_torchvision"]


def export_detectron2(student: TrainedStudent, path: Path, source: str | None = None) -> list[str]:
    """Write a checkpoint of detectron2's ``DetectionCheckpointer``; returns the lines that load it.

    source: what --detector says, where the student was built from that. Raises InputError, one line, for a detector of
    torchvision's.
    """
    classes = len(student.description.class_names)
    settings = consented(student.description.experiment.detector, source, path)
    if kind_of(settings.source) == "torchvision":
        raise InputError(f"the student is torchvision's ({settings.source}): --format torchvision writes its weights")
    made = build_snippet(settings, classes)
    save_tensors({"model": student.detector.state_dict()}, path)
    loaded = f'DetectionCheckpointer(detector).load("{path}")'
    return [*made, "from detectron2.checkpoint import DetectionCheckpointer", loaded]


def export_torchvision(student: TrainedStudent, path: Path, image: Pixels) -> list[str]:
    """Write the state dict of torchvision's stock model, and check that it detects the same on ``image``.

    Returns the lines that load it. Raises InputError, one line, for another detector, and where the results differ.
    """
    settings, classes = student.description.experiment.detector, len(student.description.class_names)
    if kind_of(settings.source) != "torchvision":
        raise InputError(f"the student is not torchvision's ({settings.label}): --format detectron2 writes its weights")
    given = dict(split_assignment(x) for x in settings.overrides)
    sizes = student.description.preprocessing
    if not {"min_size", "max_size"} & given.keys() and getattr(student.detector.transform, "_skip_resize", False):
        given |= {"min_size": sizes.min_size, "max_size": sizes.max_size}
    stock = builder_of(settings.source)(weights=None, weights_backbone=None, num_classes=classes + 1, **given)
    weights = _stock_weights(student.detector, stock)
    try:
        stock.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the weights do not fit torchvision's model ({' '.join(str(error).split())[:300]})") from None
    _check_same(student, stock.eval(), image)
    save_tensors(weights, path)
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    name = name_of(settings.source)
    return [
        f"model = torchvision.models.detection.{name}(weights=None, weights_backbone=None, num_classes={classes + 1},"
        f" {arguments})",
        f'model.load_state_dict(torch.load("{path}", weights_only=True))',
        "model.eval()([image])  # (3, height, width), RGB, 0 to 1; labels count from 1",
    ]


def _stock_weights(detector: nn.Module, stock: nn.Module) -> dict[str, Tensor]:
    """The detector's weights under the names that the stock model has.

    Where the training began from weights, torchvision's batch norms were frozen ones, which count no batches.
    """
    ours = detector.state_dict()
    counts = {name: x for name, x in stock.state_dict().items() if name.endswith("num_batches_tracked")}
    return {name: x.detach().cpu().contiguous() for name, x in {**counts, **ours}.items()}


def _check_same(student: TrainedStudent, stock: nn.Module, image: Pixels) -> None:
    """Raise InputError, one line, where the stock model finds something else than the student."""
    resized = student.resized(image)
    # Both without resizing, which torchvision does with another filter.
    transform: Any = stock.transform
    skipped = getattr(transform, "_skip_resize", False)
    transform._skip_resize = getattr(student.detector.transform, "_skip_resize", False)
    with torch.no_grad():
        (found,) = stock([resized.flip(0) / 255])
        expected = student.detector([{"image": resized}])[0]["instances"]
    transform._skip_resize = skipped
    kept = {name: x[found["labels"] > 0] for name, x in found.items()}
    theirs = kept["boxes"], kept["scores"], kept["labels"] - 1
    same = same_objects((expected.pred_boxes.tensor, expected.scores, expected.pred_classes), theirs)
    if min(same.any(dim=1).sum(), same.any(dim=0).sum()) < AGREEING * max(same.shape):
        raise InputError("torchvision's model does not find what the student finds with the same weights")
