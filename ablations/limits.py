"""Options of the commands on a sweep that ``sweep.json`` does not keep: placement, budget, costs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lgd.cli import format_duration
from lgd.errors import InputError

INTERRUPTED = "interrupted"
"""Why a sweep ended early, after Ctrl-C."""

TERMINATED = "SIGTERM came"
"""Why it ended early, after SIGTERM."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Placement:
    """Resources of each worker of a trial, workers of a trial, and their nodes. None: chosen to fit the machine."""

    cpus: int | None = None
    gpus: float | None = None
    workers: int = 1
    spread: bool = False
    address: str | None = None

    @property
    def options(self) -> str:
        """As the command's options; empty where nothing was asked for."""
        workers = self.workers if self.workers != 1 else None
        given = {"cpus": self.cpus, "gpus": self.gpus, "workers": workers, "address": self.address}
        said = [f" --{name} {value}" for name, value in given.items() if value is not None]
        return "".join([*said, " --spread" if self.spread else ""])


@dataclass
class Budget:
    """Device-hours and seconds (as ``90s``, ``45m``, ``8h``) that the command may take, from now on."""

    max_gpu_hours: float | None = None
    max_time: str | None = None
    option: str = "--max-time"
    """The option's text of ``max_time``."""
    begun: float = field(default_factory=lambda: time.monotonic())
    other_reason: Callable[[], str] = lambda: ""
    """Why else it has to end; "" while it need not."""

    def __post_init__(self) -> None:
        if self.max_gpu_hours is not None and not self.max_gpu_hours > 0:
            raise InputError(f"--max-gpu-hours {self.max_gpu_hours:g}: a number above 0")
        self._seconds = _seconds(self.max_time, self.option)

    def left(self) -> float:
        """Seconds of ``max_time`` that are left; infinity without it."""
        return math.inf if self._seconds is None else self._seconds - (time.monotonic() - self.begun)

    def lacks(self, seconds: float, device_seconds: float, spent: float) -> str:
        """What takes that long and costs that much, and what is left of the budget, where that is less; "" else.

        spent: device-seconds so far.
        """
        if seconds > (left := self.left()):
            there = format_duration(max(left, 0.0))
            return f"{format_duration(seconds)}, and {there} is left of {self.option} {self.max_time}"
        if self.max_gpu_hours is not None and spent + device_seconds > self.max_gpu_hours * 3600:
            there = f"{max(self.max_gpu_hours - spent / 3600, 0.0):.3g}"
            needed = f"{device_seconds / 3600:.3g} device-hours"
            return f"{needed}, and {there} is left of --max-gpu-hours {self.max_gpu_hours:g}"
        return ""

    def exceeded(self, spent: float) -> str:
        """Why the sweep must end after ``spent`` device-seconds; "" while it need not."""
        if self.max_gpu_hours is not None and spent >= self.max_gpu_hours * 3600:
            return f"--max-gpu-hours {self.max_gpu_hours:g} are used"
        if self._seconds is not None and time.monotonic() - self.begun >= self._seconds:
            return f"{self.option} {self.max_time} is over"
        return self.other_reason()


@dataclass(frozen=True)
class CostOptions:
    """How a sweep's cost is predicted: steps that were not measured yet are measured first; the price of a GPU-hour."""

    measure: bool = False
    price_per_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        if self.price_per_gpu_hour is not None and not 0 <= self.price_per_gpu_hour < math.inf:
            raise InputError(f"--price-per-gpu-hour {self.price_per_gpu_hour:g}: a price from 0")


def _seconds(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found or not float(found[1]):
        raise InputError(f"{option} {text}: a time such as 90s, 45m or 8h")
    return float(found[1]) * UNITS[found[2]]
