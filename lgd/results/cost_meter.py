"""What a training costs: the one place where the figures of a record are defined.

A *second* is a second of wall-clock time. It counts for one phase, the innermost that is running:

- ``setup``: all before the first step (data, model, optimiser, loading a checkpoint), and again after a restart; and
  what is done after the last one, such as exporting the student;
- ``training``: the steps, time spent waiting for data included;
- ``evaluation``: inference and scoring;
- ``checkpoint``: waiting for checkpoints, which a thread writes meanwhile;
- ``lost``: what an attempt did after its last checkpoint before it was killed.

A *device-second* is a second times the number of devices that the training held: GPUs (0.5 where two trials share one),
or worker processes where there is no GPU. Where their number changes from one attempt to the next (``--elastic``), each
attempt counts by its own, ``lost`` work included. GPU-hours are device-seconds / 3600. *Within training* two sums are
kept: ``data_wait``, the time that the main worker's steps waited for the data loader, and ``first_steps``, the first
FIRST_STEPS steps of every attempt, in which memory is allocated and kernels are chosen or compiled: these are left out
of the time of a step (``step_ms``), which holds its wait for data.
*Joules* are the increase of NVML's energy counters, summed over the devices; joules / device-seconds is the mean power.
Of ``lost`` work those of the main worker's device are known, and the others' up to the last checkpoint that was begun.
*Peak memory*, in MiB, is the largest over devices and attempts: ``device`` is what torch had allocated on a GPU,
``host`` the resident set size of the process.

The meter's totals are part of every checkpoint. In between, a thread writes them to a file about once a second (see
:class:`Heartbeat`), so that an attempt which is killed is accounted for.

This module does not import torch: reading what a training cost must not take the seconds that this takes.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lgd.errors import InputError
from lgd.files import read_file, write_text
from lgd.results.peak_memory import initialized_cuda, peak_memory_mib

if TYPE_CHECKING:
    import torch

Phase = Literal["setup", "training", "evaluation", "checkpoint", "lost"]
PHASES: tuple[Phase, ...] = ("setup", "training", "evaluation", "checkpoint", "lost")

WithinTraining = Literal["data_wait", "first_steps"]
"""Sums that are kept besides the phases; their seconds are part of the phase ``training``."""

FIRST_STEPS = 5
"""Steps after a start that do not count for the time of a step."""

HEARTBEAT_PERIOD = 1.0
"""Seconds between two writes of a running attempt's totals: at most this much of a killed attempt is not counted."""

LARGEST = 1e15
"""Of the numbers that are read of a file; none is greater."""

HEARTBEAT_FILE = "meter.json"


@dataclass(frozen=True)
class CostSoFar:
    """What all attempts at a training cost so far."""

    device_seconds: float = 0.0
    joules: float = 0.0
    attempts: int = 0
    """How many there were."""
    seconds: float = 0.0
    held: tuple[float, float] = (0.0, 0.0)
    """The fewest and the most devices that an attempt held."""

    def __add__(self, other: CostSoFar) -> CostSoFar:
        held = [x.held for x in (self, other) if x.held[0]] or [(0.0, 0.0)]
        return CostSoFar(
            self.device_seconds + other.device_seconds,
            self.joules + other.joules,
            self.attempts + other.attempts,
            self.seconds + other.seconds,
            (min(x[0] for x in held), max(x[1] for x in held)),
        )

    def since_checkpoint(self, saved: Mapping[str, Any]) -> CostSoFar:
        """The part that came after the checkpoint whose :meth:`CostMeter.state` is ``saved``: the lost work."""
        return CostSoFar(
            max(0.0, self.device_seconds - math.fsum(saved["device_seconds"].values())),
            max(0.0, self.joules - math.fsum([*saved["joules"].values(), *saved.get("joules_of_others", {}).values()])),
            self.attempts,
            max(0.0, self.seconds - math.fsum(saved["seconds"].values())),
            self.held,
        )


