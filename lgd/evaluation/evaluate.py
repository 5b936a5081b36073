"""Scores of a detector on the validation split: the student's, and those of the instructive features (teacher AP)."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from torch import nn

from lgd.config.experiment import Data, Evaluation
from lgd.data import DataSet, val_loader
from lgd.errors import InputError
from lgd.evaluation.scoring import Detections, Scorer, coco_ap, log_average_miss_rate, voc_ap
from lgd.files import atomic_write
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Distiller
from lgd.methods.label_guided.label_use import Watched, watching
from lgd.results.record import Scores

STUDENTS, TEACHERS = "detections.json.gz", "detections-teacher.json.gz"
"""Files of kept detections in a run's directory."""


class Evaluated(NamedTuple):
    """Scores of the boxes, and of the masks where the detector makes them.

    attention: of the teacher's objects to their own label (see OwnAttention). label_use: how far its features follow
    the classes (see LabelUse). None for a student, and for a teacher that has nothing of the kind.
    """

    box: Scores
    mask: Scores | None
    attention: float | None = None
    label_use: float | None = None


def evaluate(
    model: nn.Module,
    dataset: DataSet,
    settings: Data,
    *,
    evaluation: Evaluation = Evaluation(),  # noqa: B008  it is frozen
    teacher: bool = False,
    masks: bool = False,
    directory: Path | None = None,
) -> Evaluated:
    """Detect on the validation split and score it.

    teacher: score the instructive features instead of the student's; ``model`` must then be a Distiller. masks: score
    the detector's masks too; the split needs them (see :func:`check_masks`). directory: where detections are kept, when
    ``evaluation`` wants them kept.

    In several processes each detects on its share of the images, and all return the same scores. They must all call it.
    """
    loader = val_loader(
        dataset,
        min_size=settings.test_size,
        max_size=settings.max_size,
        workers=settings.workers,
        with_labels=teacher,
        cuda=any(x.is_cuda for x in model.parameters()),
    )
    seen = Watched()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_libraries())
        if teacher:
            if not isinstance(model, Distiller):
                raise ValueError("there is no teacher to evaluate: the model is a plain detector")
            seen = stack.enter_context(watching(model.teacher))
            stack.enter_context(model.detecting_from_teacher())
        inference_on_dataset(model, loader, collected := _Collected(dataset.layout.category_ids))
    # In the order of the images, whatever the number of processes, for equal scores go by it.
    shares = comm.gather(collected.detections)
    measured = comm.gather([meter.totals() if meter else (0.0, 0.0) for meter in seen])
    outcome: Evaluated | Exception | None = None
    if comm.is_main_process():
        # An error here has to end the other processes too, which wait for the scores.
        try:
            detections = list(itertools.chain(*shares))
            if evaluation.keep_detections and directory is not None:
                _write(detections, directory / (TEACHERS if teacher else STUDENTS))
            sums = [tuple(map(sum, zip(*of_all, strict=True))) for of_all in zip(*measured, strict=True)]
            attention, label_use = (total / count if count else None for total, count in sums)
            outcome = score(dataset, detections, masks=masks, scorer=evaluation.scorer)._replace(
                attention=attention, label_use=None if label_use is None else label_use**0.5
            )
        except Exception as error:
            outcome = error
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, Exception):
        raise outcome
    assert outcome is not None
    return outcome


class _Collected(DatasetEvaluator):
    """Keeps this process's detections in COCO's format. category_ids: by label."""

    def __init__(self, category_ids: Sequence[int]) -> None:
        self._category_ids = category_ids
        self.detections: Detections = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            for found in instances_to_coco_json(output["instances"].to("cpu"), image["image_id"]):
                self.detections.append({**found, "category_id": self._category_ids[found["category_id"]]})


def score(dataset: DataSet, detections: Detections, *, masks: bool = False, scorer: Scorer = "auto") -> Evaluated:
    """Score detections on the validation split, in COCO's results format, such as :func:`load_detections` gives."""
    truth = json.loads(dataset.layout.val_json.read_bytes())
    box = _scores(dataset, *coco_ap(truth, detections, "bbox", scorer))
    if dataset.is_people:
        box = box.model_copy(update={"mMR": log_average_miss_rate(truth, detections)})
    if dataset.is_voc:
        box = box.model_copy(update={"VOC": voc_ap(truth, detections, eleven_points=dataset.is_voc_2007)})
    return Evaluated(box, _scores(dataset, *coco_ap(truth, detections, "segm", scorer)) if masks else None)


def _scores(dataset: DataSet, totals: dict[str, float | None], per_class: list[float | None]) -> Scores:
    return Scores(**totals, per_class=dict(zip(dataset.class_names, per_class, strict=True)))


def _write(detections: Detections, path: Path) -> None:
    # No time in it: equal detections are equal files.
    packed = gzip.compress(json.dumps(detections, separators=(",", ":")).encode(), mtime=0)
    with atomic_write(path) as temporary:
        temporary.write_bytes(packed)


def load_detections(path: Path) -> Detections:
    """What an evaluation kept: COCO's results, each with image_id, category_id, bbox, score and, of masks,
    segmentation. Raises InputError, one line, where it is no such file."""
    try:
        return list(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: holds no detections ({error})") from None


def check_masks(dataset: DataSet) -> None:
    """Raise InputError, one line, when an object of the validation split has no segmentation to score masks with."""
    path = dataset.layout.val_json
    for annotation in json.loads(path.read_bytes())["annotations"]:
        if not annotation.get("segmentation"):
            raise InputError(f"{path}: object {annotation['id']} has no segmentation, which mask_rcnn is scored with")
