"""Scores of a detector on the validation split: the student's, and those of the instructive features (teacher AP)."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from torch import nn

from lgd.config.experiment import Data, Evaluation
from lgd.data.dataset import DataSet
from lgd.data.loaders import val_loader
from lgd.detectors.detections import in_original_pixels
from lgd.errors import InputError
from lgd.evaluation.class_indices import check_classes
from lgd.evaluation.scoring import Detections, Scorer, coco_ap, log_average_miss_rate, voc_ap
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Distiller, batch_to_device
from lgd.methods.label_guided.label_use import INSTRUCTIVE, TeacherMeters, measure_label_use
from lgd.results.detections import STUDENTS, TEACHERS, save_detections
from lgd.results.record import Scores

MOST_IMAGES, BATCH_PIXELS = 8, 8 * 256 * 256
"""Images, and pixels, that are detected on at once, at most: small images have more calls than work; large ones need
memory."""


class Evaluated(NamedTuple):
    """The results of one evaluation."""

    box: Scores
    mask: Scores | None
    """None for a detector without masks."""
    attention: float | None = None
    """Mean attention of the objects to their own label (:class:`lgd.methods.label_guided.label_use.OwnAttention`)."""
    label_use: float | None = None
    """How far a teacher's features follow the classes (:class:`lgd.methods.label_guided.label_use.LabelUse`)."""
    label_signal: Mapping[str, float] = MappingProxyType({})
    """How far the outputs of the modules before them do (:class:`lgd.methods.label_guided.label_use.LabelSignal`), and
    they themselves."""


