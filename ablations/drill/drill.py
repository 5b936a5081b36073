"""One drill: a fault injected into a sweep, the sweep resumed, and everything checked."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ablations.drill import hooks
from ablations.drill.bucket import UNPUBLISHED_S, Bucket
from ablations.drill.checks import (
    Failure,
    check_cost,
    check_left,
    check_message,
    check_records,
    check_steps,
    check_trace,
)
from ablations.drill.commands import EVALUATE, EVERY, STEPS, SWEEP, TRIALS, Done, DrillError, Running, Sandbox
from ablations.drill.hooks import Act, Moment, Point
from lgd.errors import InputError
from lgd.results.record import FILE, load
from lgd.results.sweep_spec import SEARCHED


@dataclass(frozen=True)
class Result:
    """How one drill went."""

    fault: str
    repeat: int
    moment: str
    """When the fault came."""
    failures: tuple[Failure, ...]
    seconds: float
    """Of wall-clock time."""


@dataclass
class Drill:
    """What a fault works with: the place, the random numbers, and what is to be checked in the end."""

    place: Sandbox
    reference: Path
    """The results directory of the undisturbed sweep."""
    rng: random.Random
    moment: str = ""
    failures: list[Failure] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    """Names of files that the fault leaves."""
    attempts_before: list[hooks.Attempt] = field(default_factory=list)
    """Of a sweep whose results directory was copied."""
    checked: bool = False
    """All that holds after every fault was checked already."""

    @property
    def output(self) -> Path:
        return self.place.output

    @property
    def arguments(self) -> list[str]:
        """Of the command that starts the sweep."""
        return [*SWEEP, "--output", self.place.results]

    def at(self, point: Point, when: str = "", *, act: Act = "wait", amount: int = 0) -> Moment:
        """A random moment at ``point``. when: ``last`` or ``final`` for the last step and the evaluation after it."""
        trial = self.rng.choice(TRIALS)
        step = 0
        if point == "step":
            step = STEPS if when else self.rng.randrange(1, STEPS)
        elif point == "evaluation":
            step = STEPS if when else EVALUATE
        elif point == "checkpoint":
            step = self.rng.randrange(EVERY, STEPS, EVERY)
        return self.note(Moment(point, trial, step, act, amount))

    def note(self, moment: Moment) -> Moment:
        """Make the moment the one that the result names."""
        self.moment = str(moment)
        return moment

    def start(self, moment: Moment | None = None, extra: Mapping[str, str] | None = None) -> Running:
        """Start the sweep. extra: environment variables."""
        return self.place.start(self.arguments, moment, extra)

    def check_message(self, done: Done, statuses: Sequence[int], pattern: str, needs: str = "") -> None:
        """Check what a command said, and how it ended."""
        self.failures += check_message(done.said, done.status, statuses, pattern, needs=needs)

    def go_on(self, done: Done | None = None) -> Done:
        """Run the command that ``done`` named to go on with, or ``--resume``: it must finish all trials."""
        following = done.next_command if done else None
        if done and following is None:
            self.failures.append(Failure("message", "no command to go on with"))
        resumed = self.place.run(following or ["--resume", self.place.results, "--cpus", "1"])
        self.check_message(resumed, [0], r"^written:")
        return resumed

    def copy_reference(self) -> None:
        """The results directory is a copy of the undisturbed sweep's."""
        with self.place.files() as output:
            shutil.copytree(self.reference, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".published*"))
        self.attempts_before += read_attempts(self.reference)

    def interrupt(self) -> None:
        """Run the sweep until SIGTERM ends it late in a trial, which has two checkpoints then."""
        trial = self.rng.choice(TRIALS)
        moment = self.note(Moment("step", trial, self.rng.randrange(2 * EVERY + 1, STEPS)))
        command = self.start(moment)
        command.wait_for_moment()
        command.send(signal.SIGTERM)
        command.wait_for(lambda: self.place.exists("stop"), "it answered SIGTERM")
        if self.place.bucket:
            # The trial looks there as often as it publishes; by then it would have come to its end.
            time.sleep(2 * UNPUBLISHED_S)
        command.go()
        self.check_message(command.wait(), [3], r"SIGTERM came after \d of 2 trials; go on with: python ")

    def attempts(self) -> list[hooks.Attempt]:
        """All attempts at the trials so far, by the drill's own clock."""
        return [*self.attempts_before, *hooks.attempts(self.place.control)]

    def check(self) -> None:
        """Check all that holds after every fault."""
        self.checked = True
        reference, bucket = self.reference, self.place.bucket
        left = self.place.left_processes()
        with self.place.files() as output:
            self.failures += [
                *check_records(output, reference),
                *check_steps(output, reference),
                *check_trace(output, reference),
                *check_cost(output, self.attempts(), UNPUBLISHED_S if bucket else 0.0),
                *check_left(output, reference, self.place.temporary, left, self.allowed),
            ]
        if bucket:
            self.failures += bucket.check_lease()

    def check_search(self, samples: int) -> None:
        """Check what holds after a fault of a search beside the reference's first trial, in place of :meth:`check`.

        There is no undisturbed search: its samples' files, and the steps of those that finished, are compared with the
        reference's second trial, and nothing that depends on what was sampled.
        """
        self.checked = True
        bucket, left = self.place.bucket, self.place.left_processes()
        with self.place.files() as output:
            records = {x.parent.name: load(x) for x in sorted(output.glob(f"trials/{SEARCHED}*/{FILE}"))}
            if len(records) != samples:
                self.failures.append(Failure("one record", f"records of {sorted(records)} for {samples} samples"))
            own = {TRIALS[0]: TRIALS[0]}
            finished = {name: TRIALS[1] for name, record in records.items() if record.status == "finished"}
            self.failures += [
                *check_steps(output, self.reference, {**own, **finished}),
                *check_trace(output, self.reference, own),
                *check_cost(output, self.attempts()),
                *check_left(
                    output, self.reference, self.place.temporary, left, self.allowed,
                    {**own, **dict.fromkeys(records, TRIALS[1])},
                ),
            ]  # fmt: skip
        if bucket:
            self.failures += bucket.check_lease()


