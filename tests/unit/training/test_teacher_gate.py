"""A teacher must be better than the plain student; a given teacher is evaluated once and paid for as far as known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from analysis.load import identity
from lgd.config.experiment import Experiment
from lgd.config.frozen_teacher import exported_detector
from lgd.config.grids import experiment_of, grid
from lgd.config.paper import paper
from lgd.config.presets import PAPER, preset
from lgd.errors import InputError
from lgd.results.record import Pretraining, Record, Scores
from lgd.training import given_teacher
from lgd.training.build import dry_build
from lgd.training.run import run
from lgd.training.teacher import train_with_teacher
from lgd.training.teacher_gate import TeacherGateError, check_teacher, plain_students_ap
from tests.helpers import CLASSES, TINY_DETECTOR, quick_experiment, tiny_detector


def _scores(ap: float) -> Scores:
    return Scores(AP=ap, AP50=ap, AP75=ap, APs=None, APm=None, APl=None)


def _teacher(ap: float | None) -> Pretraining:
    return Pretraining(
        fingerprint="f", backbone="resnet34", steps=6, AP=ap, device_seconds={"training": 1}, reused=False
    )


def _save(directory: Path, experiment: Experiment, ap: float, **changes: Any) -> None:
    record = Record(status="finished", experiment=experiment, student=_scores(ap), data={"fingerprint": "d"})
    record.model_copy(update=changes).save(directory)


PKD = quick_experiment(method__name="pkd")


@pytest.mark.parametrize(
    ("reached", "plain", "words"),
    [
        (
            20.04,
            20.04,
            "the teacher's AP is 20.0, no more than the plain student's 20.0: no student is trained from it",
        ),
        (0.4, None, "the teacher's AP is 0.4, below the floor 1: no student is trained from it"),
        (None, 3.0, "the teacher's AP is unknown"),
    ],
)
def test_a_teacher_that_is_no_better_stops_the_arm(reached: float | None, plain: float | None, words: str) -> None:
    with pytest.raises(TeacherGateError, match=words) as caught:
        check_teacher(PKD, _teacher(reached), plain)
    assert "method.teacher.gate=off" in str(caught.value)
    anyway = check_teacher(PKD.override(["method.teacher.gate=off"]), _teacher(reached), plain)
    assert (anyway.gate, anyway.plain_AP) == ("overruled", plain)


def test_a_better_teacher_passes() -> None:
    assert check_teacher(PKD, _teacher(20.1), 20.0).gate == "passed"
    assert check_teacher(PKD, _teacher(1.0), None).gate == "passed"
    # Born-again networks learn from their like.
    ban = quick_experiment(method__name="ban")
    assert check_teacher(ban, _teacher(19.0), 20.0).gate == "passed"
    assert check_teacher(quick_experiment(method__name="labelenc"), _teacher(None), 20.0).gate == ""


def test_the_papers_own_rows_are_trained_whatever_their_teachers_reach() -> None:
    """Three of FGFI's six in the paper's table have a teacher that is the student's equal, or less."""
    table, gates = paper().tables["teacher-based"], []
    for arm in (x for x in grid("teacher-based", "paper").arms if x.training and x.training.method == "fgfi"):
        assert arm.training is not None
        experiment = experiment_of(arm, PAPER, [])
        own = arm.training.baseline
        reached = table.value(own.model_copy(update={"backbone": arm.training.teacher}), "box_AP")
        gates.append(check_teacher(experiment, _teacher(reached), table.value(own, "box_AP")).gate)
        gated = experiment_of(arm, PAPER, ["method.teacher.gate=on"])
        assert gated.method.teacher.gate
        assert identity(gated) == identity(experiment), "the same training"
    assert gates == ["passed", "passed", "overruled", "passed", "overruled", "overruled"]
    for size in ("nano", "tiny", "small"):
        arm = next(x for x in grid("teacher-based", size).arms if x.training and x.training.method == "fgfi")
        assert experiment_of(arm, preset(size), []).method.teacher.gate


def test_the_plain_student_is_the_mean_of_the_baselines_of_the_same_detector_data_and_schedule(tmp_path: Path) -> None:
    baseline = PKD.override({"method.name": "baseline"})
    there = tmp_path / "pkd"
    assert plain_students_ap(PKD, "d", there) is None
    _save(tmp_path / "longer", baseline.override({"schedule.steps": 60}), 30.0, finished="2026-01-03")
    assert plain_students_ap(PKD, "d", there) == 30.0
    _save(tmp_path / "first", baseline, 10.0, finished="2026-01-01")
    _save(tmp_path / "second", baseline.override({"seed": 1}), 11.0, finished="2026-01-02")
    _save(tmp_path / "fewer", baseline.override({"data.train_fraction": 0.25}), 4.0, finished="2026-01-09")
    _save(tmp_path / "coarser", baseline.override({"precision": "bf16"}), 5.0, finished="2026-01-09")
    _save(tmp_path / "loaders", baseline.override({"data.workers": 2}), 11.0, finished="2026-01-02")
    _save(tmp_path / "wider", baseline.override({"detector.channels": 32}), 50.0, finished="2026-01-09")
    _save(tmp_path / "elsewhere", baseline, 60.0, finished="2026-01-09", data={"fingerprint": "other"})
    _save(tmp_path / "failed", baseline, 70.0, finished="2026-01-09", status="failed")
    _save(tmp_path / "lgd", PKD.override({"method.name": "lgd"}), 80.0, finished="2026-01-09")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "record.json").write_text("{")
    assert plain_students_ap(PKD, "d", there) == pytest.approx((10.0 + 11.0 + 11.0) / 3)


