"""Predictions of what a sweep costs: their arithmetic, and that they come true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import measure_cost
from benchmarks.measure_cost import _ran_so, measure_missing, update_from_records
from benchmarks.measured_costs import (
    Measurement,
    MeasurementFile,
    checkpoints,
    cost_key,
    evaluations,
    experiment_in_worker,
)
from benchmarks.predict_cost import RAY_START_S, RAY_TRIAL_S, RAY_WAVE_S, WIDTH, Prediction, Row, predict
from benchmarks.timer_spec import Stage
from lgd.config.arms import Arm, Grid
from lgd.config.grids import Trial, plan
from lgd.config.presets import NANO
from lgd.data.loaders import processes_for
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.results import provenance
from lgd.results.record import Record
from lgd.training.run import failed_record
from lgd.training.teacher import teacher_directory
from tests.helpers import quick_experiment

ONE = Resources(1, 0.0, 1)
GRID = Grid("t", "t", (Arm("baseline", {"method.name": "baseline"}), Arm("LGD"), Arm("FGFI", {"method.name": "fgfi"})))


def key(resources: Resources = ONE, **changes: Any) -> str:
    return cost_key(quick_experiment(**changes), resources)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 3},
        {"schedule__steps": 50},
        {"schedule__lr": 0.3},
        {"schedule__frozen": 0.5},
        {"method__distill_weight": 3.0},
        {"evaluation__every": 2},
        {"data__shapes_train": 20},
        {"checkpoint__keep": 1},
    ],
    ids=lambda x: next(iter(x)),
)
def test_trainings_that_cost_the_same_share_a_key(changes: dict[str, Any]) -> None:
    assert key(**changes) == key()


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule__batch": 4},
        {"schedule__accumulate": 2},
        {"detector__channels": 24},
        {"detector__backbone__name": "resnet34"},
        {"method__name": "baseline"},
        {"method__name": "fgfi", "method__from_step": 1},
        {"method__encoder": False},
        {"method__detach_appearance": True},
        {"data__min_sizes": [48]},
        {"precision": "bf16"},
        {"threads": 2},
    ],
    ids=lambda x: "-".join(map(str, x.items())),
)
def test_what_costs_otherwise_has_a_key_of_its_own(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


def test_a_trial_is_measured_as_its_worker_runs_it() -> None:
    """On the sweep's threads, and on the CPU without a share of a GPU."""
    plain = NANO.override({"device": "auto"})
    assert experiment_in_worker(plain, Resources(3, 0.0, 1)) == plain.override({"threads": 3, "device": "cpu"})
    assert experiment_in_worker(plain, Resources(3, 0.5, 1)) == plain.override(
        {"threads": 3, "device": "cuda", "data.workers": processes_for(3)}
    )
    assert experiment_in_worker(plain.override({"threads": 2}), ONE).threads == 2
    # Three epochs of eleven images (a twelfth shows no object), two a step.
    epochs = quick_experiment().override({"schedule.epochs": 3})
    assert experiment_in_worker(epochs, ONE).schedule.steps == 17
    assert cost_key(experiment_in_worker(epochs, ONE), ONE) == cost_key(
        experiment_in_worker(quick_experiment(), ONE), ONE
    )


def test_the_key_knows_what_runs_beside_and_what_a_method_reads() -> None:
    assert key(Resources(1, 0.0, 2)) != key()
    assert key(Resources(1, 0.0, 1, workers=2)) != key()
    fgfi: dict[str, Any] = {"method__name": "fgfi", "method__from_step": 1}
    assert key(**fgfi, method__levels="all") != key(**fgfi)
    assert key(**fgfi, method__weight=0.5, method__teacher__seed=3) == key(**fgfi)


def test_counts_of_evaluations_and_checkpoints() -> None:
    base = NANO.override({"schedule.steps": 100})
    assert evaluations(base) == 1
    assert evaluations(base.override({"evaluation.every": 30})) == 4
    # The one at the end is the last of them.
    assert evaluations(base.override({"evaluation.every": 50})) == 2
    assert checkpoints(base) == 1
    assert checkpoints(base.override({"checkpoint.every": 30})) == 3
    assert checkpoints(base.override({"checkpoint.every": 0})) == 0


