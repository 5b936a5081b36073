"""What a run costs: the one place where its figures are defined.

A *second* is wall-clock time, and counts for the innermost phase that it falls in:

- ``setup``: all before the first step (data, model, optimiser, a checkpoint read back), and once more after a restart;
- ``training``: the steps, waiting for data included;
- ``evaluation``: inference and scoring;
- ``checkpoint``: writing checkpoints;
- ``lost``: work that an attempt did after its last checkpoint, before it was killed.

A *device-second* is a second times the devices that the run held (GPUs, a part of one where trials share it; worker
processes where there is none), and GPU-hours are device-seconds / 3600. *Within training*, ``waiting`` is how long the
steps stood still for data, and ``first_steps`` the first FIRST_STEPS of every attempt, with allocation, kernel choice
and compilation: a steady step's time leaves these out. *Joules* are what NVML's energy counters gained, all devices
together; the mean power of a phase is its joules over its device-seconds. *Peak memory* is the largest of all devices
and attempts, MiB:
``device`` what torch allocated on a GPU, ``host`` what was resident. *Pre-training* is a frozen teacher's own run, with
a record of its own.

A meter lives in the run's checkpoints. Between them, from when its model is built, it leaves its totals in a file every
few seconds, so that an attempt which is killed is still accounted for.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lgd.files import write_text

Phase = Literal["setup", "training", "evaluation", "checkpoint", "lost"]
PHASES: tuple[Phase, ...] = ("setup", "training", "evaluation", "checkpoint", "lost")

Part = Literal["waiting", "first_steps"]
"""Of training."""

FIRST_STEPS = 5
"""Steps after a start that do not count as steady."""

HEARTBEAT_PERIOD = 1.0
"""Seconds between two writings of a running attempt's totals: at most so much of a killed one goes unseen."""

HEARTBEAT_FILE = "meter.json"


@dataclass(frozen=True)
class Spent:
    """What attempts at a run, ``attempts`` of them, cost in all."""

    device_seconds: float = 0.0
    joules: float = 0.0
    attempts: int = 0

    def beyond(self, saved: Mapping[str, Any]) -> Spent:
        """What of it is not in the :meth:`Meter.state` that a checkpoint saved: lost work."""
        return Spent(
            max(0.0, self.device_seconds - math.fsum(saved["device_seconds"].values())),
            max(0.0, self.joules - math.fsum(saved["joules"].values())),
            self.attempts,
        )


