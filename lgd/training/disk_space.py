"""The disk space that a training will need, checked before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lgd.config.experiment import Experiment
from lgd.errors import InputError
from lgd.files import free_space
from lgd.methods.distiller import student_of
from lgd.training import checkpoint
from lgd.training.optimizer import buffers_per_parameter

LOGS = 16 * 2**20
"""Bytes set aside for record, metrics and TensorBoard's events."""


@dataclass(frozen=True)
class FilesSize:
    """About how many bytes a training's directory holds at most."""

    checkpoints: int
    """While it trains. They are removed when it has its record."""
    results: int
    """The exported student and logs, which stay."""

    @property
    def total(self) -> int:
        """While it trains."""
        return self.checkpoints + self.results


def files_size(experiment: Experiment, model: nn.Module, optimizer: torch.optim.Optimizer) -> FilesSize:
    """Bytes of the files that the training writes.

    A checkpoint is the model and what the optimiser keeps for every parameter that is trained. One more than
    ``checkpoint.keep`` is on the disk while the next is written.
    """
    momenta = sum(buffers_per_parameter(x) * sum(map(_size, x["params"])) for x in optimizer.param_groups)
    one = sum(_size(x) for x in model.state_dict().values()) + momenta
    student = sum(_size(x) for x in student_of(model).state_dict().values())
    teacher: Any = model.teacher if experiment.method.keeps_teacher else None
    results = student + (sum(_size(x) for x in teacher.state_dict().values()) if teacher is not None else 0)
    steps = experiment.schedule.steps
    every = experiment.checkpoint.resolved_every(steps)
    before_evaluations = len(experiment.evaluation.resolved_steps(steps)) - 1
    kept = min(experiment.checkpoint.keep, (steps - 1) // every + before_evaluations) if every else 0
    # One is written at a stop whatever ``every`` is, or before the last evaluation.
    return FilesSize((kept + 1) * one, results + LOGS)


def check_disk_space(directory: Path, needed: int) -> None:
    """Raise InputError, one line, where ``directory`` has no room for files of ``needed`` bytes.

    Checkpoints that it holds already will be replaced, so they count as free.
    """
    there = free_space(directory) + checkpoint.size(directory)
    if there < needed:
        raise InputError(
            f"{directory}: {there / 2**20:,.0f} MiB free, and checkpoints, exported student and logs need about"
            f" {needed / 2**20:,.0f} MiB: free some, choose another --output, or set checkpoint.keep lower"
        )


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