def trials_in(directory: Path, seeds: int = 1, **changes: Any) -> list[Trial]:
    return plan(
        GRID, quick_experiment(**{"schedule__steps": 100, "checkpoint__every": 30, **changes}), seeds, [], directory
    )


def test_a_measurement_that_is_none_is_made_again(tmp_path: Path) -> None:
    measurements = MeasurementFile(tmp_path / "measurements.json")
    measurements.save("a", Measurement(whole=2.0))
    kept = measurements.get("a")
    assert kept is not None
    assert kept.whole == 2.0
    text = measurements.path.read_text()
    for broken in (text.replace('"whole"', '"hole"'), text.replace('"a": {', '"b": {'), "{"):
        measurements.path.write_text(broken)
        assert measurements.get("a") is None


def test_a_prediction_adds_up_by_hand(tmp_path: Path) -> None:
    measurements = MeasurementFile(tmp_path / "measurements.json")
    trials = trials_in(tmp_path, schedule__frozen=0.25, schedule__distill_from=0.5, evaluation__teacher=True)
    baseline, lgd, fgfi = (t.experiment for t in trials)
    nothing = predict(trials, ONE, measurements)
    assert nothing.missing == ["baseline", "LGD", "FGFI"]
    assert nothing.gpu_hours == nothing.wall_seconds == 0
    assert nothing.lines() == [
        "no prediction, not measured on this machine yet: baseline, LGD, FGFI; --measure measures them"
    ]

    rest: dict[str, Any] = {"first": 2.0, "setup": 1.0, "evaluation": (0.5, 0.25), "checkpoint": 0.125}
    known = Measurement(steps={"not distilling": 0.1}, **rest)
    measurements.save(cost_key(baseline, ONE), known)
    measurements.save(
        cost_key(lgd, ONE), Measurement(steps={"frozen": 0.2, "not distilling": 0.4, "distilling": 0.6}, **rest)
    )
    measurements.save(cost_key(fgfi, ONE), Measurement(steps={"not distilling": 0.1, "distilling": 0.3}, **rest))
    assert predict(trials, ONE, measurements).missing == ["FGFI"], "its teacher is not measured"
    assert fgfi.teacher is not None
    measurements.save(cost_key(fgfi.teacher, ONE), Measurement(steps={"not distilling": 0.2}, **rest))

    found = predict(trials, ONE, measurements)
    assert not found.missing
    # Six images of the validation split; three checkpoints; twice as many detections with the teacher's features.
    other = 1.0 + 0.5 + 6 * 0.25 + 3 * 0.125
    totals = {row.arm: row.total for row in found.rows}
    assert totals == pytest.approx(
        {
            "baseline": 100 * 0.1 + 2 + other,
            "LGD": 25 * 0.2 + 25 * 0.4 + 50 * 0.6 + 2 + other + 0.5 + 6 * 0.25,
            "teacher": 100 * 0.2 + 2 + other,
            "FGFI": 10 * 0.1 + 90 * 0.3 + 2 + other,
        }
    )
    assert found.gpu_hours == pytest.approx(sum(totals.values()) / 3600)
    assert found.price(36.0) == pytest.approx(sum(totals.values()) / 100)
    assert found.wall_seconds == pytest.approx(
        RAY_START_S + 2 * RAY_WAVE_S + 4 * RAY_TRIAL_S + sum(totals.values())
    )  # fmt: skip
    assert found.lines(2)[0].startswith("predicted: 0.0")
    assert "device-hours on the CPU" in found.lines(2)[0]

    # Of two seeds, the teacher is trained for the first alone; one that is there costs nothing.
    two = trials_in(tmp_path, 2, schedule__frozen=0.25, schedule__distill_from=0.5, evaluation__teacher=True)
    assert [row.arm for row in predict(two, ONE, measurements).rows].count("teacher") == 1
    there = teacher_directory(fgfi.teacher, tmp_path / "teachers")
    record = failed_record(fgfi.teacher, "x").model_copy(update={"status": "finished"})
    record.save(there)
    assert "teacher" not in [row.arm for row in predict(two, ONE, measurements).rows]


