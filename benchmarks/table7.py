"""From measured steps to the paper's Table 7: what a method's training costs, in GPU-hours.

A step's time is the median of the steps timed in a row. In each round, a training is the sum over its stages (see
timer_spec.py) of steps times time per step. Differences and ratios are taken within a round, whose timings follow each
other closely; tables show the median of the rounds with their lowest and highest. Evaluation, set-up and loading are
left out: they cost every method the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import pandas as pd

from analysis.render import MISSING, pipe_table
from benchmarks.contention import contention_note
from benchmarks.options import read_results
from lgd.config.method import method_class
from lgd.config.paper import METHODS as NAMES
from lgd.config.paper import MethodName, MetricName, paper
from lgd.errors import InputError
from lgd.results import provenance

BASELINE, FGFI = "baseline", "fgfi"
METHODS = (BASELINE, FGFI, "lgd")
"""Methods that are measured unless others are asked for."""

TEACHER = " teacher"
"""Ends the name of a training that a method needs before: 'fgfi teacher' is FGFI's pre-training."""

PRETRAINING = "pretraining"
"""Column of a CSV: the training that a method needs before, by its name; absent in older ones, where it is the one with
the method's name and TEACHER."""

TABLE = "table7"
HOURS: tuple[MetricName, ...] = ("pretraining_hours", "overall_hours", "method_hours")
"""The paper's table and its columns, as lgd/config/paper.yaml names them."""

NUMBERS = {
    "stage_steps": 0, "round": 0, "median_ms": 1, "q25_ms": 1, "q75_ms": 1, "mean_ms": 1, "peak_mib": 1, "devices": 1,
    "schedule_steps": 1,
}  # fmt: skip
"""Columns of numbers: 1 where they must be above 0, 0 where 0 is allowed."""

TEXTS = ("method", "stage", "memory", "detector", "backbone", "teacher_backbone", "precision", "gpu", "cpu", "command")


@dataclass(frozen=True)
class RoundStats:
    """Median, lowest and highest of a figure over the rounds."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> RoundStats:
        return cls(median(values), min(values), max(values))

    def text(self, form: str = "{:.3g}", scale: float = 1.0) -> str:
        value, low, high = (form.format(scale * x) for x in (self.value, self.low, self.high))
        return value if low == high else f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class MethodCost:
    """A method's row: device-hours of pre-training, overall, and method-specific (beyond the baseline's training)."""

    pretraining: RoundStats | None
    overall: RoundStats
    specific: RoundStats | None
    ratio: RoundStats
    """Overall over the baseline's."""
    reduction: RoundStats | None
    """The method-specific cost is lower than FGFI's by this fraction."""
    peak_mib: float
    """Peak memory of a device, MiB."""


@dataclass(frozen=True)
class PaperCost:
    """The paper's row: hours of wall clock on its devices; None where it has no number."""

    pretraining: float | None
    overall: float
    specific: float | None
    ratio: float
    reduction: float | None


def read(path: Path) -> pd.DataFrame:
    """The rows that cost.py wrote, one a timing. Raises InputError, one line, for any other file."""
    frame = read_results(path, (*TEXTS, *NUMBERS), dict.fromkeys(TEXTS, "string"))
    for name, above in NUMBERS.items():
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
        wrong = frame.index[~(frame[name] >= above)] if not above else frame.index[~(frame[name] > 0)]
        if len(wrong):
            raise InputError(f"{path}:{int(wrong[0]) + 2}: {name} is no number {'above' if above else 'from'} 0")
    check(frame, str(path))
    return frame


def check(frame: pd.DataFrame, name: str) -> None:
    """Raise InputError unless every method is there, with each of its stages once in every round."""
    measured = set(frame["method"])
    wanted = {BASELINE, *pretrainings(frame).values()}
    if PRETRAINING not in frame and FGFI in measured:
        # Such files do not say which training a method needs before.
        wanted.add("fgfi teacher")
    absent = [x for x in (BASELINE, *sorted(wanted)) if x not in measured]
    if absent:
        raise InputError(f"{name}: nothing measured of {absent[0]!r}")
    rounds = set(frame["round"])
    for (method, stage), rows in frame.groupby(["method", "stage"]):
        if sorted(rows["round"]) != sorted(rounds):
            raise InputError(f"{name}: {method} ({stage}) was not measured once in each of the {len(rounds)} rounds")


