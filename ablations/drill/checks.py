"""What is checked after a fault and the resuming: each check returns what it found wrong, with the evidence."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ablations.drill.hooks import Attempt
from lgd.errors import InputError
from lgd.files import TEMPORARY
from lgd.results.cost_meter import HEARTBEAT_PERIOD
from lgd.results.record import FILE, Record, load
from lgd.storage.outputs import STOP_FILE

COST_TOLERANCE = 0.02
"""Of the device-seconds that were really spent."""

COST_FLOOR_S = 0.25
"""Device-seconds by which a trial's record may always be off: the two clocks do not start in the same instant."""

KILLED_FLOOR_S = HEARTBEAT_PERIOD + 0.25
"""Device-seconds by which it may be off besides for every attempt that was killed: what it spent is written once in
HEARTBEAT_PERIOD."""

CACHES = re.compile(r"torchinductor_.*")
"""What libraries keep in the temporary directory from one process to the next."""

CHANGING = re.compile(r"events\.out\.tfevents\..*")
"""Files whose names contain a time and a process."""


class Failure(NamedTuple):
    """A check that failed."""

    check: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.check}: {self.evidence}"


def check_records(output: Path, reference: Path) -> list[Failure]:
    """Every trial of the reference has exactly one record, which says ``finished``, and one row in the table."""
    found = []
    wanted = {path.parent.name for path in reference.glob(f"trials/*/{FILE}")}
    there = {path.parent.name for path in output.glob(f"trials/*/{FILE}")}
    if there != wanted:
        found.append(Failure("one record", f"records of {sorted(there)}, not of {sorted(wanted)}"))
    for name in sorted(there & wanted):
        try:
            record = load(output / "trials" / name / FILE)
        except InputError as error:
            found.append(Failure("one record", str(error)))
            continue
        if record.status != "finished":
            found.append(Failure("one record", f"{name} {record.status}: {record.reason}"))
    rows = _rows(output / "records.csv")
    if sorted(rows) != sorted(_rows(reference / "records.csv")):
        found.append(Failure("one record", f"records.csv has the rows {sorted(rows)}"))
    return found


def check_steps(output: Path, reference: Path, like: Mapping[str, str] | None = None) -> list[Failure]:
    """No step was done or counted twice or left out, as records, logs and evaluations say.

    like: by name of each trial that is checked, the trial of the reference that it is to be like; by default all of
    the reference's, each like its own.
    """

    def steps(directory: Path) -> dict[str, Any]:
        record = _record(directory)
        return {
            "steps in the record": record.steps if record else None,
            "iterations in metrics.json": [x.get("iteration") for x in _lines(directory / "metrics.json")],
            "evaluated steps": [x.step for x in record.evaluations] if record else None,
            "evaluations.jsonl": [x.get("step") for x in _lines(directory / "evaluations.jsonl")],
        }

    return _compare("steps", output, reference, steps, like)


def check_trace(output: Path, reference: Path, like: Mapping[str, str] | None = None) -> list[Failure]:
    """Losses, scores and the student's weights are those of the undisturbed run, bit for bit. like: as check_steps."""

    def trace(directory: Path) -> dict[str, Any]:
        record = _record(directory)
        found: dict[str, Any] = {
            "losses in metrics.json": [
                {k: v for k, v in x.items() if "loss" in k} for x in _lines(directory / "metrics.json")
            ],
            "weights in student.pth": _weights(directory / "student.pth"),
        }
        for name in ("losses", "student", "teacher", "evaluations", "teacher_lead", "distilled", "fingerprint"):
            found[f"{name} in the record"] = getattr(record, name) if record else None
        return found

    return _compare("trace", output, reference, trace, like)


def check_cost(output: Path, attempts: Sequence[Attempt], unpublished: float = 0.0) -> list[Failure]:
    """The device-seconds of each record are those that its attempts spent, by a clock of their own; lost work too.

    unpublished: seconds of an attempt that was killed, or ended at once by Ctrl-C, that nobody may know of besides. One
    that was killed and no longer may not be counted.
    """
    found = []
    for path in sorted(output.glob(f"trials/*/{FILE}")):
        name, record = path.parent.name, _record(path.parent)
        own = [x for x in attempts if x.trial == name]
        if record is None or not own:
            found.append(Failure("cost", f"{name}: {'no record' if own else 'no attempt was measured'}"))
            continue
        # Every trial holds one core, so a second is a device-second.
        spent, killed = math.fsum(x.seconds for x in own), sum(not x.ended for x in own)
        counted = math.fsum(record.device_seconds.values())
        if abs(counted - spent) > allowance(spent, killed) + unpublished * max(killed, len(own) - 1):
            found.append(
                Failure(
                    "cost",
                    f"{name}: {counted:.2f} device-seconds in the record, {spent:.2f} spent in {len(own)} attempts"
                    f" ({killed} killed)",
                )
            )
        unknown = sum(not x.ended and x.seconds < unpublished + HEARTBEAT_PERIOD for x in own if unpublished)
        if not len(own) - unknown <= record.attempts <= len(own):
            found.append(Failure("cost", f"{name}: {record.attempts} attempts in the record, {len(own)} seen"))
    return found


