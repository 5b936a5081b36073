"""The training loop: detectron2's trainer and hooks, with autocast, accumulation, several workers and resuming."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lgd.config.experiment import Experiment
from lgd.distributed import ranks
from lgd.files import write_text
from lgd.methods.distiller import is_batch, on_device
from lgd.results.cost_meter import FIRST_STEPS, Meter
from lgd.results.record import Curve

WRITE_PERIOD = 20
"""Steps between looks at the losses: each look waits for the device, and is when divergence is noticed. Shorter in
trainings of less than ten such periods."""

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Type of the forward pass by an experiment's precision."""

CURVE_POINTS = 200
"""Points kept of a loss curve in the record; more are averaged."""

Progress = dict[str, float | int]
"""Of a running training: ``step``, ``steps``, ``loss`` and ``eta`` (seconds; both NaN where not known yet), ``spent``
(device-seconds so far, all attempts) and, once evaluated, the student's ``AP``."""


class Stopped(Exception):  # noqa: N818  not an error
    """Somebody asked a training to stop before its end. Its checkpoint is written."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} steps, with a checkpoint")
        self.step = step


class Trainer(SimpleTrainer):
    """detectron2's trainer with autocast on any device, gradient accumulation, clipping by value and several workers.

    loader: yields a step's batch in ``schedule.accumulate`` parts of equal size (see Schedule). With several workers
    the batches are this worker's share, and gradients are averaged over the workers.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        experiment: Experiment,
        device: torch.device,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(model, loader, optimizer, gather_metric_period=write_period(experiment.schedule.steps))
        self._autocast = AUTOCAST[experiment.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=experiment.precision == "fp16")
        self._clip = experiment.schedule.clip
        self._parts = experiment.schedule.accumulate
        self._device = device
        self._meter = meter or Meter()
        self._bare = model
        self._wrapped_for: tuple[bool, ...] = ()

    def run_step(self) -> None:
        waited = 0.0
        means: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self._device))
        self._wrap()
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self._parts):
            begun = time.perf_counter()
            batch = next(self._data_loader_iter)
            waited += time.perf_counter() - begun
            if is_batch(batch):
                batch = on_device(batch, self._device)
            with self._gradients_shared(part == self._parts - 1):
                with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
                    losses = self.model(batch)
                self.scaler.scale(sum(losses.values()) / self._parts).backward()
            for name, loss in losses.items():
                means[name] = means[name] + loss.detach() / self._parts
        self._meter.part("waiting", waited)
        self.after_backward()
        self._write_metrics(means, waited)
        if self._clip:
            # Once a step, when all parts are in: the scale does not change in between.
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_value_(parameters, self._clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _wrap(self) -> None:
        """Wrap the model anew when other parameters are frozen than before: nothing unused is left to look for."""
        if ranks.world_size() == 1:
            return
        frozen = tuple(p.requires_grad for p in self._bare.parameters())
        if frozen != self._wrapped_for:
            self._wrapped_for = frozen
            self.model = ranks.wrap_ddp(self._bare)

    def _gradients_shared(self, last: bool) -> AbstractContextManager[Any]:
        """Workers exchange gradients once a step, in its last part."""
        model = self.model
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """As detectron2's, but a loss that is not finite is raised on every worker: one alone would be waited for."""
        complaint = ""
        try:
            super()._write_metrics(loss_dict, data_time, prefix, iter)
        except FloatingPointError as error:
            complaint = str(error)
        if (self.iter + 1) % self.gather_metric_period == 0:
            complaint = ranks.broadcast(complaint)
        if complaint:
            raise FloatingPointError(complaint)


def write_period(steps: int) -> int:
    """Steps between two looks at the losses."""
    return max(1, min(WRITE_PERIOD, steps // 10))


class StepTimes(HookBase):
    """Seconds of a step, averaged over each stretch between two looks at the losses (which wait for the device).

    What other hooks do after a step, evaluation above all, does not count, nor do the first steps after a start, which
    go to the meter instead.
    """

    def __init__(self, period: int, meter: Meter) -> None:
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
            self._meter.part("first_steps", time.perf_counter() - self._begun)
            return
        self._sum += time.perf_counter() - self._begun
        self._steps += 1
        if (self.trainer.iter + 1) % self._period == 0:
            self.per_step.append(self._sum / self._steps)
            self._sum, self._steps = 0.0, 0

    def median_ms(self) -> float | None:
        """None when a training has no step after its first ones."""
        counted = self.per_step or ([self._sum / self._steps] if self._steps else [])
        return statistics.median(counted) * 1e3 if counted else None


class Report(HookBase):
    """Tell the outside how far the training is, at most every ``period`` seconds. further: what else to say."""

    def __init__(
        self, on_progress: Callable[[Progress], None], further: Callable[[], Progress], period: float = 1.0
    ) -> None:
        self._on_progress, self._further, self._period = on_progress, further, period
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
                **self._further(),
            }
        )


class SaveAndStop(HookBase):
    """Save every ``every`` steps (0: never) and, when ``stop`` says so, save once more and raise Stopped.

    One worker asks every step; several have to agree, so ask only every ``period``.
    """

    def __init__(self, save: Callable[[int], None], every: int, stop: Callable[[], bool], period: int) -> None:
        self._save, self._every, self._stop = save, every, stop
        self._period = period if ranks.world_size() > 1 else 1

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            return
        stop = done % self._period == 0 and bool(ranks.broadcast(ranks.is_main_process() and self._stop()))
        if stop or (self._every and done % self._every == 0):
            self._save(done)
        if stop:
            raise Stopped(done)


def loss_history(storage: EventStorage) -> dict[str, list[tuple[float, int]]]:
    """(value, iteration from 0) of every loss, as far as it was looked at."""
    return {
        name: [(float(value), int(step)) for value, step in history.values()]
        for name, history in storage.histories().items()
        if "loss" in name
    }


class RestoreHistory(HookBase):
    """Put an earlier attempt's :func:`loss_history` into the new one's storage."""

    def __init__(self, losses: Mapping[str, Iterable[tuple[float, int]]]) -> None:
        self._losses = losses

    def before_train(self) -> None:
        storage = self.trainer.storage
        for name, points in self._losses.items():
            for value, step in points:
                storage.put_scalar(name, value, cur_iter=step)


def curves(storage: EventStorage) -> dict[str, Curve]:
    """Loss curves of at most CURVE_POINTS points, each the mean of its stretch."""
    found: dict[str, Curve] = {}
    for name, points in loss_history(storage).items():
        count = min(CURVE_POINTS, len(points))
        ends = [round((i + 1) * len(points) / count) for i in range(count)]
        stretches = [points[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        found[name] = [(s[-1][1] + 1, statistics.fmean(value for value, _ in s)) for s in stretches if s]
    return found


def cut_log(path: Path, step: int) -> None:
    """Drop the lines of a metrics.json that were written after ``step`` steps, and a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["iteration"] < step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(f"{line}\n" for line in kept))
