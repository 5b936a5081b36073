"""Studies: runs of the evidence grid in one results directory, and every comparison in them as one frame."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.frame import frame, write_csv
from analysis.frontier import on_gpu
from analysis.load import Run, arm_of, by_seed, finished, load_runs, score, training_device_seconds
from analysis.render import markdown
from analysis.stats import Difference, paired_difference, paired_ratio, verdict
from analysis.sweep_table import main_table, sweep_of
from lgd.config.arms import Arm, Grid
from lgd.config.grids import EVIDENCE, NOISE_FLOOR, grid
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import Record

NOTES = "notes.md"
"""In a results directory: a person's reading of it, which its page takes in as it is."""

KEPT_FILES = ("sweep.json", NOTES, "trials/*/record.json", "trials/*/metrics.json", "trials/*/error.txt")
"""Files that are kept of a results directory: records and logs, no weights.

A sweep goes on from these: what has a record is not run again. So nothing of FGFI's teachers, whose record would pass
for their weights; what they cost is in the records of the runs that use them.
"""

Value = Callable[[Record], float | None]

AP: Value = score("AP")


def keep(source: Path, target: Path) -> list[Path]:
    """Copy what is worth keeping of a results directory, and write its ``records.csv`` and ``table.md``; their paths.

    Raises InputError where there is no record, and where ``target`` has a trial that ``source`` lacks: the page would
    mix two sweeps.
    """
    runs = load_runs(source)
    if not runs:
        raise InputError(f"{source}: no trials/*/record.json in it")
    for other in sorted(target.glob("trials/*/record.json")):
        if not (source / other.relative_to(target)).exists():
            raise InputError(f"{other} is no trial of {source}: remove {target}, or keep under another name")
    copied = []
    for path in sorted(x for pattern in KEPT_FILES for x in source.glob(pattern)):
        copied.append(target / path.relative_to(source))
        copied[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied[-1])
    records = [run.record for run in runs]
    write_csv(frame(records), target / "records.csv")
    write_text(target / "table.md", markdown(main_table(runs, sweep_of(source, records)), title=False))
    return [*copied, target / "records.csv", target / "table.md"]


@dataclass(frozen=True)
class Family:
    """A detector's arms: the baseline that they are compared with, and LGD whole ("" where it was not trained)."""

    detector: str
    baseline: str
    lgd: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Study:
    """Runs of one grid in one directory."""

    directory: Path
    runs: tuple[Run, ...]
    grid: Grid

    @property
    def name(self) -> str:
        return self.directory.name

    @cached_property
    def records(self) -> list[Record]:
        return [run.record for run in self.runs]

    @cached_property
    def families(self) -> list[Family]:
        by_baseline: dict[str, list[Arm]] = {}
        trained = {arm_of(record) for record in self.records}
        for arm in self.grid.arms:
            if arm.name in trained:
                by_baseline.setdefault(self.grid.references[arm.name], []).append(arm)
        return [
            Family(
                baseline.removesuffix(" baseline"),
                baseline,
                next((x.name for x in arms if not x.changes), ""),
                tuple(arms),
            )
            for baseline, arms in by_baseline.items()
        ]

    @property
    def data(self) -> str:
        return " and ".join(dict.fromkeys(Path(r.experiment.data.source).name for r in self.records))

    @property
    def steps(self) -> int:
        """Steps of the arms that are not trained for equal time."""
        return self.records[0].experiment.schedule.steps

    @property
    def on_gpu(self) -> bool:
        return all(map(on_gpu, self.records))

    @cached_property
    def _finished(self) -> dict[str, dict[int, Record]]:
        return {arm: finished(self.records, arm) for arm in {arm_of(record) for record in self.records}}

    def finished(self, arm: str) -> dict[int, Record]:
        """By seed; none for an arm that was not trained."""
        return self._finished.get(arm, {})

    def values(self, arm: str, value: Value) -> dict[int, float]:
        """By seed."""
        return by_seed(self.finished(arm), value)

    def mean(self, arm: str, value: Value) -> float | None:
        found = self.values(arm, value).values()
        return fmean(found) if found else None

    def difference(self, arm: str, other: str, value: Value = AP) -> Difference | None:
        """``arm`` less ``other``, paired by seed."""
        return paired_difference(self.values(arm, value), self.values(other, value))


