"""Every method on a dense detector and on R-CNN, trained for a few steps: its costs add up, its student is a stock
detector."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from lgd.config.experiment import Experiment
from lgd.config.method import BUILT_IN
from lgd.data.catalog import load_dataset
from lgd.detectors import build_detector
from lgd.results.cost_meter import PHASES
from lgd.training.build import build_model
from lgd.training.export import TrainedStudent
from lgd.training.teacher import teacher_directory, train_teacher, train_with_teacher
from tests.helpers import detector_batch, quick_experiment

pytestmark = pytest.mark.slow

CASES = [
    pytest.param(detector, method, id=f"{detector}-{method}")
    for detector in ("retinanet", "faster_rcnn")
    for method in BUILT_IN
    if (detector, method) != ("retinanet", "tfkd")
]

WHOLE = [x for x in CASES if x.values[0] == "retinanet" or x.values[1] in ("tfkd", "labelenc", "ban")]
"""Those that are trained whole: on R-CNN the methods that read its head, or start from one."""


def _experiment(detector: str, method: str) -> Experiment:
    small = {"detector__name": detector, "detector__fc_dim": 32, "detector__regions": 16, "detector__proposals": 50}
    experiment = quick_experiment(**small, method__name=method)
    gate = {"method.teacher.gate": False} if experiment.has_setting("method.teacher.gate") else {}
    return experiment.override(gate)


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
        train_teacher(experiment.teacher, teacher_directory(experiment.teacher, teachers), arm="teacher")
    started = time.perf_counter()
    record = train_with_teacher(experiment, tmp_path / "run", teachers=teachers)
    wall = time.perf_counter() - started
    assert (record.status, record.steps) == ("finished", experiment.schedule.steps)
    # The phases are parts of the time there was, none of them counted twice, and one process is charged for them.
    assert record.seconds.keys() == set(PHASES)
    assert 0 < sum(record.seconds.values()) <= wall
    assert record.device_seconds == record.seconds
    assert (record.pretraining is not None) is (experiment.teacher is not None)
    if record.pretraining is not None:
        assert record.pretraining.reused
        assert record.pretraining.full > 0
    classes = len(load_dataset(experiment.data).class_names)
    names = [name for name, _ in build_model(experiment, classes).named_parameters()]
    beyond = [x for x in names if not x.startswith("student.")] if method != "baseline" else []
    assert (record.parameters["teacher"] > 0) is bool(beyond)
    student = TrainedStudent(tmp_path / "run")
    stock = build_detector(experiment.detector, classes)
    stock.load_state_dict(torch.load(tmp_path / "run" / "student.pth", weights_only=True)["model"])
    image = detector_batch(detector, (1,))[0]
    with torch.no_grad():
        mine, its = (x.eval()([image])[0]["instances"] for x in (student.detector, stock))
    assert torch.equal(mine.pred_boxes.tensor, its.pred_boxes.tensor)
    assert torch.equal(mine.scores, its.scores)
