"""AP against what a training cost, whatever it was called: one Pareto front for each data set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.contention import contention_notes
from analysis.costs import cost_ratio, extra_cost, on_commonest_hardware
from analysis.frame import row_dicts, typed_frame
from analysis.grid_runs import reference_of
from analysis.load import (
    Run,
    arm_of,
    by_seed,
    changes,
    check_data,
    cost_seconds,
    gpu_hours,
    identity,
    score,
    seed_of,
)
from analysis.render import TextTable, marks_note, number, with_interval, with_mark, with_unit
from analysis.stats.differences import CONFIDENCE, paired_difference
from analysis.table_builders.paper_scores import gain_columns
from analysis.variants import differing_keys
from lgd.config.experiment import Experiment, Method, settings
from lgd.results.record import Record

COLUMNS = (
    *("arm", "mark", "data", "device", "seeds", "AP", "gpu_hours"),
    *("gain", "gain_low", "gain_high", "pairs", "extra_hours", "cost", "front"),
)

AP = score("AP")


@dataclass
class _Arm:
    """Finished runs of one arm in one setting."""

    name: str
    label: str
    """Preset and changes."""
    data: str
    reference: str
    """Name of the arm it is compared with in its grid."""
    records: dict[int, Record] = field(default_factory=dict)

    @property
    def experiment(self) -> Experiment:
        return identity(next(iter(self.records.values())).experiment)

    @property
    def is_baseline(self) -> bool:
        return self.experiment.method.name == "baseline" or self.name == self.reference


def frontier(runs: Sequence[Run], confidence: float = CONFIDENCE) -> pd.DataFrame:
    """AP against what it cost, a row an arm and setting, by data set, cheapest first. Columns:

    ``arm``, ``mark``, ``data``, ``device`` (GPU or CPU), ``seeds``, ``AP`` (percent, mean), ``gpu_hours``
    (device-hours, mean, a teacher's pre-training whole; of the seeds on the hardware that most of its data set's
    trainings ran on, where there are any), ``gain`` with ``gain_low`` and ``gain_high``, over ``pairs``
    pairs, and ``extra_hours`` (median), both over the arm's baseline and paired by seed; ``cost``: device-seconds of
    the training, its frozen teacher's included, over the baseline's; ``front``: no other arm on its data set has a
    higher AP for the same hours or less (boolean); False for what did not run on that hardware.

    An arm's baseline is its grid's reference in the same setting; where that was not trained, as after a search, the
    baseline that differs from it by the method alone. confidence: of the gains' intervals. Raises InputError for data
    of one name that is not the same.
    """
    check_data(run.record for run in runs)
    arms = _arms(runs)
    baselines = _Baselines(arms)
    comparable = _comparable(x for arm in arms for x in arm.records.values())
    rows = []
    for arm in arms:
        timed = {seed: x for seed, x in arm.records.items() if id(x) in comparable}
        rows.append(_row(arm, baselines.of(arm), timed or arm.records, confidence) | {"front": bool(timed)})
    _mark_front(row for row in rows if row["front"])
    rows.sort(key=lambda x: (x["data"], x["gpu_hours"], x["arm"], x["mark"]))
    return typed_frame(rows, COLUMNS)


def _arms(runs: Sequence[Run]) -> list[_Arm]:
    records = [run.record for run in runs if run.record.status == "finished" and AP(run.record) is not None]
    several = len({changes(record) for record in records if changes(record)}) > 1
    described = [settings(identity(record.experiment)) for record in records]
    differing = differing_keys([(arm_of(x), x.preset, data_set(x.experiment)) for x in records], described)
    found: dict[tuple[str, str, str], _Arm] = {}
    for record, values in zip(records, described, strict=True):
        told_apart = [f"{key}={values[key]}" for key in differing if key in values]
        key = (arm_of(record), _label(record, several, told_apart), data_set(record.experiment))
        arm = found.setdefault(key, _Arm(*key, reference_of(record)))
        arm.records[seed_of(record)] = record
    return list(found.values())


def data_set(experiment: Experiment) -> str:
    """The name of the data that an experiment is trained and scored on: equal for equal data."""
    data = identity(experiment).data
    if data.source != "shapes":
        return data.source
    return f"shapes {data.shapes_seed}: {data.shapes_train} and {data.shapes_val} of side {data.shapes_side}"


def _label(record: Record, several: bool, told_apart: Sequence[str]) -> str:
    """The preset, whether it was changed, and the settings that tell it from other runs of its arm.

    several: with all that was changed. told_apart: as ``key=value``.
    """
    known = {x.partition("=")[0] for x in told_apart}
    others = [x for x in changes(record) if several and x.partition("=")[0].strip() not in known]
    shown = " ".join(map(_rounded, [*told_apart, *others]))
    name = record.preset or "none"
    preset = f"{name}, changed" if changes(record) else "" if name == "paper" and not shown else name
    return f"{preset}: {shown}" if shown else preset


def _rounded(override: str) -> str:
    """``key=0.123456789`` as ``key=0.123``."""
    key, _, value = override.partition("=")
    try:
        return f"{key}={float(value):.3g}" if "." in value else override
    except ValueError:
        return override


def _comparable(records: Iterable[Record]) -> set[int]:
    """``id`` of the records whose hours compare: of each data set those on the hardware that most ran on."""
    by_data: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_data[data_set(record.experiment)].append(record)
    return {id(x) for of_data in by_data.values() for x in on_commonest_hardware(of_data)}


def _mark_front(rows: Iterable[dict[str, Any]]) -> None:
    """Set ``front`` of each row: on its data no other has its AP or more for its hours or less, one of them better."""
    best: dict[str, float] = {}
    for (data, _), same in groupby(sorted(rows, key=_by_hours), key=_by_hours):
        same_hours = list(same)
        highest = max(row["AP"] for row in same_hours)
        for row in same_hours:
            row["front"] = row["AP"] == highest > best.get(data, -math.inf)
        best[data] = max(highest, best.get(data, -math.inf))


def _by_hours(row: Mapping[str, Any]) -> tuple[str, float]:
    return row["data"], row["gpu_hours"]


class _Baselines:
    """Finds the baseline that an arm is compared with among ``arms``, of which a search has thousands."""

    def __init__(self, arms: Iterable[_Arm]) -> None:
        self._named: dict[tuple[str, str, str], _Arm] = {}
        self._alone: dict[tuple[str, Experiment], _Arm] = {}
        for arm in arms:
            self._named.setdefault((arm.data, arm.name, arm.label), arm)
            if arm.experiment.method.name == "baseline":
                self._alone.setdefault((arm.data, _without_method(arm.experiment)), arm)

    def of(self, arm: _Arm) -> _Arm | None:
        """None for a baseline, and for an arm whose baseline was not trained."""
        if arm.name == arm.reference:
            return None
        named = self._named.get((arm.data, arm.reference, arm.label))
        if named is not None or arm.is_baseline:
            return named
        return self._alone.get((arm.data, _without_method(arm.experiment)))


def _without_method(experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"method": Method()})


def _row(arm: _Arm, baseline: _Arm | None, timed: Mapping[int, Record], confidence: float) -> dict[str, Any]:
    """``timed``: the arm's trainings whose hours are shown."""
    ap, hours = by_seed(arm.records, AP), by_seed(timed, gpu_hours)
    theirs: Mapping[int, Record] = baseline.records if baseline else {}
    gain = paired_difference(ap, by_seed(theirs, AP), confidence)
    extra = extra_cost(arm.records, theirs, gpu_hours)
    cost = cost_ratio(arm.records, theirs, cost_seconds)
    return {
        "arm": arm.name,
        "mark": arm.label,
        "data": arm.data,
        "device": "GPU" if all(on_gpu(x) for x in arm.records.values()) else "CPU",
        "seeds": len(arm.records),
        "AP": fmean(ap.values()),
        "gpu_hours": fmean(hours.values()),
        **gain_columns(gain),
        "pairs": gain.n if gain else None,
        "extra_hours": extra,
        "cost": cost and cost.value,
    }