class Fault(ABC):
    """One kind of fault."""

    name: str
    summary: str
    needs: Literal["", "server"] = ""
    """It can be injected only into the S3 server that the drill starts."""

    def left_out(self, bucket: Bucket | None) -> str:
        """Why it cannot be injected into a sweep in ``bucket`` (None: in a directory), or ""."""
        if self.needs == "server" and (bucket is None or bucket.faults is None):
            return "needs the drill's own S3 server: --bucket without a URL"
        return self.missing()

    def missing(self) -> str:
        """What this machine lacks for it, or ""."""
        return ""

    @abstractmethod
    def inject(self, drill: Drill) -> None:
        """Run the sweep, inject the fault, check the messages, and go on until all trials are finished."""


ATTEMPTS_FILE = "attempts.json"
"""Beside the reference's results directory: what its attempts spent."""


def write_attempts(reference: Path, attempts: Sequence[hooks.Attempt]) -> None:
    (reference.parent / ATTEMPTS_FILE).write_text(json.dumps(attempts), encoding="utf-8")


def read_attempts(reference: Path) -> list[hooks.Attempt]:
    found = json.loads((reference.parent / ATTEMPTS_FILE).read_text(encoding="utf-8"))
    return [hooks.Attempt(*x) for x in found]


def run_reference(directory: Path, bucket: Bucket | None = None) -> Path:
    """The undisturbed sweep's results directory, run where ``directory`` does not hold it yet.

    bucket: it runs there, and the directory is a copy. Raises InputError where it does not finish, or already fails its
    checks.
    """
    output = directory / "out"
    if (directory / ATTEMPTS_FILE).exists():
        return output
    _remove(output, bucket)
    with Sandbox(output, bucket) as place:
        drill = Drill(place, output, random.Random(0))
        drill.check_message(place.run(drill.arguments), [0], r"^written:")
        if not drill.failures:
            drill.check()
        if drill.failures:
            raise InputError(f"the undisturbed sweep fails already: {drill.failures[0]}")
        write_attempts(output, hooks.attempts(place.control))
    return output


def _remove(output: Path, bucket: Bucket | None) -> None:
    shutil.rmtree(output, ignore_errors=True)
    if bucket:
        bucket.clear()


def run_drill(
    fault: Fault, repeat: int, seed: int, reference: Path, output: Path, bucket: Bucket | None = None
) -> Result:
    """Inject ``fault`` once, at moments that ``seed`` and ``repeat`` give, into a sweep in ``output`` or ``bucket``."""
    begun = time.monotonic()
    _remove(output, bucket)
    with Sandbox(output, bucket) as place:
        drill = Drill(place, reference, random.Random(f"{fault.name} {repeat} {seed}"))
        try:
            fault.inject(drill)
            if not drill.checked:
                drill.check()
        except DrillError as error:
            drill.failures.append(Failure("drill", str(error)))
    return Result(fault.name, repeat, drill.moment, tuple(drill.failures), time.monotonic() - begun)
