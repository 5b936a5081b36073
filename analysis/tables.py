"""Tables from records: a grid's arms, and the paper's tables with ours beside it.

python analysis/tables.py results/teacher-based-paper --table teacher-based --format latex
python -m analysis.tables results/* --table gpu-hours
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__" and not __spec__:
    # Run as a file, Python would look for `statistics` beside it first, where it is ours.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from statistics import fmean
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import arms as comparison
from analysis.arms import CONFIDENCE, interval, number, over_images, over_images_note, with_interval
from analysis.load import (
    Run,
    arm_of,
    by_seed,
    check_data,
    finished,
    is_reproduction,
    load_runs,
    peak_memory,
    score,
    teacher_ap,
    training_device_seconds,
    training_seconds,
)
from analysis.render import NONE, Shown, html_table, latex, markdown
from analysis.stats import paired_difference, paired_ratio
from lgd.cli import Parser, answer
from lgd.config.grids import EVIDENCE, NAMES, OWN, TABLES, grid
from lgd.errors import InputError
from lgd.results.record import Record

Intervals = Mapping[str, tuple[float, float]]
"""By arm, percentage points."""


def arms_table(
    records: Sequence[Record], arms: Sequence[str], reference: str, images: Intervals | None = None
) -> pd.DataFrame:
    """One row an arm, in the order of ``arms``; means over its finished seeds. Columns:

    - ``arm`` (text); ``seeds``: finished runs (Int64);
    - ``AP``, ``AP50``, ``AP75``: percent (Float64);
    - ``AP_difference``, ``AP_difference_low``, ``AP_difference_high``: to ``reference``, percentage points, paired by
      seed, with the 95% t interval from two pairs on; ``pairs``: the pairs (Int64). NA for the reference itself;
    - ``AP_difference_image_low``, ``AP_difference_image_high``: its bootstrap interval over images, only where
      ``images`` has any (see :func:`analysis.arms.over_images`);
    - ``teacher_AP``: percent, only when any record has it;
    - ``training_cost``: device-seconds of the training over the reference's, paired by seed;
    - ``training_seconds``: mean, wall clock;
    - ``peak_memory_mib[device]``, or ``[host]`` when no record is from a GPU: the largest of the seeds, MiB.

    Raises InputError for two finished records of the same arm and seed, for an arm whose seeds are different trainings,
    and for data of one name that is not the same.
    """
    check_data(records)
    teacher = any(teacher_ap(r) is not None for r in records)
    memory = "device" if any("device" in r.peak_memory_mib for r in records) else "host"
    runs_of = {arm: finished(records, arm) for arm in (*arms, reference)}
    reference_ap = by_seed(runs_of[reference], score("AP"))
    reference_cost = by_seed(runs_of[reference], training_device_seconds)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        runs = runs_of[arm]
        ap, seconds = by_seed(runs, score("AP")), by_seed(runs, training_seconds)
        difference = paired_difference(ap, reference_ap, CONFIDENCE) if arm != reference else None
        cost = paired_ratio(by_seed(runs, training_device_seconds), reference_cost)
        image_low, image_high = (images or {}).get(arm, (None, None))
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
                "AP_difference_image_low": image_low,
                "AP_difference_image_high": image_high,
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
        *(["AP_difference_image_low", "AP_difference_image_high"] if images else []),
        *(["teacher_AP"] if teacher else []),
        *("training_cost", "training_seconds", f"peak_memory_mib[{memory}]"),
    ]
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=dtypes.get(name, "Float64")) for name in names}
    )


def arms_shown(
    records: Sequence[Record], arms: Sequence[str], reference: str, title: str = "", images: Intervals | None = None
) -> Shown:
    """:func:`arms_table` and :func:`notes` as texts."""
    cells = _cells(arms_table(records, arms, reference, images), reference)
    said = notes(records, arms, reference)
    if images:
        said.append(over_images_note("the difference"))
    return Shown(title, cells.header, cells.rows, said)


def to_markdown(records: Sequence[Record], arms: Sequence[str], reference: str) -> str:
    """The same as Markdown, ending in a newline."""
    return markdown(arms_shown(records, arms, reference), title=False)


def print_table(records: Sequence[Record], arms: Sequence[str], reference: str, console: Console) -> None:
    """The same for the terminal."""
    print_shown(arms_shown(records, arms, reference), console)


LONGEST = 9
"""Characters of a word that a narrow terminal does not break."""


def print_shown(shown: Shown, console: Console) -> None:
    """A table and its notes for the terminal. Words, and a column of intervals, give way where it is narrow."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), show_edge=False)
    for i, heading in enumerate(shown.header):
        cells = [heading, *(row[i] for row in shown.rows)]
        wraps = i < shown.left or any(" " in cell for cell in cells[1:]) or heading.startswith("difference")
        # Headings of two lines: the table should fit into 80 columns.
        text = Text(heading if wraps else heading.replace(" ", "\n"))
        longest = max((len(word) for cell in cells for word in cell.split()), default=0)
        table.add_column(
            text, justify="left" if i < shown.left else "right", no_wrap=not wraps, overflow="fold",
            min_width=min(longest, LONGEST) if wraps else None,
        )  # fmt: skip
    for row in shown.rows:
        # Text, since rich would read markup in an arm's name.
        table.add_row(*(Text(" ".join(cell.split())) for cell in row))
    console.print(table)
    for note in shown.notes:
        console.print(Text(f"• {' '.join(note.split())}"))


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


