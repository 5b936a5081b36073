"""The worker processes that a training asks for, and whether they can run. Loads neither torch nor Ray."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from lgd.config.experiment import Experiment
from lgd.errors import InputError


@dataclass(frozen=True)
class Workers:
    """The worker processes of one training."""

    count: int
    """With ``minimum`` the most."""
    gpus: float = 0.0
    """GPUs of each worker: 1; 0 for the CPU; a fraction for a single worker that shares a GPU with other trainings."""
    cpus: int = 1
    """CPU cores of each worker."""
    spread: bool = False
    """Each worker on a node of its own."""
    restarts: int = 3
    """How often :func:`lgd.distributed.ray_train.launch` restarts the workers after a failure."""
    minimum: int | None = None
    """The fewest, where their number follows the nodes that there are (``--elastic``); None: always ``count``."""

    def check(self, experiment: Experiment) -> None:
        """Raise InputError when ``experiment`` cannot be trained by these workers."""
        self.check_numbers(experiment)
        if self.count > 1 and 0 < self.gpus < 1:
            raise InputError(f"{self.count} workers of {self.gpus:g} GPU: workers of one training need a GPU each")
        if self.gpus and experiment.device == "cpu":
            raise InputError("device cpu: ask for no GPUs, or set device=auto")
        if not self.gpus and experiment.device == "cuda":
            raise InputError("device cuda: the workers hold no GPU; set device=auto or cpu, or give each a GPU")
        if not self.gpus and experiment.precision == "fp16":
            raise InputError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")

    def check_numbers(self, experiment: Experiment) -> None:
        """The part of :meth:`check` that asks for no default of ``gpus``, and so for no cluster."""
        if self.count < 1:
            raise InputError(f"--workers {self.count}: at least one")
        if not 0 <= self.gpus <= 1:
            raise InputError(f"--gpus-per-worker {self.gpus:g}: a worker trains on one GPU, a part of one, or none (0)")
        if self.cpus < 1:
            raise InputError(f"--cpus-per-worker {self.cpus}: at least one")
        if self.restarts < 0:
            raise InputError(f"--restarts {self.restarts}: a whole number from 0")
        self._check_shares(experiment)

    def _check_shares(self, experiment: Experiment) -> None:
        batch, parts = experiment.schedule.batch, experiment.schedule.accumulate
        each = f" in {parts} parts each" if parts > 1 else ""
        if self.minimum is None:
            if batch % (self.count * parts):
                raise InputError(f"schedule.batch {batch} does not split over {self.count} workers{each}")
            return
        if not 1 <= self.minimum <= self.count:
            raise InputError(f"--elastic {self.minimum}:{self.count}: MIN is at least 1, and MAX at least MIN")
        if batch % (self.count * parts):
            fits = ", ".join(str(x) for x in range(self.minimum, batch // parts + 1) if batch // parts % x == 0)
            raise InputError(
                f"--elastic {self.minimum}:{self.count}: schedule.batch {batch} does not split over {self.count}"
                f" workers{each}; MAX may be {fits or 'no number from MIN on'} (between MIN and MAX any number works)"
            )
        if any(x is not None and x.detector.backbone.norm == "SyncBN" for x in (experiment, experiment.teacher)):
            # The same is said of a detector of another library once it is built (lgd/training/own_shares.py).
            raise InputError(
                "--elastic: detector.backbone.norm SyncBN takes its statistics over the workers of the moment, so the"
                " result would depend on them; use BN, GN or FrozenBN"
            )

    def max_concurrent(self, there: Sequence[Node]) -> int:
        """How many such groups of workers fit into these nodes at once. Raises InputError where not even one does."""
        # A fraction is of one GPU: what is left over on two does not add up.
        room = [
            min(_fits(node.cpus, self.cpus), int(node.gpus) * _fits(1, self.gpus) if self.gpus else sys.maxsize)
            for node in there
        ]
        needed = self.minimum or self.count
        groups = sum(room) // needed
        while self.spread and groups and sum(min(x, groups) for x in room) < groups * needed:
            groups -= 1
        if not groups:
            had = ", ".join(f"{x.cpus:g} CPU and {x.gpus:g} GPU" for x in there)
            many = f"{needed} workers" if needed > 1 else "one worker"
            each = " each" if needed > 1 else ""
            where = " on a node of its own" if self.spread else ""
            raise InputError(
                f"{many} of {self.cpus} CPU and {self.gpus:g} GPU{each}{where} can never run here: the nodes have {had}"
            )
        return groups


@dataclass(frozen=True)
class Node:
    """The resources of one node of a cluster."""

    cpus: float
    gpus: float


def _fits(there: float, wanted: float) -> int:
    return math.floor(there / wanted + 1e-9)
