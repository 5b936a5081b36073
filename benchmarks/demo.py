"""Times ``make setup`` and ``make demo`` from nothing: in a fresh clone of the last commit, without an environment."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from benchmarks.options import RESULTS, Benchmark, checkout, csv_path, hardware_slug, read_results, write_results
    from lgd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PROG = "benchmarks/demo.py"

DESCRIPTION = "Time make setup and make demo in a fresh clone of the last commit (docs/performance.md)."

EXAMPLES = ("                  # some minutes, with nothing else at work", "--table benchmarks/results/FILE.csv")

TARGETS = {"setup": "set-up: environment and packages from the registry", "demo": "the default run, to its report"}
"""What each target of the Makefile does, in the order in which they run."""

COLUMNS = ("target", "seconds", "trainings", "baseline_ap", "cpu", "cores", "git_commit", "started", "command")
"""Columns that the table needs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/...)")
    parser.add_argument("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier run, no more")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="what to clone (default: this one)")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    if options.table:
        print(markdown(read_results(options.table, COLUMNS)))
        return 0
    # Lazy: pandas and torch.
    import pandas as pd

    from lgd.results import provenance

    repository = options.repository or checkout()
    path = csv_path(options.output, RESULTS / f"demo_{hardware_slug()}_{datetime.now(UTC).date()}")
    started, hardware = provenance.now(), provenance.hardware()
    with tempfile.TemporaryDirectory() as place:
        clone = Path(place) / "clone"
        _run(["git", "clone", "--quiet", str(repository.resolve()), str(clone)], Path(place))
        commit = _run(["git", "rev-parse", "HEAD"], clone).strip()
        seconds = {target: _seconds(target, clone) for target in TARGETS}
        trainings, ap = finished(clone)
    frame = pd.DataFrame([{"target": target, "seconds": round(x, 1)} for target, x in seconds.items()]).assign(
        trainings=trainings,
        baseline_ap=ap,
        cpu=hardware["cpu"],
        cores=hardware["cores"],
        git_commit=commit,
        started=started,
        command=command,
    )
    text = markdown(frame)
    write_results(frame, path, text)
    print(f"{text}\nwritten: {path}, {path.with_suffix('.md')}")
    return 0


def finished(clone: Path) -> tuple[int, float]:
    """How many trainings finished there, and the baseline's AP. Raises InputError without a baseline."""
    # Lazy: pandas.
    from analysis.load import load_runs, score

    read = score("AP")
    done = [run.record for run in load_runs(*(clone / "results").glob("*/")) if run.record.status == "finished"]
    aps = [ap for record in done if record.arm == "baseline" and (ap := read(record)) is not None]
    if not aps:
        raise InputError("make demo: no finished training of the baseline in its results")
    return len(done), round(aps[0], 2)


def _seconds(target: str, clone: Path) -> float:
    begun = time.monotonic()
    _run(["make", "--no-print-directory", target], clone)
    return time.monotonic() - begun


def _run(command: list[str], directory: Path) -> str:
    """Its standard output. Raises InputError with the last line of what it said where it fails."""
    # As in a shell of its own: a make that runs this must not hand its variables on.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise InputError(f"{' '.join(command)} failed: {said}")
    return done.stdout


def markdown(frame: pd.DataFrame) -> str:
    """The times as a table, and notes."""
    from analysis.render import pipe_table

    rows = [
        [f"`make {target}`", TARGETS[target], f"{float(seconds):.0f}"]
        for target, seconds in zip(frame["target"], frame["seconds"], strict=True)
    ]
    first = frame.iloc[0]
    notes = [
        f"{first['trainings']} trainings; the baseline's AP: {float(first['baseline_ap']):.1f} (one seed).",
        f"{first['cpu']}, {first['cores']} cores, a fresh clone of commit {first['git_commit'][:12]}, with pip's"
        f" cache as it was; measured {first['started']} by `{first['command']}`.",
    ]
    return "\n".join([pipe_table(["command", "what it does", "s"], rows, 2), "", *(f"- {x}" for x in notes), ""])


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
