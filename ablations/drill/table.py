"""The table of a drill: passes and failures of each fault, as Markdown and as CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from ablations.drill.drill import Result
from lgd.files import atomic_write, write_text

COLUMNS = ("fault", "repeat", "moment", "passed", "failed", "seconds")


def markdown(results: Sequence[Result]) -> str:
    """A row a fault: how many of its drills passed, which checks failed in how many, and a drill's median seconds."""
    lines = ["| fault | passed | failed checks | s |", "| :-- | --: | :-- | --: |"]
    for name in dict.fromkeys(result.fault for result in results):
        own = [result for result in results if result.fault == name]
        passed = sum(not result.failures for result in own)
        checks = [check for result in own for check in dict.fromkeys(x.check for x in result.failures)]
        failed = ", ".join(f"{check} ({checks.count(check)})" for check in dict.fromkeys(checks))
        seconds = statistics.median(result.seconds for result in own)
        lines.append(f"| {name} | {passed} of {len(own)} | {failed or '–'} | {seconds:.0f} |")
    passed = sum(not result.failures for result in results)
    whole = sum(result.seconds for result in results)
    lines.append(f"| **all** | **{passed} of {len(results)}** | | {whole:.0f} |")
    return "\n".join(lines)


def write(results: Sequence[Result], directory: Path, command: str) -> list[Path]:
    """Write ``drill.md`` and ``drill.csv`` (a row a drill) with hardware, versions, commit and command; their paths."""
    from lgd.results import provenance

    source = {
        "command": command,
        "commit": provenance.git_commit(),
        "date": provenance.now(),
        **provenance.hardware(),
        **provenance.versions(),
    }
    text, rows = directory / "drill.md", directory / "drill.csv"
    about = "\n".join(f"- {name}: {value}" for name, value in source.items())
    failures = [f"- {x.fault}, repeat {x.repeat} ({x.moment}): {failure}" for x in results for failure in x.failures]
    found = ["", "What failed:", "", *failures] if failures else []
    write_text(text, "\n".join(["# Fault drill", "", about, "", markdown(results), *found, ""]))
    with atomic_write(rows) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *source])
        for x in results:
            failed = "; ".join(map(str, x.failures))
            writer.writerow([x.fault, x.repeat, x.moment, not x.failures, failed, f"{x.seconds:.1f}", *source.values()])
    return [text, rows]