def allowance(spent: float, killed: int) -> float:
    """By how many device-seconds a record may differ from what was ``spent``, with that many attempts ``killed``."""
    return max(COST_TOLERANCE * spent, COST_FLOOR_S) + KILLED_FLOOR_S * killed


def check_left(
    output: Path,
    reference: Path,
    temporary: Path,
    processes: Sequence[str],
    allowed: Sequence[str] = (),
    like: Mapping[str, str] | None = None,
) -> list[Failure]:
    """No process, temporary file, checkpoint or lock is left, and no file that an undisturbed sweep does not leave.

    processes: those that are left. allowed: names of files that the resuming is to leave. like: as check_steps, of a
    sweep that has files of its own besides its trials.
    """
    found = [Failure("nothing left", f"a process: {line}") for line in processes]
    extra = _files(output) - (_files(reference) if like is None else _expected(output, reference, like))
    found += [Failure("nothing left", str(x)) for x in sorted(extra) if x.name not in allowed]
    strays = sorted(x.name for x in temporary.iterdir() if not CACHES.fullmatch(x.name))
    found += [Failure("nothing left", f"in the temporary directory: {name}") for name in strays]
    try:
        with FileLock(output / "lock", timeout=0):
            pass
    except Timeout:
        found.append(Failure("nothing left", f"{output / 'lock'} is held"))
    return found


def check_message(said: str, status: int, statuses: Iterable[int], pattern: str, *, needs: str = "") -> list[Failure]:
    """The command ended with one of ``statuses``, without a traceback, and one line matches ``pattern``.

    needs: what some line contains besides: the next command.
    """
    found = []
    if status not in statuses:
        found.append(Failure("message", f"exit status {status}, not {' or '.join(map(str, statuses))}: {_tail(said)}"))
    if "Traceback (most recent call last)" in said or "*** SIG" in said:
        found.append(Failure("message", f"a traceback: {_tail(said)}"))
    lines = [x for x in said.splitlines() if re.search(pattern, x)]
    if not lines:
        found.append(Failure("message", f"no line like {pattern!r}: {_tail(said)}"))
    if needs and needs not in said:
        found.append(Failure("message", f"no next command ({needs}): {_tail(said)}"))
    return found


def _compare(
    check: str,
    output: Path,
    reference: Path,
    describe: Callable[[Path], dict[str, Any]],
    like: Mapping[str, str] | None,
) -> list[Failure]:
    """Failures where what ``describe`` finds in a trial's directory differs from the reference's."""
    found = []
    if like is None:
        like = {path.name: path.name for path in sorted(reference.glob("trials/*"))}
    for trial, other in like.items():
        theirs, ours = describe(reference / "trials" / other), describe(output / "trials" / trial)
        found += [
            Failure(check, f"{trial}: {name} differ: {_difference(ours[name], theirs[name])}")
            for name in theirs
            if ours[name] != theirs[name]
        ]
    return found


def _difference(ours: Any, theirs: Any) -> str:
    """The first place in which two values differ, in few words."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        name = next(x for x in sorted({*ours, *theirs}) if ours.get(x) != theirs.get(x))
        return f"{name}: {_difference(ours.get(name), theirs.get(name))}"
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return f"{len(ours)} entries, not {len(theirs)}: {str(ours)[:100]}"
        place = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        return f"[{place}] {_difference(ours[place], theirs[place])}"
    return f"{str(ours)[:80]}, not {str(theirs)[:80]}"


def _record(directory: Path) -> Record | None:
    try:
        return load(directory / FILE)
    except InputError:
        return None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects; one that is none is ``{}``."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        found.append(value if isinstance(value, dict) else {})
    return found


def _weights(path: Path) -> dict[str, str]:
    """A hash of every tensor in a checkpoint of weights; {} where it cannot be read."""
    import torch

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["model"]
    except Exception as error:  # whatever a damaged file makes torch raise
        return {"unreadable": str(error)[:80]}
    return {k: hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest()[:16] for k, v in weights.items()}


def _rows(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [f"{row.get('arm')}, seed {row.get('seed')}" for row in csv.DictReader(file)]


def _files(output: Path) -> set[Path]:
    """The files of a results directory that its sweep leaves, without Ray Tune's own."""
    names = {x.relative_to(output) for x in output.rglob("*") if x.is_file()}
    return {
        x for x in names if TEMPORARY.fullmatch(x.name) or (x.parts[0] != "tune" and not CHANGING.fullmatch(x.name))
    }


def _expected(output: Path, reference: Path, like: Mapping[str, str]) -> set[Path]:
    """The files that may be there: of each trial those of the one that it is like, of the sweep itself what it has."""
    trials, names = Path("trials"), _files(reference)
    found = {
        trials / trial / name.relative_to(trials / other)
        for trial, other in like.items()
        for name in names
        if name.is_relative_to(trials / other)
    }
    own = {x for x in _files(output) if x.parts[0] != "trials" and x.name != STOP_FILE}
    return found | {x for x in own if not TEMPORARY.fullmatch(x.name)}


def _tail(said: str) -> str:
    return " | ".join(x for x in said.splitlines() if x.strip())[-400:]
