"""The arms of a grid compared with one of them: a row an arm, and what a reader of the table must know."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.contention import OTHER_LOAD, step_spread_note
from analysis.costs import cost_ratio
from analysis.frame import row_dicts
from analysis.image_intervals import Intervals
from analysis.load import (
    arm_of,
    by_arm,
    by_seed,
    check_data,
    cost_seconds,
    finished,
    is_reproduction,
    other_load,
    peak_memory,
    score,
    step_spread,
    teacher_ap,
    training_seconds,
)
from analysis.render import (
    MISSING,
    MOST_LISTED,
    TextTable,
    image_interval_note,
    interval,
    listed,
    number,
    with_interval,
    with_unit,
)
from analysis.stats.differences import CONFIDENCE, paired_difference
from analysis.teachers import NEVER, arms_never_ahead
from lgd.results.record import Record

MEMORY = "peak_memory_mib"

MINOR = ("host MiB", "other load", "AP75", "train s", "over images", "GPU MiB", "AP50", "teacher AP")
"""Columns that a narrow terminal leaves out, in this order."""


def arms_table(
    records: Sequence[Record], arms: Sequence[str], reference: str, images: Intervals | None = None
) -> pd.DataFrame:
    """One row an arm, in the order of ``arms``; means over its finished seeds. Columns:

    - ``arm`` (text); ``seeds``: finished runs (Int64);
    - ``AP``, ``AP50``, ``AP75``: percent (Float64);
    - ``AP_difference``, ``AP_difference_low``, ``AP_difference_high``: to ``reference``, percentage points, paired by
      seed, with the 95% t interval from two pairs on; ``pairs``: the pairs (Int64). NA for the reference itself;
    - ``AP_difference_image_low``, ``AP_difference_image_high``: its bootstrap interval over images, only where
      ``images`` has any (see :func:`analysis.image_intervals.over_images`);
    - ``teacher_AP``: percent, only when any record has it;
    - ``training_cost``: device-seconds of the training, its frozen teacher's included, over the reference's, paired by
      seed;
    - ``training_seconds``: mean, wall clock;
    - ``other_load``: the part of the machine's cores that other work used meanwhile, the sweep's own other trials
      included, mean, 0 to 1, only when any record has it;
    - ``step_spread``: interquartile range of the step times over their median, mean, only when any record has it;
    - ``peak_memory_mib[device]``, or ``[host]`` when no record is from a GPU: the largest of the seeds, MiB, only when
      any record has it.

    Raises InputError for two finished records of the same arm and seed, for an arm whose seeds are different trainings,
    and for data of one name that is not the same.
    """
    check_data(records)
    records_of = by_arm(records)
    runs_of = {arm: finished(records_of.get(arm, ()), arm) for arm in (*arms, reference)}
    optional = {
        "AP_difference_image_low": bool(images),
        "AP_difference_image_high": bool(images),
        "teacher_AP": any(teacher_ap(r) is not None for r in records),
        "other_load": any(other_load(r) is not None for r in records),
        "step_spread": any(step_spread(r) is not None for r in records),
        **dict.fromkeys((f"{MEMORY}[device]", f"{MEMORY}[host]"), False),
        **{f"{MEMORY}[{kind}]": True for kind in _memory_kind(records)},
    }
    rows = [_arm_row(arm, runs_of[arm], runs_of[reference], arm == reference, images or {}) for arm in arms]
    dtypes = {"arm": "string", "seeds": "Int64", "pairs": "Int64"}
    return pd.DataFrame(
        {
            name: pd.Series([row[name] for row in rows], dtype=dtypes.get(name, "Float64"))
            for name in COLUMNS
            if optional.get(name, True)
        }
    )


def _memory_kind(records: Sequence[Record]) -> list[str]:
    """``device`` where any record is from a GPU, else ``host``; none where no record says."""
    kinds = ("device", "host")
    return [kind for kind in kinds if any(peak_memory(kind)(r) is not None for r in records)][:1]


COLUMNS = (
    *("arm", "seeds", "AP", "AP50", "AP75"),
    *("AP_difference", "AP_difference_low", "AP_difference_high", "pairs"),
    *("AP_difference_image_low", "AP_difference_image_high", "teacher_AP"),
    *("training_cost", "training_seconds", "other_load", "step_spread", f"{MEMORY}[device]", f"{MEMORY}[host]"),
)


def _arm_row(
    arm: str, runs: Mapping[int, Record], reference: Mapping[int, Record], is_reference: bool, images: Intervals
) -> dict[str, Any]:
    ap = by_seed(runs, score("AP"))
    difference = None if is_reference else paired_difference(ap, by_seed(reference, score("AP")))
    cost = cost_ratio(runs, reference, cost_seconds)
    image_low, image_high = images.get(arm, (None, None))
    return {
        "arm": arm,
        "seeds": len(runs),
        "AP": _mean(ap),
        "AP50": _mean(by_seed(runs, score("AP50"))),
        "AP75": _mean(by_seed(runs, score("AP75"))),
        "AP_difference": difference and difference.mean,
        "AP_difference_low": difference and difference.low,
        "AP_difference_high": difference and difference.high,
        "pairs": difference.n if difference else None if is_reference else 0,
        "AP_difference_image_low": image_low,
        "AP_difference_image_high": image_high,
        "teacher_AP": _mean(by_seed(runs, teacher_ap)),
        "training_cost": cost and cost.value,
        "training_seconds": _mean(by_seed(runs, training_seconds)),
        "other_load": _mean(by_seed(runs, other_load)),
        "step_spread": _mean(by_seed(runs, step_spread)),
        **{
            f"{MEMORY}[{kind}]": max(by_seed(runs, peak_memory(kind)).values(), default=None)
            for kind in ("device", "host")
        },
    }


def arms_text(
    records: Sequence[Record], arms: Sequence[str], reference: str, title: str = "", images: Intervals | None = None
) -> TextTable:
    """:func:`arms_table` and :func:`notes` for people."""
    table = arms_table(records, arms, reference, images)
    header, rows = _texts(table, reference, set(arms_never_ahead(records)))
    extra = [image_interval_note("the difference")] if images else []
    if "other_load" in table:
        shown = {*arms, reference}
        extra += [OTHER_LOAD, *step_spread_note([r for r in records if arm_of(r) in shown])]
    return TextTable(title, header, rows, [*_notes(records, arms, reference, table), *extra], minor=MINOR)


def _texts(table: pd.DataFrame, reference: str, never: Collection[str]) -> tuple[list[str], list[list[str]]]:
    """never: the arms whose teacher never got better than its student."""
    optional = {
        "over images": "AP_difference_image_low",
        "teacher AP": "teacher_AP",
        "other load": "other_load",
        "GPU MiB": f"{MEMORY}[device]",
        "host MiB": f"{MEMORY}[host]",
    }
    header = [
        *("arm", "seeds", "AP", "AP50", "AP75", f"difference to {reference}", "over images", "teacher AP"),
        *("cost", "train s", "other load", "GPU MiB", "host MiB"),
    ]
    left_out = [name for name, column in optional.items() if column not in table]
    rows = []
    for row in row_dicts(table):
        texts = dict(zip(header, _row_texts(row, row["arm"] == reference), strict=True))
        if row["arm"] in never and texts["teacher AP"] != MISSING:
            texts["teacher AP"] += f" {NEVER}"
        if not row["seeds"]:
            texts = dict.fromkeys(texts, MISSING) | {"arm": row["arm"]}
        rows.append([text for name, text in texts.items() if name not in left_out])
    return [name for name in header if name not in left_out], rows


def _row_texts(row: Mapping[str, Any], is_reference: bool) -> list[str]:
    """A row with every optional column."""
    difference = MISSING
    if is_reference:
        difference = "reference"
    elif row["AP_difference"] is not None:
        difference = with_interval(row["AP_difference"], row["AP_difference_low"], row["AP_difference_high"])
    load = row.get("other_load")
    return [
        row["arm"],
        str(row["seeds"]),
        *(number(row[name]) for name in ("AP", "AP50", "AP75")),
        difference,
        interval(row.get("AP_difference_image_low"), row.get("AP_difference_image_high")),
        number(row.get("teacher_AP")),
        with_unit(row["training_cost"], "x"),
        number(row["training_seconds"], 1 if (row["training_seconds"] or 0) < 100 else 0),
        MISSING if load is None else with_unit(100 * load, "%"),
        *(number(row.get(f"{MEMORY}[{kind}]"), 0) for kind in ("device", "host")),
    ]


def notes(records: Sequence[Record], arms: Sequence[str], reference: str) -> list[str]:
    """Notes below the table, one line each: how intervals were made, settings, provenance, failures."""
    return _notes(records, arms, reference, arms_table(records, arms, reference))


def _notes(records: Sequence[Record], arms: Sequence[str], reference: str, table: pd.DataFrame) -> list[str]:
    unpaired, failed = _unpaired(records, arms, reference), [r for r in records if r.status != "finished"]
    return [
        *_reproduction(records),
        _intervals(table, reference),
        *_settings(records),
        *_provenance(records),
        *unpaired[:MOST_LISTED],
        *_more(len(unpaired), "arms with such seeds"),
        *_left_out(records, arms),
        *(
            f"{r.status}: {arm_of(r)}, seed {r.experiment.seed}: {r.reason or 'no reason given'}"
            for r in failed[:MOST_LISTED]
        ),
        *_more(len(failed), "trials did not finish"),
    ]


def _more(count: int, what: str) -> list[str]:
    return [f"And {count - MOST_LISTED:,} more {what}."] if count > MOST_LISTED else []


def _reproduction(records: Sequence[Record]) -> list[str]:
    if is_reproduction(records):
        return []
    others = _distinct(r.preset or "none" for r in records if r.preset != "paper")
    return [f"Numbers from preset {others}: not a reproduction of the paper."]


def _intervals(table: pd.DataFrame, reference: str) -> str:
    pairs = [int(n) for n in table["pairs"].dropna() if n]
    single = "one seed in common, which says nothing about the spread between seeds"
    if not pairs:
        return f"No arm has a finished seed in common with {reference}: there is no difference to show."
    if max(pairs) == 1:
        return f"Each difference and cost is from {single}; it may be noise."
    return (
        f"Differences are means over the seeds that an arm and {reference} both finished, with the two-sided"
        f" {CONFIDENCE:.0%} Student t interval of the paired differences (per arm, not corrected for the number of"
        f" arms){f'; one without an interval has {single}' if min(pairs) == 1 else ''}."
    )


def _settings(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    experiments = [r.experiment for r in records]
    return [
        f"Preset {_distinct(r.preset or 'none' for r in records)};"
        f" data {_distinct(e.data.source for e in experiments)};"
        f" {_distinct(str(e.schedule.steps) for e in experiments)} steps of"
        f" {_distinct(str(e.schedule.batch) for e in experiments)} images."
    ]


def _provenance(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    machines = list(dict.fromkeys(filter(None, (machine(r.hardware) for r in records))))
    lines = [f"Hardware: {' / '.join(machines) or 'unknown'}."]
    if len({machine(r.hardware) for r in records if r.status == "finished"}) > 1:
        lines.append(
            "The finished trials ran on different hardware, whose seconds do not compare: costs are of the seeds that"
            " both arms trained on like hardware."
        )
    versions = (
        ", ".join(f"{name} {r.versions.get(name, 'unknown')}" for name in ("torch", "detectron2")) for r in records
    )
    commits = _distinct(_short(r.git_commit) for r in records)
    return [*lines, f"Versions: {_distinct(versions)}; git commit {commits}."]


def _unpaired(records: Sequence[Record], arms: Sequence[str], reference: str) -> list[str]:
    records_of = by_arm(records)
    paired_with = by_seed(finished(records_of.get(reference, ()), reference), score("AP"))
    lines = []
    for arm in arms:
        seeds = by_seed(finished(records_of.get(arm, ()), arm), score("AP")).keys()
        alone = sorted(seeds - paired_with.keys())
        if alone and paired_with:
            without = listed([str(seed) for seed in alone])
            lines.append(
                f"{arm}: {reference} has no result for seed {without}, which is in the means, not the difference."
            )
    return lines


def _left_out(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    shown = set(arms)
    others = [arm for arm in by_arm(records) if arm not in shown]
    return [f"Recorded here, but not in the table: {listed(others)}."] if others else []


def machine(hardware: Mapping[str, str]) -> str:
    if not hardware:
        return ""
    gpu = hardware.get("gpu", "none")
    parts = [
        hardware.get("cpu", "unknown processor"),
        f"{hardware.get('cores', '?')} cores",
        f"{hardware.get('memory_gib', '?')} GiB",
        *(["no GPU"] if gpu == "none" else [f"GPU {gpu}"]),
    ]
    return ", ".join(parts)


def _short(commit: str) -> str:
    digits, plus, changes = commit.partition("+")
    return f"{digits[:12]}{plus}{changes}" if digits else "unknown"


def _distinct(values: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(values))


def _mean(values: Mapping[int, float]) -> float | None:
    return fmean(values.values()) if values else None
