"""The sweep that is drilled, and its commands: started, watched to the moment of the fault, and cleaned up after."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ablations.drill import hooks
from ablations.drill.bucket import Bucket
from ablations.drill.hooks import CONTROL, Moment

ROOT = Path(__file__).parents[2]

STEPS, EVERY, EVALUATE = 20, 5, 10
"""Steps of a trial, between two checkpoints, and between two evaluations."""

TRIALS = ("baseline-seed0", "lgd-seed0")

SWEEP = (
    "--grid", "components", "--arms", "baseline,LGD", "--preset", "nano", "--cpus", "1",
    *(x for setting in (
        f"schedule.steps={STEPS}", "schedule.warmup_steps=2", "schedule.batch=2", "data.shapes_train=12",
        "data.shapes_val=6", "data.shapes_side=64", "data.min_sizes=[64]", "data.max_size=64", "data.test_size=64",
        "detector.backbone.width=8", "detector.channels=16", "detector.head_convs=1", "threads=1",
        f"checkpoint.every={EVERY}", f"evaluation.every={EVALUATE}",
    ) for x in ("--set", setting)),
)  # fmt: skip
"""Options of the sweep: two trials of a fraction of a second a step, on the CPU."""

LONGEST_COMMAND_S = 600.0
"""Seconds after which a command is taken for stuck."""

LONGEST_END_S = 60.0
"""Seconds that the processes of a command may take to end after it."""

NEXT_COMMAND = re.compile(r"go on with: (python .*)")
"""How a command ends that tells which one goes on."""


class DrillError(Exception):
    """The fault could not be injected, or a command did not end; one line."""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    """Negative where a signal ended it."""
    said: str
    """Standard output and error."""

    @property
    def next_command(self) -> list[str] | None:
        """The arguments, after ``python FILE``, of the command that goes on, as it says."""
        found = NEXT_COMMAND.search(self.said)
        return shlex.split(found[1])[2:] if found else None

    def line(self, pattern: str) -> str:
        """The first line that the pattern is found in; "" where there is none."""
        return next((x for x in self.said.splitlines() if re.search(pattern, x)), "")


class Running:
    """A command at work."""

    def __init__(self, process: subprocess.Popen[bytes], control: Path, log: Path) -> None:
        self.process, self._control, self._log = process, control, log

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Raises DrillError when the command has ended or LONGEST_COMMAND_S are over before ``condition`` is true."""
        deadline = time.monotonic() + LONGEST_COMMAND_S
        while not condition():
            if self.process.poll() is not None:
                raise DrillError(f"the command ended (status {self.process.returncode}) before {what}: {self._tail()}")
            if time.monotonic() > deadline:
                raise DrillError(f"after {LONGEST_COMMAND_S:.0f} s not yet {what}: {self._tail()}")
            time.sleep(0.01)

    def wait_for_moment(self) -> int:
        """Wait until a process is at the moment of the fault; its id."""
        reached = self._control / hooks.REACHED
        self.wait_for(reached.exists, "its fault's moment")
        return int(json.loads(reached.read_text(encoding="utf-8"))["pid"])

    def go(self) -> None:
        """The process that waits at the moment goes on."""
        (self._control / hooks.GO).touch()

    def children(self) -> list[psutil.Process]:
        """All processes that the command has started and that are its descendants."""
        with suppress(psutil.Error):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def send(self, number: signal.Signals) -> None:
        """Send a signal; Ctrl-C goes to the whole group of processes, as from a terminal."""
        with suppress(ProcessLookupError):
            if number == signal.SIGINT:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def wait(self) -> Done:
        """Wait for its end. Raises DrillError when there is none within LONGEST_COMMAND_S."""
        try:
            self.process.wait(LONGEST_COMMAND_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DrillError(f"the command had not ended after {LONGEST_COMMAND_S:.0f} s: {self._tail()}") from None
        return Done(self.process.returncode, self._said())

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _tail(self) -> str:
        return " | ".join(self._said().splitlines()[-3:])[-400:]


class Sandbox:
    """A results directory, and what the commands that work on it share. Use as a context manager.

    output: the results directory. It may be anywhere; sockets and temporary files lie in the system's own temporary
    directory, since the path of a socket may have no more than 107 characters. bucket: the results lie there; then
    ``output`` is for copies of them (:meth:`files`), and each command works on a disk of its own.
    """

    def __init__(self, output: Path, bucket: Bucket | None = None) -> None:
        self.output, self.bucket = output, bucket
        self.control = Path(tempfile.mkdtemp(prefix="lgd-drill-"))
        self.temporary = self.control / "tmp"
        for folder in (self.control / hooks.SPENT, self.temporary, self.control / "ray", self.control / "site"):
            folder.mkdir()
        (self.control / "site" / "sitecustomize.py").write_text(hooks.SITECUSTOMIZE, encoding="utf-8")
        self._number = 0

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.control, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(self.control / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {
            **kept,
            CONTROL: str(self.control),
            "PYTHONPATH": path,
            "TMPDIR": str(self.temporary),
            "RAY_TMPDIR": str(self.control / "ray"),
            "RAY_worker_niceness": "0",
            "COLUMNS": "300",
        }

    @property
    def results(self) -> str:
        """What commands are told: the results directory, or its URL."""
        return self.bucket.url if self.bucket else str(self.output)

    def exists(self, name: str) -> bool:
        """Whether there is such a file among the results."""
        return self.bucket.store.exists(name) if self.bucket else (self.output / name).exists()

    @contextmanager
    def files(self) -> Iterator[Path]:
        """The results directory, for the block to read and to change; of a bucket a copy (:meth:`Bucket.copied`)."""
        if self.bucket is None:
            yield self.output
        else:
            with self.bucket.copied(self.output) as directory:
                yield directory

    def disk(self) -> dict[str, str]:
        """The environment of a command that works on a disk of its own; without a bucket there is one disk."""
        return {"LGD_CACHE": tempfile.mkdtemp(prefix="disk-", dir=self.control)} if self.bucket else {}

    def start(
        self, arguments: Sequence[str], moment: Moment | None = None, extra: Mapping[str, str] | None = None
    ) -> Running:
        """Start ``python ablations/run.py`` with these arguments, and a fault's moment in it."""
        (self.control / hooks.MOMENT).unlink(missing_ok=True)
        if moment:
            # What still waits at the moment of an earlier command is to go on.
            for name in (hooks.REACHED, hooks.GO):
                (self.control / name).unlink(missing_ok=True)
            moment.write(self.control)
        self._number += 1
        log = self.control / f"said-{self._number}.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "ablations" / "run.py"), *arguments],
                cwd=ROOT, env={**self.environment, **self.disk(), **(extra or {})}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return Running(process, self.control, log)

    def run(self, arguments: Sequence[str]) -> Done:
        """The same, to its end."""
        return self.start(arguments).wait()

    def processes(self) -> list[psutil.Process]:
        """All processes that carry the mark of this workplace, at however many removes they were started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(CONTROL) == str(self.control):
                    found.append(process)
        return found

    def left_processes(self) -> list[str]:
        """Command lines of those that are still there LONGEST_END_S after the last command."""
        deadline = time.monotonic() + LONGEST_END_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        lines = []
        for process in left:
            with suppress(psutil.Error):
                lines.append(" ".join(process.cmdline())[:150])
        return lines
