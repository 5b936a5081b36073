"""Faults that hit files: damaged and missing ones, a full disk, a results directory that was moved."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ablations.drill.bucket import Bucket
from ablations.drill.checks import Failure
from ablations.drill.commands import TRIALS, DrillError
from ablations.drill.drill import Drill, Fault
from ablations.drill.hooks import Moment, Point
from ablations.search.optuna_search import JOURNAL_FILE, STUDY_FILE
from ablations.search.study_storage import damaged_line
from lgd.results.record import FILE
from lgd.results.sweep_spec import SWEEP_FILE
from lgd.training.progress import EVALUATIONS_FILE

Damage = Literal["corrupted", "truncated", "missing"]
DAMAGES: tuple[Damage, ...] = ("corrupted", "truncated", "missing")

BLOCK = 64
"""Bytes that are overwritten in a corrupted file."""

WRITTEN = (
    SWEEP_FILE, EVALUATIONS_FILE, "student.pth", "student.json", "records.csv", "table.md", "gains.png", "report.html",
)  # fmt: skip
"""Files of a sweep that no other fault is about. The first heartbeat is none of them: what was spent before it, tenths
of a second, a full disk cannot keep."""

DISK = 160
"""MiB of the file system that is filled."""


def damage(drill: Drill, path: Path, kind: Damage) -> None:
    """Overwrite a block of the file at a random place, cut it off at one, or remove it."""
    size = path.stat().st_size
    place = drill.rng.randrange(size // 4, 3 * size // 4)
    drill.moment = f"{path.relative_to(drill.output)} {kind}{'' if kind == 'missing' else f' at byte {place}'}"
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        os.truncate(path, place)
    else:
        with path.open("rb+") as file:
            file.seek(place)
            # No byte of it is part of a text.
            file.write(bytes(drill.rng.randrange(0x80, 0x100) for _ in range(BLOCK)))


class Checkpoint(Fault):
    """The newest checkpoint of an interrupted trial is damaged: it goes on from the one before."""

    def __init__(self, kind: Damage) -> None:
        self._kind = kind
        self.name, self.summary = f"checkpoint-{kind}", f"the newest checkpoint of an interrupted trial is {kind}"

    def inject(self, drill: Drill) -> None:
        drill.interrupt()
        with drill.place.files() as output:
            found = sorted(output.glob("trials/*/checkpoints/step-*.pth"), key=lambda path: path.name)
            if not found:
                raise DrillError("the interrupted trial left no checkpoint")
            damage(drill, found[-1], self._kind)
        resumed = drill.go_on()
        if self._kind != "missing":
            with drill.place.files() as output:
                log = (output / "ray.log").read_text(encoding="utf-8", errors="replace")
            if "going back to the one before" not in resumed.said + log + _worker_logs(drill):
                drill.failures.append(Failure("message", f"nothing was said of {found[-1].name}"))


def _worker_logs(drill: Drill) -> str:
    paths = (drill.place.control / "ray").rglob("worker-*.err")
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


class DamagedRecord(Fault):
    """A record of a finished sweep is damaged: it is named and left out, and trained again on request."""

    def __init__(self, kind: Damage) -> None:
        self._kind = kind
        self.name, self.summary = f"record-{kind}", f"the record of a finished trial is {kind}"

    def inject(self, drill: Drill) -> None:
        drill.copy_reference()
        trial = drill.rng.choice(TRIALS)
        with drill.place.files() as output:
            damage(drill, output / "trials" / trial / FILE, self._kind)
        # What the trial cost before went with its record.
        drill.attempts_before = [x for x in drill.attempts_before if x.trial != trial]
        resume = ["--resume", drill.place.results, "--cpus", "1"]
        if self._kind != "missing":
            again = "--retrain-damaged"
            drill.check_message(drill.place.run(resume), [1], rf"^left out: .*{trial}/{FILE}", needs=again)
            resume.append(again)
            drill.allowed.append("record.damaged.json")
        drill.check_message(drill.place.run(resume), [0], r"^\[2/2\]")


class DamagedSweep(Fault):
    """sweep.json is damaged: it is named, and the sweep's own command goes on without it."""

    def __init__(self, kind: Damage) -> None:
        self._kind = kind
        self.name, self.summary = f"sweep-json-{kind}", f"sweep.json of an unfinished sweep is {kind}"

    def inject(self, drill: Drill) -> None:
        drill.copy_reference()
        trial = drill.rng.choice(TRIALS)
        drill.attempts_before = [x for x in drill.attempts_before if x.trial != trial]
        with drill.place.files() as output:
            shutil.rmtree(output / "trials" / trial)
            damage(drill, output / SWEEP_FILE, self._kind)
        resumed = drill.place.run(["--resume", drill.place.results, "--cpus", "1"])
        drill.check_message(resumed, [2], rf"^error: .*/{SWEEP_FILE}: ", needs="the sweep's own command")
        with drill.place.files() as output:
            (output / SWEEP_FILE).unlink(missing_ok=True)
        drill.check_message(drill.place.run(drill.arguments), [0], r"^\[2/2\]")


