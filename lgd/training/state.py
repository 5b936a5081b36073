"""The state of a running training: what a checkpoint holds besides its head, and how it is restored."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lgd.config.experiment import Experiment
from lgd.distributed import ranks, shares
from lgd.errors import InputError
from lgd.methods.distiller import Distiller, trained_detectors
from lgd.methods.feature_capture import running_state, set_running_state
from lgd.methods.teacher_watch import TeacherWatch
from lgd.results.contention import CpuUsage, contention
from lgd.results.cost_meter import CostMeter, CostSoFar
from lgd.storage import outputs
from lgd.training import checkpoint
from lgd.training.build import Built
from lgd.training.checkpoint_writer import CheckpointWriter
from lgd.training.evaluations import Evaluations
from lgd.training.hooks import StepTimes, cut_log, loss_history
from lgd.training.optimizer import match_state_layout
from lgd.training.progress import EVALUATIONS_FILE
from lgd.training.trainer import Trainer


@dataclass
class TrainingState:
    """Everything that changes while ``experiment`` trains in ``directory``."""

    built: Built
    experiment: Experiment
    directory: Path
    commit: str
    """Of the code, as it was at the start."""
    meter: CostMeter
    times: StepTimes
    evaluations: Evaluations
    cpu: CpuUsage = field(default_factory=CpuUsage)
    writer: CheckpointWriter = field(default_factory=CheckpointWriter)
    start: int = 0
    """The step to go on from."""
    losses: dict[str, Any] = field(default_factory=dict)
    """Those up to ``start``."""
    saved_step: int = 0
    """Of the newest checkpoint."""
    _saved_at: float = field(default_factory=time.perf_counter)
    _saved_cost: dict[str, Any] | None = None
    _others_joules: dict[str, float] = field(default_factory=dict)
    _scaler: dict[str, Any] = field(default_factory=dict)
    _random: list[Any] | None = None
    _running_before: list[dict[str, Any]] = field(default_factory=list)

    @property
    def watch(self) -> TeacherWatch | None:
        """Whether the teacher is better than the student, for a method whose teacher can be compared with it."""
        return self.built.model.watch if isinstance(self.built.model, Distiller) else None

    def seconds_since_checkpoint(self) -> float:
        """Seconds since the last checkpoint was begun; before the first, since the training was built."""
        return time.perf_counter() - self._saved_at

    def restore(self) -> None:
        """Load the newest checkpoint in the directory, where there is one, but for the costs in it.

        Raises InputError when the checkpoint is another training's, or when the workers do not see the same one.
        """
        fingerprint = self.built.fingerprint
        self._running_before = _running_states(self.built.model)
        found = ranks.run_on_all_ranks(
            lambda: checkpoint.latest(self.directory, self.experiment, fingerprint),
            # Elsewhere its directory is another disk's (lgd/training/node_disks.py).
            first_only=outputs.store_of(self.directory) is not None,
        )
        if len(set(ranks.all_gather(found and found[0]))) > 1:
            raise InputError(f"{self.directory}: the workers see different checkpoints: it must be on shared storage")
        log = self.directory / "metrics.json"
        if found is None:
            if ranks.is_main_process():
                for left in (log, self.directory / EVALUATIONS_FILE):
                    left.unlink(missing_ok=True)
            return
        self.start, state = found
        self.saved_step = self.start
        self._load(state)
        self._saved_cost = state["meter"]
        if ranks.is_main_process():
            cut_log(log, self.start)

    def add_earlier_cost(self, spent: CostSoFar) -> None:
        """Add to the meter what earlier attempts cost, which is ``spent``: as the checkpoint says, the rest as lost."""
        saved = self._saved_cost
        lost = spent.since_checkpoint(saved) if saved else spent
        if not ranks.is_main_process():
            # Joules are summed over the workers: those of earlier attempts count in the main process.
            saved = saved and {**saved, "joules": {}, "joules_of_others": {}}
            lost = replace(lost, joules=0.0)
        if saved:
            self.meter.restore(saved)
        if spent.attempts:
            self.meter.add_lost_work(lost)
        self._others_joules = dict(self.meter.joules_of_others)

    def _load(self, state: Mapping[str, Any]) -> None:
        built = self.built
        built.model.load_state_dict(state["model"])
        running = [state["running"], *state.get("running_of_others", [])]
        # Checkpoints of an earlier version have those of the detectors alone.
        for module, values in zip([*trained_detectors(built.model), built.model], running, strict=False):
            # A mean over the shares: of more shares of the same batch it is smaller.
            per_share = len(state["random"]) / shares.count()
            fits = {name: x * per_share if name == ranks.LOSS_NORMALIZER else x for name, x in values.items()}
            set_running_state(
                module, {k: x.to(built.device) if isinstance(x, torch.Tensor) else x for k, x in fits.items()}
            )
        built.optimizer.load_state_dict(state["optimizer"])
        match_state_layout(built.optimizer)
        built.scheduler.load_state_dict(state["scheduler"])
        self._scaler, self._random, self.losses = state["scaler"], state["random"], state["losses"]
        self.evaluations.restore(state["evaluations"], state.get("label_signal", []))
        if self.watch is not None and state.get("watch"):
            self.watch.restore(state["watch"], built.device)
        self.times.per_step = list(state["per_step"])
        if len(state["cpu"]) == ranks.world_size():
            self.cpu.restore(state["cpu"][ranks.rank()])

    def restore_random(self, trainer: Trainer) -> None:
        """Set the random state and the loss scale that the next step starts from. After everything else is built."""
        if self._random is None:
            # Random numbers that a method draws while it is built must not change those of the training.
            trainer.own_shares.seed(self.experiment.seed, 0)
            return
        trainer.scaler.load_state_dict(self._scaler)
        if len(self._random) == shares.count():
            trainer.own_shares.restore(self._random)
        else:
            # The number of shares has changed: no saved state fits, and none may be used by two of them.
            trainer.own_shares.seed(self.experiment.seed, self.start)

    def save(self, trainer: Trainer, step: int) -> None:
        """Write a checkpoint after ``step`` steps. All workers must call it; the main process writes, in a thread."""
        built = self.built
        self.saved_step, self._saved_at = step, time.perf_counter()
        with self.meter.phase("checkpoint"):
            ranks.broadcast_buffers(built.model)
            random_states = _by_share(ranks.all_gather(trainer.own_shares.random_states()))
            totals = ranks.all_gather(self.meter.state())
            cpu = ranks.all_gather(self.cpu.state())
            watch = self.watch.state() if self.watch else {}
            if not ranks.is_main_process():
                return
            self.meter.joules_of_others = self._joules_of_others(totals)
            running = self._running()
            state = {
                "model": built.model.state_dict(),
                "running": running[0],
                "running_of_others": running[1:],
                "optimizer": built.optimizer.state_dict(),
                "scheduler": built.scheduler.state_dict(),
                "scaler": trainer.scaler.state_dict(),
                "random": random_states,
                "evaluations": [x.model_dump_json() for x in self.evaluations.points],
                "label_signal": self.evaluations.label_signal,
                "losses": loss_history(trainer.storage),
                "per_step": self.times.per_step,
                "meter": {**totals[0], "joules_of_others": self.meter.joules_of_others},
                "cpu": cpu,
                "watch": watch,
            }
            self.writer.save(self.directory, step, self.experiment, built.fingerprint, self.commit, state=state)

    def _running(self) -> list[dict[str, Any]]:
        """The numbers of each detector that have changed since it was built, and those that it has itself; then those
        of what trains it."""
        return [
            {name: x for name, x in of.items() if "." not in name or x != before.get(name)}
            for of, before in zip(_running_states(self.built.model), self._running_before, strict=True)
        ]

    def totals(self) -> dict[str, Any]:
        """The costs of all workers together, as fields of a Record. All workers must call it."""
        states = ranks.all_gather(self.meter.state())
        cpu = ranks.all_gather((platform.node(), self.cpu.state()))
        main, others = states[0], self._joules_of_others(states)
        fewest, most = main["held"]
        return {
            # A part of a device is one device.
            "devices": max(ranks.world_size(), round(most)),
            "fewest_devices": None if fewest == most else max(1, round(fewest)),
            "seconds": _rounded(main["seconds"]),
            "device_seconds": _rounded(main["device_seconds"]),
            "within_training": _rounded(main["within_training"]),
            "joules": _rounded(_merge(sum, [main["joules"], others])),
            "peak_memory_mib": _rounded(_merge(max, [x["peaks"] for x in states])),
            "attempts": main["attempts"],
            "step_ms": self.times.median_ms(),
            "contention": contention(cpu, self.times.per_step),
        }

    def _joules_of_others(self, totals: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Joules of all workers but the main one, in this attempt and those before. totals: each worker's."""
        return _merge(sum, [self._others_joules, *(x["joules"] for x in totals[1:])])


def _running_states(model: nn.Module) -> list[dict[str, Any]]:
    """The numbers outside parameters and buffers of each detector, and of what trains it, where that is more."""
    detectors = trained_detectors(model)
    found = [running_state(x) for x in detectors]
    if model in detectors:
        return found
    of_detectors = {name for x in detectors for name, module in model.named_modules() if module is x}
    others = running_state(model)
    return [*found, {k: x for k, x in others.items() if not any(k.startswith(f"{name}.") for name in of_detectors)}]


def _by_share(of_workers: Sequence[Sequence[Any]]) -> list[Any]:
    """What each worker has for each of its shares, in the order of the shares."""
    return [of_workers[x % len(of_workers)][x // len(of_workers)] for x in range(shares.count())]


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _merge(reduce: Callable[[list[float]], float], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The workers' values of each name, reduced to one."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: reduce([part[name] for part in parts if name in part]) for name in names}
