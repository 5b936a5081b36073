"""The trainer's hooks: step times, progress, checkpoints and stops; and the losses that a training has logged."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import EventStorage

from lgd.distributed import notice, ranks
from lgd.files import write_text
from lgd.results.cost_meter import FIRST_STEPS, CostMeter
from lgd.results.record import Curve
from lgd.training.progress import Progress, Stopped

CURVE_POINTS = 200
"""Most points of a loss curve in the record; more are averaged."""


class StepTimes(HookBase):
    """Seconds of a step, averaged over the steps between two reads of the losses (which wait for the device).

    The other hooks' work after a step, such as an evaluation, is not counted; nor are the first steps after a start,
    whose time goes to the meter's ``first_steps``.
    """

    def __init__(self, period: int, meter: CostMeter) -> None:
        self._period, self._meter = period, meter
        self.per_step: list[float] = []
        self._begun = 0.0
        self._first = 0
        self._sum, self._steps = 0.0, 0

    def before_step(self) -> None:
        self._begun = time.perf_counter()

    def after_step(self) -> None:
        if self._first < FIRST_STEPS:
            self._first += 1
            if self._first == FIRST_STEPS and torch.cuda.is_available() and torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self._meter.add_within_training("first_steps", time.perf_counter() - self._begun)
            return
        self._sum += time.perf_counter() - self._begun
        self._steps += 1
        if (self.trainer.iter + 1) % self._period == 0:
            self.per_step.append(self._sum / self._steps)
            self._sum, self._steps = 0.0, 0

    def median_ms(self) -> float | None:
        """Median time of a step; None when there was none after the first steps."""
        counted = self.per_step or ([self._sum / self._steps] if self._steps else [])
        return statistics.median(counted) * 1e3 if counted else None


class ReportProgress(HookBase):
    """Calls ``on_progress`` at most every ``period`` seconds. extra: returns what else the progress contains."""

    def __init__(
        self, on_progress: Callable[[Progress], None], extra: Callable[[], Progress], period: float = 1.0
    ) -> None:
        self._on_progress, self._extra, self._period = on_progress, extra, period
        self._last = 0.0

    def after_step(self) -> None:
        done, now = self.trainer.iter + 1, time.perf_counter()
        storage = self.trainer.storage
        if not ranks.is_main_process() or now - self._last < self._period or "time" not in storage.histories():
            return
        self._last = now
        latest = storage.latest().get("total_loss")
        seconds = storage.history("time").median(50)
        self._on_progress(
            {
                "step": done,
                "steps": self.trainer.max_iter,
                "loss": float(latest[0]) if latest else math.nan,
                "eta": seconds * (self.trainer.max_iter - done),
                **self._extra(),
            }
        )


AGREE_S = 2.0
"""Seconds, about, between two moments at which several workers agree whether to save or to stop."""


class SaveAndStop(HookBase):
    """Call ``save`` every ``every`` steps (0: never) and on a notice (lgd/distributed/notice.py); stop when asked.

    When ``should_stop`` returns True, save and raise Stopped; where this process got SIGTERM, notice.Leaving. written:
    waits until the last checkpoint is on the disk. All are asked after every step; of several workers, which have to
    agree, about every AGREE_S seconds but at least every ``period`` steps, and after the last one.
    """

    def __init__(
        self,
        save: Callable[[int], None],
        every: int,
        should_stop: Callable[[], bool],
        period: int,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._save, self._every, self._should_stop, self._written = save, every, should_stop, written
        self._period = period if ranks.world_size() > 1 else 1
        self._since, self._begun = 0, time.perf_counter()
        self._next = 1

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        self._since += 1
        stop, notices = self._agree_on_stop() if last or self._since >= self._next else (False, [""])
        if stop or any(notices) or (self._every and done % self._every == 0 and not last):
            self._save(done)
        if any(notices):
            notice.saved()
        if "leave" in notices:
            self._written()
            # The others' training fails once this process has gone: not before the main one has written.
            ranks.all_gather(None)
            if notices[ranks.rank()] == "leave":
                raise notice.Leaving
        if stop:
            raise Stopped(done)

    def _agree_on_stop(self) -> tuple[bool, list[str]]:
        """Whether to stop, and each worker's notice; the next time that they are asked for."""
        now = time.perf_counter()
        steps = int(AGREE_S * self._since / max(now - self._begun, 1e-9))
        own = (ranks.is_main_process() and self._should_stop(), notice.asked(), max(1, min(self._period, steps)))
        found = ranks.all_gather(own)
        self._since, self._begun, self._next = 0, now, found[0][2]
        return found[0][0], [x[1] for x in found]