def _cells(table: pd.DataFrame, reference: str) -> Shown:
    memory = table.columns[-1]
    place = "GPU" if memory == "peak_memory_mib[device]" else "host"
    teacher, images = ("teacher_AP" in table.columns), ("AP_difference_image_low" in table.columns)
    header = [
        *("arm", "seeds", "AP", "AP50", "AP75", f"difference to {reference}"),
        *(["over images"] if images else []),
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
            difference = with_interval(row["AP_difference"], row["AP_difference_low"], row["AP_difference_high"])
        rows.append(
            [
                row["arm"],
                str(row["seeds"]),
                *(number(row[name], 1) for name in ("AP", "AP50", "AP75")),
                difference,
                *([interval(row["AP_difference_image_low"], row["AP_difference_image_high"])] if images else []),
                *([number(row["teacher_AP"], 1)] if teacher else []),
                NONE if row["training_cost"] is None else f"{row['training_cost']:.2f}x",
                number(row["training_seconds"], 1 if (row["training_seconds"] or 0) < 100 else 0),
                number(row[memory], 0),
            ]
        )
    return Shown("", header, rows)


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


# ------------------------------------------------------------------------------------------------ command

FORMATS: dict[str, Callable[[pd.DataFrame, Shown], str]] = {
    "md": lambda frame, shown: markdown(shown),
    "latex": lambda frame, shown: latex(shown),
    "csv": lambda frame, shown: frame.to_csv(index=False, lineterminator="\n"),
    "html": lambda frame, shown: html_table(shown),
}

ARMS_TABLES = tuple(name for name in OWN if name != "noise-floor")
"""Grids whose arms are compared with one of them."""

TABLES_OF_ALL = (*NAMES, "gpu-hours")
"""What ``--table`` takes: the grids, of which table7 is the cost table, and AP against GPU-hours."""


def build(name: str, runs: Sequence[Run], *, resamples: int = 1000) -> tuple[pd.DataFrame, Shown]:
    """A table by name: typed, and as texts. Raises InputError for an unknown one."""
    if name == "table7":
        frame = comparison.costs(runs)
        return frame, comparison.with_evaluations(comparison.show_costs(frame), runs)
    if name in TABLES:
        frame = comparison.comparison(runs, name, resamples=resamples)
        return frame, comparison.show_comparison(name, frame)
    if name in ("gpu-hours", EVIDENCE):
        frame = comparison.frontier(runs)
        return frame, comparison.with_evaluations(comparison.show_frontier(frame), runs)
    if name == "noise-floor":
        frame = comparison.noise_floor(runs)
        return frame, comparison.show_noise_floor(frame)
    if name not in ARMS_TABLES:
        raise InputError(f"no table {name!r}: known are {', '.join(TABLES_OF_ALL)}")
    own, kept = grid(name), [run for run in runs if run.record.grid == name]
    kept, others = comparison.nearest_preset(kept) if kept else ([], [])
    arms, records = [arm.name for arm in own.arms], [run.record for run in kept]
    images = over_images(kept, arms, own.reference, resamples)
    shown = arms_shown(records, arms, own.reference, own.title, images)
    if others:
        shown = replace(shown, notes=[*shown.notes, f"Left out: runs of preset {' / '.join(others)}."])
    return arms_table(records, arms, own.reference, images), shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr for wrong input."""
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="analysis/tables.py", description="Print a table from recorded runs.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results directories; they merge")
    parser.add_argument("--table", required=True, choices=TABLES_OF_ALL, metavar="NAME", help=", ".join(TABLES_OF_ALL))
    parser.add_argument("--format", choices=FORMATS, default="md", help="default: md")
    parser.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="draws of the images (default: 1000; 0: no bootstrap)",
    )
    options = parser.parse_args(arguments)
    if options.resamples < 0:
        raise InputError(f"--resamples {options.resamples}: a number from 0")
    runs = load_runs(*options.results)
    if not runs:
        raise InputError(f"no record.json in {', '.join(map(str, options.results))}, nor in trials/* or * there")
    frame, shown = build(options.table, runs, resamples=options.resamples)
    print(FORMATS[options.format](frame, shown), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
