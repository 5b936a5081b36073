"""An estimate of the memory that one step of a training takes, without running it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lgd.config.experiment import Data, Experiment
from lgd.methods.distiller import student_of

ASPECT = 4 / 3
"""Longer side of a training image to its shorter one; COCO's mean is close to it."""


def step_memory(experiment: Experiment, model: nn.Module) -> int | None:
    """About how many bytes a step takes: parameters, gradients, momenta, activations; None where it cannot be told.

    An estimate, good to a factor of about 1.5 for one-stage detectors: workspaces, the allocator's reserve and what the
    libraries themselves take are not in it. None for operators that torch cannot run without values (deformable
    convolutions).
    """
    # A gradient, and the optimiser's buffers: AdamW has two, SGD its momentum.
    trained = 2 + (2 if experiment.schedule.optimizer == "adamw" else 1)
    fixed = sum(x.numel() * x.element_size() * (trained if x.requires_grad else 1) for x in model.parameters())
    try:
        outputs = _output_bytes(cast(nn.Module, student_of(model).backbone), experiment.data)
    except Exception:  # a backbone of one's own may do anything with its input
        return None
    images = experiment.schedule.batch // experiment.schedule.accumulate
    half = 1.0 if experiment.precision == "fp32" else 0.5
    return fixed + int(images * outputs * half * experiment.method.activations)


def _output_bytes(backbone: nn.Module, data: Data) -> int:
    """Bytes of the outputs of all layers together, for an image of the largest training size."""
    short = min(max(data.min_sizes), data.max_size / ASPECT)
    height, width = (max(64, -(-int(side) // 32) * 32) for side in (short, short * ASPECT))
    total = 0

    def add(_: nn.Module, __: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    hooks = [x.register_forward_hook(add) for x in backbone.modules() if not list(x.children())]
    try:
        # On the meta device nothing is computed but shapes.
        state = {name: x.to("meta") for name, x in [*backbone.named_parameters(), *backbone.named_buffers()]}
        with torch.no_grad():
            functional_call(backbone, state, (torch.empty(1, 3, height, width, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
    return total
