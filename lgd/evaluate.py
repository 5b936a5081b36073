"""COCO AP, of boxes and of masks: the student's, and that of the instructive features (teacher AP)."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from torch import nn

from lgd.data import DataSet, val_loader
from lgd.distiller import Distiller
from lgd.errors import InputError
from lgd.experiment import Data
from lgd.record import Scores

AREAS = {"APs": (0.0, 32.0**2), "APm": (32.0**2, 96.0**2), "APl": (96.0**2, math.inf)}
"""Square pixels of COCO's small, medium and large objects."""

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


LEVELS = {
    "detectron2": logging.WARNING,
    "fvcore": logging.WARNING,
    # It prints the traceback of every exception, which whoever catches that one reports again.
    "detectron2.engine.train_loop": logging.CRITICAL,
    # It warns of a detector that finds nothing, whose AP of zero says so.
    "detectron2.evaluation.coco_evaluation": logging.ERROR,
    # detectron2 asks torch in a way that torch means to change.
    "torch.fx._symbolic_trace": logging.ERROR,
}
"""From where on the loggers of the libraries are heard inside :func:`quiet`."""


class Evaluated(NamedTuple):
    """Scores of the boxes, and of the masks where the detector makes them."""

    box: Scores
    mask: Scores | None


def evaluate(
    model: nn.Module, dataset: DataSet, settings: Data, *, teacher: bool = False, masks: bool = False
) -> Evaluated:
    """Detect on the validation split and score with pycocotools.

    teacher: score the instructive features instead of the student's; ``model`` must then be a Distiller. masks: score
    the detector's masks too; the split needs them (see :func:`check_masks`).
    """
    loader = val_loader(
        dataset,
        min_size=settings.test_size,
        max_size=settings.max_size,
        workers=settings.workers,
        with_labels=teacher,
    )
    tasks = ("bbox", "segm") if masks else ("bbox",)
    evaluator = COCOEvaluator(dataset.val, tasks=tasks, distributed=False, use_fast_impl=False)
    detecting: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if teacher:
        if not isinstance(model, Distiller):
            raise ValueError("there is no teacher to evaluate: the model is a plain detector")
        detecting = model.instructed()
    with quiet(), detecting:
        results: dict[str, Any] = inference_on_dataset(model, loader, evaluator)
    defined = _defined(evaluator._coco_api, dataset.class_names)
    scores = [_scores(results.get(task, {}), dataset.class_names, defined) for task in tasks]
    return Evaluated(scores[0], scores[1] if masks else None)


def check_masks(dataset: DataSet) -> None:
    """Raise InputError, one line, when an object of the validation split has no segmentation to score masks with."""
    path = dataset.layout.val_json
    for annotation in json.loads(path.read_bytes())["annotations"]:
        if not annotation.get("segmentation"):
            raise InputError(f"{path}: object {annotation['id']} has no segmentation, which mask_rcnn is scored with")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence detectron2's and pycocotools' running commentary; their warnings still show."""
    loggers = [logging.getLogger(name) for name in LEVELS]
    levels = [logger.level for logger in loggers]
    for logger, level in zip(loggers, LEVELS.values(), strict=True):
        logger.setLevel(level)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _defined(truth: Any, class_names: tuple[str, ...]) -> set[str]:
    """The metrics and classes that a split has objects for. ``truth``: its annotations, as pycocotools reads them."""
    objects = truth.loadAnns(truth.getAnnIds(iscrowd=False))
    found = {truth.cats[x["category_id"]]["name"] for x in objects} & set(class_names)
    if objects:
        found |= {"AP", "AP50", "AP75"}
    for name, (low, high) in AREAS.items():
        if any(low <= x["area"] < high for x in objects):
            found.add(name)
    return found


def _scores(found: dict[str, float], class_names: tuple[str, ...], defined: set[str]) -> Scores:
    # detectron2 does not score a detector that found nothing at all. That is an AP of zero, not of nothing.
    nothing = math.isnan(found.get("AP", math.nan))

    def number(name: str, key: str) -> float | None:
        value = 0.0 if nothing and name in defined else found.get(key, math.nan)
        return None if math.isnan(value) else float(value)

    return Scores(
        **{name: number(name, name) for name in METRICS},
        per_class={name: number(name, f"AP-{name}") for name in class_names},
    )