def evaluate(
    model: nn.Module,
    dataset: DataSet,
    settings: Data,
    *,
    evaluation: Evaluation = Evaluation(),  # noqa: B008  it is frozen
    teacher: bool = False,
    masks: bool = False,
    directory: Path | None = None,
    after_image: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Detect on the validation split and score it.

    teacher: score the instructive features instead of the student's; ``model`` must then be a Distiller. masks: score
    the detector's masks too; the split needs them (see :func:`check_masks`). directory: where detections are kept if
    ``evaluation.keep_detections``. after_image: called after each image; what it raises ends the evaluation.

    In a distributed training every worker detects on its part of the images, and all return the same scores. All of
    them must call it.
    """
    scoring = _Scoring(dataset, evaluation, masks, directory)
    (found,) = scoring.scores(_detect(model, dataset, settings, after_image, teacher=teacher)[-1:])
    return found


def evaluate_both(
    model: Distiller,
    dataset: DataSet,
    settings: Data,
    *,
    evaluation: Evaluation = Evaluation(),  # noqa: B008  it is frozen
    masks: bool = False,
    directory: Path | None = None,
    after_image: Callable[[], None] = lambda: None,
) -> tuple[Evaluated, Evaluated]:
    """As :func:`evaluate`, of the student and of the instructive features, in one pass over the images.

    The teacher needs the student's features, and the student's own detections come with them.
    """
    scoring = _Scoring(dataset, evaluation, masks, directory)
    student, teacher = scoring.scores(_detect(model, dataset, settings, after_image, teacher=True))
    return student, teacher


def detect(
    model: nn.Module,
    dataset: DataSet,
    settings: Data,
    *,
    batch_size: int | None = None,
    after_image: Callable[[], None] = lambda: None,
) -> Detections:
    """What a plain detector finds on this process's validation images, in COCO's results format, for :func:`score`.

    batch_size: images at once, at most; only images of one size share a batch. None: :func:`images_at_once`.
    """
    (found,) = _detect(model, dataset, settings, after_image, teacher=False, batch_size=batch_size)
    return found.detections


class _Detected(NamedTuple):
    """What this process detected, and what was measured meanwhile."""

    of: Literal["student", "teacher"]
    detections: Detections
    meters: TeacherMeters


class _Scoring(NamedTuple):
    """What detections are scored on, and how."""

    dataset: DataSet
    evaluation: Evaluation
    masks: bool
    directory: Path | None

    def scores(self, parts: Sequence[_Detected]) -> list[Evaluated]:
        """The scores of each part, from all workers' detections."""
        # Gathered in the order of the images whatever the number of workers: the order of equal scores changes AP.
        detections = [list(itertools.chain(*comm.gather(x.detections))) for x in parts]
        measured = [comm.gather(x.meters.totals()) for x in parts]
        outcome: list[Evaluated] | Exception = []
        if comm.is_main_process():
            try:
                outcome = [
                    self._score(part, found)._replace(**measured_values(totals))
                    for part, found, totals in zip(parts, detections, measured, strict=True)
                ]
            except Exception as error:
                # The other workers, which wait for the scores, have to raise it too.
                outcome = error
        outcome = comm.all_gather(outcome)[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _score(self, part: _Detected, detections: Detections) -> Evaluated:
        if self.evaluation.keep_detections and self.directory is not None:
            save_detections(detections, self.directory / (TEACHERS if part.of == "teacher" else STUDENTS))
        return score(self.dataset, detections, masks=self.masks, scorer=self.evaluation.scorer)


def images_at_once(settings: Data) -> int:
    """How many images are detected on at once, at most."""
    return max(1, min(MOST_IMAGES, BATCH_PIXELS // (settings.test_size * settings.max_size)))


def _detect(
    model: nn.Module,
    dataset: DataSet,
    settings: Data,
    after_image: Callable[[], None],
    *,
    teacher: bool,
    batch_size: int | None = None,
) -> list[_Detected]:
    """The student's detections, and then, where it is asked for, the teacher's, of this process's images."""
    device = next((x.device for x in model.parameters()), torch.device("cpu"))
    loader = val_loader(
        dataset,
        min_size=settings.test_size,
        max_size=settings.max_size,
        workers=settings.workers,
        with_labels=teacher,
        cuda=device.type == "cuda",
        batch_size=batch_size or images_at_once(settings),
    )
    categories = dataset.layout.category_ids
    last, student, meters = _CocoDetections(categories, after_image), _CocoDetections(categories), TeacherMeters()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_libraries())
        if teacher:
            if not isinstance(model, Distiller):
                raise ValueError("there is no teacher to evaluate: the model is a plain detector")
            meters = stack.enter_context(measure_label_use(model.teacher))
            stack.enter_context(model.teacher_inference(student.process))
        inference_on_dataset(model, _OnDevice(loader, device), last)
    if not teacher:
        return [_Detected("student", last.detections, meters)]
    return [
        _Detected("student", student.detections, TeacherMeters()),
        _Detected("teacher", last.detections, meters),
    ]


def measured_values(measured: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, Any]:
    """Fields of Evaluated from each worker's sums and counts (:class:`TeacherMeters`)."""
    means: dict[str, float] = {}
    for name in measured[0]:
        total, count = map(sum, zip(*(worker[name] for worker in measured), strict=True))
        if count:
            means[name] = total / count
    attention = means.pop("attention", None)
    signal = {name: mean**0.5 for name, mean in means.items()}
    label_use = signal.pop("label_use", None)
    if label_use is not None:
        signal[INSTRUCTIVE] = label_use
    return {"attention": attention, "label_use": label_use, "label_signal": signal}


class _OnDevice:
    """A loader whose batches are moved to a device, as a training's are: not every detector does it itself."""

    def __init__(self, loader: Any, device: torch.device) -> None:
        self._loader, self._device = loader, device

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._loader:
            yield batch_to_device(batch, self._device)


class _CocoDetections(DatasetEvaluator):
    """Collects this process's detections in COCO's results format. category_ids: the data set's, by label."""

    def __init__(self, category_ids: Sequence[int], after_image: Callable[[], None] = lambda: None) -> None:
        self._category_ids, self._after_image = category_ids, after_image
        self.detections: Detections = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = in_original_pixels(output["instances"].to("cpu"), image["height"], image["width"])
            check_classes(instances.pred_classes, len(self._category_ids))
            for found in instances_to_coco_json(instances, image["image_id"]):
                self.detections.append({**found, "category_id": self._category_ids[found["category_id"]]})
            self._after_image()


def score(dataset: DataSet, detections: Detections, *, masks: bool = False, scorer: Scorer = "auto") -> Evaluated:
    """Score detections on the validation split, in COCO's results format."""
    truth = json.loads(dataset.layout.val_json.read_bytes())
    box = _scores(dataset, *coco_ap(truth, detections, "bbox", scorer))
    if dataset.is_people:
        box = box.model_copy(update={"mMR": log_average_miss_rate(truth, detections)})
    if dataset.is_voc:
        box = box.model_copy(update=voc_ap(truth, detections, eleven_points=dataset.is_voc_2007))
    return Evaluated(box, _scores(dataset, *coco_ap(truth, detections, "segm", scorer)) if masks else None)


def _scores(dataset: DataSet, totals: dict[str, float | None], per_class: list[float | None]) -> Scores:
    repeated = {name for name, times in Counter(dataset.class_names).items() if times > 1}
    names = [
        f"{name} ({category})" if name in repeated else name
        for name, category in zip(dataset.class_names, dataset.layout.category_ids, strict=True)
    ]
    return Scores(**totals, per_class=dict(zip(names, per_class, strict=True)))


def check_masks(dataset: DataSet) -> None:
    """Raise InputError, one line, when an object of the validation split has no segmentation to score masks with."""
    path = dataset.layout.val_json
    for annotation in json.loads(path.read_bytes())["annotations"]:
        if not annotation.get("segmentation"):
            raise InputError(f"{path}: object {annotation['id']} has no segmentation, which mask_rcnn is scored with")
