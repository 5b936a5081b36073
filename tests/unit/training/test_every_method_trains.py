"""Every method on a dense detector and on R-CNN, trained for a few steps: it learns, its costs add up, its student is
a stock detector."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from lgd.config.experiment import Experiment
from lgd.config.method import BUILT_IN
from lgd.detectors import build_detector
from lgd.results.cost_meter import PHASES
from lgd.training.build import build_model
from lgd.training.export import TrainedStudent
from lgd.training.optimizer import build_optimizer
from lgd.training.teacher import train_with_teacher
from tests.helpers import CLASSES, detector_batch, one_thread, quick_experiment

pytestmark = pytest.mark.slow

CASES = [
    pytest.param(detector, method, id=f"{detector}-{method}")
    for detector in ("retinanet", "faster_rcnn")
    for method in BUILT_IN
    if (detector, method) != ("retinanet", "tfkd")
]

WHOLE = [x for x in CASES if x.values[0] == "retinanet" or x.values[1] in ("tfkd", "labelenc", "ban")]
"""Those that are trained whole: on R-CNN the methods that read its head, or start from one."""

STEPS, FALL = 16, 0.8
"""Steps on one batch, and how far the student's losses fall at least."""


def _experiment(detector: str, method: str) -> Experiment:
    small = {"detector__name": detector, "detector__fc_dim": 32, "detector__regions": 16, "detector__proposals": 50}
    experiment = quick_experiment(**small, method__name=method)
    gate = {"method.teacher.gate": False} if experiment.has_setting("method.teacher.gate") else {}
    return experiment.override(gate)


@pytest.mark.parametrize(("detector", "method"), CASES)
def test_a_few_steps_on_two_images_lower_the_students_losses(detector: str, method: str) -> None:
    experiment = _experiment(detector, method)
    with one_thread():
        model: Any = build_model(experiment, CLASSES).train()
        optimizer, data = build_optimizer(model, experiment), detector_batch(detector, (3, 2))
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        totals = []
        for step in range(STEPS):
            with EventStorage(step):
                losses = model(data)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_value_([p for p in model.parameters() if p.grad is not None], 0.1)
            optimizer.step()
            totals.append(sum(x.item() for name, x in losses.items() if "/" not in name and name != "loss_distill"))
    assert sum(totals[-3:]) < FALL * sum(totals[:3])


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frozen teachers, each trained once for all methods."""
    return tmp_path_factory.mktemp("teachers")


@pytest.mark.parametrize(("detector", "method"), WHOLE)
def test_a_training_pays_for_its_teacher_and_leaves_a_stock_detector(
    detector: str, method: str, teachers: Path, tmp_path: Path
) -> None:
    experiment = _experiment(detector, method)
    if experiment.teacher is not None:
        train_with_teacher(experiment, tmp_path / "first", teachers=teachers)
    started = time.perf_counter()
    record = train_with_teacher(experiment, tmp_path / "run", teachers=teachers)
    wall = time.perf_counter() - started
    assert (record.status, record.steps) == ("finished", experiment.schedule.steps)
    # The phases are all there is of the time, and one process is charged for it.
    assert record.seconds.keys() == set(PHASES)
    assert sum(record.seconds.values()) == pytest.approx(wall, rel=0.25)
    assert record.device_seconds == record.seconds
    assert (record.pretraining is not None) is (experiment.teacher is not None)
    if record.pretraining is not None:
        assert record.pretraining.reused
        assert record.pretraining.full > 0
    assert (record.parameters["teacher"] > 0) is any(
        name.startswith(("teacher.", "distance.")) for name, _ in build_model(experiment, 4).named_parameters()
    )
    student = TrainedStudent(tmp_path / "run")
    stock = build_detector(experiment.detector, 4)
    stock.load_state_dict(torch.load(tmp_path / "run" / "student.pth", weights_only=True)["model"])
    image = detector_batch(detector, (1,))[0]
    with torch.no_grad():
        mine, its = (x.eval()([image])[0]["instances"] for x in (student.detector, stock))
    assert torch.equal(mine.pred_boxes.tensor, its.pred_boxes.tensor)
    assert torch.equal(mine.scores, its.scores)