def pretrainings(frame: pd.DataFrame) -> dict[str, str]:
    """The training that each method needs before, by method; methods that need none are left out."""
    if PRETRAINING in frame:
        named = frame[["method", PRETRAINING]].drop_duplicates()
        pairs = zip(named["method"], named[PRETRAINING], strict=True)
        return {str(method): x for method, x in pairs if isinstance(x, str) and x}
    names = dict.fromkeys(frame["method"])
    return {name: f"{name}{TEACHER}" for name in names if f"{name}{TEACHER}" in names}


def costs(frame: pd.DataFrame) -> dict[str, MethodCost]:
    """The rows of Table 7 by method."""
    hours, before = _hours(frame), pretrainings(frame)
    base = hours[BASELINE]
    methods = [name for name in hours if not name.endswith(TEACHER)]
    overall = {x: _sum(hours[x], hours[before[x]]) if x in before else hours[x] for x in methods}
    specific = {name: _sum(x, base, -1) for name, x in overall.items()}
    peaks = frame.groupby("method")["peak_mib"].max()
    found = {}
    for name, each in overall.items():
        compared = name not in (BASELINE, FGFI) and FGFI in specific
        less = [1 - a / b for a, b in zip(specific[name], specific[FGFI], strict=True) if b > 0] if compared else []
        found[name] = MethodCost(
            pretraining=RoundStats.of(hours[before[name]]) if name in before else None,
            overall=RoundStats.of(each),
            specific=RoundStats.of(specific[name]) if name != BASELINE else None,
            ratio=RoundStats.of([a / b for a, b in zip(each, base, strict=True)]),
            reduction=RoundStats.of(less) if less and len(less) == len(base) else None,
            peak_mib=float(max(peaks[x] for x in (name, before.get(name, name)))),
        )
    return found


def reported() -> dict[str, PaperCost]:
    """The paper's rows by method."""
    table = paper().tables[TABLE]
    hours: dict[str, Any] = {x.method: {y: table.value(x, y) for y in HOURS} for x in table.trainings}
    base, comparator = hours[BASELINE]["overall_hours"], hours[FGFI]["method_hours"]
    assert base
    assert comparator
    rows = {}
    for name, (pretraining, overall, specific) in ((x, y.values()) for x, y in hours.items()):
        assert overall is not None
        less = None if specific is None or name == FGFI else 1 - specific / comparator
        rows[name] = PaperCost(pretraining, overall, specific, overall / base, less)
    return rows


def markdown(frame: pd.DataFrame, price: float | None = None) -> str:
    """Table 7, the steps behind it, and notes. price: of a device-hour."""
    return "\n".join([_table(frame, price), "", _steps(frame), "", *(f"- {x}" for x in notes(frame)), ""])


def notes(frame: pd.DataFrame) -> list[str]:
    """Notes on the measurement and its machine, one line each."""
    first = frame.iloc[0]
    where = first["gpu"] if first["gpu"] != "none" else f"{first['cpu']}, {first['cores']} cores"
    unit = "GPU" if first["gpu"] != "none" else "worker process on the CPU"
    rounds = frame["round"].nunique()
    lines = [
        f"{first['detector']} {first['backbone']} (frozen teachers: {first['teacher_backbone']}),"
        f" {first['precision']}, {first['batch']} images a step on {first['devices']} device(s), synthetic ones of"
        f" {first['height']} x {first['width']} pixels with {first['objects']:g} boxes on average;"
        f" {first['schedule_steps']} steps.",
        f"Hours are device-hours (a device: a {unit}) of training alone: a stage's steps times the median step."
        f" {rounds} rounds, each with every method and stage once, in turn; medians of the rounds, in brackets lowest"
        " and highest. Ratios and differences are taken within a round.",
        f"{where}; torch {first['torch']}, detectron2 {first['detectron2']}, commit {short(first['git_commit'])};"
        f" measured {first['started']} by `{first['command']}`.",
    ]
    if first["devices"] > 1:
        lines.insert(1, "One device was measured, with its share of the batch; exchanging gradients is not included.")
    there = paper().tables[TABLE]
    lines.append(f"The paper's hours ({there.location}) are wall clock on {there.hardware}: compare ratios, not hours.")
    if "other_cores" in frame:
        spread = ((frame["q75_ms"] - frame["q25_ms"]) / frame["median_ms"]).median()
        lines.append(contention_note(list(frame["other_cores"]), int(first["cores"]), float(spread)))
    return lines