class CostMeter:
    """Wall-clock seconds, device-seconds and joules by phase. ``clock`` and ``energy`` are replaceable for tests.

    devices: how many the training holds, in this attempt. energy: returns a counter of the joules that this process's
    device has used; None where it cannot be measured.
    """

    def __init__(
        self,
        devices: float = 1,
        clock: Callable[[], float] = time.perf_counter,
        energy: Callable[[], float] | None = None,
    ) -> None:
        self.devices = devices
        self.held = (devices, devices)
        self.attempts = 1
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.device_seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.within_training: dict[str, float] = {"data_wait": 0.0, "first_steps": 0.0}
        self.joules: dict[str, float] = {}
        self.joules_of_others: dict[str, float] = {}
        """Of the training's other workers, up to the last checkpoint; of the main process's meter alone."""
        self.peaks: dict[str, float] = {}
        self._clock, self._energy = clock, energy
        self._stack: list[Phase] = []
        self._since = 0.0
        self._joules_since = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time of the block for the phase ``name``; an outer phase is paused meanwhile."""
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def add_within_training(self, name: WithinTraining, seconds: float) -> None:
        """Add to one of the sums within training. The phase ``training`` counts these seconds as well."""
        self.within_training[name] += seconds

    def total(self) -> float:
        """Device-seconds of all phases up to now. May be called from any thread."""
        return self.cost_so_far().device_seconds

    def cost_so_far(self) -> CostSoFar:
        """All up to now, but the joules of other workers up to the last checkpoint. May be called from any thread."""
        joules = self._energy() if self._energy else 0.0
        with self._lock:
            running, gained = 0.0, 0.0
            if self._stack:
                running, gained = self._clock() - self._since, joules - self._joules_since
            return CostSoFar(
                math.fsum(self.device_seconds.values()) + running * self.devices,
                math.fsum([*self.joules.values(), *self.joules_of_others.values(), max(0.0, gained)]),
                self.attempts,
                math.fsum(self.seconds.values()) + running,
                self.held,
            )

    def state(self) -> dict[str, Any]:
        """All totals up to now as plain values, for a checkpoint. The running phase goes on."""
        self._settle()
        self.peaks = _largest(self.peaks, peak_memory_mib())
        return {
            "seconds": dict(self.seconds),
            "device_seconds": dict(self.device_seconds),
            "within_training": dict(self.within_training),
            "joules": dict(self.joules),
            "joules_of_others": dict(self.joules_of_others),
            "peaks": dict(self.peaks),
            "attempts": self.attempts,
            "held": list(self.held),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Add an earlier attempt's :meth:`state` to what this attempt has counted so far."""
        for mine, theirs in (
            (self.seconds, state["seconds"]),
            (self.device_seconds, state["device_seconds"]),
            (self.within_training, state["within_training"]),
            (self.joules, state["joules"]),
            # Earlier checkpoints have the sum over all workers as the joules.
            (self.joules_of_others, state.get("joules_of_others", {})),
        ):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0.0) + value
        self.peaks = _largest(self.peaks, state["peaks"])
        self.attempts = state["attempts"] + 1
        self._held_too(state.get("held"))

    def add_lost_work(self, spent: CostSoFar) -> None:
        """Count what earlier attempts did after their last checkpoint for the phase ``lost``."""
        self.device_seconds["lost"] += spent.device_seconds
        # Those attempts may have held more devices than this one, or fewer.
        self.seconds["lost"] += spent.seconds
        if spent.joules:
            self.joules["lost"] = self.joules.get("lost", 0.0) + spent.joules
        self.attempts = spent.attempts + 1
        self._held_too(spent.held)

    def _held_too(self, held: Sequence[float] | None) -> None:
        if held and held[0]:
            self.held = (min(self.held[0], held[0]), max(self.held[1], held[1]))

    def _settle(self) -> None:
        # Kernels that are still queued on the GPU belong to the phase that launched them.
        cuda = initialized_cuda()
        if cuda is not None:
            cuda.synchronize()
        joules = self._energy() if self._energy else 0.0
        with self._lock:
            now = self._clock()
            if self._stack:
                phase = self._stack[-1]
                self.seconds[phase] += now - self._since
                self.device_seconds[phase] += (now - self._since) * self.devices
                if self._energy:
                    self.joules[phase] = self.joules.get(phase, 0.0) + joules - self._joules_since
            self._since, self._joules_since = now, joules


