"""Faults that hit a running sweep: signals, killed processes, a weight that is NaN, a second command."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import psutil

from ablations.drill.commands import DrillError
from ablations.drill.drill import Drill, Fault
from ablations.drill.hooks import CLOCK, Moment, Point
from lgd.results.record import FILE

NAMES = {signal.SIGTERM: "sigterm", signal.SIGINT: "ctrl-c"}
PLACES: dict[tuple[Point, str], str] = {
    ("set-up", ""): "set-up",
    ("step", ""): "step",
    ("evaluation", ""): "evaluation",
    ("step", "last"): "last-step",
    ("evaluation", "final"): "final-evaluation",
    ("checkpoint", ""): "checkpoint",
}
"""Names of the points at which a fault comes, for a step or an evaluation the last one apart."""

WHEN = {
    "set-up": "while a trial is set up",
    "step": "while a trial is in a step",
    "evaluation": "while a trial evaluates",
    "last-step": "while a trial is in its last step",
    "final-evaluation": "while a trial evaluates for the last time",
    "checkpoint": "while a trial writes a checkpoint",
}
"""The same in words."""


class Signal(Fault):
    """A signal to the command while a trial is at some point."""

    times = 1

    def __init__(self, number: signal.Signals, point: Point, when: str = "") -> None:
        self._number, self._point, self._when = number, point, when
        self.name = f"{NAMES[number]}-{PLACES[point, when]}"
        self.summary = f"{number.name} to the command {WHEN[PLACES[point, when]]}"

    def inject(self, drill: Drill) -> None:
        self.send(drill, drill.at(self._point, self._when))

    def send(self, drill: Drill, moment: Moment) -> None:
        """Send the signals at ``moment``, check what is said, and go on."""
        command = drill.start(moment)
        command.wait_for_moment()
        for _ in range(self.times):
            command.send(self._number)
            time.sleep(drill.rng.uniform(0.0, 0.5))
        command.go()
        done = command.wait()
        if self._number == signal.SIGTERM and self.times == 1:
            drill.check_message(done, [3, 0], r"SIGTERM came after \d of 2 trials; go on with: |^written:")
        else:
            drill.check_message(done, [130], r"interrupted.*go on with: |SIGTERM came.*go on with: ")
        drill.go_on(done if done.status else None)


class SignalTwice(Signal):
    """The same twice, at a random one of the points."""

    times = 2

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number, "step")
        self.name = f"{NAMES[number]}-twice"
        self.summary = f"{number.name} twice to the command while a trial is at a random one of these points"

    def inject(self, drill: Drill) -> None:
        self.send(drill, drill.at(*drill.rng.choice(list(PLACES))))


class StartUp(Fault):
    """A signal to the command while it starts: before Ray, while Ray starts, or while its workers do."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self.name = f"{NAMES[number]}-start"
        self.summary = f"{number.name} to the command while it checks its arms and starts Ray"

    def inject(self, drill: Drill) -> None:
        command = drill.start()
        wait = drill.rng.uniform(0.5, 8.0)
        drill.moment = f"{wait:.1f} s after the command's start"
        started = time.monotonic()
        command.wait_for(lambda: time.monotonic() - started > wait, "the moment")
        command.send(self._number)
        done = command.wait()
        begun = bool(done.said.strip()) or drill.place.exists("sweep.json")
        if self._number == signal.SIGINT:
            drill.check_message(done, [130], r"^interrupted|interrupted.*go on with")
        elif begun or done.status != -signal.SIGTERM:
            # Otherwise it still imported its modules: it had begun nothing, and had no handler to say so.
            drill.check_message(done, [130, 3], r"^interrupted|(interrupted|SIGTERM came).*go on with: ")
        if drill.place.exists("sweep.json"):
            drill.go_on()
        else:
            drill.check_message(drill.place.run(drill.arguments), [0], r"^written:")


class KillWorker(Fault):
    """SIGKILL to a trial's process: the command itself goes on from the trial's checkpoint."""

    def __init__(self, point: Point, when: str = "") -> None:
        self._point, self._when = point, when
        self.name = f"kill-worker-{PLACES[point, when]}"
        self.summary = f"SIGKILL to a trial's process {WHEN[PLACES[point, when]]}"

    def inject(self, drill: Drill) -> None:
        moment = drill.at(self._point, self._when)
        command = drill.start(moment)
        psutil.Process(command.wait_for_moment()).kill()
        drill.check_message(command.wait(), [0], r"its worker died; it (goes on from|begins again)")


