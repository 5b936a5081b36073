"""What a directory's verdict says to run next, and how long that takes."""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ablations.plan import describe
from ablations.run import parser
from ablations.sweep_command import new_sweep
from analysis.stats.sequential import LAST_LOOK
from analysis.verdicts.next_step import MOST_SEEDS, ON_YOUR_DATA, Step, next_step
from analysis.verdicts.questions import asked
from analysis.verdicts.sentences import summary
from analysis.verdicts.verdict import verdicts
from lgd.config.extra_arms import ExtraArms
from lgd.config.presets import preset
from lgd.config.tuning_grids import LENGTH_FACTORS
from lgd.results.record import EvaluationPoint, Record, Scores

from .conftest import MakeRecord

RESIDUAL = "LGD residual (ours)"

START = datetime(2025, 1, 2, 3, 4, 5)

TRAINING = {"setup": 20.0, "training": 100.0}
"""Device-seconds, two minutes in all."""


def _arm(make: MakeRecord, name: str, aps: tuple[float, ...], teacher: float | None = None) -> list[Record]:
    """A training a seed, of two minutes, one after the other. teacher: AP of the teacher at the end."""
    records = []
    for seed, ap in enumerate(aps):
        started = START + timedelta(minutes=2 * seed)
        times = {"started": started.isoformat(), "finished": (started + timedelta(minutes=2)).isoformat()}
        record = make(name, seed, ap, 100.0, device_seconds=TRAINING, **times)
        if teacher is not None and record.student is not None:
            scores = Scores(AP=teacher, AP50=None, AP75=None, APs=None, APm=None, APl=None)
            points = [EvaluationPoint(step=600, student=record.student, teacher=scores)]
            record = record.model_copy(update={"evaluations": points})
        records.append(record)
    return records


def _next(records: list[Record], directory: Path) -> Step:
    return next_step(verdicts(records, asked(directory, records)), directory, records)


def _described(directory: Path, grid: str = "components", **changes: Any) -> Path:
    describe(grid, "nano", **changes).write(directory)
    return directory


def test_too_few_seeds_come_before_another_grid(make_record: MakeRecord, tmp_path: Path) -> None:
    """LGD's teacher never led, which a longer training may mend; of the other arm one seed tells nothing."""
    arms = ["baseline", "LGD", RESIDUAL]
    directory = _described(tmp_path, seeds=1, arms=",".join(arms))
    records = [
        *_arm(make_record, "baseline", (30.0,)),
        *_arm(make_record, "LGD", (28.0,), teacher=20.0),
        *_arm(make_record, RESIDUAL, (32.0,), teacher=40.0),
    ]
    step = _next(records, directory)
    assert step.command == (
        f"python ablations/run.py --grid components --preset nano --seeds 3 --arms 'baseline,LGD,{RESIDUAL}' --output"
        f" {directory}"
    )
    # All three ran at once. Two more seeds of three arms, two minutes each, three at a time.
    assert step.takes == "about 4 minutes here"
    assert summary(records, directory).lines[-1] == f"next: {step.command}  # about 4 minutes here"
    # Where the spread is known, the lengths are next.
    three = [
        *_arm(make_record, "baseline", (30.0, 30.1, 30.0)),
        *_arm(make_record, "LGD", (28.0, 28.0, 28.1), teacher=20.0),
        *_arm(make_record, RESIDUAL, (32.0, 32.0, 32.1), teacher=40.0),
    ]
    assert _next(three, _described(tmp_path, seeds=3)).command == (
        "python ablations/run.py --grid schedule-length --preset nano --seeds 3 --output results/schedule-length-nano"
    )


