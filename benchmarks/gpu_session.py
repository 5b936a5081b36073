"""Measures on one GPU all that only a GPU can answer, the most valuable first, within the minutes there are.

Every measurement is a command in a process of its own. It is begun when the time left suffices, stopped when its time
is over, and its result is written as soon as it is there; with ``--resume`` the next call goes on with what is missing.
A failed measurement does not end the session. ``--dry`` runs the same plan on the CPU at toy sizes: it shows that every
command works, and no number of it means anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from benchmarks.gpu_plan import OUTPUT, TIME_LEFT, Measurement, chosen, plan
    from benchmarks.gpu_results import NOT_BEGUN, figures, provenance_columns, session_table, write_session
    from benchmarks.options import Benchmark
    from lgd.config.data_source import absolute_source
    from lgd.errors import InputError
    from lgd.files import write_text
    from lgd.results.provenance import COMMIT

PROG = "benchmarks/gpu_session.py"

DESCRIPTION = "Measure on one GPU what only a GPU can answer, within the minutes there are (docs/performance.md)."

EXAMPLES = (
    "--plan  # what it measures, and how long that takes",
    "--minutes 9 --output results/gpu",
    "--minutes 9 --output results/gpu --resume  # the next nine",
    "--dry --output results/gpu-dry  # on the CPU, at toy sizes",
)

ROOT = Path(__file__).parents[1]
"""Where the commands' files are."""

STATE = "session.json"

OVERTIME = 2.0
"""A measurement is stopped after this many times its estimate."""

GRACE = 20.0
"""Seconds between asking a measurement to end and killing it."""

STOPPED = "stopped"

