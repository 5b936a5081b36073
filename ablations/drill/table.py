"""The table of a drill: passes and failures of each fault, as Markdown and as CSV, written after every drill."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ablations.drill.checks import Failure
from ablations.drill.drill import Result
from analysis.render import pipe_table
from lgd.errors import InputError
from lgd.files import atomic_write, write_text

COLUMNS = ("fault", "repeat", "seed", "moment", "passed", "failed", "seconds")

ROWS = "drill.csv"
"""In the drill's directory: a row a drill."""


@dataclass(frozen=True)
class Row:
    """A drill's result."""

    result: Result
    seed: int
    source: Mapping[str, str] = field(default_factory=dict)
    """The command, commit, date, hardware and versions under which it was got."""


def source(command: str) -> dict[str, str]:
    """The ``source`` of what this process drills."""
    from lgd.results import provenance

    return {
        "command": command,
        "commit": provenance.git_commit(),
        "date": provenance.now(),
        **{name: str(value) for name, value in {**provenance.hardware(), **provenance.versions()}.items()},
    }


def markdown(results: Sequence[Result]) -> str:
    """A row a fault: how many of its drills passed, which checks failed in how many, and a drill's median seconds."""
    rows = []
    for name in dict.fromkeys(result.fault for result in results):
        own = [result for result in results if result.fault == name]
        passed = sum(not result.failures for result in own)
        checks = [check for result in own for check in dict.fromkeys(x.check for x in result.failures)]
        failed = ", ".join(f"{check} ({checks.count(check)})" for check in dict.fromkeys(checks))
        seconds = statistics.median(result.seconds for result in own)
        rows.append([name, f"{passed} of {len(own)}", f"{seconds:.0f}", failed or "–"])
    passed = sum(not result.failures for result in results)
    whole = sum(result.seconds for result in results)
    rows.append(["**all**", f"**{passed} of {len(results)}**", f"{whole:.0f}", ""])
    return pipe_table(["fault", "passed", "s", "failed checks"], rows)


def page(rows: Sequence[Row]) -> str:
    """The table, what failed, and where it was measured."""
    results = [row.result for row in rows]
    text = [markdown(results), ""]
    failures = [f"- {x.fault}, repeat {x.repeat} ({x.moment}): {failure}" for x in results for failure in x.failures]
    if failures:
        text += ["What failed:", "", *failures, ""]
    last = rows[-1].source
    text += [f"- command: `{x}`" for x in dict.fromkeys(row.source.get("command", "") for row in rows)]
    text += [f"- {name}: {value}" for name, value in last.items() if name not in ("command", "commit", "date")]
    commits = ", ".join(dict.fromkeys(row.source.get("commit", "")[:12] for row in rows))
    dates = sorted(row.source.get("date", "") for row in rows)
    return "\n".join([*text, f"- commit: {commits}", f"- date: {dates[0]} to {dates[-1]}"])


def write(rows: Sequence[Row], directory: Path) -> list[Path]:
    """Write ``drill.md`` and ``drill.csv`` into the directory; their paths."""
    text, table = directory / "drill.md", directory / ROWS
    write_text(text, f"# Fault drill\n\n{page(rows)}\n")
    names = list(dict.fromkeys(name for row in rows for name in row.source))
    with atomic_write(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *names])
        for row in rows:
            x = row.result
            failed = json.dumps(x.failures, ensure_ascii=False) if x.failures else ""
            cells = [x.fault, x.repeat, row.seed, x.moment, not x.failures, failed, f"{x.seconds:.1f}"]
            writer.writerow([*cells, *(row.source.get(name, "") for name in names)])
    return [text, table]


def read(path: Path) -> list[Row]:
    """The rows of a ``drill.csv``. Raises InputError, one line, where it is none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [_row(values) for values in csv.DictReader(file)]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{path}: not the table of a drill ({type(error).__name__}: {error})") from None
    if not rows:
        raise InputError(f"{path}: not the table of a drill (no row)")
    return rows


def _row(values: Mapping[str, str]) -> Row:
    failures = tuple(Failure(*map(str, x)) for x in json.loads(values["failed"] or "[]"))
    result = Result(values["fault"], int(values["repeat"]), values["moment"], failures, float(values["seconds"]))
    return Row(result, int(values["seed"]), {name: x for name, x in values.items() if name not in COLUMNS})