class EvaluatePeriodically(HookBase):
    """Call ``evaluate`` every ``every`` steps but after the last one, which detectron2's EvalHook does too.

    Also before the first step, where the training goes on from a checkpoint that was written before an evaluation.
    """

    def __init__(self, evaluate: Callable[[int], None], every: int) -> None:
        self._evaluate, self._every = evaluate, every

    def before_train(self) -> None:
        self._evaluate_after(self.trainer.start_iter)

    def after_step(self) -> None:
        self._evaluate_after(self.trainer.iter + 1)

    def _evaluate_after(self, step: int) -> None:
        if 0 < step < self.trainer.max_iter and step % self._every == 0:
            self._evaluate(step)


class MeasureLabelSignal(HookBase):
    """Call ``measure`` before the first step, and after 5, 10, 20, 40, ... steps, as long as they are fewer than
    ``before``: label signals are lost in the first of a training's steps, and evaluations come too late to show it."""

    FIRST = 5

    def __init__(self, measure: Callable[[int], None], before: int) -> None:
        self._measure, self._before = measure, before

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            self._measure(0)

    def after_step(self) -> None:
        step = self.trainer.iter + 1
        doublings, rest = divmod(step, self.FIRST)
        if rest == 0 and step < self._before and doublings & (doublings - 1) == 0:
            self._measure(step)


class WritePeriodically(PeriodicWriter):
    """detectron2's, but for a training that stops to go on: its logs then get no line that one in one go has not."""

    def after_train(self) -> None:
        # detectron2 calls this while the exception passes.
        if not isinstance(sys.exception(), (Stopped, notice.Leaving)):
            super().after_train()
            return
        for writer in self._writers:
            writer.close()


def loss_history(storage: EventStorage) -> dict[str, list[tuple[float, int]]]:
    """(value, iteration from 0) of every loss, as often as it was read."""
    return {
        name: [(float(value), int(step)) for value, step in history.values()]
        for name, history in storage.histories().items()
        if "loss" in name
    }


class RestoreHistory(HookBase):
    """Put an earlier attempt's :func:`loss_history` into this attempt's EventStorage."""

    def __init__(self, losses: Mapping[str, Iterable[tuple[float, int]]]) -> None:
        self._losses = losses

    def before_train(self) -> None:
        storage = self.trainer.storage
        for name, points in self._losses.items():
            for value, step in points:
                storage.put_scalar(name, value, cur_iter=step)


def curves(storage: EventStorage) -> dict[str, Curve]:
    """Loss curves of at most CURVE_POINTS points, each the mean over the steps since the point before."""
    found: dict[str, Curve] = {}
    for name, points in loss_history(storage).items():
        count = min(CURVE_POINTS, len(points))
        ends = [round((i + 1) * len(points) / count) for i in range(count)]
        chunks = [points[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        found[name] = [(s[-1][1] + 1, statistics.fmean(value for value, _ in s)) for s in chunks if s]
    return found


def cut_log(path: Path, step: int) -> None:
    """Remove the lines of a metrics.json that were written after ``step`` steps, and lines that are cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["iteration"] < step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    write_text(path, "".join(f"{line}\n" for line in kept))