DONE, FAILED = "done", "failed"
"""How a measurement ended; what is done is not begun again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, metavar="N", help="time there is, all in all (default: 30)")
    add("--output", type=Path, default=Path("results/gpu"), metavar="DIR", help="where to (default: results/gpu)")
    add("--resume", action="store_true", help="go on with what an earlier call left in DIR")
    add("--data", default="shapes", metavar="SOURCE", help="for the loader, e.g. coco-json:DIR (default: shapes)")
    add("--only", type=lambda text: text.split(","), default=[], metavar="A,B", help="only these measurements")
    add("--plan", action="store_true", help="print the measurements, and do no more")
    add("--dry", action="store_true", help="on the CPU at toy sizes: does every command work?")
    add("--commit", default="", metavar="HASH", help="of the code, where git cannot say it; LGD_COMMIT")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    if not options.minutes > 0:
        raise InputError(f"--minutes {options.minutes:g}: above 0")
    # A dry session traces without compiling.
    measurements = chosen(
        plan(data=absolute_source(options.data), compiles=options.dry or has_compiler()), options.only
    )
    if options.plan:
        print(plan_text(measurements))
        return 0
    _check_device(options)
    session = Session(options.output, dry=options.dry, commit=options.commit)
    session.open(resume=options.resume)
    end = time.monotonic() + options.minutes * 60
    for measurement in session.in_order(measurements):
        session.measure(measurement, end)
    print(session.text())
    print(f"written: {options.output}")
    return 1 if session.failed else 0


def has_compiler() -> bool:
    """Whether there is a C compiler, which torch.compile needs."""
    return any(shutil.which(x) for x in ("cc", "gcc", "clang"))


def _check_device(options: argparse.Namespace) -> None:
    # Lazy: seconds.
    import torch

    if not options.dry and not torch.cuda.is_available():
        raise InputError("no GPU here: --dry runs the plan on the CPU, --plan prints it")


def plan_text(measurements: Sequence[Measurement]) -> str:
    """The measurements with their estimates, what each decides, and its command."""
    lines = []
    total = 0
    for measurement in measurements:
        total += measurement.seconds
        goes_on = ", goes on in the next call" if measurement.resumes else ""
        lines += [
            f"{measurement.name}: {measurement.seconds / 60:.1f} min{goes_on}",
            f"  decides: {measurement.decides}",
            f"  python {shlex.join(measurement.command)}",
        ]
    return "\n".join([*lines, f"all: {total / 60:.0f} min on one 80 GB GPU (estimates)"])


class Session:
    """The measurements of one directory. dry: at toy sizes on the CPU. commit: of the code, if git cannot say it."""

    def __init__(self, directory: Path, *, dry: bool, commit: str = "") -> None:
        self.directory = directory
        self.dry = dry
        self._commit = commit
        self._results: dict[str, dict[str, Any]] = {}

    def open(self, *, resume: bool) -> None:
        """Read what an earlier call left. Raises InputError where that is unclear, before anything is measured."""
        path = self.directory / STATE
        if not path.exists():
            if resume:
                raise InputError(f"--resume: {path} does not exist")
            self.directory.mkdir(parents=True, exist_ok=True)
            return
        if not resume:
            raise InputError(f"{self.directory} holds a session: --resume goes on with it, or choose another --output")
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            results = dict(state["measurements"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({type(error).__name__})") from None
        if state.get("dry") != self.dry:
            raise InputError(f"{self.directory} holds a session {'on a GPU' if self.dry else 'of --dry'}: use another")
        self._results = results

    def in_order(self, measurements: Iterable[Measurement]) -> list[Measurement]:
        """``measurements``, those last that an earlier call stopped and that would begin anew, and that failed.

        They may take too long, or fail, again, while others have no result yet.
        """

        def comes_last(measurement: Measurement) -> bool:
            status = self._results.get(measurement.name, {}).get("status")
            return status == FAILED or (status == STOPPED and not measurement.resumes)

        return sorted(measurements, key=comes_last)

    def measure(self, measurement: Measurement, end: float) -> None:
        """Run a measurement that is not done and still fits before ``end`` (time.monotonic), and write what it gave."""
        if self._results.get(measurement.name, {}).get("status") == DONE:
            return
        # Before it begins, so that the time is when it was begun.
        described = provenance_columns(dry=self.dry, commit=self._commit)
        left = end - time.monotonic()
        if left < measurement.needed and not self.dry:
            self._note(measurement, {"status": NOT_BEGUN, "seconds": 0.0, "provenance": described})
            return
        allowed = min(left, measurement.seconds * OVERTIME) if not self.dry else left
        directory = self.directory / measurement.name
        directory.mkdir(parents=True, exist_ok=True)
        command = self._command(measurement, directory, allowed)
        print(f"{measurement.name}: python {shlex.join(command)}", file=sys.stderr, flush=True)
        start = time.monotonic()
        status = run_limited(
            [sys.executable, *command], directory / "log.txt", allowed, cpu=self.dry, commit=self._commit
        )
        seconds = time.monotonic() - start
        word = DONE if status == 0 else STOPPED if status is None or measurement.resumes else FAILED
        found = figures(measurement.name, directory)
        self._note(
            measurement,
            {
                "status": word,
                "seconds": round(seconds, 1),
                "exit_status": "" if status is None else status,
                "figures": found,
                "command": f"python {shlex.join(command)}",
                "provenance": described,
            },
        )

    @property
    def failed(self) -> bool:
        """Whether any measurement failed."""
        return any(x.get("status") == FAILED for x in self._results.values())

    def text(self) -> str:
        return session_table(self._results)

    def _command(self, measurement: Measurement, directory: Path, allowed: float) -> list[str]:
        chosen_command = measurement.dry if self.dry else measurement.command
        # A little earlier than it would be stopped, so that it ends by itself.
        time_left = max(30, round(allowed - 45))
        return [x.replace(OUTPUT, str(directory.resolve())).replace(TIME_LEFT, str(time_left)) for x in chosen_command]

    def _note(self, measurement: Measurement, result: dict[str, Any]) -> None:
        earlier = self._results.get(measurement.name, {})
        if result["status"] == NOT_BEGUN and earlier:
            return
        result["seconds"] = round(result["seconds"] + float(earlier.get("seconds", 0)), 1)
        self._results[measurement.name] = {"decides": measurement.decides, "estimate": measurement.seconds, **result}
        print(f"{measurement.name}: {result['status']}, {result['seconds']:.0f} s", file=sys.stderr, flush=True)
        write_text(
            self.directory / STATE, json.dumps({"dry": self.dry, "measurements": self._results}, indent=1) + "\n"
        )
        write_session(self.directory, self._results)


def run_limited(
    command: Sequence[str], log: Path, seconds: float, *, cpu: bool = False, commit: str = ""
) -> int | None:
    """Run ``command``, its output appended to ``log``; its exit status, None when it was stopped after ``seconds``.

    It is asked to end first, as by Ctrl-C, so that it may write a checkpoint or what it has so far. cpu: hide the GPUs
    from it. commit: of the code, told to it.
    """
    # Lazy: only here.
    import psutil

    environment = {**os.environ, **({COMMIT: commit} if commit else {})}
    if cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        try:
            return process.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE)
            return None
        finally:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()


COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = COMMAND.main, COMMAND.parser


if __name__ == "__main__":
    sys.exit(main())