def on_gpu(record: Record) -> bool:
    return record.hardware.get("gpu", "none") != "none"


def hours_name(devices: Iterable[str]) -> str:
    """Name of the device-hours of trainings on ``devices`` (GPU, CPU)."""
    found = set(devices)
    return "GPU-hours" if found == {"GPU"} else "CPU-hours" if found == {"CPU"} else "device-hours"


def any_pretraining(runs: Iterable[Run]) -> bool:
    """Whether a frozen teacher's training is part of what any of them cost."""
    return any(run.record.pretraining is not None for run in runs)


def frontier_text(frame: pd.DataFrame, *, pretraining: bool = True) -> TextTable:
    """:func:`frontier` for people. pretraining: its hours hold some teacher's (:func:`any_pretraining`)."""
    teachers = ", a teacher's pre-training counted whole" if pretraining else ""
    hours, several = hours_name(frame["device"]), frame["data"].nunique() > 1
    rows = [
        [
            with_mark(row["arm"], row["mark"]),
            *([row["data"]] if several else []),
            str(row["seeds"]),
            number(row["AP"]),
            with_unit(row["gpu_hours"], "h"),
            with_interval(row["gain"], row["gain_low"], row["gain_high"]),
            with_unit(row["extra_hours"], "h"),
            with_unit(row["cost"], "x"),
            "yes" if row["front"] else "",
        ]
        for row in row_dicts(frame)
    ]
    return TextTable(
        title=f"AP against {hours}",
        header=[
            *("arm", *(["data"] if several else []), "seeds", "AP", hours),
            *("gain", f"for {hours} more", "cost", "on the front"),
        ],
        rows=rows,
        notes=[
            f"{hours[0].upper()}{hours[1:]}: of all phases, times the devices (GPUs, or processes where there is none)"
            f"{teachers}. gain: over the baseline of the same setting, or, where that was"
            " not trained, the one that differs by the method alone; paired by seed,"
            f" with its {CONFIDENCE:.0%} Student t interval from two seeds on.",
            f"cost: device-seconds of the training{', its teacher included' * pretraining}, over that baseline's.",
            "on the front: no other arm on the same data has at least its AP for at most its hours.",
            *marks_note(sorted({x for x in frame["mark"].dropna() if x})),
        ],
        left=2 if several else 1,
        minor=(f"for {hours} more", "on the front"),
    )


