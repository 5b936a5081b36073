"""Every method on a dense detector and on R-CNN overfits two images: the student's own losses fall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from lgd.config.experiment import Experiment
from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.method import BUILT_IN
from lgd.training.build import build_model
from lgd.training.export import export_student
from tests.helpers import CLASSES, detector_batch, one_thread, quick_experiment

STEPS, RATE, FALL = 40, 3e-3, 0.8
"""Steps of Adam on one batch, their learning rate, and how far the student's losses fall at least."""


def _has_fallen(totals: list[float]) -> bool:
    return len(totals) >= 10 and sum(totals[-5:]) < FALL * sum(totals[:5])


def _overfit(model: nn.Module, detector: str, *, whole: bool = False) -> list[float]:
    """The student's losses, step by step, until they have fallen. whole: all STEPS."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], RATE)
    data, totals = detector_batch(detector, (3, 2)), []
    for step in range(STEPS):
        with EventStorage(step):
            losses: dict[str, torch.Tensor] = model.train()(data)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        totals.append(sum(x.item() for name, x in losses.items() if "/" not in name and name != "loss_distill"))
        if not whole and _has_fallen(totals):
            break
    return totals


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where frozen detectors that know the two images are kept, each once for all methods."""
    return tmp_path_factory.mktemp("teachers")


def _teacher(experiment: Experiment, teachers: Path) -> Path | None:
    if not isinstance(experiment.method, FrozenTeacherMethod):
        return None
    assert experiment.teacher is not None
    detector = experiment.teacher.detector
    path = teachers / f"{detector.name}-{detector.backbone.name}" / "student.pth"
    if not path.exists():
        path.parent.mkdir()
        model = build_model(experiment.teacher, CLASSES)
        _overfit(model, detector.name, whole=True)
        export_student(model, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_two_images_are_overfitted(detector: str, method: str, teachers: Path) -> None:
    if (detector, method) == ("retinanet", "tfkd"):
        pytest.skip("defined on R-CNN alone")
    experiment = quick_experiment(
        detector__name=detector, detector__fc_dim=32, detector__regions=32, detector__proposals=50, method__name=method
    )
    with one_thread():
        model: Any = build_model(experiment, CLASSES, teacher=_teacher(experiment, teachers))
        totals = _overfit(model, detector)
    assert _has_fallen(totals)