def test_an_arm_that_the_same_grid_would_be_told_of_does_not_end_the_search(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    """LGD's teacher never led in a table of lengths: another of these says nothing new. Of the other arm seeds do."""
    directory = _described(tmp_path, "schedule-length", seeds=3)
    records = [
        *_arm(make_record, "baseline", (30.0, 30.0, 30.0)),
        *_arm(make_record, "LGD", (28.0, 28.0, 28.1), teacher=20.0),
        *_arm(make_record, RESIDUAL, (31.0, 29.5, 31.5), teacher=40.0),
    ]
    found = verdicts(records, asked(directory, records))
    assert [x.question.arm for x in found if x.obstacles] == ["LGD"]
    (more,) = (x.more_seeds for x in found if not x.obstacles)
    assert more is not None
    looks = f"--until-decided --seeds 3 --max-seeds {3 + more + more % 2}"
    assert f"--grid schedule-length --preset nano {looks} --output" in _next(records, directory).command
    # With that told, too, nothing is left to ask of these data.
    told = [x for x in records if x.arm != RESIDUAL]
    assert _next([*told, *_arm(make_record, RESIDUAL, (28.0, 28.0, 28.1), 40.0)], directory) == Step(ON_YOUR_DATA)


def test_a_sweep_of_fixed_seeds_goes_on_with_planned_looks(make_record: MakeRecord, tmp_path: Path) -> None:
    """By a command that its directory takes, and whose intervals are widened for the looks to come."""
    directory = _described(tmp_path, seeds=4, arms="baseline,LGD", min_gain=0.3)
    records = [
        *_arm(make_record, "baseline", (30.0, 30.1, 30.0, 30.1)), *_arm(make_record, "LGD", (31.0, 29.8, 31.2, 30.9)),
    ]  # fmt: skip
    (before,) = verdicts(records, asked(directory, records))
    assert before.more_seeds is not None
    step = _next(records, directory)
    spec, there = new_sweep(parser().parse_args(shlex.split(step.command)[2:]))
    assert there == directory
    assert (spec.seeds, spec.looks[:3], spec.looks[-1] % 2, spec.min_gain) == (4, (4, 6, 8), 0, 0.3)
    assert spec.looks[-1] >= max(4 + before.more_seeds, LAST_LOOK)
    # What the seeds take that the spread asks for, of two arms, two minutes each, two at a time.
    assert step.seconds == pytest.approx(before.more_seeds * 120)
    spec.write(directory)
    (after,) = verdicts(records, asked(directory, records))
    assert before.gain is not None
    assert after.gain is not None
    assert after.gain.confidence > before.gain.confidence
    assert _next(records, directory).command == f"python ablations/run.py --resume {directory}"


def test_hundreds_of_seeds_are_not_suggested(make_record: MakeRecord, tmp_path: Path) -> None:
    directory = _described(tmp_path, "schedule-length", seeds=3)
    records = [
        *_arm(make_record, "baseline", (30.0, 30.0, 30.0)),
        *_arm(make_record, RESIDUAL, (34.0, 26.0, 30.1), teacher=40.0),
    ]
    (verdict,) = verdicts(records, asked(directory, records))
    assert verdict.more_seeds is not None
    assert verdict.more_seeds > MOST_SEEDS
    assert _next(records, directory).command == ""


@pytest.mark.parametrize(("data", "command"), [(None, ON_YOUR_DATA), ("shapes", ON_YOUR_DATA), ("coco-json:/mine", "")])
def test_what_is_decided_is_asked_of_your_data(
    data: str | None, command: str, make_record: MakeRecord, tmp_path: Path
) -> None:
    directory = _described(tmp_path, seeds=3, data=data)
    base = _arm(make_record, "baseline", (30.0, 30.1, 30.0))
    lost = [*base, *_arm(make_record, "LGD", (28.0, 28.0, 28.1))]
    assert _next(lost, directory).command == command
    lines = summary(lost, directory).lines
    assert [x for x in lines if x.startswith("next:")] == ([f"next: {command}"] if command else [])
    # Not while anything is open.
    still_open = [*base, *_arm(make_record, "LGD", (31.0, 29.5, 31.5))]
    assert ON_YOUR_DATA not in _next(still_open, directory).command


def test_the_time_of_longer_trainings_follows_from_their_steps(make_record: MakeRecord, tmp_path: Path) -> None:
    directory = _described(tmp_path, seeds=3, arms="baseline,LGD")
    records = [
        *_arm(make_record, "baseline", (30.0, 30.1, 30.0)), *_arm(make_record, "LGD", (28.0, 28.0, 28.1), teacher=20.0),
    ]  # fmt: skip
    step = _next(records, directory)
    spec = describe("schedule-length", "nano", seeds=3)
    assert "--grid schedule-length" in step.command
    # Each was trained for 600 steps in two minutes, two at a time.
    steps = preset("nano").schedule.steps * sum(LENGTH_FACTORS) * len(spec.arms) / len(LENGTH_FACTORS) * 3
    assert step.seconds == pytest.approx(steps * 120 / 600 / 2)


def test_the_time_of_a_baseline_at_equal_cost_is_the_arms(make_record: MakeRecord, tmp_path: Path) -> None:
    directory = _described(tmp_path, seeds=3)
    records = [
        *_arm(make_record, "baseline", (30.0, 30.1, 30.0)),
        *(
            x.model_copy(update={"seconds": {"training": 200.0}, "device_seconds": {"training": 240.0}})
            for x in _arm(make_record, "LGD", (33.0, 33.0, 33.1))
        ),
    ]
    step = _next(records, directory)
    assert "--equal-cost longer" in step.command
    # Also of an arm whose name tells what was switched on.
    option = "method.residual=true"
    ours = [
        x.model_copy(update={"overrides": [option], "experiment": x.experiment.override([option])})
        if x.arm == "LGD" else x
        for x in records
    ]  # fmt: skip
    assert {x.shown_arm for x in ours} == {"baseline", "LGD (ours: residual teacher)"}
    assert "--equal-cost longer" in _next(ours, directory).command
    # Three trainings of 240 device-seconds; six took 3 * (120 + 240) in three times two minutes.
    assert step.seconds == pytest.approx(3 * 240 / 3)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.0, ""),
        (20.0, "about 1 minute here"),
        (700.0, "about 12 minutes here"),
        (5400.0, "about 1.5 hours here"),
        (4e6, "about 1,111 hours here"),
    ],
)
def test_times_are_told_roughly(seconds: float | None, words: str) -> None:
    assert Step("command", seconds).takes == words