class Meter:
    """Wall-clock seconds, device-seconds and joules by phase. ``clock`` and ``energy`` are replaceable for tests.

    devices: how many the run holds. energy: joules that this process's device has used since some moment; None where
    that is not measured.
    """

    def __init__(
        self,
        devices: float = 1,
        clock: Callable[[], float] = time.perf_counter,
        energy: Callable[[], float] | None = None,
    ) -> None:
        self.devices = devices
        self.attempts = 1
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.device_seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.within_training: dict[str, float] = {"waiting": 0.0, "first_steps": 0.0}
        self.joules: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self._clock, self._energy = clock, energy
        self._stack: list[Phase] = []
        self._since = 0.0
        self._joules_since = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the block as ``name``; an outer phase pauses meanwhile."""
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def part(self, name: Part, seconds: float) -> None:
        """Seconds of a training that went on ``name``; they count as training already."""
        self.within_training[name] += seconds

    def total(self) -> float:
        """Device-seconds of every phase up to now, from any thread."""
        return self.spent().device_seconds

    def spent(self) -> Spent:
        """All up to now, this process's joules among it, from any thread."""
        joules = self._energy() if self._energy else 0.0
        with self._lock:
            running, gained = 0.0, 0.0
            if self._stack:
                running, gained = self._clock() - self._since, joules - self._joules_since
            return Spent(
                math.fsum(self.device_seconds.values()) + running * self.devices,
                math.fsum(self.joules.values()) + max(0.0, gained),
                self.attempts,
            )

    def state(self) -> dict[str, Any]:
        """All totals up to now as plain values. The phase that is running goes on."""
        self._settle()
        self._see_peaks()
        return {
            "seconds": dict(self.seconds),
            "device_seconds": dict(self.device_seconds),
            "within_training": dict(self.within_training),
            "joules": dict(self.joules),
            "peaks": dict(self.peaks),
            "attempts": self.attempts,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier attempt's :meth:`state`; what this one counted so far is added to it."""
        for mine, theirs in (
            (self.seconds, state["seconds"]),
            (self.device_seconds, state["device_seconds"]),
            (self.within_training, state["within_training"]),
            (self.joules, state["joules"]),
        ):
            for name, value in theirs.items():
                mine[name] = mine.get(name, 0.0) + value
        self.peaks = _largest(self.peaks, state["peaks"])
        self.attempts = state["attempts"] + 1

    def lose(self, spent: Spent) -> None:
        """Add what earlier attempts did in vain."""
        self.device_seconds["lost"] += spent.device_seconds
        self.seconds["lost"] += spent.device_seconds / self.devices
        if spent.joules:
            self.joules["lost"] = self.joules.get("lost", 0.0) + spent.joules
        self.attempts = spent.attempts + 1

    def _settle(self) -> None:
        # Work still queued on the GPU belongs to the phase that queued it.
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
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

    def _see_peaks(self) -> None:
        self.peaks = _largest(self.peaks, peak_memory_mib())


class Heartbeat:
    """While its block runs, a thread leaves a meter's total in ``directory``/meter.json every few seconds.

    fingerprint: of the run, so that another run's file is not taken for this one's.
    """

    def __init__(self, meter: Meter, directory: Path, fingerprint: str) -> None:
        self._meter, self._path, self._fingerprint = meter, directory / HEARTBEAT_FILE, fingerprint
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def earlier(self) -> Spent:
        """What earlier attempts of this run left word of; nothing where there were none."""
        return read_heartbeat(self._path.parent, self._fingerprint)

    def __enter__(self) -> Heartbeat:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_PERIOD):
            self._write()

    def _write(self) -> None:
        described = {"fingerprint": self._fingerprint, **asdict(self._meter.spent())}
        # A full disk shall end a run where it matters, not here.
        with suppress(OSError):
            write_text(self._path, json.dumps(described) + "\n")


def read_heartbeat(directory: Path, fingerprint: str = "") -> Spent:
    """What the attempts at the run in ``directory`` cost so far, by the file that they leave.

    fingerprint: the run's, where that is known; another's file says nothing.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((directory / HEARTBEAT_FILE).read_text(encoding="utf-8"))
        spent = Spent(float(found["device_seconds"]), float(found["joules"]), int(found["attempts"]))
        if fingerprint in ("", found["fingerprint"]) and math.isfinite(spent.device_seconds + spent.joules):
            return spent
    return Spent()


def gpu_energy(device: torch.device, share: float = 1.0) -> Callable[[], float] | None:
    """Reader of the joules that a CUDA device has used since its driver started; None where NVML cannot say.

    share: the part of the device that is this process's, to which a part of its joules is put down.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no NVML, no permission, a GPU without the counter: energy is a bonus
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3 * share


def reset_peak_memory() -> None:
    """Start the peaks anew, so that a process that runs several trainings reports each one's own."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    # Where this is not Linux, or not allowed, the host's peak is that of the process so far.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> dict[str, float]:
    """Largest memory since the last reset, MiB: ``host`` (resident) and, with a GPU, ``device`` (allocated)."""
    peaks = {"host": _host_peak_mib()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["device"] = torch.cuda.max_memory_allocated() / 2**20
    return peaks


def _host_peak_mib() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _largest(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: max(a.get(name, 0.0), b.get(name, 0.0)) for name in (*a, *b)}