class KillDriver(Fault):
    """SIGKILL to the command: nothing can be told by it, so what ``--status`` says is checked."""

    def __init__(self, point: Point, when: str = "") -> None:
        self._point, self._when = point, when
        self.name = f"kill-driver-{PLACES[point, when]}"
        self.summary = f"SIGKILL to the command {WHEN[PLACES[point, when]]}"

    def inject(self, drill: Drill) -> None:
        command = drill.start(drill.at(self._point, self._when))
        command.wait_for_moment()
        command.send(signal.SIGKILL)
        command.go()
        command.wait()
        # The next command may come at once, or when all processes of the one before have ended.
        if drill.rng.random() < 0.5:
            drill.place.left_processes()
        drill.check_message(drill.place.run(["--status", drill.place.results]), [0], r"\d of 2 trials finished")
        drill.go_on()


class KillRay(Fault):
    """SIGKILL to a process of Ray itself: the global control store (the head), or the node's raylet."""

    def __init__(self, process: str, name: str) -> None:
        self._process = process
        self.name = f"kill-{name}"
        self.summary = f"SIGKILL to Ray's {process}"

    def inject(self, drill: Drill) -> None:
        command = drill.start(drill.at("step"))
        command.wait_for_moment()
        killed = 0
        for child in command.children():
            with suppress(psutil.Error):
                if child.name() == self._process:
                    child.kill()
                    killed += 1
        if not killed:
            raise DrillError(f"the command has no process {self._process}")
        command.go()
        done = command.wait()
        drill.check_message(done, [1, 3], r"Ray.*go on with: ")
        drill.go_on(done)


class NotANumber(Fault):
    """A weight becomes NaN: the trial diverges and says so; without its record it is trained again."""

    name = "nan"
    summary = "a weight of the model becomes NaN in a step"

    def inject(self, drill: Drill) -> None:
        moment = drill.at("step", act="nan")
        done = drill.start(moment).wait()
        drill.check_message(done, [1], r"diverged: ", f"remove its {FILE} and go on with: ")
        again = drill.place.run(["--resume", drill.place.results, "--cpus", "1"])
        # What diverged would diverge again, so it counts as trained.
        drill.check_message(again, [1], r", 0 to run")
        with drill.place.files() as output:
            (output / "trials" / moment.where / FILE).unlink()
        for path in (drill.place.control / "spent").glob(f"{moment.where}@*"):
            # Its cost went with the record.
            path.unlink()
        drill.go_on()


class Clock(Fault):
    """The clock jumps while trials run; what was spent is measured by a clock that cannot."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.name = f"clock-{'forward' if seconds > 0 else 'back'}"
        self.summary = f"time.time jumps by {seconds / 3600:+.0f} h in every Python process"

    def inject(self, drill: Drill) -> None:
        command = drill.start(drill.at("step"), {CLOCK: str(self._seconds)})
        command.wait_for_moment()
        command.go()
        drill.check_message(command.wait(), [0], r"^written:")


class TwoCommands(Fault):
    """A second command on the directory in which one is at work."""

    name = "two-commands"
    summary = "a second command on the same results directory"

    def inject(self, drill: Drill) -> None:
        command = drill.start(drill.at("step"))
        command.wait_for_moment()
        second = drill.place.run(drill.arguments)
        drill.check_message(second, [2], r"^error: .* is at work there; wait for it, or choose another --output")
        command.go()
        drill.check_message(command.wait(), [0], r"^written:")


RUNNING: tuple[Fault, ...] = (
    KillWorker("set-up"),
    KillWorker("step"),
    KillWorker("evaluation"),
    KillWorker("checkpoint"),
    KillWorker("evaluation", "final"),
    KillDriver("set-up"),
    KillDriver("step"),
    KillDriver("evaluation"),
    KillDriver("checkpoint"),
    KillDriver("evaluation", "final"),
    *(StartUp(number) for number in NAMES),
    *(Signal(number, point, when) for number in NAMES for point, when in PLACES),
    *(SignalTwice(number) for number in NAMES),
    KillRay("gcs_server", "ray-head"),
    KillRay("raylet", "raylet"),
    NotANumber(),
    Clock(26 * 3600.0),
    Clock(-26 * 3600.0),
    TwoCommands(),
)