def test_without_measured_device_seconds_no_time_is_told(make_record: MakeRecord, tmp_path: Path) -> None:
    directory = _described(tmp_path, seeds=1)
    records = [make_record("baseline", 0, 30.0, 100.0), make_record("LGD", 0, 31.0, 100.0)]
    step = _next(records, directory)
    assert ("--seeds 3" in step.command, step.seconds) == (True, None)


def test_arms_that_were_not_begun_take_time_too(make_record: MakeRecord, tmp_path: Path) -> None:
    """A longer baseline what its arm took, others what all took on average."""
    longer = ExtraArms(equal_cost=("longer",))
    directory = _described(tmp_path, seeds=1, arms="baseline,LGD", extra=longer)
    records = [
        x.model_copy(update={"started": "yesterday"})
        for arm in ("baseline", "LGD")
        for x in _arm(make_record, arm, (30.0,))
    ]
    slower = {"device_seconds": {"training": 360.0}}
    records = [x.model_copy(update=slower) if x.arm == "LGD" else x for x in records]
    # Two more seeds of a baseline of 120 s and of LGD of 360 s, three of the longer baseline.
    assert _next(records, directory).seconds == pytest.approx(2 * 120 + 2 * 360 + 3 * 360)


def test_times_that_cannot_be_read_count_as_one_after_the_other(make_record: MakeRecord, tmp_path: Path) -> None:
    directory = _described(tmp_path, seeds=1, arms="baseline,LGD")
    records = [
        x.model_copy(update={"started": "yesterday"})
        for arm in ("baseline", "LGD")
        for x in _arm(make_record, arm, (30.0,))
    ]
    # Two more seeds of two arms, two minutes each.
    assert _next(records, directory).seconds == pytest.approx(2 * 2 * 120)
