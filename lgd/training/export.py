"""The trained student as a stock detectron2 checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lgd.files import atomic_write
from lgd.methods.distiller import student_of


def export_student(model: nn.Module, path: Path) -> None:
    """Write the student's weights in the format of detectron2's ``DetectionCheckpointer``, without teacher or adapter.

    ``DetectionCheckpointer(detector).load(path)`` loads them into the plain detector; every key matches.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in student_of(model).state_dict().items()}
    with atomic_write(path) as temporary:
        torch.save({"model": weights}, temporary)


def load_student(detector: nn.Module, path: Path) -> None:
    """Load a file of :func:`export_student` into a plain detector; every key must match."""
    detector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
