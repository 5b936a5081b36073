"""The trained student as a stock detectron2 checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lgd.files import atomic_write
from lgd.methods.distiller import student_of


def export_student(model: nn.Module, path: Path) -> None:
    """Write the student's weights as detectron2's ``DetectionCheckpointer`` reads them, without teacher or adapter.

    ``DetectionCheckpointer(detector).load(path)`` loads them into the plain detector, every key matching.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in student_of(model).state_dict().items()}
    with atomic_write(path) as temporary:
        torch.save({"model": weights}, temporary)


def load_student(detector: nn.Module, path: Path) -> None:
    """Load what :func:`export_student` wrote into a plain detector, every key matching."""
    detector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
