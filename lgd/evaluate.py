"""COCO box AP of the student, and of the instructive features (teacher AP)."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from typing import Any

from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from torch import nn

from lgd.data import DataSet, val_loader
from lgd.distiller import Distiller
from lgd.experiment import Data
from lgd.record import Scores

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate(model: nn.Module, dataset: DataSet, settings: Data, *, teacher: bool = False) -> Scores:
    """Detect on the validation split and score with pycocotools.

    teacher: score the instructive features instead of the student's; ``model`` must then be a Distiller.
    """
    loader = val_loader(
        dataset,
        min_size=settings.test_size,
        max_size=settings.max_size,
        workers=settings.workers,
        with_labels=teacher,
    )
    evaluator = COCOEvaluator(dataset.val, tasks=("bbox",), distributed=False, use_fast_impl=False)
    detecting: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if teacher:
        if not isinstance(model, Distiller):
            raise ValueError("there is no teacher to evaluate: the model is a plain detector")
        detecting = model.instructed()
    with quiet(), detecting:
        results: dict[str, Any] = inference_on_dataset(model, loader, evaluator)
    return _scores(results.get("bbox", {}), dataset.class_names, detections=len(evaluator._predictions) > 0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence detectron2's and pycocotools' running commentary; their warnings still show."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _scores(found: dict[str, float], class_names: tuple[str, ...], *, detections: bool) -> Scores:
    def number(name: str) -> float | None:
        value = found.get(name, math.nan)
        return None if math.isnan(value) else float(value)

    per_class = {name: number(f"AP-{name}") for name in class_names}
    scores = {name: number(name) for name in METRICS}
    if scores["AP"] is None and detections:
        # detectron2 does not score a detector that found nothing at all. That is an AP of zero, not of nothing.
        scores = dict.fromkeys(METRICS, 0.0)
        per_class = dict.fromkeys(class_names, 0.0)
    return Scores(**scores, per_class=per_class)
