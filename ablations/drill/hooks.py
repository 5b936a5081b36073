"""What runs inside the processes of a drilled sweep: it waits at the moment of a fault, and measures what was spent.

The drill starts its commands with the variable CONTROL and, on PYTHONPATH, a ``sitecustomize`` that calls
:func:`install`. Nothing else in the suite knows of it. Imports neither torch nor the suite: every Python process of
the command runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ablations.import_patches import patch_on_import

CONTROL = "LGD_DRILL"
"""Environment variable: the directory through which the drill and the processes of its commands speak."""

CLOCK = "LGD_DRILL_CLOCK"
"""Environment variable: seconds by which ``time.time`` jumps, in every Python process, once the drill says go."""

SITECUSTOMIZE = "from ablations.drill import hooks\n\nhooks.install()\n"

Point = Literal["set-up", "step", "evaluation", "checkpoint", "record", "write"]
"""``set-up``: before model and data are built; ``step``: between the backward pass and the optimiser's step;
``evaluation``: after an image; ``checkpoint``: it is written under its temporary name; ``record``: before it is
written; ``write``: before a file is written, by any process."""

Act = Literal["wait", "nan", "hold memory"]

MOMENT, REACHED, GO, SPENT = "moment.json", "reached.json", "go", "spent"
"""Files and the folder in the control directory."""

LONGEST_WAIT_S = 120.0
PIECE = 2**27
"""Bytes that are allocated at a time."""

TICK_S = 0.02
"""Seconds between two writes of what an attempt has spent."""


@dataclass(frozen=True)
class Moment:
    """When a fault comes: at ``point``, of ``step`` (0: the first time), in ``where``."""

    point: Point
    where: str
    """The name of a trial's directory, at ``write`` that of the file."""
    step: int = 0
    act: Act = "wait"
    """What the process does then. ``wait``: tell the drill, and wait until it has acted. ``nan``: a weight becomes NaN.
    ``hold memory``: allocate ``amount`` bytes, piece by piece, and keep them until the drill has acted."""
    amount: int = 0

    def __str__(self) -> str:
        return f"{self.where}, {self.point}{f' {self.step}' if self.step else ''}"

    def write(self, control: Path) -> None:
        (control / MOMENT).write_text(json.dumps(asdict(self)), encoding="utf-8")


class Attempt(NamedTuple):
    """One attempt at a trial, as a clock of its own measured it."""

    trial: str
    seconds: float
    ended: bool
    """False: it was killed, at most TICK_S after the last of these seconds."""


def attempts(control: Path) -> list[Attempt]:
    """Every attempt of the commands that ``control`` belongs to."""
    found = []
    for path in sorted((control / SPENT).glob("*")):
        begun, last, ended = struct.unpack("ddd", path.read_bytes())
        found.append(Attempt(path.name.partition("@")[0], last - begun, bool(ended)))
    return found


def install() -> None:
    """Patch the suite's modules when they are imported; nothing where no drill is."""
    if CONTROL in os.environ:
        patch_on_import(PATCHES)
        if CLOCK in os.environ:
            _let_clock_jump(float(os.environ[CLOCK]))


def _let_clock_jump(seconds: float) -> None:
    now, go = time.time, _control() / GO

    def jumping() -> float:
        return now() + (seconds if go.exists() else 0.0)

    time.time = jumping


def _patch_files(module: Any) -> None:
    atomic_write = module.atomic_write

    @contextlib.contextmanager
    def writing(path: Path) -> Iterator[Path]:
        _reach("write", path.name, 0)
        with atomic_write(path) as temporary:
            yield temporary

    module.atomic_write = writing


def _patch_run(module: Any) -> None:
    attempt, build = module._attempt, module._build

    def measured(experiment: Any, directory: Path, *arguments: Any) -> Any:
        with _measure(directory.name):
            return attempt(experiment, directory, *arguments)

    def building(experiment: Any, teacher: Any, directory: Path) -> Any:
        _reach("set-up", directory.name, 0)
        return build(experiment, teacher, directory)

    module._attempt, module._build = measured, building


