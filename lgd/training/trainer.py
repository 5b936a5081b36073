"""The training loop: detectron2's SimpleTrainer with autocast, gradient accumulation, clipping and several workers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lgd.config.experiment import Experiment
from lgd.distributed import ranks, shares
from lgd.errors import InputError
from lgd.methods.distiller import batch_to_device, is_batch
from lgd.results.cost_meter import CostMeter
from lgd.training.own_shares import OwnShares

WRITE_PERIOD = 20
"""Steps between two reads of the losses, each of which waits for the device and checks for divergence. Shorter in
trainings of fewer than ten such periods."""

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The forward pass's type by an experiment's precision."""


class DivergedError(FloatingPointError):
    """The losses are not finite: raised on every worker."""


class Trainer(SimpleTrainer):
    """detectron2's trainer with autocast on any device, gradient accumulation, clipping by value and several workers.

    loader: yields a step's batch in ``schedule.accumulate`` parts of equal size (see Schedule), of each part this
    process's shares one after the other (lgd/distributed/shares.py). Gradients are averaged over the shares.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        experiment: Experiment,
        device: torch.device,
        meter: CostMeter | None = None,
    ) -> None:
        super().__init__(model, loader, optimizer, gather_metric_period=write_period(experiment.schedule.steps))
        self._autocast = AUTOCAST[experiment.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=experiment.precision == "fp16")
        self._clip = experiment.schedule.clip
        self._parts = experiment.schedule.accumulate
        self._device = device
        self._meter = meter or CostMeter()
        self._unwrapped = model
        self.own_shares = OwnShares(model)
        self._wrapped_for: tuple[bool, ...] = ()
        self._wrapped_anew = False

    def run_step(self) -> None:
        waited = 0.0
        means: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self._device))
        self._wrap()
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over the workers, each of which adds up those of its shares.
        parts = self._parts * shares.count() / ranks.world_size()
        for part in range(self._parts):
            begun = time.perf_counter()
            batches = [next(self._data_loader_iter) for _ in shares.own()]
            waited += time.perf_counter() - begun
            batches = [batch_to_device(x, self._device) if is_batch(x) else x for x in batches]
            self.own_shares.count(batches, self._forward)
            for i, batch in enumerate(batches):
                last = part == self._parts - 1 and i == len(batches) - 1
                try:
                    losses = self._one_share(i, batch, parts, last)
                except shares.NotCountedError:
                    # A loss has come in that asks for a mean over the shares, which the model did not before.
                    self.own_shares.count(batches, self._forward, again=True)
                    self._wrap(again=True)
                    losses = self._one_share(i, batch, parts, last)
                for name, loss in losses.items():
                    means[name] = means[name] + loss.detach() / parts
        self._meter.add_within_training("data_wait", waited)
        if self._wrapped_anew:
            self._wrapped_anew = False
            self._check_gradients()
        self.after_backward()
        self._write_metrics(means, waited)
        if self._clip:
            # Once a step, after its last part: the scale does not change in between.
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_value_(parameters, self._clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _check_gradients(self) -> None:
        """Raise InputError, one line, where a parameter that is trained got no gradient.

        DDP would stop at the next step, with a page that names numbers.
        """
        without = [x for x, p in self._unwrapped.named_parameters() if p.requires_grad and p.grad is None]
        if without:
            named = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
            raise InputError(
                f"parameters without a gradient: {named}: with several workers every parameter that is trained must get"
                " one in every step (a zero one will do); set requires_grad to False for those that are not used"
            )

    def _one_share(self, i: int, batch: Any, parts: float, last: bool) -> dict[str, torch.Tensor]:
        """Losses of this process's ``i``-th share; adds its gradients. last: workers then exchange them."""
        with self.own_shares.computing_share(i), self._sync_gradients(last):
            losses = self._forward(batch, self.model)
            total: Any = sum(losses.values())
            self.scaler.scale(total / parts).backward()
        return losses

    def _forward(self, batch: Any, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
        """Losses of a batch, from the model itself or from what wraps it."""
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
            losses: dict[str, torch.Tensor] = (model or self._unwrapped)(batch)
        return losses

    def _wrap(self, *, again: bool = False) -> None:
        """Wrap the model in DistributedDataParallel again whenever other parameters are frozen than before.

        DDP then never has to search for unused parameters in a step. again: in any case.
        """
        if ranks.world_size() == 1:
            return
        frozen = tuple(p.requires_grad for p in self._unwrapped.parameters())
        if again or frozen != self._wrapped_for:
            self._wrapped_for, self._wrapped_anew = frozen, True
            self.model = ranks.wrap_ddp(self._unwrapped)

    def _sync_gradients(self, last: bool) -> AbstractContextManager[Any]:
        """Workers all-reduce gradients once a step, in the backward pass of its last part."""
        model = self.model
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """As detectron2's, but a loss that is not finite raises on every worker, not only on the main one.

        The others would wait in the next collective for the one that stopped.
        """
        complaint = ""
        try:
            super()._write_metrics(loss_dict, data_time, prefix, iter)
        except FloatingPointError as error:
            complaint = str(error)
        if (self.iter + 1) % self.gather_metric_period == 0:
            complaint = ranks.broadcast(complaint)
        if complaint:
            raise DivergedError(complaint)


def write_period(steps: int) -> int:
    """Steps between two reads of the losses."""
    return max(1, min(WRITE_PERIOD, steps // 10))
