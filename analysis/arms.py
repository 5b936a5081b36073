"""The paper's tables side by side with ours, and what trainings cost: rows that say where each number comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd
from scipy import stats

from analysis import bootstrap
from analysis.load import (
    Run,
    arm_of,
    by_seed,
    changes,
    check_data,
    gpu_hours,
    identity,
    measured,
    pretraining_hours,
    same_data,
    score,
)
from analysis.render import NONE, Shown
from analysis.stats import Difference, mean_interval, paired_difference, paired_ratio
from lgd.config.experiment import Experiment
from lgd.config.grids import Arm, Grid, experiment_of, grid
from lgd.config.paper import SCORES, Training, paper
from lgd.config.paper_recipes import named
from lgd.config.presets import Preset, preset
from lgd.errors import InputError
from lgd.evaluation.evaluate import STUDENTS, load_detections
from lgd.results.record import Record

if TYPE_CHECKING:
    from lgd.data.dataset import DataSet

CONFIDENCE = 0.95
PRESETS: tuple[str, ...] = get_args(Preset)
"""The paper's last."""

COMPARISON = (
    *("setting", "method", "metric", "reported", "reported_where", "reproduced", "difference", "seeds", "mark"),
    *("reported_gain", "gain", "gain_low", "gain_high", "pairs", "image_low", "image_high", "skipped"),
)
COSTS = ("method", "quantity", "unit", "reported", "measured", "seeds", "mark", "skipped")
FRONTIER = (
    *("arm", "mark", "data", "seeds", "AP", "gpu_hours", "gain", "gain_low", "gain_high", "extra_hours", "front"),
)
NOISE = ("arm", "mark", "seeds", "AP", "sd", "lowest", "highest", "detectable_3", "detectable_5", "detectable_10")
"""Columns of the tables below."""

Seeds = dict[int, Run]
"""Finished runs of one training by seed, seeds rising."""


@dataclass(frozen=True)
class Source:
    """Which trainings a cell's runs are: a preset's, and what the command changed about it."""

    size: str
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Marks a cell; "" for the paper's own setting."""
        if not self.overrides:
            return "" if self.size == "paper" else self.size
        return f"{self.size}, changed"

    @property
    def rank(self) -> tuple[bool, int, tuple[str, ...]]:
        """Lower is nearer to the paper."""
        return self.label != "", -PRESETS.index(self.size), self.overrides


@dataclass
class Cells:
    """The runs of a grid's arms. Arms are compared within one source alone."""

    grid: Grid
    runs: dict[str, dict[Source, Seeds]] = field(default_factory=dict)

    def source(self, arm: str) -> Source | None:
        """The source nearest to the paper that an arm has finished runs of."""
        return min(self.runs.get(arm, {}), key=lambda x: x.rank, default=None)

    def of(self, arm: str, source: Source | None) -> Seeds:
        return self.runs.get(arm, {}).get(source, {}) if source else {}


def cells(runs: Sequence[Run], table: str) -> Cells:
    """Put finished runs where they belong in a grid.

    By what was trained, not by what it was called: a run counts for an arm when its experiment is the arm's at its
    preset with its overrides, whatever grid or command it comes from.
    """
    found = Cells(grid(table))
    planned: dict[Source, dict[Experiment, str]] = {}
    for run in (x for x in runs if x.record.status == "finished"):
        source = _source(run.record)
        if source is None:
            continue
        if source not in planned:
            planned[source] = _planned(table, source)
        arm = planned[source].get(identity(run.record.experiment))
        if arm is not None:
            seeds = found.runs.setdefault(arm, {}).setdefault(source, {})
            # A training that ran under two names: the first to finish, whatever its score.
            other = seeds.get(run.record.experiment.seed)
            if other is None or run.record.finished < other.record.finished:
                seeds[run.record.experiment.seed] = run
    for sources in found.runs.values():
        for source, seeds in sources.items():
            sources[source] = dict(sorted(seeds.items()))
    return found


def _source(record: Record) -> Source | None:
    if record.preset in PRESETS:
        return Source(record.preset, changes(record))
    try:
        named(record.preset)
    except InputError:
        return None
    return Source("paper", changes(record))


