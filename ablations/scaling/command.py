"""Measures how the costs of sweeps, records and searches grow with their number: nothing may be quadratic.

Sweeps of stub trainings under Ray Tune: memory, file handles and CPU of the sweep's process, seconds a trial, what Ray
and the results take on the disk. Records varied from a real sweep's: seconds of status, table and report. An Optuna
study: seconds to propose and to tell, the size of study.db, its report. A cluster of eight nodes that come and go: that
no trial of a sweep there is lost or done twice.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lgd.signals import exit_on_interrupt, interrupt, on_signal

with exit_on_interrupt():
    from ablations.scaling.processes import CommandFailedError, Row
    from benchmarks.load_table import COLUMNS, PARTS, draw, markdown, read
    from benchmarks.options import RESULTS, Benchmark, csv_path, hardware_slug, write_results
    from lgd.errors import InputError

PROG = "ablations/scaling/command.py"

DESCRIPTION = "Measure how the costs of sweeps, records and searches grow with their number (docs/load.md)."

EXAMPLES = (
    "--parts records                 # minutes",
    "--trials 50,100,200",
    "--parts cluster                 # minutes: nodes that come and go",
    "--table benchmarks/results/FILE.csv",
)

SIZES = {
    "trials": "50,100,200,500,1000,2000",
    "records": "100,300,1000,3000,10000",
    "samples": "50,100,200,500,1000,2000,5000",
    "cluster_trials": "200",
}
"""Sizes of each part, by the name of its option."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parts = ",".join(x for x in PARTS if x != "cluster")
    add("--parts", default=parts, metavar="A,B", help=f"of {', '.join(PARTS)} (default: all but cluster)")
    add("--trials", default=SIZES["trials"], metavar="N,M", help=f"of each sweep (default: {SIZES['trials']})")
    add("--records", default=SIZES["records"], metavar="N,M", help=f"to be read (default: {SIZES['records']})")
    add("--samples", default=SIZES["samples"], metavar="N,M", help=f"of the study (default: {SIZES['samples']})")
    add("--cluster-trials", default=SIZES["cluster_trials"], metavar="N,M", help="of each sweep there (default: 200)")
    add("--steps", type=int, default=5, metavar="N", help="that a trial reports (default: 5)")
    add("--cores", type=int, default=2, metavar="N", help="trials side by side (default: 2)")
    add("--sweep", type=Path, metavar="DIR", help="whose records are varied (default: the newest committed)")
    add("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/...)")
    add("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier measurement, no more")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    if options.table:
        print(markdown(read(options.table)))
        return 0
    parts = [x.strip() for x in options.parts.split(",")]
    if unknown := [x for x in parts if x not in PARTS]:
        raise InputError(f"--parts {unknown[0]}: one of {', '.join(PARTS)}")
    sizes = {name: _sizes(name, getattr(options, name)) for name in SIZES}
    for name in ("trials", "cluster_trials"):
        if odd := [x for x in sizes[name] if x % 2]:
            raise InputError(f"{_option(name)} {odd[0]}: an even number, of two arms")
    for name, least in (("steps", 2), ("cores", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: at least {least}")
    # Lazy: pandas and torch.
    import pandas as pd

    from lgd.results import provenance

    started, rows, status = provenance.now(), list[Row](), 0
    # What was measured before an end that comes too early is kept.
    try:
        with on_signal(interrupt, signal.SIGTERM):
            for row in _measure(parts, sizes, options):
                rows.append(row)
                print(f"{row.part}, {row.size:,}: {row.quantity} {row.value:.4g} {row.unit}".rstrip(), flush=True)
    except CommandFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    if not rows:
        return status
    about = {**provenance.hardware(), **provenance.versions(), "git_commit": provenance.git_commit()}
    kept = {name: about[name] for name in COLUMNS if name in about}
    frame = pd.DataFrame(rows).assign(**kept, started=started, command=command)
    stem = RESULTS / f"load_{'-'.join(parts)}_{hardware_slug()}_{started[:10]}"
    path, text = csv_path(options.output, stem), markdown(frame)
    write_results(frame, path, text)
    drawn = draw(frame, path.with_suffix(""))
    print(f"\n{text}\nwritten: {', '.join(map(str, [path, path.with_suffix('.md'), *drawn]))}")
    return status


def _sizes(name: str, text: str) -> list[int]:
    """Rising numbers, at least two each. Raises InputError, one line."""
    try:
        found = [int(x) for x in text.split(",")]
    except ValueError:
        raise InputError(f"{_option(name)} {text}: numbers, separated by commas") from None
    if found != sorted(set(found)) or found[0] < 2:
        raise InputError(f"{_option(name)} {text}: rising numbers from 2")
    return found


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _measure(parts: list[str], sizes: dict[str, list[int]], options: argparse.Namespace) -> Iterator[Row]:
    # Lazy: Optuna and Ray.
    from ablations.scaling.records import measure_records, real_sweep
    from ablations.scaling.study import measure_study
    from ablations.scaling.sweeps import measure_sweep

    source = real_sweep(options.sweep) if "records" in parts else None
    with tempfile.TemporaryDirectory(prefix="lgd-load-") as directory:
        place = Path(directory)
        if source is not None:
            yield from measure_records(sizes["records"], source, place / "records")
        if "study" in parts:
            (place / "study").mkdir()
            yield from measure_study(sizes["samples"], place / "study")
        if "sweep" in parts:
            for trials in sizes["trials"]:
                yield from measure_sweep(trials, options.steps, options.cores, place / f"sweep-{trials}")
        if "cluster" in parts:
            from ablations.scaling.cluster import measure_cluster

            for trials in sizes["cluster_trials"]:
                yield from measure_cluster(trials, place / f"cluster-{trials}")


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
