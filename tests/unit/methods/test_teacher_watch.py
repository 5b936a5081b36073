"""Whether the teacher is ahead of its student: running means, and when distillation starts and pauses."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from lgd.config.phases import Phases, WatchedPhases
from lgd.config.schedule import Schedule
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.methods.teacher_watch import MEMORY, PATIENCE, TeacherWatch, read_period
from lgd.training import run as training
from tests.helpers import CLASSES, batch, quick_experiment, tiny_detector


def _losses(value: float) -> dict[str, Tensor]:
    return {"loss_cls": torch.tensor(value / 4), "loss_box_reg": torch.tensor(value * 3 / 4)}


def _feed(watch: TeacherWatch, step: int, instructive: float, student: float = 1.0) -> int:
    """Two batches and a read; the next step."""
    for _ in range(2):
        watch.add(_losses(student), _losses(instructive))
    watch.read(step + 2)
    return step + 2


def test_distillation_starts_when_the_teacher_stays_ahead_and_pauses_when_it_stays_behind() -> None:
    watch, step = TeacherWatch(), 0
    for instructive in (1.5, 0.5, 1.5, 0.4, 0.4):
        step = _feed(watch, step, instructive)
        assert not watch.teacher_is_ahead
    while not watch.teacher_is_ahead:
        step = _feed(watch, step, 0.4)
    begun = step + 1
    for _ in range(PATIENCE + 3):
        step = _feed(watch, step, 0.4)
    assert watch.periods == [[begun, -1]]
    # A bad read is not enough, but a bad time is.
    step = _feed(watch, step, 0.9)
    assert watch.teacher_is_ahead
    for _ in range(PATIENCE + 2):
        if watch.teacher_is_ahead:
            step = _feed(watch, step, 2.0)
    assert watch.periods == [[begun, step]]
    assert [lead > 0 for _, lead in watch.leads[-PATIENCE:]] == [False] * PATIENCE


def test_leads_are_running_means_as_a_part_of_the_students_loss() -> None:
    watch = TeacherWatch()
    _feed(watch, 0, 1.0, student=2.0)
    _feed(watch, 2, 3.0, student=2.0)
    assert [step for step, _ in watch.leads] == [2, 4]
    assert [lead for _, lead in watch.leads] == pytest.approx([0.5, 1 - (MEMORY * 1 + (1 - MEMORY) * 3) / 2])
    watch.add(_losses(1.0), _losses(float("nan")))
    watch.read(6)
    watch.read(7)
    assert len(watch.leads) == 2, "neither a loss that is not finite nor no loss at all is a read"


def test_a_checkpoint_between_two_reads_loses_nothing() -> None:
    whole = TeacherWatch()
    step = _feed(whole, 0, 0.5)
    whole.add(_losses(1.0), _losses(0.7))
    state = deepcopy(whole.state())
    other = TeacherWatch()
    other.restore(state, torch.device("cpu"))
    for watch in (whole, other):
        at = step
        for instructive in (0.7, 0.6, 0.5):
            at = _feed(watch, at, instructive)
    assert (other.leads, other.periods) == (whole.leads, whole.periods)
    assert other.state() == whole.state()


def test_periods_within_the_phases() -> None:
    assert Phases(distill_from=4, distill_until=9).clipped([(1, 12)], 12) == [(5, 9)]
    assert WatchedPhases(distill_until=9).clipped([[2, 3], [6, -1]], 12) == [(2, 3), (6, 9)]
    assert WatchedPhases().clipped([[2, -1]], 5) == [(2, 5)]
    assert read_period(180_000) == 3_600
    assert read_period(10) == 1


def test_the_distance_reaches_the_student_only_while_the_teacher_is_ahead() -> None:
    torch.manual_seed(1)
    model: Any = Distiller(
        tiny_detector(), ImplicitTeacher(16, CLASSES), DistillationDistance(16), phases=WatchedPhases(distill_until=8)
    ).train()
    with EventStorage(0) as storage:
        for periods, iteration, reaches in (([], 5, False), ([[1, -1]], 5, True), ([[1, 4]], 5, False)):
            model.watch.periods, storage.iter = periods, iteration
            model.zero_grad(set_to_none=True)
            losses = model(batch([3]))
            losses["loss_distill"].backward()
            assert (model.student.backbone.fpn_output3.weight.grad is not None) is reaches
        model.watch.periods = [[1, -1]]
        assert not model.distills_student(8)
    totals = [sum(x.item() for n, x in losses.items() if n.startswith(p)) for p in ("loss_c", "instructive/loss_c")]
    boxes = [sum(x.item() for n, x in losses.items() if n.startswith(p)) for p in ("loss_b", "instructive/loss_b")]
    assert model.watch._sums[2] == 3
    model.watch._sums = None
    model.watch.add(
        {"a": torch.tensor(totals[0]), "b": torch.tensor(boxes[0])},
        {"a": torch.tensor(totals[1]), "b": torch.tensor(boxes[1])},
    )
    model.watch.read(1)
    assert model.watch.leads == [(1, pytest.approx(1 - (totals[1] + boxes[1]) / (totals[0] + boxes[0]), rel=1e-5))]


def test_the_setting_and_the_record(tmp_path: Path) -> None:
    auto = Schedule(steps=100, warmup_steps=5, distill_from="auto", frozen=0.1, distill_until=0.8)
    assert auto.phases == WatchedPhases(10, 5, 80)
    for wrong in ("often", 1.5, True):
        with pytest.raises(InputError, match="must be auto or a number from 0 to 1"):
            quick_experiment(schedule__distill_from=wrong)
    record = training.run(quick_experiment(schedule__distill_from=0.5), tmp_path / "fixed")
    assert record.distilled == [(4, 6)]
    assert [step for step, _ in record.teacher_lead] == [1, 2, 3, 4, 5, 6]
    assert record.teacher_beat_student is not None
    off = training.run(quick_experiment(method__distill_weight=0.0, evaluation__teacher=False), tmp_path / "off")
    assert off.distilled == []
    assert off.teacher_beat_student is any(lead > 0 for _, lead in off.teacher_lead)


def test_workers_that_see_different_losses_come_to_one_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is ahead on one worker and behind on the other; over both batches it is ahead."""
    watches = (TeacherWatch(), TeacherWatch())
    one = TeacherWatch()
    for step in range(1, PATIENCE + 1):
        for watch, instructive in zip(watches, (0.1, 1.5), strict=True):
            watch.add(_losses(1.0), _losses(instructive))
            one.add(_losses(1.0), _losses(instructive))
        one.read(step)
        own = [x._sums.tolist() for x in watches if x._sums is not None]
        monkeypatch.setattr("lgd.distributed.ranks.all_gather", lambda _, own=own: own)
        for watch in watches:
            watch.read(step)
        monkeypatch.undo()
    assert watches[0].periods == watches[1].periods == one.periods == [[PATIENCE + 1, -1]]
    assert watches[0].leads == watches[1].leads == one.leads
