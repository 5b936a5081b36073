"""Requests to timing processes and their results, as plain values. Loads no torch."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lgd.config.paper import COCO_BATCH_ASPECT

if TYPE_CHECKING:
    from lgd.config.experiment import Experiment

ASPECTS = (COCO_BATCH_ASPECT, 4 / 3, 3 / 2)
"""Longer side of a batch's synthetic images to the shorter one, in turn. The first is the widest, to which the others
are padded; nearly all of COCO's others are one of these."""


OPTIMIZATIONS = ("joint head", "cached targets", "fast losses", "vectorised teacher", "fused SGD", "Triton kernels")
"""Optimizations that make the project's step faster than a naive one (see naive_lgd.py), besides the memory format
and the precision, which are settings."""

ON_A_GPU = ("Triton kernels",)
"""Of these, those that change nothing on a CPU."""


NAIVE, OURS = "naive", "ours"
"""Sides of a comparison of speed; further words may follow."""


@dataclass(frozen=True)
class Stage:
    """A phase of the schedule, whose steps have the same cost."""

    frozen: bool = False
    """The bottom-up network has no backward pass."""
    distils: bool = False
    """The distillation loss reaches the student."""

    def __str__(self) -> str:
        names = [name for name, on in (("frozen", self.frozen), ("distilling", self.distils)) if on]
        return ", ".join(names) or "not distilling"


def stages(experiment: Experiment) -> dict[Stage, int]:
    """Number of steps of each stage of a training, in the order of their first step."""
    steps, method = experiment.schedule.steps, experiment.method
    if not method.has_distillation:
        return {Stage(): steps}
    phases = method.phases(experiment.schedule)
    bounds = {0, phases.frozen_until, phases.distill_from, phases.distill_until or steps, steps}
    found: dict[Stage, int] = {}
    for start, end in itertools.pairwise(sorted(x for x in bounds if x <= steps)):
        stage = Stage(phases.freezes_backbone(start), phases.distills_student(start))
        found[stage] = found.get(stage, 0) + end - start
    return found


@dataclass(frozen=True)
class SyntheticImages:
    """Size of synthetic images."""

    side: int
    """Shorter side, pixels."""
    longest: int
    """Bound of the longer side, pixels, which is else one of ASPECTS times ``side``."""
    objects: float
    """Mean number of boxes an image, which spread as in COCO: most images have few, some have many."""
    classes: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a batch, padded to its widest image, in pixels."""
        return self.size_of(0)

    def size_of(self, i: int) -> tuple[int, int]:
        """Height and width of the image ``i`` of a batch, in pixels."""
        return self.side, min(round(self.side * ASPECTS[i % len(ASPECTS)]), self.longest)


@dataclass(frozen=True)
class TimerSpec:
    """A training to build and time."""

    experiment: Experiment
    images: SyntheticImages | None = None
    """Synthetic batches; None for the experiment's own data through its loader."""
    name: str = "training"
    """For error messages."""
    without: tuple[str, ...] = ()
    """Which of OPTIMIZATIONS to turn off; with synthetic images only."""
    compiler: str = ""
    """Backend of torch.compile, "" for its default; with synthetic images only."""


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of consecutive steps, warm-up steps left out."""

    steps_ms: tuple[float, ...]
    first_s: float
    """Seconds of the first FIRST_STEPS steps, warm-up included."""
    peak_mib: dict[str, float]
    """Peak memory, MiB, ``device`` and ``host``."""

    @property
    def median_ms(self) -> float:
        return statistics.median(self.steps_ms)

    @property
    def mean_ms(self) -> float:
        return statistics.fmean(self.steps_ms)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """Lower and upper quartile; a single step is both."""
        if len(self.steps_ms) < 2:
            return self.steps_ms[0], self.steps_ms[0]
        low, _, high = statistics.quantiles(self.steps_ms, n=4, method="inclusive")
        return low, high

    def columns(self) -> dict[str, float | str]:
        """As columns of a table. Memory is the device's where it was measured, else the host's."""
        low, high = self.quartiles_ms
        memory = "device" if "device" in self.peak_mib else "host"
        return {
            "timed_steps": len(self.steps_ms),
            "median_ms": self.median_ms,
            "q25_ms": low,
            "q75_ms": high,
            "mean_ms": self.mean_ms,
            "peak_mib": self.peak_mib[memory],
            "memory": memory,
        }
