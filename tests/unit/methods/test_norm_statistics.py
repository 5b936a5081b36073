"""Batch norms in a head that reads a teacher's features too: the student keeps its own statistics."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from lgd.config.phases import Phases
from lgd.detectors import build_detector
from lgd.methods.distiller import Distiller
from lgd.methods.dml.model import MutualLearning
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.methods.norm_statistics import SecondStatistics, statistics_kept, tracking_norms
from tests.helpers import CLASSES, batch, tiny_detector, tiny_settings


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with EventStorage(0) as opened:
        yield opened


def _student() -> Any:
    """RetinaNet with batch norms in its head."""
    detector = tiny_detector()
    torch.manual_seed(3)
    for tower in (detector.head.cls_subnet, detector.head.bbox_subnet):
        tower.insert(1, nn.BatchNorm2d(tower[0].out_channels))
    return detector


def _distiller() -> Any:
    student = _student()
    torch.manual_seed(1)
    return Distiller(student, ImplicitTeacher(16, CLASSES), DistillationDistance(16), phases=Phases())


def _statistics(detector: nn.Module) -> dict[str, Tensor]:
    return {k: x.clone() for k, x in detector.state_dict().items() if "running" in k or "num_batches" in k}


def test_the_student_has_the_statistics_of_its_own_features() -> None:
    plain, model = _student().train(), _distiller().train()
    before = _statistics(plain)
    for seed in range(2):
        plain(batch([3, 2], seed=seed))
        model(batch([3, 2], seed=seed))
    after = _statistics(plain)
    assert any(not torch.equal(after[k], before[k]) for k in after if k.startswith("head"))
    for name, value in _statistics(model.student).items():
        assert torch.equal(value, after[name]), name
    # Those of the teacher's features are its own, and saved with it.
    own = {k: x for k, x in model.state_dict().items() if k.startswith("second_statistics.running_mean")}
    assert len(own) == 2
    assert all(x.any() for x in own.values())
    assert not any(torch.equal(x, y) for x in own.values() for y in _statistics(model.student).values())


def test_the_teacher_is_evaluated_with_its_statistics() -> None:
    model = _distiller().train()
    for seed in range(3):
        model(batch([3, 2], seed=seed))
    model.eval()
    model.student.test_score_thresh = 0.0
    data = batch([3])
    with torch.no_grad(), model.teacher_inference():
        found = model(data)[0]["instances"].scores
    model.second_statistics = None
    with torch.no_grad(), model.teacher_inference():
        with_the_students = model(data)[0]["instances"].scores
    assert len(found) > 0
    assert not torch.equal(found, with_the_students)


def test_without_such_norms_nothing_is_added() -> None:
    student = tiny_detector()
    torch.manual_seed(1)
    model = Distiller(student, ImplicitTeacher(16, CLASSES), DistillationDistance(16), phases=Phases())
    assert not any("second_statistics" in k for k in model.state_dict())


@pytest.mark.parametrize("momentum", [0.1, None])
def test_norms_normalise_as_before_and_keep_their_statistics(momentum: float | None) -> None:
    torch.manual_seed(0)
    norm, images = nn.BatchNorm2d(4, momentum=momentum).train(), torch.randn(2, 4, 5, 5)
    norm(torch.randn(2, 4, 5, 5) + 1)
    before, expected = _statistics(norm), deepcopy(norm)(images)
    with statistics_kept([norm]):
        assert torch.equal(norm(images), expected)
    assert all(torch.equal(x, before[k]) for k, x in _statistics(norm).items())
    second = SecondStatistics([norm])
    with second.used():
        assert torch.equal(norm(images), expected)
    assert all(torch.equal(x, before[k]) for k, x in _statistics(norm).items())
    # They went on from the norm's own.
    alone = deepcopy(norm)
    alone(images)
    assert torch.equal(second.get_buffer("running_mean_0"), alone.get_buffer("running_mean"))
    norm(images)
    assert torch.equal(norm.get_buffer("running_mean"), alone.get_buffer("running_mean"))


def test_reading_the_others_regions_moves_no_statistics() -> None:
    """In deep mutual learning each R-CNN's head reads what the other one sampled."""
    detectors = list[Any]()
    for seed in range(2):
        torch.manual_seed(seed)
        detectors.append(build_detector(tiny_settings("faster_rcnn"), CLASSES))
        detectors[-1].roi_heads.box_head.append(nn.BatchNorm1d(32))
    norms = [tracking_norms(x, without=x.backbone) for x in detectors]
    assert [len(x) for x in norms] == [1, 1]
    MutualLearning(*detectors, phases=Phases()).train()(batch([3, 2]))
    assert [x.num_batches_tracked.item() for of in norms for x in of if x.num_batches_tracked is not None] == [1, 1]
