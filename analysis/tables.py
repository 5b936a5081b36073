"""The table of a grid's arms: AP, its difference to the reference, and what the training cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.records import arm_of, by_seed, finished, is_reproduction, peak_memory, score, teacher_ap, training_seconds
from analysis.statistics import paired_difference, paired_ratio
from lgd.record import Record

NONE = "–"
"""What a cell without a number shows."""

CONFIDENCE = 0.95

DIFFERENCE = 5
"""Position of the difference among the columns shown."""


def arms_table(records: Sequence[Record], arms: Sequence[str], reference: str) -> pd.DataFrame:
    """One row an arm, in the order of ``arms``; means over its finished seeds. Columns:

    - ``arm`` (text); ``seeds``: finished runs (Int64);
    - ``AP``, ``AP50``, ``AP75``: percent (Float64);
    - ``AP_difference``, ``AP_difference_low``, ``AP_difference_high``: to ``reference``, percentage points, paired by
      seed, with the 95% t interval from two pairs on; ``pairs``: the pairs (Int64). NA for the reference itself;
    - ``teacher_AP``: percent, only when any record has it;
    - ``training_cost``: mean training seconds over the reference's, paired by seed;
    - ``training_seconds``: mean, wall clock;
    - ``peak_memory_mib[device]``, or ``[host]`` when no record is from a GPU: the largest of the seeds, MiB.

    Raises InputError for two finished records of the same arm and seed.
    """
    teacher = any(teacher_ap(r) is not None for r in records)
    memory = "device" if any("device" in r.peak_memory_mib for r in records) else "host"
    runs_of = {arm: finished(records, arm) for arm in (*arms, reference)}
    reference_ap = by_seed(runs_of[reference], score("AP"))
    reference_seconds = by_seed(runs_of[reference], training_seconds)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        runs = runs_of[arm]
        ap, seconds = by_seed(runs, score("AP")), by_seed(runs, training_seconds)
        difference = paired_difference(ap, reference_ap, CONFIDENCE) if arm != reference else None
        cost = paired_ratio(seconds, reference_seconds)
        rows.append(
            {
                "arm": arm,
                "seeds": len(runs),
                "AP": _mean(ap),
                "AP50": _mean(by_seed(runs, score("AP50"))),
                "AP75": _mean(by_seed(runs, score("AP75"))),
                "AP_difference": difference and difference.mean,
                "AP_difference_low": difference and difference.low,
                "AP_difference_high": difference and difference.high,
                "pairs": difference.n if difference else None if arm == reference else 0,
                "teacher_AP": _mean(by_seed(runs, teacher_ap)),
                "training_cost": cost and cost.value,
                "training_seconds": _mean(seconds),
                f"peak_memory_mib[{memory}]": max(by_seed(runs, peak_memory(memory)).values(), default=None),
            }
        )
    dtypes = {"arm": "string", "seeds": "Int64", "pairs": "Int64"}
    names = [
        *("arm", "seeds", "AP", "AP50", "AP75"),
        *("AP_difference", "AP_difference_low", "AP_difference_high", "pairs"),
        *(["teacher_AP"] if teacher else []),
        *("training_cost", "training_seconds", f"peak_memory_mib[{memory}]"),
    ]
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=dtypes.get(name, "Float64")) for name in names}
    )


def to_markdown(records: Sequence[Record], arms: Sequence[str], reference: str) -> str:
    """:func:`arms_table` and :func:`notes` as Markdown, ending in a newline."""
    cells = _cells(arms_table(records, arms, reference), reference)
    header = [_escaped(text) for text in cells.header]
    rows = [[_escaped(text) for text in row] for row in cells.rows]
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        [
            line(header),
            line(rule),
            *(line(row) for row in rows),
            "",
            *(f"- {_escaped(note)}" for note in notes(records, arms, reference)),
            "",
        ]
    )


def print_table(records: Sequence[Record], arms: Sequence[str], reference: str, console: Console) -> None:
    """The same table and notes for the terminal."""
    cells = _cells(arms_table(records, arms, reference), reference)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), show_edge=False)
    for i, heading in enumerate(cells.header):
        wraps = heading in (cells.header[0], cells.header[DIFFERENCE])
        # Headings of two lines: the table should fit into 80 columns.
        text = Text(heading if wraps else heading.replace(" ", "\n"))
        table.add_column(text, justify="right" if i else "left", no_wrap=not wraps, overflow="fold")
    for row in cells.rows:
        # Text, since rich would read markup in an arm's name.
        table.add_row(*(Text(_one_line(cell)) for cell in row))
    console.print(table)
    for note in notes(records, arms, reference):
        console.print(Text(f"• {_one_line(note)}"))


def notes(records: Sequence[Record], arms: Sequence[str], reference: str) -> list[str]:
    """What a reader of the table must know, one line each: how intervals were made, settings, provenance, failures."""
    return [
        *_reproduction(records),
        _intervals(arms_table(records, arms, reference), reference),
        *_settings(records),
        *_provenance(records),
        *_unpaired(records, arms, reference),
        *_left_out(records, arms),
        *(
            f"{r.status}: {arm_of(r)}, seed {r.experiment.seed}: {r.reason or 'no reason given'}"
            for r in records
            if r.status != "finished"
        ),
    ]


def format_difference(mean: float, low: float | None, high: float | None) -> str:
    """``+2.1 [+0.8, +3.4]``, or ``+2.1`` without an interval."""
    if low is None or high is None:
        return _signed(mean)
    return f"{_signed(mean)} [{_signed(low)}, {_signed(high)}]"


@dataclass(frozen=True)
class _Cells:
    header: list[str]
    rows: list[list[str]]


def _cells(table: pd.DataFrame, reference: str) -> _Cells:
    memory = table.columns[-1]
    place = "GPU" if memory == "peak_memory_mib[device]" else "host"
    teacher = "teacher_AP" in table.columns
    header = [
        *("arm", "seeds", "AP", "AP50", "AP75", f"difference to {reference}"),
        *(["teacher AP"] if teacher else []),
        *("cost", "train s", f"{place} MiB"),
    ]
    rows: list[list[str]] = []
    for _, columns in table.iterrows():
        row: dict[str, Any] = {str(name): None if pd.isna(value) else value for name, value in columns.items()}
        if not row["seeds"]:
            rows.append([row["arm"], *[NONE] * (len(header) - 1)])
            continue
        difference = NONE
        if row["arm"] == reference:
            difference = "reference"
        elif row["AP_difference"] is not None:
            difference = format_difference(row["AP_difference"], row["AP_difference_low"], row["AP_difference_high"])
        rows.append(
            [
                row["arm"],
                str(row["seeds"]),
                *(_number(row[name], 1) for name in ("AP", "AP50", "AP75")),
                difference,
                *([_number(row["teacher_AP"], 1)] if teacher else []),
                NONE if row["training_cost"] is None else f"{row['training_cost']:.2f}x",
                _number(row["training_seconds"], 1 if (row["training_seconds"] or 0) < 100 else 0),
                _number(row[memory], 0),
            ]
        )
    return _Cells(header, rows)


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
    machines = list(dict.fromkeys(filter(None, (_machine(r.hardware) for r in records))))
    lines = [f"Hardware: {' / '.join(machines) or 'unknown'}."]
    if len({_machine(r.hardware) for r in records if r.status == "finished"}) > 1:
        lines.append("The finished trials ran on different hardware: their seconds and costs do not compare.")
    versions = (
        ", ".join(f"{name} {r.versions.get(name, 'unknown')}" for name in ("torch", "detectron2")) for r in records
    )
    commits = _distinct(_short(r.git_commit) for r in records)
    return [*lines, f"Versions: {_distinct(versions)}; git commit {commits}."]


def _unpaired(records: Sequence[Record], arms: Sequence[str], reference: str) -> list[str]:
    paired_with = by_seed(finished(records, reference), score("AP"))
    lines = []
    for arm in arms:
        seeds = by_seed(finished(records, arm), score("AP")).keys()
        alone = sorted(seeds - paired_with.keys())
        if alone and paired_with:
            listed = ", ".join(map(str, alone))
            lines.append(
                f"{arm}: {reference} has no result for seed {listed}, which is in the means, not the difference."
            )
    return lines


def _left_out(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    others = dict.fromkeys(arm_of(r) for r in records if arm_of(r) not in arms)
    return [f"Recorded here, but not in the table: {', '.join(others)}."] if others else []


def _machine(hardware: Mapping[str, str]) -> str:
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


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    # Adding 0.0 turns the -0.0 that rounding may leave into 0.0.
    return f"{round(value, 1) + 0.0:+.1f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """``text`` on one line, so that Markdown shows it as it is: error messages hold every character."""
    text = re.sub(r"([\\`*|<~]|\](?=\())", r"\\\1", _one_line(text))
    # Between letters an underscore is only itself, and file names stay readable.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