class Study(Fault):
    """study.db of a search is damaged: it is named, and without it the search goes on from its records.

    In a bucket it is study.journal.
    """

    def __init__(self, kind: Damage) -> None:
        self._kind = kind
        self.name, self.summary = f"study-db-{kind}", f"study.db (in a bucket study.journal) of a search is {kind}"

    def inject(self, drill: Drill) -> None:
        drill.copy_reference()
        with drill.place.files() as output:
            shutil.rmtree(output / "trials" / TRIALS[1])
            (output / SWEEP_FILE).unlink()
        search = [x if x != "baseline,LGD" else "baseline" for x in drill.arguments]
        search += ["--search", "optuna", "--samples", "1"]
        drill.check_message(drill.place.run(search), [0], r"^best trial:")
        study = JOURNAL_FILE if drill.place.bucket else STUDY_FILE
        with drill.place.files() as output:
            damage(drill, output / study, self._kind)
            damaged = _unreadable(output / study)
        more = ["--resume", drill.place.results, "--cpus", "1", "--samples", "2"]
        first = drill.place.run(more)
        if damaged:
            drill.check_message(first, [2], rf"^error: .*/{study}: ", needs="remove it")
            with drill.place.files() as output:
                (output / study).unlink()
            first = drill.place.run(more)
        drill.check_message(first, [0], r"^best trial:")
        drill.check_search(samples=2)


def _unreadable(path: Path) -> bool:
    """Whether a study is damaged: as SQLite finds it, of which a page that holds nothing may be overwritten."""
    if not path.exists():
        return False
    if path.name == JOURNAL_FILE:
        return damaged_line(path) > 0
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("pragma integrity_check").fetchone()[0] != "ok")
    except sqlite3.DatabaseError:
        return True


class Moved(Fault):
    """The results of an interrupted sweep are moved, and it goes on there with one core."""

    name = "moved"
    summary = "an interrupted sweep's results are moved elsewhere, and it goes on there on one core"

    def inject(self, drill: Drill) -> None:
        drill.interrupt()
        place = drill.place
        if place.bucket:
            place.bucket = place.bucket.moved()
        else:
            elsewhere = place.output.with_name(f"{place.output.name} elsewhere")
            shutil.rmtree(elsewhere, ignore_errors=True)
            place.output = place.output.rename(elsewhere)
        cores = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(cores)})
            drill.go_on()
        finally:
            os.sched_setaffinity(0, cores)
        if place.bucket:
            drill.check()
            place.bucket.clear()


class FullDisk(Fault):
    """The disk that a sweep writes to is full while a trial writes: with space again, the sweep goes on.

    It is the results directory's; of results in a bucket the one of the working directory, and the sweep goes on with
    another disk.
    """

    def __init__(self, point: Point) -> None:
        self._point = point
        self.name = f"disk-full-{point}"
        self.summary = f"the disk of the results (in a bucket LGD_CACHE's) is full when a trial is at its {point}"

    def missing(self) -> str:
        return "" if os.geteuid() == 0 and shutil.which("mount") else "only root may mount a small file system"

    def inject(self, drill: Drill) -> None:
        bucket = drill.place.bucket
        disk = drill.place.control / "small-disk" if bucket else drill.output
        with _small_disk(disk):
            moment = drill.at(self._point, "last" if self._point == "step" else "")
            command = drill.start(moment, {"LGD_CACHE": str(disk)} if bucket else None)
            command.wait_for_moment()
            with _filled(disk):
                command.go()
                done = command.wait()
            drill.check_message(done, [1, 2], r": No space left on device", "go on with: ")
            drill.go_on(done)
            drill.check()


class FullDiskAtFile(FullDisk):
    """The disk is full when one of the sweep's files is written, by the command itself or by a trial."""

    name = "disk-full-write"

    def __init__(self) -> None:
        self.summary = f"the disk of the results is full when one of {len(WRITTEN)} kinds of file is written"

    def left_out(self, bucket: Bucket | None) -> str:
        return "what is full there is a disk" if bucket else self.missing()

    def inject(self, drill: Drill) -> None:
        with _small_disk(drill.output):
            command = drill.start(drill.note(Moment("write", drill.rng.choice(WRITTEN))))
            command.wait_for_moment()
            with _filled(drill.output):
                command.go()
                done = command.wait()
            begun = drill.place.exists(SWEEP_FILE)
            drill.check_message(
                done, [1, 2], r"No space left on device", "go on with: " if begun else "give the same command again"
            )
            if begun:
                drill.go_on(done)
            else:
                drill.check_message(drill.place.run(drill.arguments), [0], r"^written:")
            drill.check()


@contextlib.contextmanager
def _small_disk(directory: Path) -> Iterator[None]:
    """Inside, ``directory`` is a file system in memory of DISK MiB."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "lgd-drill", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextlib.contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """Inside, the file system is full: what is removed there, a published checkpoint say, makes no space."""
    ended = threading.Event()

    def fill() -> None:
        # Without a buffer, which would be written again when the file is closed.
        with (disk / "filler").open("wb", buffering=0) as file:
            while True:
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * 2**16):
                        pass
                full.set()
                if ended.wait(0.01):
                    return

    full, thread = threading.Event(), threading.Thread(target=fill, daemon=True)
    thread.start()
    full.wait(60)
    try:
        yield
    finally:
        ended.set()
        thread.join()
        (disk / "filler").unlink()


FILES: tuple[Fault, ...] = (
    *(Checkpoint(kind) for kind in DAMAGES),
    *(DamagedRecord(kind) for kind in DAMAGES),
    *(DamagedSweep(kind) for kind in DAMAGES),
    *(Study(kind) for kind in DAMAGES),
    Moved(),
    *(FullDisk(point) for point in ("checkpoint", "record", "step")),
    FullDiskAtFile(),
)
