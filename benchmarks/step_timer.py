"""Times training steps, evaluations and checkpoints of one training.

Every step is the project's own (:class:`lgd.training.trainer.Trainer`) on a network of random weights: weights change
what a step computes, not how long it takes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.naive_lgd import default_sgd, without_optimizations
from benchmarks.synthetic_batches import calibrate_frozen_norms, make_batches
from benchmarks.timer_spec import Stage, StepTimes, SyntheticImages, TimerSpec
from lgd.config.phases import Phases
from lgd.data.dataset import DataSet
from lgd.data.loaders import train_loader
from lgd.detectors.model_layout import bottom_up_of, predicts_masks
from lgd.evaluation.evaluate import evaluate
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Batch, Distiller, student_of
from lgd.methods.phases import FreezeBackbone
from lgd.results.cost_meter import FIRST_STEPS
from lgd.results.peak_memory import peak_memory_mib, reset_peak_memory
from lgd.training.build import build, build_model
from lgd.training.device import move_to_device, resolve_device
from lgd.training.optimizer import build_optimizer
from lgd.training.trainer import AUTOCAST, Trainer

POOL = 64
"""Synthetic images, at least: enough for their numbers of objects to spread as they should."""

RATE = 1e-6
"""Learning rate: close to 0, so that the network stays the same from one timing to the next."""

NEVER = 1 << 60
"""A step that no training reaches."""


class StepTimer:
    """A built training whose steps, evaluation and checkpoint can be timed. Seconds, except where a name says ms."""

    def __init__(self, spec: TimerSpec) -> None:
        self.experiment = spec.experiment.override({"schedule.lr": RATE})
        self.dataset: DataSet | None = None
        start = time.perf_counter()
        if spec.images is None:
            self._build()
        else:
            self._build_synthetic(spec, spec.images)
        self.setup_s = time.perf_counter() - start
        self._loader: Iterator[Batch] | None = None
        if spec.images is None:
            self._loader = self._train_loader()
            self._batches: list[Batch] = [next(self._loader)]
        else:
            self._batches = self._synthetic_batches(spec.images)
        self._set_stage(Stage(distils=True))
        calibrate_frozen_norms(self.model, self._batches[0])
        self._free_memory()

    def losses(self) -> dict[str, float]:
        """Losses of the first batch, without training on it."""
        dtype = AUTOCAST[self.experiment.precision]
        with EventStorage(), torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=bool(dtype)):
            found = {name: float(x) for name, x in self.model(self._batches[0]).items()}
        self._free_memory()
        return found

    def setup(self) -> float:
        """Time to build data, model and optimiser."""
        return self.setup_s

    def time_steps(self, stage: Stage, warmup: int, steps: int) -> StepTimes:
        """Train ``warmup`` + ``steps`` steps of a stage and time the latter, each from the end of the one before."""
        clock = _StepEnds(self.device)
        trainer = self.trainer(stage, clock)
        reset_peak_memory()
        with quiet_libraries():
            trainer.train(0, warmup + steps)
        peak = peak_memory_mib()
        ends = clock.seconds()
        self._free_memory()
        taken = tuple(1e3 * (b - a) for a, b in itertools.pairwise(ends[warmup:]))
        return StepTimes(taken, ends[min(FIRST_STEPS, warmup + steps)] - ends[0], peak)

    def trainer(self, stage: Stage, *hooks: HookBase) -> Trainer:
        """The project's trainer for steps of ``stage``. Synthetic batches start over from the first one."""
        batches = itertools.cycle(self._batches) if self._loader is None else self._loader
        trainer = Trainer(self.model, batches, self.optimizer, self.experiment, self.device)
        trainer.register_hooks([self._set_stage(stage), *hooks])
        return trainer

    def evaluation(self, images: int) -> tuple[float, float]:
        """Fixed time of an evaluation of the student, and time per image.

        Both follow from evaluating one image and the first ``images`` of the validation split (at least 2), as
        training evaluates them. The score threshold is 0, since a random network's few detections are soon scored.
        Raises ValueError for synthetic batches.
        """
        if self.dataset is None:
            raise ValueError("synthetic batches have no validation split")
        student, times = student_of(self.model), {}
        with tempfile.TemporaryDirectory(prefix="lgd-") as directory, _no_score_threshold(student):
            for count in (1, min(max(images, 2), self.dataset.counts.val.images)):
                dataset = _first_images(self.dataset, count, Path(directory))
                start = time.perf_counter()
                evaluate(student, dataset, self.experiment.data, masks=self._masks)
                times[count] = time.perf_counter() - start
        (_, one), (count, several) = min(times.items()), max(times.items())
        if count == 1:
            return 0.0, one
        image = max(0.0, several - one) / (count - 1)
        return max(0.0, one - image), image

    def checkpoint(self) -> float:
        """Time to write the states of model and optimiser to disk."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with tempfile.TemporaryDirectory(prefix="lgd-") as directory:
            start = time.perf_counter()
            with (Path(directory) / "state.pth").open("wb") as file:
                torch.save(state, file)
                os.fsync(file.fileno())
            return time.perf_counter() - start

    def _build(self) -> None:
        built = build(self.experiment, pretrained=False)
        self.model, self.optimizer, self.device = built.model, built.optimizer, built.device
        self.dataset = built.dataset

    def _build_synthetic(self, spec: TimerSpec, images: SyntheticImages) -> None:
        self.device = resolve_device(self.experiment)
        model = build_model(self.experiment, images.classes, pretrained=False)
        model = without_optimizations(model, spec.without)
        # torch 2.11 has no setting for the default backend.
        compiler = partial(torch.compile, backend=spec.compiler) if spec.compiler else torch.compile
        with mock.patch.object(torch, "compile", compiler):
            self.model = move_to_device(model, self.experiment, self.device)
        self.optimizer = build_optimizer(self.model, self.experiment)
        if "fused SGD" in spec.without:
            self.optimizer = default_sgd(self.optimizer)

    @property
    def _masks(self) -> bool:
        return predicts_masks(student_of(self.model))

    def _synthetic_batches(self, images: SyntheticImages) -> list[Batch]:
        schedule = self.experiment.schedule
        # Whole steps, so that every timing sees the same batches.
        count = schedule.accumulate * math.ceil(POOL / schedule.batch)
        size = schedule.batch // schedule.accumulate
        batches = make_batches(images, size, count, masks=self._masks, seed=self.experiment.seed)
        if self.device.type == "cuda":
            # As the loader's are.
            for image in itertools.chain.from_iterable(batches):
                image["image"] = image["image"].pin_memory()
        return batches

    def _train_loader(self) -> Iterator[Batch]:
        assert self.dataset is not None
        data, schedule = self.experiment.data, self.experiment.schedule
        return iter(
            train_loader(
                self.dataset,
                batch_size=schedule.batch // schedule.accumulate,
                min_sizes=data.min_sizes,
                max_size=data.max_size,
                flip=data.flip,
                masks=self._masks,
                seed=self.experiment.seed,
                workers=data.workers,
                cuda=self.device.type == "cuda",
                fraction=data.train_fraction,
            )
        )

    def _free_memory(self) -> None:
        # Other timing processes may need it until it is this one's turn again.
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _set_stage(self, stage: Stage) -> HookBase | None:
        """Make the next steps be of ``stage``; returns the trainer hook that freezes the backbone, if any."""
        phases = Phases(NEVER if stage.frozen else 0, 0 if stage.distils else NEVER)
        if not isinstance(self.model, Distiller):
            return None
        self.model.phases = phases
        student = student_of(self.model)
        # Where it is not known no stage of a training freezes it.
        frozen = bottom_up_of(student, self.experiment.detector) if stage.frozen else student
        return FreezeBackbone(frozen, phases)


class _StepEnds(HookBase):
    """When training began and each step ended; on a GPU by CUDA events, which wait for it only when they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[Any] = []

    def before_train(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._record()

    def after_step(self) -> None:
        self._record()

    def seconds(self) -> list[float]:
        """Since training began."""
        if self._device.type != "cuda":
            return [x - self._ends[0] for x in self._ends]
        torch.cuda.synchronize(self._device)
        return [self._ends[0].elapsed_time(x) / 1e3 for x in self._ends]

    def _record(self) -> None:
        if self._device.type != "cuda":
            self._ends.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._ends.append(event)


def _first_images(dataset: DataSet, count: int, directory: Path) -> DataSet:
    """``dataset`` with only ``count`` images in its validation split, those with objects first.

    The annotations of the smaller split are written into ``directory``.
    """
    split = json.loads(dataset.layout.val_json.read_bytes())
    with_objects = {annotation["image_id"] for annotation in split["annotations"]}
    images = sorted(split["images"], key=lambda image: (image["id"] not in with_objects, image["id"]))[:count]
    kept = {image["id"] for image in images}
    annotations = [annotation for annotation in split["annotations"] if annotation["image_id"] in kept]
    path = directory / f"first-{count}.json"
    path.write_text(json.dumps({**split, "images": images, "annotations": annotations}), encoding="utf-8")
    # The name has to be a new one: detectron2's catalogs keep what they once read.
    return replace(dataset, val=f"{dataset.val}_{path}", layout=replace(dataset.layout, val_json=path))


@contextlib.contextmanager
def _no_score_threshold(student: nn.Module) -> Iterator[None]:
    """Inside the block the detector keeps detections of any score."""
    # What detectron2 calls it, and torchvision.
    names = ("test_score_thresh", "score_thresh")
    before = [(x, name, getattr(x, name)) for x in student.modules() for name in names if hasattr(x, name)]
    for owner, name, _ in before:
        setattr(owner, name, 0.0)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