def _hours(frame: pd.DataFrame) -> dict[str, list[float]]:
    """Device-hours of each method's training by round, rounds rising."""
    spent = frame["stage_steps"] * frame["median_ms"] * frame["devices"] / 3.6e6
    by_round = spent.groupby([frame["method"], frame["round"]]).sum()
    return {method: [float(x) for x in by_round[method].sort_index()] for method in dict.fromkeys(frame["method"])}


def _sum(a: Sequence[float], b: Sequence[float], sign: int = 1) -> list[float]:
    return [x + sign * y for x, y in zip(a, b, strict=True)]


def _table(frame: pd.DataFrame, price: float | None) -> str:
    measured, there = costs(frame), reported()
    header = ["", "pre-training h", "overall h", "method-specific h", "overall / baseline", "less than FGFI"]
    header += ["peak MiB", *(["price"] if price is not None else [])]
    header += [f"paper: {x}" for x in ("pre-training h", "overall h", "specific h", "ratio", "less")]
    rows = []
    titles: dict[str, str] = {name: NAMES[cast(MethodName, name)] for name in there}
    for name in (*titles, *(x for x in measured if x not in titles)):
        paper_row = there.get(name)
        row, cost = [titles.get(name) or method_class(name).title], measured.get(name)
        if cost is None:
            row += [MISSING] * (6 + (price is not None))
        else:
            row += [_text(cost.pretraining), _text(cost.overall), _text(cost.specific)]
            row += [cost.ratio.text("{:.2f}"), cost.reduction.text("{:.0f}%", 100) if cost.reduction else MISSING]
            row += [f"{cost.peak_mib:.0f}", *([f"{cost.overall.value * price:.2f}"] if price is not None else [])]
        rows.append([*row, *_reported_cells(paper_row)])
    return pipe_table(header, rows)


def _reported_cells(row: PaperCost | None) -> list[str]:
    if row is None:
        return [MISSING] * 5
    less = MISSING if row.reduction is None else f"{100 * row.reduction:.0f}%"
    return [*(_number(x) for x in (row.pretraining, row.overall, row.specific)), f"{row.ratio:.2f}", less]


def _steps(frame: pd.DataFrame) -> str:
    rows = []
    for method in dict.fromkeys(frame["method"]):
        of_method = frame[frame["method"] == method]
        for stage in dict.fromkeys(of_method["stage"]):
            found = of_method[of_method["stage"] == stage]
            steps, planned = found["stage_steps"].iloc[0], found["schedule_steps"].iloc[0]
            step = RoundStats.of(list(found["median_ms"])).text("{:.1f}")
            quartiles = f"{found['q25_ms'].median():.1f} to {found['q75_ms'].median():.1f}"
            peak = f"{found['peak_mib'].max():.0f} ({found['memory'].iloc[0]})"
            rows.append([method, str(stage), f"{steps} of {planned}", step, quartiles, peak])
    return pipe_table(["method", "stage", "steps", "step ms", "middle half of the steps, ms", "peak MiB"], rows, left=2)


def _text(stats: RoundStats | None) -> str:
    return MISSING if stats is None else stats.text()


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:g}"


def short(commit: str) -> str:
    """The first 12 digits of a commit, with its ``+changes`` for a tree that differs from it."""
    name, plus, mark = commit.partition("+")
    return name[:12] + plus + mark


def provenance_columns() -> dict[str, str]:
    """Machine, versions, commit and time, which every row of a CSV repeats."""
    hardware, versions = provenance.hardware(), provenance.versions()
    return {
        **{x: hardware[x] for x in ("gpu", "cpu", "cores")},
        **{x: versions[x] for x in ("python", "lgd", "torch", "detectron2")},
        "git_commit": provenance.git_commit(),
        "started": provenance.now(),
    }
