"""A frozen teacher is trained once, shared, and paid for by every run that uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from lgd.config.experiment import Experiment
from lgd.errors import InputError
from lgd.results.record import load
from lgd.training import teacher as teachers_training
from lgd.training.build import build
from lgd.training.progress import Stopped
from lgd.training.run import run
from lgd.training.teacher import train_teacher, train_with_teacher
from tests.helpers import quick_experiment

FGFI: dict[str, Any] = {
    "method.name": "fgfi", "method.from_step": 2, "method.teacher.backbone.width": 8, "method.teacher.gate": False
}  # fmt: skip
"""A teacher of six steps detects nothing yet."""


def _quick(**changes: Any) -> Experiment:
    return quick_experiment(**{**FGFI, **{k.replace("__", "."): v for k, v in changes.items()}})


@pytest.mark.slow
def test_the_teacher_is_trained_once_and_always_paid_for(tmp_path: Path) -> None:
    teachers = tmp_path / "teachers"
    first = train_with_teacher(_quick(), tmp_path / "runs" / "a", teachers=teachers)
    (home,) = teachers.iterdir()
    alone = load(home / "record.json")
    assert first.status == "finished"
    assert first.pretraining is not None
    assert alone.experiment == _quick().teacher
    assert (first.pretraining.reused, first.pretraining.shared_by) == (False, 1)
    assert first.pretraining.device_seconds == alone.device_seconds
    assert first.pretraining.full == first.pretraining.amortised == sum(alone.device_seconds.values()) > 0
    assert alone.student is not None
    assert first.pretraining.AP == alone.student.AP
    assert first.pretraining.fingerprint == alone.fingerprint == home.name

    made = (home / "student.pth").stat().st_mtime_ns
    second = train_with_teacher(_quick(seed=1), tmp_path / "runs" / "b", teachers=teachers)
    assert second.pretraining is not None
    assert (home / "student.pth").stat().st_mtime_ns == made
    assert (second.pretraining.reused, second.pretraining.shared_by) == (True, 2)
    assert second.pretraining.full == first.pretraining.full
    assert second.pretraining.amortised == first.pretraining.full / 2
    # Once more in the same place is no further user.
    again = train_with_teacher(_quick(seed=1), tmp_path / "runs" / "b", teachers=teachers)
    assert again.pretraining == second.pretraining
    assert again.losses == second.losses

    other = train_with_teacher(_quick(method__teacher__seed=1), tmp_path / "runs" / "c", teachers=teachers)
    assert other.pretraining is not None
    assert not other.pretraining.reused
    assert len(list(teachers.iterdir())) == 2
    assert len({first.fingerprint, second.fingerprint, other.fingerprint}) == 3


@pytest.mark.slow
def test_nothing_is_imitated_before_its_time(tmp_path: Path) -> None:
    record = train_with_teacher(_quick(schedule__steps=8, method__from_step=4), tmp_path / "a")
    by_step = dict(record.losses["loss_distill"])
    assert [step for step, value in by_step.items() if value == 0] == [1, 2, 3, 4]
    plain = train_with_teacher(quick_experiment(schedule__steps=8, method__name="baseline"), tmp_path / "b")
    assert record.losses["loss_cls"][:5] == plain.losses["loss_cls"][:5]
    assert record.losses["loss_cls"][6] != plain.losses["loss_cls"][6]


def test_the_teachers_weights_are_those_it_was_trained_to(tmp_path: Path) -> None:
    experiment = _quick()
    train_with_teacher(experiment, tmp_path / "run")
    (home,) = (tmp_path / "teachers").iterdir()
    trained = torch.load(home / "student.pth", weights_only=True)["model"]
    model: Any = build(experiment, teacher=home / "student.pth").model
    (backbone,) = model.teacher._unregistered
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, trained[f"backbone.{name}"])
    # Only the student leaves a file that a detector loads.
    exported = torch.load(tmp_path / "run" / "student.pth", weights_only=True)["model"]
    assert exported.keys() == model.student.state_dict().keys()


def test_a_run_does_not_train_its_teacher_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method fgfi needs a frozen teacher"):
        run(_quick(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_teacher_goes_on(tmp_path: Path) -> None:
    calls = iter([False, False, False, True])
    with pytest.raises(Stopped):
        train_with_teacher(_quick(), tmp_path / "run", should_stop=lambda: next(calls))
    record = train_with_teacher(_quick(), tmp_path / "run")
    assert record.pretraining is not None
    (home,) = (tmp_path / "teachers").iterdir()
    assert load(home / "record.json").attempts == 2
    assert record.attempts == 1


def test_a_stop_is_answered_while_another_process_trains_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers_training, "LOCK_POLL", 0.05)
    acquire, tries = teachers_training._acquired, iter(range(20))

    def limited(*arguments: Any) -> bool:
        assert next(tries, None) is not None, "it does not ask whether to stop"
        return acquire(*arguments)

    monkeypatch.setattr(teachers_training, "_acquired", limited)
    asked = iter([False, False, True])
    with FileLock(tmp_path / "lock", is_singleton=False), pytest.raises(Stopped) as stopped:
        train_teacher(_quick(), tmp_path, should_stop=lambda: next(asked))
    assert stopped.value.step == 0
    assert list(asked) == []


def test_a_teacher_that_diverges_fails_the_run_in_one_line(tmp_path: Path) -> None:
    experiment = _quick(schedule__lr=1e12, schedule__clip=0, schedule__steps=40)
    with pytest.raises(RuntimeError, match="the teacher's training diverged: .*NaN") as caught:
        train_with_teacher(experiment, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "output", "words"),
    [
        ({"detector.weights": "no.pth"}, "run", "no.pth"),
        ({"log": ["mlflow"]}, "run", "mlflow"),
        ({}, "file/run", "file: a file, not a directory"),
    ],
)
def test_what_is_wrong_with_the_student_is_said_before_its_teacher_is_trained(
    changes: dict[str, Any], output: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("lgd.training.teacher.run", lambda *_, **__: pytest.fail("a training began"))
    experiment = _quick().override({"method.name": "fgfi"} | changes)
    with pytest.raises(InputError, match=words):
        train_with_teacher(experiment, tmp_path / output, teachers=tmp_path / "teachers")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.from_step": 6}, "method.from_step 6 must be below schedule.steps 6"),
        ({"method.teacher.steps": 1}, "method.teacher of fgfi describes a teacher that cannot be trained: .*warmup_"),
        ({"method.levels": "none"}, "method.levels"),
    ],
)
def test_what_cannot_imitate_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _quick().override(changes)
