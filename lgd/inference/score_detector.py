"""Detecting on a validation split with a detector that is there already, and scoring as a training's evaluations do."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import nn

from lgd.cli import format_duration
from lgd.config.experiment import Experiment
from lgd.data.dataset import DataSet
from lgd.detectors import biased_convolutions, build_detector
from lgd.detectors.fast_losses import use_fast_losses
from lgd.detectors.model_layout import predicts_masks
from lgd.evaluation.evaluate import Evaluated, check_masks, detect, score
from lgd.evaluation.scoring import Detections
from lgd.inference.out_of_memory import enough_memory
from lgd.inference.scores_file import Seconds
from lgd.inference.whole_weights import InDataClasses, class_names_of, left_over, load_whole_weights
from lgd.logs import quiet_libraries
from lgd.training.device import move_to_device, process_settings
from lgd.training.trainer import AUTOCAST

__all__ = ["DetectorScores", "Progress", "built_with_weights", "score_detector"]

PERIOD = 10.0
"""Seconds between two lines on the progress."""


@dataclass(frozen=True)
class DetectorScores:
    """The result of one evaluation."""

    scores: Evaluated
    detections: Detections
    """In COCO's results format."""
    seconds: Seconds


class Progress:
    """Prints how many images are done, every PERIOD seconds."""

    def __init__(self, images: int) -> None:
        # sys.stdout is redirected meanwhile, to silence the libraries.
        self._stdout: TextIO = sys.stdout
        self._images, self._done, self._started = images, 0, time.monotonic()
        self._next = self._started + PERIOD

    def __call__(self) -> None:
        """Called after each image."""
        self._done += 1
        now = time.monotonic()
        if now < self._next or self._done >= self._images:
            return
        self._next = now + PERIOD
        left = (now - self._started) / self._done * (self._images - self._done)
        print(f"image {self._done} of {self._images}, {format_duration(left)} left", file=self._stdout, flush=True)


def built_with_weights(experiment: Experiment, source: str, dataset: DataSet) -> tuple[nn.Module, str]:
    """The detector of ``experiment`` with the weights ``source`` ("none": as it is built), on the CPU, and a note.

    Its detections are of the data's classes. note: what in the file was not used; "" for nothing. Raises InputError,
    one line, where the detector cannot be built or the weights are not those of all of it.
    """
    theirs, ours = class_names_of(source), dataset.class_names
    torch.manual_seed(experiment.seed)
    count = len(theirs or ours)
    detector = build_detector(experiment.detector, count, experiment.data)
    if source == "none":
        return detector, ""
    with quiet_libraries():
        report = load_whole_weights(detector, experiment.detector, source, count)
    unused = left_over(report)
    note = f"{len(unused)} tensors of the file are not this detector's, such as {unused[0]}" if unused else ""
    return (InDataClasses(detector, theirs, ours, source) if theirs else detector), note


def score_detector(
    detector: nn.Module, dataset: DataSet, experiment: Experiment, device: torch.device, batch: int
) -> DetectorScores:
    """Detect on the validation split and score, on ``device``, in the experiment's precision.

    batch: images at once, at most; only images of one size share a batch, so that it changes no detection but by
    rounding. Raises InputError, one line, where the split has no masks to score a detector's with, for classes that the
    data does not have, and where the device's memory does not hold the batch.
    """
    whose = detector.detector if isinstance(detector, InDataClasses) else detector
    masks = predicts_masks(whose)
    if masks:
        check_masks(dataset)
    # As lgd/training/build.py makes a student, whose evaluations are to be repeated to the digit.
    biased_convolutions.use(use_fast_losses(whose))
    dtype = AUTOCAST[experiment.precision]
    with process_settings(experiment):
        lower = "lower --batch" if batch > 1 else "lower the images' size (--set data.test_size=N)"
        with enough_memory(device, f"--batch {batch} at this image size", lower):
            model = move_to_device(detector, experiment, device)
            started = time.perf_counter()
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                after_image = Progress(dataset.counts.val.images)
                found = detect(model, dataset, experiment.data, batch_size=batch, after_image=after_image)
        detected = time.perf_counter()
        with quiet_libraries():
            scores = score(dataset, found, masks=masks, scorer=experiment.evaluation.scorer)
    seconds = Seconds(detection=round(detected - started, 3), scoring=round(time.perf_counter() - detected, 3))
    return DetectorScores(scores, found, seconds)