def _patch_trainer(module: Any) -> None:
    after_backward = module.Trainer.after_backward

    def stepping(self: Any) -> None:
        after_backward(self)
        if _reach("step", _trial(), self.iter + 1) == "nan":
            next(iter(self.model.parameters())).data.mul_(float("nan"))

    module.Trainer.after_backward = stepping


def _patch_evaluations(module: Any) -> None:
    evaluate = module.Evaluations.evaluate

    def evaluating(self: Any, step: int, after_image: Callable[[], None] = lambda: None) -> Any:
        def after() -> None:
            _reach("evaluation", _trial(), step)
            after_image()

        return evaluate(self, step, after)

    module.Evaluations.evaluate = evaluating


def _patch_tensor_file(module: Any) -> None:
    atomic_write = module.atomic_write

    @contextlib.contextmanager
    def writing(path: Path) -> Iterator[Path]:
        with atomic_write(path) as temporary:
            yield temporary
            if path.parent.name == "checkpoints":
                _reach("checkpoint", path.parents[1].name, int(path.stem.removeprefix("step-")))

    module.atomic_write = writing


def _patch_record(module: Any) -> None:
    save = module.Record.save

    def saving(self: Any, directory: Path) -> Path:
        _reach("record", directory.name, 0)
        path: Path = save(self, directory)
        return path

    module.Record.save = saving


PATCHES: dict[str, Callable[[Any], None]] = {
    "lgd.files": _patch_files,
    "lgd.training.run": _patch_run,
    "lgd.training.trainer": _patch_trainer,
    "lgd.training.evaluations": _patch_evaluations,
    "lgd.training.tensor_file": _patch_tensor_file,
    "lgd.results.record": _patch_record,
}

_running: list[str] = []


def _trial() -> str:
    """The trial that this process trains."""
    return _running[-1] if _running else ""


def _control() -> Path:
    return Path(os.environ[CONTROL])


@cache
def _moment(control: Path) -> Moment | None:
    try:
        return Moment(**json.loads((control / MOMENT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _reach(point: Point, where: str, step: int) -> Act | None:
    """This process is at ``point``. Where that is the fault's moment, and the first time, act; what was done."""
    control = _control()
    moment = _moment(control)
    if moment is None or (point, where) != (moment.point, moment.where) or moment.step not in (0, step):
        return None
    own = control / f"reached-{os.getpid()}"
    own.write_text(json.dumps({"pid": os.getpid(), "step": step}), encoding="utf-8")
    try:
        os.link(own, control / REACHED)
    except FileExistsError:
        return None
    finally:
        own.unlink()
    held: list[bytes] = []
    while moment.act == "hold memory" and len(held) * PIECE < moment.amount:
        held.append(b"\1" * PIECE)
        time.sleep(0.05)
    deadline = time.monotonic() + LONGEST_WAIT_S
    while moment.act != "nan" and not (control / GO).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    del held
    return moment.act


@contextlib.contextmanager
def _measure(trial: str) -> Iterator[None]:
    """Write, every TICK_S, how long the block has run: begin, now, and whether it has ended, seconds."""
    folder = _control() / SPENT
    begun, over = time.monotonic(), threading.Event()
    file = os.open(folder / f"{trial}@{os.getpid()}-{begun:.6f}", os.O_CREAT | os.O_WRONLY, 0o600)

    def write(ended: bool) -> None:
        os.pwrite(file, struct.pack("ddd", begun, time.monotonic(), ended), 0)

    def tick() -> None:
        while not over.wait(TICK_S):
            write(False)

    write(False)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    _running.append(trial)
    try:
        yield
    finally:
        _running.pop()
        over.set()
        thread.join()
        write(True)
        os.close(file)