def test_what_a_prediction_leaves_out_is_said_with_it_in_lines_that_fit() -> None:
    rows = [Row(f"arm {i}-seed0", f"arm {i}", {"training": 60.0}) for i in range(6)]
    missing = [f"an arm with a long name, number {i}" for i in range(17)]
    lines = Prediction([*rows, Row("x", "teacher", {"training": 60.0})], missing, 1.0, 0.0, 600.0).lines(2.0)
    assert max(map(len, lines)) <= WIDTH <= 100
    text = " ".join(line.strip() for line in lines)
    assert text.startswith(
        "predicted for 6 of 23 arms only: 0.117 device-hours on the CPU, 10:00 wall clock, at 2 an hour 0.23;"
        " not measured on this machine yet: an arm with a long name, number 0,"
    )
    assert all(arm in text for arm in missing)
    assert text.endswith("--measure measures them")
    # An arm with one seed that was measured and one that was not is not predicted.
    assert Prediction(rows, ["arm 5"], 1.0, 0.0, 600.0).lines()[0].startswith("predicted for 5 of 6 arms only: ")
    assert Prediction(rows, [], 1.0, 0.5, 600.0).lines() == ["predicted: 0.1 GPU-hours, 10:00 wall clock"]
    assert Prediction([], [], 1.0, 0.0, 0.0).lines() == []


def test_measurements_from_a_busy_machine_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance, "hardware", lambda: {"cores": "4", "cpu": "a CPU", "gpu": "none"})
    measurements, trials = MeasurementFile(tmp_path / "measurements.json"), trials_in(tmp_path)[:2]
    for trial, load in zip(trials, (0.9, 2.25), strict=True):
        steps = {"not distilling": 1.0, "distilling": 1.0}
        measurements.save(cost_key(trial.experiment, ONE), Measurement(steps=steps, other_cores=load))
    _, note = predict(trials, ONE, measurements).lines()
    assert note == "probably too much: while LGD was measured, other processes used up to 2.2 of 4 cores"


def test_side_by_side_takes_less_wall_time_and_as_many_hours(tmp_path: Path) -> None:
    measurements, trials = MeasurementFile(tmp_path / "measurements.json"), trials_in(tmp_path, 3)[::3]
    walls = []
    for at_once in (1, 2, 3):
        resources = Resources(1, 0.0, at_once)
        key_there = cost_key(experiment_in_worker(trials[0].experiment, resources), resources)
        measurements.save(key_there, Measurement(steps={"not distilling": 1.0}))
        found = predict(trials, resources, measurements)
        assert found.device_seconds == pytest.approx(300)
        walls.append(found.wall_seconds - RAY_START_S - RAY_WAVE_S)
    assert walls == pytest.approx([300 + 3 * RAY_TRIAL_S, 200 + 2 * RAY_TRIAL_S, 100 + RAY_TRIAL_S])


def test_several_workers_and_shares_of_a_gpu_are_charged_for(tmp_path: Path) -> None:
    measurements, trials = MeasurementFile(tmp_path / "measurements.json"), trials_in(tmp_path)[:1]
    for resources, hours, price in (
        (Resources(1, 0.0, 1, workers=4), 400, 400),
        (Resources(1, 0.5, 1), 50, 50),
    ):
        key_there = cost_key(experiment_in_worker(trials[0].experiment, resources), resources)
        measurements.save(key_there, Measurement(steps={"not distilling": 1.0}))
        found = predict(trials, resources, measurements)
        assert found.gpu_hours == pytest.approx(hours / 3600)
        assert found.price(3600) == pytest.approx(price)


