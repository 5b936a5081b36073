"""The trained student: its weights as a stock detectron2 checkpoint, and what is needed to use them, beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from pydantic import ValidationError
from torch import nn

from lgd.config.experiment import Experiment, Settings, explain
from lgd.detectors import build_detector
from lgd.errors import InputError
from lgd.files import write_text
from lgd.methods.distiller import student_of
from lgd.training.tensor_file import save_tensors

WEIGHTS_FILE, DESCRIPTION_FILE = "student.pth", "student.json"
TEACHER_FILE = "teacher.pth"


class Preprocessing(Settings):
    """Preprocessing of an image before the network. The detector itself subtracts the mean and divides by the std."""

    color_order: Literal["BGR"] = "BGR"
    """Order of the image's channels, whose values are 0 to 255."""
    min_size: int
    """Shorter side after resizing, pixels."""
    max_size: int
    """Longest longer side after resizing, pixels."""
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    """By channel, in ``color_order``."""


class StudentDescription(Settings):
    """``student.json``: with ``student.pth`` all that is needed to detect, without the data or the training's code."""

    format: Literal[1] = 1
    class_names: tuple[str, ...]
    """By the index in a detection's ``pred_classes``."""
    preprocessing: Preprocessing
    experiment: Experiment
    """The training's whole configuration."""


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
    detector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])


def describe_student(model: nn.Module, experiment: Experiment, class_names: Sequence[str], directory: Path) -> None:
    """Write ``student.json`` into ``directory``."""
    student: Any = student_of(model)
    description = StudentDescription(
        class_names=tuple(class_names),
        preprocessing=Preprocessing(
            min_size=experiment.data.test_size,
            max_size=experiment.data.max_size,
            pixel_mean=tuple(student.pixel_mean.flatten().tolist()),
            pixel_std=tuple(student.pixel_std.flatten().tolist()),
        ),
        experiment=experiment,
    )
    write_text(directory / DESCRIPTION_FILE, description.model_dump_json(indent=1) + "\n")


class TrainedStudent:
    """A trained detector from the two files in ``directory``, on ``device``.

    ``detector`` is the detectron2 model. Raises InputError, in one line, where a file is missing or damaged.
    """

    def __init__(self, directory: Path, device: str | torch.device = "cpu") -> None:
        path = directory / DESCRIPTION_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            self.description = StudentDescription.model_validate(raw)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            raise InputError(f"{path}: {explain(error)}") from None
        except ValueError as error:
            raise InputError(f"{path}: not the description of a student ({error})") from None
        self.detector = build_detector(self.description.experiment.detector, len(self.description.class_names))
        weights = directory / WEIGHTS_FILE
        try:
            load_student(self.detector, weights)
        except Exception as error:  # missing, damaged, or of another detector
            raise InputError(f"{weights}: cannot be loaded ({' '.join(str(error).split())[:200]})") from None
        self.detector.to(device).eval()

    @torch.no_grad()
    def detect(self, image: npt.NDArray[np.uint8]) -> Instances:
        """The objects in an image (H, W, 3), BGR, 0 to 255: ``pred_boxes`` in its pixels, ``scores``, ``pred_classes``
        and, of a detector with masks, ``pred_masks``. On the CPU."""
        sizes = self.description.preprocessing
        height, width = image.shape[:2]
        resize = T.ResizeShortestEdge([sizes.min_size, sizes.min_size], sizes.max_size).get_transform(image)
        pixels = torch.as_tensor(resize.apply_image(image).astype("float32").transpose(2, 0, 1))
        (found,) = self.detector([{"image": pixels, "height": height, "width": width}])
        return found["instances"].to("cpu")
