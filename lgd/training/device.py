"""Where a training computes: its device, memory format, CPU threads and random seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from lgd.config.experiment import Experiment
from lgd.errors import InputError
from lgd.training.compiled import compile_parts


def resolve_device(experiment: Experiment) -> torch.device:
    """The device that ``experiment.device`` means here. Raises InputError where it cannot train on it."""
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch sees no GPU here")
    name = experiment.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and experiment.precision == "fp16":
        raise InputError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    return torch.device(name)


def move_to_device(model: nn.Module, experiment: Experiment, device: torch.device) -> nn.Module:
    """``model`` on ``device``, in the experiment's memory format, compiled where ``experiment.compile`` is set."""
    channels_last = experiment.channels_last(device.type == "cuda")
    model = model.to(device)
    model = model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if experiment.compile:
        compile_parts(model)
    return model


@contextmanager
def process_settings(experiment: Experiment) -> Iterator[None]:
    """Set this process's settings of torch for a training, and restore them afterwards."""
    before = torch.get_num_threads()
    # fvcore's losses are scripted. The JIT would fuse them after their first calls in a process, and they would round
    # differently from then on: the first training of a process could not be repeated in it.
    with torch.jit.optimized_execution(False):
        if experiment.threads:
            torch.set_num_threads(experiment.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  detectron2's augmentations draw from the global state
    torch.manual_seed(seed)