class Heartbeat:
    """While the block runs, a thread writes what the training cost so far to ``directory``/meter.json every second.

    Enter it before anything is built: the directory is made where it is missing, and removed again where the set-up
    refuses the input. A set-up that ends with another error has a cost. Until :meth:`begin_training` the file keeps
    what it says of earlier attempts, with this one's set-up beside.

    experiment: the settings, as text, so that the set-up of another training is not taken for this one's.
    """

    def __init__(self, meter: CostMeter, directory: Path, experiment: str) -> None:
        self._meter, self._path = meter, directory / HEARTBEAT_FILE
        self._experiment = hashlib.sha256(experiment.encode()).hexdigest()[:16]
        self._fingerprint: str | None = None
        self._before: dict[str, Any] = {}
        self._made: list[Path] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def previous_cost(self, fingerprint: str) -> CostSoFar:
        """What earlier attempts at the training of this fingerprint cost; zero where there were none."""
        return _cost(self._before, fingerprint) + _set_up_cost(self._before, self._experiment)

    def begin_training(self, fingerprint: str, add_earlier_cost: Callable[[], None] = lambda: None) -> None:
        """The meter's total holds from now on what earlier attempts cost, which ``add_earlier_cost`` adds to it."""
        # The file has it once: beside what the meter holds, or in it.
        with self._lock:
            add_earlier_cost()
            self._fingerprint = fingerprint
        self._write()

    def __enter__(self) -> Heartbeat:
        self._before = _read(self._path)
        with suppress(OSError):  # the set-up says so where it cannot be made
            self._made = [x for x in self._path.parents if not x.exists()]
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._fingerprint is None and self._made and kind is not None and issubclass(kind, InputError):
            with suppress(OSError):
                self._path.unlink()
                for made in self._made:
                    made.rmdir()
        else:
            self._write()

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_PERIOD):
            self._write()

    def _write(self) -> None:
        with self._lock:
            spent = self._meter.cost_so_far()
            if self._fingerprint is None:
                spent += _set_up_cost(self._before, self._experiment)
                described = {**self._before, "set-up": {"experiment": self._experiment, **asdict(spent)}}
            else:
                described = {"fingerprint": self._fingerprint, **asdict(spent)}
            self._write_text(json.dumps(described) + "\n")

    def _write_text(self, text: str) -> None:
        # A full disk ends a training where it writes a checkpoint or the record, not here.
        with suppress(OSError):
            try:
                write_text(self._path, text)
            except OSError:
                # No room for another file, but the one that is there takes its own length.
                with self._path.open("r+", encoding="utf-8") as file:
                    file.write(text)
                    file.truncate()


def read_heartbeat(directory: Path, fingerprint: str = "") -> CostSoFar:
    """What the attempts at the training in ``directory`` cost so far, read from the file that they write.

    fingerprint: of the training, where it is known: what the file says of another training then counts as none. Zero
    where there is no file or it cannot be read.
    """
    found = _read(directory / HEARTBEAT_FILE)
    return _cost(found, fingerprint) + _set_up_cost(found)


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_file(path))
        if isinstance(found, dict):
            return found
    return {}


def _set_up_cost(found: Mapping[str, Any], experiment: str = "") -> CostSoFar:
    """What the attempts cost that ended while they were set up."""
    part = found.get("set-up")
    if isinstance(part, dict) and experiment in ("", part.get("experiment")):
        return _cost({"fingerprint": "", **part})
    return CostSoFar()


def _cost(found: Mapping[str, Any], fingerprint: str = "") -> CostSoFar:
    with suppress(ValueError, KeyError, TypeError, OverflowError):
        device_seconds, (fewest, most) = float(found["device_seconds"]), found.get("held", (0, 0))
        spent = CostSoFar(
            device_seconds,
            float(found["joules"]),
            int(found["attempts"]),
            float(found.get("seconds", device_seconds)),
            (float(fewest), float(most)),
        )
        numbers = (spent.device_seconds, spent.joules, spent.attempts, spent.seconds, *spent.held)
        if fingerprint in ("", found["fingerprint"]) and all(0 <= x <= LARGEST for x in numbers):
            return spent
    return CostSoFar()


def gpu_energy(device: torch.device, share: float = 1.0) -> Callable[[], float] | None:
    """A function that returns the joules which a CUDA device has used since its driver was loaded.

    None where NVML cannot tell. share: the part of the device that this process holds; its joules are that part.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
        import torch  # not at the top: see the module's docstring

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no NVML, no permission, a GPU without this counter: the record then has no joules
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3 * share


def _largest(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: max(a.get(name, 0.0), b.get(name, 0.0)) for name in (*a, *b)}