def with_notes_on_hours(table: TextTable, runs: Sequence[Run]) -> TextTable:
    """A table of hours of all phases, with notes on what they hold and on the machines they were measured on."""
    notes = [*_evaluation_note(runs), *unknown_hours(runs), *_other_hardware(runs)]
    return replace(table, notes=[*table.notes, *notes, *contention_notes([run.record for run in runs])])


def _other_hardware(runs: Iterable[Run]) -> list[str]:
    """The arms whose hours are of another hardware than most of their data set's, so on no front."""
    records = [x.record for x in runs if x.record.status == "finished" and AP(x.record) is not None]
    comparable = _comparable(records)
    others = {arm_of(x) for x in records} - {arm_of(x) for x in records if id(x) in comparable}
    return [f"Trained on other hardware, so their hours do not compare: {', '.join(sorted(others))}."] if others else []


def unknown_hours(runs: Iterable[Run]) -> list[str]:
    """The given teachers whose training's hours nobody said: no hours hold them."""
    teachers = [run.record.pretraining for run in runs if run.record.pretraining is not None]
    given = sorted({x.label for x in teachers if not x.hours_known})
    return [f"Not known, and in no hours: the training of {', '.join(given)}."] if given else []


def _evaluation_note(runs: Iterable[Run]) -> list[str]:
    """Where the runs were not evaluated equally often."""
    evaluated = {
        (len(record.evaluations), record.experiment.method.has_teacher_ap and record.experiment.evaluation.teacher)
        for record in (run.record for run in runs)
        if record.status == "finished" and "evaluation" in record.device_seconds
    }
    # A baseline has no teacher to evaluate, whatever its setting says.
    times = sorted({count for count, _ in evaluated})
    if len(times) < 2 and not any(teacher for _, teacher in evaluated):
        return []
    often = f" ({' to '.join(map(str, (times[0], times[-1])))} times)" if len(times) > 1 else ""
    return [
        f"Hours hold the evaluations, which differ between these runs{often}: what the training alone took is in the"
        " table of the grid's arms (train s)."
    ]
