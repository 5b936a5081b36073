"""Commands in processes of their own, and what they take."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[2]

POLL_S = 0.2


class Row(NamedTuple):
    """One measured number."""

    part: str
    size: int
    quantity: str
    unit: str
    value: float


@dataclass(frozen=True)
class ResourceUsage:
    """What a command took."""

    cpu: float
    """Seconds of its process and of those that it waited for."""
    wall: float
    memory: float
    """MiB, at most."""


class CommandFailedError(Exception):
    """A measured command did not do what it was to do; one line."""


def run_measured(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    on_poll: Callable[[psutil.Process], None] = lambda _: None,
) -> ResourceUsage:
    """Run ``python`` with these arguments. on_poll: called every POLL_S with the running process.

    CPU seconds, since another process's work makes the clock's longer. Raises CommandFailedError unless it ends with 0.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
            stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            watched, memory = psutil.Process(process.pid), 0.0
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                # Not its rusage's, which is at least that of this process, whose copy it was for a moment.
                with suppress(psutil.Error):
                    memory = max(memory, watched.memory_info().rss / 2**20)
                on_poll(watched)
                time.sleep(POLL_S)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        wall, usage = time.monotonic() - begun, ended[2]
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            said.seek(0)
            last = [line for line in said.read().splitlines() if line.strip()][-1:]
            raise CommandFailedError(f"{' '.join(arguments[:6])} ... ended with {process.returncode}: {' '.join(last)}")
        return ResourceUsage(usage.ru_utime + usage.ru_stime, wall, memory)


class DirectorySize(NamedTuple):
    """What a directory holds: megabytes, files."""

    megabytes: float
    files: int


def directory_size(directory: Path) -> DirectorySize:
    """All below ``directory``, links and sockets not."""
    size = files = 0
    for place, _, names in os.walk(directory):
        for name in names:
            path = Path(place, name)
            try:
                if path.is_file() and not path.is_symlink():
                    size, files = size + path.stat().st_size, files + 1
            except OSError:
                # Removed meanwhile.
                continue
    return DirectorySize(size / 1e6, files)


def read_commands(part: str, size: int, directory: Path, table: str) -> Iterator[Row]:
    """What ``status``, ``table`` and ``report`` take on a results directory, and the size of the page."""
    for quantity, arguments in (
        ("status", ["ablations/run.py", "--status", str(directory)]),
        ("table", ["analysis/tables.py", str(directory), "--table", table]),
        ("report", ["-m", "analysis", str(directory)]),
    ):
        taken = run_measured(arguments)
        yield Row(part, size, quantity, "s", taken.cpu)
        if quantity == "report":
            yield Row(part, size, "report's memory", "MiB", taken.memory)
    yield Row(part, size, "report.html", "MB", (directory / "report.html").stat().st_size / 1e6)