def _planned(table: str, source: Source) -> dict[Experiment, str]:
    found = {}
    for arm in grid(table, source.size).arms:
        try:
            experiment = None if arm.skipped else experiment_of(arm, preset(source.size), source.overrides)
        except InputError:
            # These runs' overrides do not suit this arm, so none of them can be it.
            continue
        if experiment is not None:
            found[identity(experiment)] = arm.name
    return found


def nearest_preset(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs of the preset nearest to the paper's that any has finished with; the other presets' names."""
    finished = {run.record.preset for run in runs if run.record.status == "finished"}
    presets = sorted(
        {run.record.preset for run in runs},
        key=lambda x: (x not in finished, x not in PRESETS, -PRESETS.index(x) if x in PRESETS else 0, x),
    )
    return [run for run in runs if run.record.preset == presets[0]], presets[1:]


# ------------------------------------------------------------------------------------------------- scores


def comparison(runs: Sequence[Run], table: str, *, resamples: int = 1000) -> pd.DataFrame:
    """A table of the paper, a row an arm and metric, in the paper's order. Columns:

    - ``setting``, ``method`` (text), ``metric`` (a key of paper.yaml's metrics; percent);
    - ``reported``: the paper's number; ``reported_where``: where it stands, if not in this table;
    - ``reproduced``: our mean over ``seeds`` finished runs; ``difference``: to the paper's, for its preset alone;
    - ``mark``: what the runs are, if not the paper's setting (a preset's name, "changed" for one with overrides);
    - ``reported_gain``: the paper's, over the setting's baseline; ``gain``, ``gain_low``, ``gain_high``: ours, paired
      by seed over ``pairs`` pairs, with its 95% t interval from two pairs on;
    - ``image_low``, ``image_high``: 95% bootstrap interval of the gain over images, where detections are kept
      (``resamples`` draws), box AP alone;
    - ``skipped``: why an arm is not run.

    NA where there is nothing to say. A gain is a difference of scores: for mMR, lower is better.
    """
    known, found = paper(), cells(runs, table)
    there = known.tables[table]
    metrics = [x for x in there.metrics if x in SCORES]
    if "mMR" in metrics:
        # Data that stands in for CrowdHuman is scored with AP alone.
        metrics.append("box_AP")
    matches = _Matches()
    rows: list[dict[str, Any]] = []
    for arm, training in _trainings(found.grid):
        source = found.source(arm.name)
        ours, base = found.of(arm.name, source), found.of(arm.reference, source)
        for metric in metrics:
            values = by_seed(_records(ours), measured(metric))
            reported, where = _reported(table, training, metric)
            theirs, _ = _reported(table, training.baseline, metric)
            plain = arm.name == arm.reference
            theirs_by_seed = by_seed(_records(_comparable(ours, base)), measured(metric))
            gain = None if plain else paired_difference(values, theirs_by_seed, CONFIDENCE)
            images = matches.interval(ours, base, resamples) if gain and metric == "box_AP" else None
            mean = fmean(values.values()) if values else None
            rows.append(
                {
                    "setting": training.setting,
                    "method": training.how,
                    "metric": metric,
                    "reported": reported,
                    "reported_where": where,
                    "reproduced": mean,
                    "difference": mean - reported
                    if mean is not None and reported is not None and source and not source.label
                    else None,
                    "seeds": len(values),
                    "mark": source.label if source and values else None,
                    "reported_gain": None if plain or reported is None or theirs is None else reported - theirs,
                    **_interval("gain", gain),
                    "pairs": gain.n if gain else None,
                    "image_low": images and images[0],
                    "image_high": images and images[1],
                    "skipped": arm.skipped or None,
                }
            )
    return _frame(rows, COMPARISON)


def _trainings(of: Grid) -> list[tuple[Arm, Training]]:
    return [(arm, arm.training) for arm in of.arms if arm.training is not None]


def _records(seeds: Seeds) -> dict[int, Record]:
    return {seed: run.record for seed, run in seeds.items()}


def _comparable(ours: Seeds, base: Seeds) -> Seeds:
    """Those of ``base`` that a run of the same seed in ``ours`` may be paired with: scored on the same data."""
    return {x: run for x, run in base.items() if x not in ours or same_data(ours[x].record, run.record)}


def _reported(table: str, training: Training, metric: str) -> tuple[float | None, str | None]:
    value = paper().tables[table].value(training, metric)
    if value is None:
        elsewhere = paper().elsewhere(training, metric, but=[table])
        return elsewhere or (None, None)
    return value, None


def _interval(name: str, found: Difference | None) -> dict[str, float | None]:
    low, high = (found.low, found.high) if found else (None, None)
    return {name: found.mean if found else None, f"{name}_low": low, f"{name}_high": high}


class _Matches:
    """Intervals over images; a run's detections are read and matched once."""

    def __init__(self) -> None:
        self._found: dict[Path, bootstrap.Matched] = {}

    def interval(self, ours: Seeds, base: Seeds, resamples: int) -> tuple[float, float] | None:
        """None unless every pair of runs kept its detections, on images that are still to be had."""
        pairs = [(ours[seed], base[seed]) for seed in ours if seed in base]
        if not resamples or not pairs or not all((x.directory / STUDENTS).exists() for p in pairs for x in p):
            return None
        try:
            matched = [(self._of(a), self._of(b)) for a, b in pairs]
        except InputError:
            return None
        if len({x.images for pair in matched for x in pair}) != 1 or not matched[0][0].classes:
            return None
        return bootstrap.difference_over_images(matched, resamples=resamples, confidence=CONFIDENCE)

    def _of(self, run: Run) -> bootstrap.Matched:
        if run.directory not in self._found:
            detections = load_detections(run.directory / STUDENTS)
            self._found[run.directory] = bootstrap.match(truth_of(run.record), detections)
        return self._found[run.directory]


def over_images(
    runs: Sequence[Run], arms: Iterable[str], reference: str, resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """By arm, the bootstrap interval over images of its AP over the reference's, where both kept their detections."""
    seeds: dict[str, Seeds] = {}
    for run in (x for x in runs if x.record.status == "finished" and score("AP")(x.record) is not None):
        seeds.setdefault(arm_of(run.record), {})[run.record.experiment.seed] = run
    matches, base = _Matches(), seeds.get(reference, {})
    found = {x: matches.interval(seeds.get(x, {}), base, resamples) for x in arms if x != reference}
    return {arm: interval for arm, interval in found.items() if interval}


def data_of(record: Record) -> DataSet:
    """The data that a run was scored on. Raises InputError where it is not here, or is not what it was."""
    # Here, not at the top: only what looks at images needs torch and the data sets.
    from lgd.data.catalog import load_dataset

    found = load_dataset(record.experiment.data)
    if found.fingerprint != record.data.get("fingerprint", found.fingerprint):
        raise InputError(f"{found.root}: holds other data than {record.name} was scored on")
    return found


def truth_of(record: Record) -> dict[str, Any]:
    """The validation split's annotation file of a run's data, as plain data. Raises InputError as :func:`data_of`."""
    found: dict[str, Any] = json.loads(data_of(record).layout.val_json.read_bytes())
    return found


def show_comparison(table: str, frame: pd.DataFrame) -> Shown:
    """:func:`comparison` for people."""
    known = paper()
    several = frame["metric"].nunique() > 1
    rows, places, marks = [], set(), set()
    for row in rows_of(frame):
        if row["reported_where"]:
            places.add(row["reported_where"])
        mark = row["mark"] or ""
        marks |= {mark} if mark else set()
        ours, gain = number(row["reproduced"]), with_interval(row["gain"], row["gain_low"], row["gain_high"])
        rows.append(
            [
                row["setting"],
                row["method"],
                *([known.metrics[row["metric"]].title] if several else []),
                f"{number(row['reported'])}{' *' if row['reported_where'] else ''}",
                marked(ours, mark),
                signed(row["difference"]),
                str(row["seeds"] or NONE),
                signed(row["reported_gain"]),
                marked(gain, mark),
                interval(row["image_low"], row["image_high"]),
            ]
        )
    header = [
        *("training", "method", *(["metric"] if several else [])),
        *("paper", "ours", "ours - paper", "seeds"),
        *("gain: paper", "gain: ours", "over images"),
    ]
    return Shown(
        title=f"{known.tables[table].title} ({known.tables[table].where})",
        header=header,
        rows=rows,
        notes=_comparison_notes(table, frame, sorted(places), sorted(marks)),
        left=3 if several else 2,
    )


def _comparison_notes(table: str, frame: pd.DataFrame, places: list[str], marks: list[str]) -> list[str]:
    known = paper().tables[table]
    pairs = [int(x) for x in frame["pairs"].dropna()]
    notes = [f"paper: {paper().title}, from {paper().sources[known.source]}; {NONE}: no run, or no number known."]
    if places:
        notes.append(f"* the paper's number from elsewhere: {', '.join(places)}.")
    if marks:
        notes.append(
            f"Marked ({'), ('.join(marks)}): not the paper's setting, so not a reproduction; no difference is taken."
        )
    if known.assumed:
        given = ", ".join(dict.fromkeys(known.assumptions(x) for x in known.trainings))
        notes.append(f"Not said there of {' and '.join(known.assumed)}; taken: {given}.")
    data = {x.data for x in known.trainings} - {"coco"}
    if data and {x.split(",")[0] for x in marks} & {"tiny", "small"}:
        notes.append("Synthetic images stand in for the data set, which are not scored with mMR.")
    if "mMR" in set(frame["metric"]):
        notes.append("mMR: lower is better, and so is a gain below zero.")
    if pairs:
        notes.append(
            f"gain: over the baseline of the same setting, paired by seed, with the two-sided {CONFIDENCE:.0%} Student"
            " t interval from two seeds on (each for itself, not corrected for their number);"
            " one seed says nothing about the spread between seeds."
        )
    if frame["image_low"].notna().any():
        notes.append(over_images_note("our gain"))
    skipped = frame[["method", "skipped"]].dropna().drop_duplicates()
    return [*notes, *(f"Skipped: {x.method} {x.skipped}." for x in skipped.itertuples())]


# -------------------------------------------------------------------------------------------------- costs


def costs(runs: Sequence[Run], table: str = "table7") -> pd.DataFrame:
    """What each method of Table 7 costs, a row a method and quantity. Columns ``method``, ``quantity``, ``unit``,
    ``reported`` (the paper's, its hours times its GPUs), ``measured`` (ours, mean over ``seeds``), ``mark``,
    ``skipped``.

    Hours are device-hours of all phases. overall: with the whole pre-training of a teacher; "shared" ones count it
    divided by the runs that use it. method-specific: overall less the baseline's, paired by seed.
    """
    known, found = paper().tables[table], cells(runs, table)
    devices = known.devices or 1
    arms = _trainings(found.grid)
    fgfi = next(training for _, training in arms if training.method == "fgfi")
    hours = {(x.training, x.metric): x.value for x in known.cells}
    rows: list[dict[str, Any]] = []
    for arm, training in arms:
        source = found.source(arm.name)
        ours = _records(found.of(arm.name, source))
        base, other = (
            by_seed(_records(_comparable(found.of(arm.name, source), found.of(x, source))), gpu_hours)
            for x in (arm.reference, fgfi.name)
        )
        overall = by_seed(ours, gpu_hours)
        plain = arm.name == arm.reference
        specific = None if plain else paired_difference(overall, base, CONFIDENCE)
        common = overall.keys() & base.keys() & other.keys()
        fgfi_specific = fmean(other[x] - base[x] for x in common) if common else 0.0
        ratio = paired_ratio(overall, base)
        theirs = {x: hours.get((training, x)) for x in ("pretraining_hours", "overall_hours", "method_hours")}
        baseline = hours.get((training.baseline, "overall_hours"))
        below = hours.get((fgfi, "method_hours"))
        saved = training.method != "fgfi" and not plain
        for quantity, unit, reported, mine in (
            ("pre-training", "h", theirs["pretraining_hours"], _mean(by_seed(ours, _whole))),
            ("pre-training, shared", "h", None, _mean(by_seed(ours, _shared))),
            ("overall", "h", theirs["overall_hours"], _mean(overall)),
            ("overall, shared", "h", None, _mean(by_seed(ours, _overall_shared))),
            ("method-specific", "h", theirs["method_hours"], specific and specific.mean),
            ("ratio to baseline", "x", _ratio(theirs["overall_hours"], baseline), ratio and ratio.value),
            (
                "below FGFI's method-specific", "%",
                _saving(theirs["method_hours"], below) if saved else None,
                _saving(fmean(overall[x] - base[x] for x in common), fgfi_specific) if common and saved else None,
            ),
        ):  # fmt: skip
            scaled = reported * devices if reported is not None and unit == "h" else reported
            if scaled is None and mine is None and quantity != "overall":
                continue
            rows.append(
                {
                    "method": training.how,
                    "quantity": quantity,
                    "unit": unit,
                    "reported": scaled,
                    "measured": mine,
                    "seeds": len(ours),
                    "mark": source.label if source and mine is not None else None,
                    "skipped": arm.skipped or None,
                }
            )
    return _frame(rows, COSTS)


def _whole(record: Record) -> float | None:
    return pretraining_hours(record) if record.pretraining else None


def _shared(record: Record) -> float | None:
    return record.pretraining.amortised / 3600 if record.pretraining else None


def _overall_shared(record: Record) -> float | None:
    return record.gpu_hours + record.pretraining.amortised / 3600 if record.pretraining else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _saving(a: float | None, b: float | None) -> float | None:
    """How far ``a`` lies below ``b``, percent of ``b``."""
    return 100 * (1 - a / b) if a is not None and b else None


def show_costs(frame: pd.DataFrame, table: str = "table7") -> Shown:
    known = paper().tables[table]
    rows = []
    for row in rows_of(frame):
        mine = quantity(row["measured"], row["unit"])
        rows.append(
            [
                row["method"],
                row["quantity"],
                quantity(row["reported"], row["unit"]),
                marked(mine, row["mark"]),
                str(row["seeds"] or NONE),
            ]
        )
    skipped = frame[["method", "skipped"]].dropna().drop_duplicates()
    return Shown(
        title=f"{known.title} ({known.where})",
        header=["method", "quantity", "paper", "ours", "seeds"],
        rows=rows,
        notes=[
            f"Hours are device-hours (GPUs, or processes where there is none), all phases. The paper's hours on"
            f" {known.hardware} are multiplied by {known.devices}; only ratios compare across hardware.",
            "pre-training: of the frozen teacher, whole in overall; shared: divided by the runs that use it.",
            f"The paper's trainings are taken to be {known.assumptions(known.trainings[0])}.",
            *_marked(frame),
            *(f"Skipped: {x.method} {x.skipped}." for x in skipped.itertuples()),
        ],
        left=2,
    )


def frontier(runs: Sequence[Run]) -> pd.DataFrame:
    """AP against what it cost, a row an arm and source, cheapest first. Columns:

    ``arm``, ``mark``, ``seeds``, ``AP`` (percent, mean), ``gpu_hours`` (mean, a teacher's pre-training whole), ``gain``
    with ``gain_low`` and ``gain_high`` and ``extra_hours``, both over the arm's reference and paired by seed;
    ``front``: no other of its source and data has a higher AP at the same cost or less (boolean).

    Raises InputError for data of one name that is not the same.
    """
    check_data(run.record for run in runs)
    groups: dict[tuple[str, str, str], Seeds] = {}
    references: dict[tuple[str, str, str], str] = {}
    several = len({changes(run.record) for run in runs if changes(run.record)}) > 1
    for run in (x for x in runs if x.record.status == "finished" and score("AP")(x.record) is not None):
        record = run.record
        seen = identity(record.experiment).data
        label, data = record.preset or "none", f"{seen.source} {seen.shapes_seed}"
        if changes(record):
            label += f", changed: {' '.join(changes(record))}" if several else ", changed"
        key = (label, data, arm_of(record))
        groups.setdefault(key, {})[record.experiment.seed] = run
        references[key] = reference_of(record)
    rows: list[dict[str, Any]] = []
    for (label, data, arm), seeds in groups.items():
        records = _records(seeds)
        ap, hours = by_seed(records, score("AP")), by_seed(records, gpu_hours)
        base = _records(groups.get((label, data, references[label, data, arm]), {}))
        plain = references[label, data, arm] == arm
        gain = None if plain else paired_difference(ap, by_seed(base, score("AP")), CONFIDENCE)
        extra = None if plain else paired_difference(hours, by_seed(base, gpu_hours), CONFIDENCE)
        rows.append(
            {
                "arm": arm,
                "mark": "" if label == "paper" else label,
                "data": data,
                "seeds": len(seeds),
                "AP": fmean(ap.values()),
                "gpu_hours": fmean(hours.values()),
                **_interval("gain", gain),
                "extra_hours": extra and extra.mean,
            }
        )
    for row in rows:
        rivals = [x for x in rows if (x["mark"], x["data"]) == (row["mark"], row["data"])]
        row["front"] = not any(
            x["AP"] >= row["AP"]
            and x["gpu_hours"] <= row["gpu_hours"]
            and (x["AP"] > row["AP"] or x["gpu_hours"] < row["gpu_hours"])
            for x in rivals
        )
    rows.sort(key=lambda x: (x["mark"], x["data"], x["gpu_hours"], x["arm"]))
    return _frame(rows, FRONTIER)


def reference_of(record: Record) -> str:
    try:
        return grid(record.grid, record.preset).references.get(arm_of(record), "baseline")
    except InputError:
        return "baseline"


def show_frontier(frame: pd.DataFrame) -> Shown:
    rows = [
        [
            marked(row["arm"], row["mark"]),
            str(row["seeds"]),
            number(row["AP"]),
            quantity(row["gpu_hours"], "h"),
            with_interval(row["gain"], row["gain_low"], row["gain_high"]),
            quantity(row["extra_hours"], "h"),
            "yes" if row["front"] else "",
        ]
        for row in rows_of(frame)
    ]
    return Shown(
        title="AP against GPU-hours",
        header=["arm", "seeds", "AP", "GPU-hours", "gain", "for GPU-hours more", "on the front"],
        rows=rows,
        notes=[
            "GPU-hours are device-hours (GPUs, or processes where there is none), all phases, a teacher's pre-training"
            " counted whole. gain: over the arm's baseline, paired by seed,"
            f" with its {CONFIDENCE:.0%} Student t interval from two seeds on.",
            "on the front: no other arm of the same preset and data has at least its AP for at most its cost.",
            *_marked(frame),
        ],
    )


def with_evaluations(shown: Shown, runs: Iterable[Run]) -> Shown:
    """A table of hours of all phases, with a note where its arms were not evaluated equally often."""
    looked = {
        (len(record.evaluations), record.experiment.evaluation.teacher)
        for record in (run.record for run in runs)
        if record.status == "finished" and "evaluation" in record.device_seconds
    }
    # A baseline has no teacher to evaluate, whatever its setting says.
    times = sorted({count for count, _ in looked})
    if len(times) < 2 and not any(teacher for _, teacher in looked):
        return shown
    often = f" ({' to '.join(map(str, (times[0], times[-1])))} times)" if len(times) > 1 else ""
    said = (
        f"Hours hold the evaluations, which differ between these runs{often}: what the training alone took is in the"
        " table of the grid's arms (train s)."
    )
    return replace(shown, notes=[*shown.notes, said])


def noise_floor(runs: Sequence[Run]) -> pd.DataFrame:
    """The spread of AP between seeds of one training, a row a source. Columns ``arm``, ``mark``, ``seeds``, ``AP``,
    ``sd`` (sample standard deviation), ``lowest``, ``highest``, and ``detectable_N`` for N in 3, 5, 10: the half
    width of the 95% t interval that a difference of two such trainings would have with N seeds each, paired by seed but
    otherwise independent (percentage points; none for one seed)."""
    found = cells(runs, "noise-floor")
    rows: list[dict[str, Any]] = []
    for arm, sources in found.runs.items():
        for source, seeds in sorted(sources.items(), key=lambda x: x[0].rank):
            values = list(by_seed(_records(seeds), score("AP")).values())
            if not values:
                continue
            sd = stdev(values) if len(values) > 1 else None
            rows.append(
                {
                    "arm": arm,
                    "mark": source.label,
                    "seeds": len(values),
                    "AP": fmean(values),
                    "sd": sd,
                    "lowest": min(values),
                    "highest": max(values),
                    **{f"detectable_{n}": sd and _half_width(sd, n) for n in (3, 5, 10)},
                }
            )
    return _frame(rows, NOISE)


def _half_width(sd: float, n: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd * math.sqrt(2 / n)


def show_noise_floor(frame: pd.DataFrame) -> Shown:
    digits = ("sd", "detectable_3", "detectable_5", "detectable_10")
    rows = [
        [
            marked(row["arm"], row["mark"]),
            str(row["seeds"]),
            number(row["AP"]),
            *(NONE if row[x] is None else f"{row[x]:.2f}" for x in digits[:1]),
            f"{number(row['lowest'])} to {number(row['highest'])}",
            *(NONE if row[x] is None else f"{row[x]:.2f}" for x in digits[1:]),
        ]
        for row in rows_of(frame)
    ]
    return Shown(
        title=grid("noise-floor").title,
        header=["arm", "seeds", "AP", "sd", "range", "±, 3 seeds", "±, 5 seeds", "±, 10 seeds"],
        rows=rows,
        notes=[
            f"±, n seeds: half the {CONFIDENCE:.0%} Student t interval of the difference between two such trainings"
            " with n seeds each, were they independent; a gain of that size is as often missed as found.",
            *_marked(frame),
        ],
    )


# -------------------------------------------------------------------------------------------------- texts


def number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    # Adding 0.0 turns the -0.0 that rounding may leave into 0.0.
    return NONE if value is None else f"{round(value, 1) + 0.0:+.1f}"


def interval(low: float | None, high: float | None) -> str:
    """``[+0.8, +3.4]``."""
    return NONE if low is None or high is None else f"[{signed(low)}, {signed(high)}]"


def over_images_note(of: str) -> str:
    return f"over images: {CONFIDENCE:.0%} bootstrap interval of {of} over the validation images."


def with_interval(mean: float | None, low: float | None, high: float | None) -> str:
    """``+2.1 [+0.8, +3.4]``, or ``+2.1`` without an interval."""
    if low is None or high is None:
        return signed(mean)
    return f"{signed(mean)} {interval(low, high)}"


def quantity(value: float | None, unit: str) -> str:
    """Three digits and the unit: ``0.0132 h``, ``12.3 h``, ``1.92x``, ``48 %``."""
    if value is None:
        return NONE
    if unit == "%":
        return f"{value:.0f} %"
    if unit == "x":
        return f"{value:.2f}x"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 1
    return f"{value:.{min(max(digits, 0), 6)}f} {unit}"


def marked(text: str, mark: str | None) -> str:
    """``9.0 (tiny)``: a number that nobody shall mistake for the paper's setting."""
    return f"{text} ({mark})" if mark and text != NONE else text


def _marked(frame: pd.DataFrame) -> list[str]:
    marks = sorted({x for x in frame["mark"].dropna() if x})
    return [f"Marked ({'), ('.join(marks)}): not the paper's setting, so not a reproduction."] if marks else []


def _mean(values: dict[int, float]) -> float | None:
    found = mean_interval(values.values())
    return found.mean if found else None


def rows_of(frame: pd.DataFrame) -> Iterable[dict[str, Any]]:
    """Each row by column, None for NA."""
    for _, columns in frame.iterrows():
        yield {str(name): None if pd.isna(value) else value for name, value in columns.items()}


_TEXT = {"setting", "method", "metric", "reported_where", "mark", "skipped", "arm", "data", "quantity", "unit"}
_DTYPES = {**dict.fromkeys(_TEXT, "string"), "seeds": "Int64", "pairs": "Int64", "front": "boolean"}


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=_DTYPES.get(name, "Float64")) for name in columns}
    )
