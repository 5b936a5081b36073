"""The trained student: its weights as a stock detectron2 checkpoint, and what is needed to use them, beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from pydantic import Field, ValidationError, model_validator
from torch import nn

from lgd.config.detector_source import absolute_detector, check_named_again
from lgd.config.experiment import Detector, Experiment, Settings, explain
from lgd.detectors import build_detector
from lgd.detectors.detections import in_original_pixels
from lgd.detectors.model_layout import PixelStatistics, color_order, pixel_statistics
from lgd.detectors.weight_files import load_tensors, reason
from lgd.errors import InputError
from lgd.files import read_file, write_text
from lgd.methods.distiller import student_of
from lgd.training.tensor_file import save_tensors

WEIGHTS_FILE, DESCRIPTION_FILE = "student.pth", "student.json"
TEACHER_FILE = "teacher.pth"


Side = Annotated[int, Field(gt=0, le=20_000)]
"""Pixels; a larger image fits into no memory."""


class Preprocessing(Settings):
    """Preprocessing of an image before the network. The detector itself subtracts the mean and divides by the std."""

    color_order: Literal["BGR", "RGB"] = "BGR"
    """Order of the channels that the plain detector takes, values 0 to 255; torchvision's take 0 to 1.
    :class:`TrainedStudent` takes BGR whatever the detector."""
    min_size: Side
    """Shorter side after resizing, pixels."""
    max_size: Side
    """Longest longer side after resizing, pixels."""
    pixel_mean: tuple[float, ...]
    """Subtracted by the detector; as ``pixel_std``."""
    pixel_std: tuple[float, ...]
    """By channel, in ``color_order``; empty where a detector of one's own does not say."""


class StudentDescription(Settings):
    """``student.json``: with ``student.pth`` all that is needed to detect, without the data or the training's code."""

    format: Literal[1] = 1
    """Version of this file's format."""
    class_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)]
    """By the index in a detection's ``pred_classes``."""
    category_ids: tuple[int, ...] = ()
    """Category ids of these classes in the data's annotations; empty: from 1, as in students of earlier versions."""
    preprocessing: Preprocessing
    """What is done to an image before it is detected in."""
    experiment: Experiment
    """The training's whole configuration."""

    @model_validator(mode="after")
    def _one_id_a_class(self) -> Self:
        if len(self.category_ids) not in (0, len(self.class_names)):
            raise ValueError(f"{len(self.category_ids)} category_ids for {len(self.class_names)} class_names")
        return self


def export_student(model: nn.Module, path: Path) -> None:
    """Write the student's weights in the format of detectron2's ``DetectionCheckpointer``, without teacher or adapter.

    ``DetectionCheckpointer(detector).load(path)`` loads them into the plain detector; every key matches.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in student_of(model).state_dict().items()}
    save_tensors({"model": weights}, path)


def export_teacher(model: nn.Module, path: Path) -> None:
    """Write the weights of the model's ``teacher``, for a method that starts from them (``Method.keeps_teacher``)."""
    teacher = cast(nn.Module, model.teacher)
    save_tensors({"model": {name: x.detach().cpu().contiguous() for name, x in teacher.state_dict().items()}}, path)


def load_student(detector: nn.Module, path: Path) -> None:
    """Load a file of :func:`export_student` into a plain detector; every key must match."""
    detector.load_state_dict(load_tensors(path)["model"])


def describe_student(
    model: nn.Module,
    experiment: Experiment,
    class_names: Sequence[str],
    directory: Path,
    category_ids: Sequence[int] = (),
) -> None:
    """Write ``student.json`` into ``directory``. category_ids: of the classes, in the data's annotations."""
    statistics = pixel_statistics(student_of(model)) or PixelStatistics((), (), color_order(student_of(model)))
    description = StudentDescription(
        class_names=tuple(class_names),
        category_ids=tuple(category_ids),
        preprocessing=Preprocessing(
            min_size=experiment.data.test_size,
            max_size=experiment.data.max_size,
            color_order=statistics.order,
            pixel_mean=statistics.mean,
            pixel_std=statistics.std,
        ),
        experiment=experiment,
    )
    write_text(directory / DESCRIPTION_FILE, description.model_dump_json(indent=1) + "\n")


def consented(settings: Detector, source: str | None, where: object) -> Detector:
    """The detector that the file ``where`` describes, from ``source`` where that is given.

    Raises InputError, one line, where it is Python code and ``source`` is not given: what a file says is not run.
    """
    if source is not None and not settings.is_built_in:
        return settings.model_copy(update={"source": absolute_detector(source)})
    check_named_again([] if settings.is_built_in else [settings.source], source, where)
    return settings


class TrainedStudent:
    """A trained detector from the two files in ``directory``, on ``device``.

    ``detector`` is the model. source: what ``detector.source`` says of a detector that is Python code, which is not run
    because a file says so; a file may lie elsewhere now. Raises InputError, in one line, where it is missing, and where
    one of the two files is missing or damaged.
    """

    def __init__(self, directory: Path, device: str | torch.device = "cpu", *, source: str | None = None) -> None:
        path = directory / DESCRIPTION_FILE
        try:
            raw = json.loads(read_file(path))
            self.description = StudentDescription.model_validate(raw)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            raise InputError(f"{path}: {explain(error)}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not the description of a student ({error})") from None
        experiment = self.description.experiment
        settings = consented(experiment.detector, source, path)
        try:
            self.detector = build_detector(settings, len(self.description.class_names), experiment.data)
        except InputError:
            raise
        except Exception as error:  # of settings that nobody can build, such as a width that no memory holds
            raise InputError(f"{path}: its detector cannot be built ({' '.join(str(error).split())[:200]})") from None
        trained, built = self.description.preprocessing.color_order, color_order(self.detector)
        if trained != built:
            raise InputError(
                f"{path}: its detector was trained on {trained} images, and its code builds one for {built}"
            )
        weights = directory / WEIGHTS_FILE
        try:
            load_student(self.detector, weights)
        except Exception as error:  # missing, damaged, or of another detector
            raise InputError(f"{weights}: cannot be loaded ({reason(error)})") from None
        self.detector.to(device).eval()

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The ids of the classes in COCO's files."""
        return self.description.category_ids or tuple(range(1, len(self.description.class_names) + 1))

    def resized(self, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        """What the detector is given of an image (H, W, 3): (3, h, w) float32, BGR, 0 to 255."""
        sizes = self.description.preprocessing
        resize = T.ResizeShortestEdge([sizes.min_size, sizes.min_size], sizes.max_size).get_transform(image)
        return torch.as_tensor(resize.apply_image(image).astype("float32").transpose(2, 0, 1))

    @torch.no_grad()
    def detect(self, image: npt.NDArray[np.uint8]) -> Instances:
        """The objects in an image (H, W, 3), BGR, 0 to 255: ``pred_boxes`` in its pixels, ``scores``, ``pred_classes``
        and, of a detector with masks, ``pred_masks``. On the CPU."""
        height, width = image.shape[:2]
        resized = self.resized(image).to(next(self.detector.parameters()).device)
        (found,) = self.detector([{"image": resized, "height": height, "width": width}])
        return in_original_pixels(found["instances"].to("cpu"), height, width)
