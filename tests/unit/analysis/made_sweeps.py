"""Sweeps made of records alone, as their directories are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablations.equal_time import with_steps
from ablations.plan import describe
from lgd.config.extra_arms import AGAIN_SEEDS, ExtraArms
from lgd.config.grids import Trial, plan
from lgd.config.presets import Preset, preset
from lgd.results.record import Record

Ap = Callable[[Trial], tuple[float, float | None]]
"""AP of student and teacher of a trial, without what its seed adds."""

SPREAD = (0.3, -0.1, -0.2)
"""What the seeds of an arm other than the baseline differ by."""


def _scores(ap: float) -> dict[str, Any]:
    return {"AP": ap, "AP50": ap + 20, "AP75": ap - 5, "APs": None, "APm": None, "APl": None}


def made_sweep(
    place: Path,
    grid: str,
    ap: Ap,
    extra: ExtraArms | None = None,
    overrides: Sequence[str] = (),
    arms: str | None = None,
    size: Preset = "tiny",
    **changes: Any,
) -> Path:
    """A directory as a sweep of three seeds leaves it. size: its preset."""
    spec = describe(grid, size, seeds=3, overrides=overrides, arms=arms, extra=extra or ExtraArms())
    spec.write(place)
    whole = spec.whole_grid
    timed = {arm.name: 320 for arm in whole.arms if arm.time_budget_from}
    planned = tuple(with_steps(arm, timed) for arm in whole.arms if not arm.skipped and arm.name in spec.arms)
    for trial in plan(
        type(whole)(whole.name, whole.title, planned, whole.reference), preset(size), 3, overrides, place
    ):
        x = trial.experiment
        own, teacher = ap(trial)
        own += 2 * (x.seed % AGAIN_SEEDS) + (0.0 if trial.arm.startswith("baseline") else SPREAD[x.seed % AGAIN_SEEDS])
        seconds = x.schedule.steps * (0.5 if x.method.name == "baseline" else 1.0)
        of_teacher = None if teacher is None else _scores(teacher + 2 * (x.seed % AGAIN_SEEDS))
        record = {
            "status": "finished", "grid": grid, "preset": size, "arm": trial.arm, "experiment": x,
            "steps": x.schedule.steps, "student": _scores(own), "teacher": of_teacher,
            "evaluations": [
                {"step": x.schedule.steps, "student": _scores(own), "teacher": of_teacher, "label_use": 0.25}
            ],
            "device_seconds": {"training": seconds}, "seconds": {"training": seconds}, "data": {"train_images": 1000},
            "hardware": {"cpu": "A processor", "cores": "2", "memory_gib": "8", "gpu": "none"},
            "started": "2025-01-02T03:04:05+00:00", "finished": "2025-01-02T03:05:06+00:00",
            "overrides": list(overrides), **changes,
        }  # fmt: skip
        Record.model_validate(record).save(trial.directory)
        (trial.directory / "metrics.json").write_text("{}\n")
        (trial.directory / "student.pth").write_bytes(b"weights")
    return place
