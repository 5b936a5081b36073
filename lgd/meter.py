"""What a run costs: the one place where its figures are defined.

A *second* is wall-clock time, and counts for the innermost phase that it falls in:

- ``setup``: all before the first step (data, model, optimiser, a checkpoint read back), and once more after a restart;
- ``training``: the steps, waiting for data included;
- ``evaluation``: inference and scoring;
- ``checkpoint``: writing checkpoints;
- ``lost``: work that an attempt did after its last checkpoint, before it was killed.

A *device-second* is a second times the devices that the run held (GPUs; worker processes where there is none), and
GPU-hours are device-seconds / 3600. *Within training*, ``waiting`` is how long the steps stood still for data, and
``first_steps`` the first FIRST_STEPS of every attempt, with allocation, kernel choice and compilation: a
steady step's time leaves these out. *Joules* are what NVML's energy counters gained, all devices together; the mean
power of a phase is its joules over its device-seconds. *Peak memory* is the largest of all devices and attempts, MiB:
``device`` what torch allocated on a GPU, ``host`` what was resident. *Pre-training* is a frozen teacher's own run, with
a record of its own.

A meter lives in the run's checkpoints. Between them it leaves its totals in a file every few seconds, so that an
attempt which is killed is still accounted for.
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

BEAT_PERIOD = 2.0
"""Seconds between two writings of a running attempt's totals: at most so much of a killed one goes unseen."""

BEAT_FILE = "meter.json"


class Meter:
    """Wall-clock seconds, device-seconds and joules by phase. ``clock`` and ``energy`` are replaceable for tests.

    devices: how many the run holds. energy: joules that this process's device has used since some moment; None where
    that is not measured.
    """

    def __init__(
        self,
        devices: int = 1,
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
        with self._lock:
            running = self._clock() - self._since if self._stack else 0.0
            return sum(self.device_seconds.values()) + running * self.devices

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

    def lose(self, device_seconds: float, attempts: int) -> None:
        """Add what earlier attempts did in vain. ``attempts``: how many there were."""
        self.device_seconds["lost"] += device_seconds
        self.seconds["lost"] += device_seconds / self.devices
        self.attempts = attempts + 1

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


class Beat:
    """While its block runs, a thread leaves a meter's total in ``directory``/meter.json every few seconds.

    fingerprint: of the run, so that another run's file is not taken for this one's.
    """

    def __init__(self, meter: Meter, directory: Path, fingerprint: str) -> None:
        self._meter, self._path, self._fingerprint = meter, directory / BEAT_FILE, fingerprint
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def earlier(self) -> tuple[float, int]:
        """Device-seconds and attempts that earlier attempts of this run left word of; zeros where there are none."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
            total = float(found["device_seconds"])
            if found["fingerprint"] == self._fingerprint and math.isfinite(total):
                return total, int(found["attempts"])
        return 0.0, 0

    def __enter__(self) -> Beat:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _run(self) -> None:
        while not self._stop.wait(BEAT_PERIOD):
            self._write()

    def _write(self) -> None:
        meter = self._meter
        described = {
            "fingerprint": self._fingerprint,
            "device_seconds": round(meter.total(), 3),
            "attempts": meter.attempts,
        }
        # A full disk shall end a run where it matters, not here.
        with suppress(OSError):
            write_text(self._path, json.dumps(described) + "\n")


def gpu_energy(device: torch.device) -> Callable[[], float] | None:
    """Reader of the joules that a CUDA device has used since its driver started; None where NVML cannot say."""
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
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


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