def test_without_a_baseline_of_its_schedule_the_plain_student_is_one_that_it_would_at_least_reach(
    tmp_path: Path,
) -> None:
    baseline, there = PKD.override({"method.name": "baseline"}), tmp_path / "pkd"
    for name, steps, ap, finished in [
        ("longest", 600, 40.0, "01"), ("shortest", 30, 10.0, "09"), ("long", 300, 30.0, "02"),
        ("long-again", 300, 31.0, "03"),
    ]:  # fmt: skip
        _save(tmp_path / name, baseline.override({"schedule.steps": steps}), ap, finished=f"2026-01-{finished}")

    def plain(steps: int) -> float | None:
        return plain_students_ap(PKD.override({"schedule.steps": steps}), "d", there)

    assert (plain(500), plain(299), plain(20), plain(900)) == (30.5, 10.0, 10.0, 40.0)
    _save(
        tmp_path / "faster", baseline.override({"schedule.steps": 400, "schedule.lr": 0.9}), 50.0, finished="2026-01-10"
    )
    assert plain(500) == 30.5


def test_a_given_teacher_is_looked_at_once_and_its_hours_are_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is another training's student, of another backbone, which its description tells."""
    heavier = quick_experiment(method__name="baseline", detector__backbone__name="resnet34")
    run(heavier, tmp_path / "teacher")
    weights = tmp_path / "teacher" / "student.pth"
    asked = quick_experiment(
        **{"method.name": "pkd", "method.teacher.weights": str(weights), "method.teacher.gate": False}
    )
    assert exported_detector(str(weights)) == heavier.detector
    with pytest.raises(ValueError, match="method pkd needs a frozen teacher"):
        run(asked, tmp_path / "pkd")
    first = train_with_teacher(asked, tmp_path / "runs" / "a")
    assert first.pretraining is not None
    assert (first.pretraining.backbone, first.pretraining.weights) == ("resnet34", str(weights))
    assert (first.pretraining.hours_known, first.pretraining.gate) == (False, "overruled")
    assert set(first.pretraining.device_seconds) == {"evaluation"}
    told = asked.override({"method.teacher.hours": 2, "seed": 1})
    second = train_with_teacher(told, tmp_path / "runs" / "b")
    assert second.pretraining is not None
    assert second.pretraining.reused
    assert (second.pretraining.shared_by, second.pretraining.hours_known) == (2, True)
    assert second.pretraining.device_seconds["training"] == 7200
    assert second.pretraining.device_seconds["evaluation"] == first.pretraining.device_seconds["evaluation"]
    # Two trainings on one device: each pays for the half that it holds.
    times = iter([100.0, 160.0])
    monkeypatch.setattr(given_teacher, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    half = train_with_teacher(asked, tmp_path / "halves" / "a", share=0.5)
    assert half.pretraining is not None
    assert half.pretraining.device_seconds == {"evaluation": 30.0}
    # Trained to another student than with a teacher of its own.
    assert first.fingerprint != dry_build(asked.override({"method.teacher.weights": "none"}))

    gated = asked.override({"method.teacher.gate": True, "method.teacher.floor": 99})
    with pytest.raises(TeacherGateError, match="below the floor 99"):
        train_with_teacher(gated, tmp_path / "runs" / "c")
    assert not (tmp_path / "runs" / "c").exists()
    with pytest.raises(InputError, match="there is no file"):
        dry_build(asked.override({"method.teacher.weights": str(tmp_path / "none.pth")}), to_train=True)


def test_layers_that_a_given_teacher_lacks_are_told_by_its_file_and_not_by_values(tmp_path: Path) -> None:
    """A detector may begin with the same values, as where its first layers are pretrained and frozen."""
    for classes, left in ((CLASSES, []), (CLASSES + 1, ["head.cls_score.weight"])):
        path = tmp_path / f"{classes}.pth"
        torch.save({"model": tiny_detector(classes=classes).state_dict()}, path)
        settings = TINY_DETECTOR.model_copy(update={"weights": str(path)})
        detector = tiny_detector()
        assert given_teacher._load(detector, settings) == left
        assert all(x.isfinite().all() for x in detector.parameters())
        assert torch.equal(detector.head.cls_score.weight, tiny_detector().head.cls_score.weight)
