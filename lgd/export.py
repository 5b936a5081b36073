"""The trained student as a stock detectron2 checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lgd.distiller import Distiller
from lgd.files import replacing


def student_of(model: nn.Module) -> nn.Module:
    """The plain detector inside ``model`` (itself when there is no teacher)."""
    return model.student if isinstance(model, Distiller) else model


def export_student(model: nn.Module, path: Path) -> None:
    """Write the student's weights as detectron2's ``DetectionCheckpointer`` reads them, without teacher or adapter.

    ``DetectionCheckpointer(detector).load(path)`` loads them into the plain detector, every key matching.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in student_of(model).state_dict().items()}
    with replacing(path) as temporary:
        torch.save({"model": weights}, temporary)


def load_student(detector: nn.Module, path: Path) -> None:
    """Load what :func:`export_student` wrote into a plain detector, every key matching."""
    detector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