def test_costs_are_taken_from_a_finished_training(tmp_path: Path) -> None:
    measurements, (planned, *_) = MeasurementFile(tmp_path / "measurements.json"), trials_in(tmp_path)
    # Evaluated at the end only, however long it is.
    trial = replace(planned, experiment=planned.experiment.override({"evaluation.every": 0}))
    base = failed_record(trial.experiment, "x").model_dump() | {
        "status": "finished",
        "steps": 100,
        "seconds": {"setup": 3.0, "training": 49.0, "evaluation": 12.0, "checkpoint": 0.6},
        "device_seconds": {"training": 49.0},
        "within_training": {"first_steps": 11.0, "data_wait": 1.0},
        "hardware": provenance.hardware(),
    }
    Record.model_validate({**base, "attempts": 2}).save(trial.directory)
    update_from_records([trial], ONE, measurements)
    assert predict([trial], ONE, measurements).missing == ["baseline"], "one that was interrupted tells nothing"
    for other in (
        {"hardware": {**provenance.hardware(), "cpu": "of another node"}},
        # As of a teacher that an earlier command trained on half of a GPU.
        {"device_seconds": {"training": 24.5}},
    ):
        Record.model_validate(base | other).save(trial.directory)
        update_from_records([trial], ONE, measurements)
        assert predict([trial], ONE, measurements).missing == ["baseline"]
    Record.model_validate(base).save(trial.directory)
    update_from_records([trial], ONE, measurements)
    assert predict([trial], ONE, measurements).device_seconds == pytest.approx(3 + 49 + 12 + 0.6)
    # Twice the steps and twice the images: 100 more of (49 - 11) / 95 s, 6 more of 2 s.
    longer = Trial(
        "baseline", trial.experiment.override({"schedule.steps": 200, "data.shapes_val": 12}), tmp_path / "x"
    )
    step = (49 - 11) / 95
    assert predict([longer], ONE, measurements).device_seconds == pytest.approx(
        3 + 49 + 100 * step + 24 + 6 * 0.2, rel=1e-6
    )


def test_a_mean_of_trainings_is_of_its_schedule() -> None:
    measured = Measurement(whole=2.0, shares={"not distilling": 0.25, "distilling": 0.75})
    rest, distilling = Stage(), Stage(distils=True)
    assert measured.training({rest: 100, distilling: 300}) == 800
    assert measured.training({rest: 200, distilling: 200}) is None
    assert measured.training({rest: 400}) is None


def test_a_broken_store_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    for text in ("", "{", "[]", '{"schema_version": 99, "measurements": {"a": 1}}'):
        path.write_text(text)
        assert MeasurementFile(path).get("a") is None
    MeasurementFile(path).save("a", Measurement(first=1.5))
    found = MeasurementFile(path).get("a")
    assert found is not None
    assert found == Measurement(first=1.5, evaluation=found.evaluation)


def test_each_of_several_workers_detects_on_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation is measured in one process that detects on all."""
    answers: dict[str, list[Any]] = {
        "time_steps": [SimpleNamespace(mean_ms=100.0, first_s=1.0)], "setup": [1.0], "checkpoint": [0.1],
        "evaluation": [(2.0, 0.4)],
    }  # fmt: skip
    monkeypatch.setattr(measure_cost, "request_all", lambda _, what, *__: answers[what])
    for workers, image in ((1, 0.4), (4, 0.1)):
        found = measure_cost._measure([], [Stage()], 100, workers)
        assert found.evaluation == pytest.approx((2.0, image))


def test_steps_are_measured_with_the_loader_processes_that_a_trial_has() -> None:
    sharing = experiment_in_worker(quick_experiment(), Resources(2, 0.5, 1))
    assert sharing.data.workers == processes_for(2)
    assert experiment_in_worker(quick_experiment(), ONE).data.workers == quick_experiment().data.workers


def test_a_machine_without_a_gpu_measures_no_trials_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError, match="^--measure: trials train on GPUs, and this machine has none"):
        measure_missing(trials_in(tmp_path), Resources(2, 1.0, 2), MeasurementFile(tmp_path / "measurements.json"))


@pytest.mark.parametrize(("gpu", "taken"), [("1 x NVIDIA H200, 140 GiB", True), ("1 x NVIDIA T4, 15 GiB", False)])
def test_a_worker_sees_one_of_the_machines_gpus(
    gpu: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**provenance.hardware(), "gpu": "8 x NVIDIA H200, 140 GiB"}
    monkeypatch.setattr(provenance, "hardware", lambda: here)
    record = failed_record(quick_experiment(), "x").model_copy(
        update={
            "hardware": {**here, "gpu": gpu},
            "seconds": {"training": 40.0},
            "device_seconds": {"training": 40.0},
        }
    )
    assert _ran_so(record, Resources(2, 1.0, 8)) == taken
