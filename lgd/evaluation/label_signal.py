"""The label signal of LGD's teacher on a few images: cheap enough for steps at which nothing else is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lgd.config.experiment import Data
from lgd.data.dataset import DataSet
from lgd.data.loaders import val_loader
from lgd.evaluation.evaluate import images_at_once, measured_values
from lgd.methods.distiller import Distiller
from lgd.methods.label_guided.label_use import measure_label_use

Batch = list[dict[str, Any]]

IMAGES = 8
"""Validation images that it is measured on, at least: the first ones."""


def signal_images(dataset: DataSet, settings: Data) -> list[Batch]:
    """The images to measure on, with their labels."""
    loader = val_loader(
        dataset,
        min_size=settings.test_size,
        max_size=settings.max_size,
        workers=0,
        with_labels=True,
        batch_size=images_at_once(settings),
    )
    found: list[Batch] = []
    for batch in loader:
        found.append(batch)
        if sum(map(len, found)) >= IMAGES:
            break
    return found


@torch.no_grad()
def measure_teacher(model: Distiller, batches: Sequence[Batch]) -> dict[str, Any]:
    """``attention``, ``label_use`` and ``label_signal`` as in :class:`lgd.evaluation.evaluate.Evaluated`.

    The model's mode and torch's random state stay as they are.
    """
    was_training = model.training
    model.eval()
    try:
        with measure_label_use(model.teacher) as meters, model.teacher_inference():
            for batch in batches:
                model(batch)
    finally:
        model.train(was_training)
    return measured_values([meters.totals()])


def label_signal(model: Distiller, batches: Sequence[Batch]) -> dict[str, float]:
    """Relative change by stage when every class is replaced by the next (docs/method.md, "Label signal").

    {} without a label encoder, with one class only, and where a change is not finite.
    """
    found: dict[str, float] = measure_teacher(model, batches)["label_signal"]
    return found if all(map(math.isfinite, found.values())) else {}
