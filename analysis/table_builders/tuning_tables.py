"""Tables of the grids over one number: AP of each arm at each learning rate, or at each length of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.frame import row_dicts
from analysis.load import Run
from analysis.rates import Curve, batch_of, length_curves, pairs, rate_curves, rate_notes
from analysis.render import TextTable, number, with_interval
from analysis.stats.differences import CONFIDENCE, Difference, mean_interval, paired_difference
from analysis.table_builders.crossing import cost_crossings, crossings

LEARNING_RATE, SCHEDULE_LENGTH = "learning-rate", "schedule-length"

COLUMNS = ("arm", "rate", "steps", "seeds", "AP", "AP_low", "AP_high", "gain", "gain_low", "gain_high", "pairs")


def tuning(name: str, runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each arm and value, by arm. Columns: ``arm``, ``rate`` or ``steps``, ``seeds``, ``AP`` (percent, mean,
    with its t interval), ``gain`` over the baseline at the same value with its interval, ``pairs``."""
    curves = _curves(name, runs)
    baselines = {id(arm): base for base, arm in pairs(curves)}
    value = "rate" if name == LEARNING_RATE else "steps"
    rows = [_row(curve, baselines.get(id(curve)), value, at) for curve in curves for at in curve.points]
    columns = [x for x in COLUMNS if x not in {"rate", "steps"} - {value}]
    dtypes = {"arm": "string", "seeds": "Int64", "pairs": "Int64", "steps": "Int64"}
    return pd.DataFrame({x: pd.Series([row[x] for row in rows], dtype=dtypes.get(x, "Float64")) for x in columns})


def _curves(name: str, runs: Sequence[Run]) -> list[Curve]:
    return (rate_curves if name == LEARNING_RATE else length_curves)(run.record for run in runs)


def _row(curve: Curve, base: Curve | None, value: str, at: float) -> dict[str, Any]:
    seeds = curve.points[at]
    mean = mean_interval(seeds.values())
    gain: Difference | None = paired_difference(seeds, base.points[at]) if base and at in base.points else None
    return {
        "arm": curve.name, value: at, "seeds": len(seeds), "AP": mean and mean.mean, "AP_low": mean and mean.low,
        "AP_high": mean and mean.high, "gain": gain and gain.mean, "gain_low": gain and gain.low,
        "gain_high": gain and gain.high, "pairs": gain and gain.n,
    }  # fmt: skip


def tuning_text(name: str, title: str, runs: Sequence[Run]) -> TextTable:
    """:func:`tuning` for people, with what follows from it."""
    frame = tuning(name, runs)
    value, format_ = ("rate", "g") if name == LEARNING_RATE else ("steps", ",.0f")
    batches = {batch_of(curve) for curve in _curves(name, runs)}
    head = f"learning rate ({batches.pop() if len(batches) == 1 else 'of each batch'})" if value == "rate" else value
    same = "rate" if name == LEARNING_RATE else "length"
    rows = [
        [
            row["arm"], format(row[value], format_), str(row["seeds"]),
            with_interval(row["AP"], row["AP_low"], row["AP_high"]).replace("+", "") if row["AP_low"] is not None
            else number(row["AP"]),
            with_interval(row["gain"], row["gain_low"], row["gain_high"]),
        ]
        for row in row_dicts(frame)
    ]  # fmt: skip
    records = [run.record for run in runs]
    found = (
        rate_notes(records)
        if name == LEARNING_RATE
        else [x.line for x in (*crossings(records), *cost_crossings(records))]
    )
    notes = [
        *found,
        f"AP with the {CONFIDENCE:.0%} Student t interval over seeds; gain over the baseline at the same {same}, paired"
        " by seed.",
    ]
    return TextTable(title, ["arm", head, "seeds", "AP", f"gain at the same {same}"], rows, notes)