def load_studies(directories: Iterable[Path]) -> list[Study]:
    """The runs of the evidence and the noise-floor grid by directory. Raises InputError for a directory without."""
    found = []
    for directory in directories:
        runs = load_runs(directory)
        for name in (EVIDENCE, NOISE_FLOOR.name):
            ours = tuple(run for run in runs if run.record.grid == name)
            if ours:
                found.append(Study(directory, ours, grid(name, ours[0].record.preset)))
        if not any(run.record.grid in (EVIDENCE, NOISE_FLOOR.name) for run in runs):
            raise InputError(f"{directory}: no run of the grids {EVIDENCE} and {NOISE_FLOOR.name} in it")
    return found


# -------------------------------------------------------------------------------------------- comparisons

COLUMNS = {
    **dict.fromkeys(("study", "data", "device", "detector", "arm", "other", "kind", "verdict"), "string"),
    **dict.fromkeys(("steps", "pairs"), "Int64"),
    **dict.fromkeys(("AP", "other_AP", "gain", "gain_low", "gain_high", "cost"), "Float64"),
}


def comparisons(studies: Iterable[Study]) -> pd.DataFrame:
    """Every pair of arms that a study compares, a row a pair. Columns:

    - ``study`` (its directory), ``data``, ``device`` (GPU or CPU), ``steps``, ``detector``, ``arm``;
    - ``other``: the arm that it is compared with; ``kind``: ``baseline`` (after equal steps), ``LGD`` (a part of
      LGD against LGD whole, after equal steps), ``equal time`` (LGD against an arm that had its training time) or
      ``longer`` (that arm against itself after the shared steps);
    - ``AP``, ``other_AP``: percent, means over the seeds that both finished;
    - ``gain``, ``gain_low``, ``gain_high``: arm less other, points, over ``pairs`` seeds; ``verdict``: see
      :func:`analysis.stats.verdict`;
    - ``cost``: device-seconds of the training over the other's, over the same seeds.
    """
    rows = [
        _row(study, family, arm, other, kind)
        for study in studies
        for family in study.families
        for arm, other, kind in _pairs(family)
    ]
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=dtype) for name, dtype in COLUMNS.items()})


def _pairs(family: Family) -> Iterator[tuple[str, str, str]]:
    for arm in family.arms:
        if arm.time_budget_from:
            yield arm.time_budget_from, arm.name, "equal time"
            yield arm.name, arm.steps_from, "longer"
        elif arm.name != family.baseline:
            yield arm.name, family.baseline, "baseline"
            if family.lgd and arm.changes and "method.name" not in arm.changes:
                yield arm.name, family.lgd, "LGD"


def _row(study: Study, family: Family, arm: str, other: str, kind: str) -> dict[str, Any]:
    gain = study.difference(arm, other)
    seeds = gain.seeds if gain else ()
    cost = paired_ratio(study.values(arm, training_device_seconds), study.values(other, training_device_seconds))
    return {
        "study": study.name,
        "data": study.data,
        "device": "GPU" if study.on_gpu else "CPU",
        "steps": study.steps,
        "detector": family.detector,
        "arm": arm,
        "other": other,
        "kind": kind,
        "AP": _mean_over(seeds, study.values(arm, AP)),
        "other_AP": _mean_over(seeds, study.values(other, AP)),
        "gain": gain and gain.mean,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
        "pairs": gain.n if gain else 0,
        "verdict": verdict(gain.low, gain.high) if gain else "",
        "cost": cost and cost.value,
    }


def _mean_over(seeds: Sequence[int], values: Mapping[int, float]) -> float | None:
    return fmean(values[seed] for seed in seeds) if seeds else None
