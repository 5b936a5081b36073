"""Sweeps as they would have ended, without their trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ablations.equal_time import with_steps
from analysis.load import Run
from lgd.config.extra_arms import EVERY, with_extra_arms
from lgd.config.grids import grid, plan
from lgd.config.presets import NANO
from lgd.results.record import Contention, EvaluationPoint, Pretraining, Record, Scores
from lgd.results.sweep_spec import SweepSpec


def scores(ap: float) -> Scores:
    return Scores(AP=ap, AP50=ap, AP75=ap, APs=ap, APm=ap, APl=ap, mMR=ap)


def whole_sweep(name: str, overrides: Sequence[str] = (), directory: Path = Path("/r")) -> list[Run]:
    """Two seeds of every arm that a grid has or can have at preset ``nano``, with numbers as wide as they come.

    Teachers are never better than their students.
    """
    own = with_extra_arms(grid(name, "nano"), EVERY, NANO)
    steps = {arm.name: 8765 for arm in own.arms if arm.time_budget_from}
    # tf-KD is for another detector.
    arms = [with_steps(arm, steps) for arm in own.arms if arm.changes.get("method.name") != "tfkd"]
    runs = []
    for i, trial in enumerate(plan(replace(own, arms=tuple(arms)), NANO, 2, overrides, directory)):
        method, seconds = trial.experiment.method, 4_567_890.1 + 1000 * i
        own_scores, of_teacher = scores(20 + 70 * (i % 7) / 7), scores(12.5) if method.has_teacher_ap else None
        given = Pretraining(
            fingerprint="f", backbone="timm:tf_efficientnet_lite2", steps=9, AP=30.9, reused=True,
            device_seconds={"training": seconds},
        )  # fmt: skip
        record = Record(
            status="finished", grid=name, preset="nano", arm=trial.arm, overrides=list(overrides), steps=8765,
            experiment=trial.experiment, student=own_scores, student_mask=own_scores, teacher=of_teacher,
            evaluations=[EvaluationPoint(step=8765, student=own_scores, teacher=of_teacher)],
            pretraining=given if method.teacher_steps_key else None, data={"train_images": 118_287},
            seconds={"training": seconds}, device_seconds={"training": seconds}, peak_memory_mib={"host": 123_456.0},
            contention=Contention(own_cores=1, other_cores=1, cores=2),
        )  # fmt: skip
        runs.append(Run(record, trial.directory))
    return runs


def write_sweep(directory: Path, name: str, overrides: Sequence[str] = (), arms: Sequence[str] = ()) -> list[Run]:
    """The records of :func:`whole_sweep`, or of these ``arms`` of it, and their ``sweep.json``."""
    runs = [run for run in whole_sweep(name, overrides, directory) if not arms or run.record.arm in arms]
    for run in runs:
        run.record.save(run.directory)
    SweepSpec(
        grid=name, preset="nano", overrides=tuple(overrides), seeds=2, extra=EVERY,
        arms=tuple(dict.fromkeys(run.record.arm for run in runs)), reference=grid(name, "nano").reference,
    ).write(directory)  # fmt: skip
    return runs
