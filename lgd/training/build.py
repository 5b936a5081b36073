"""What a training is made of, built from an Experiment: data set, model, optimiser and learning rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.solver import LRMultiplier
from torch import nn

from lgd.config.detector_source import kind_of
from lgd.config.experiment import DATA_SET_KEYS, Data, Detector, Experiment
from lgd.config.experiment_warnings import RCNN_SETTINGS, has_rcnn_settings
from lgd.config.method import code_of
from lgd.config.settings import keys_without_effect_on_result
from lgd.data.catalog import load_dataset
from lgd.data.dataset import DataSet, check_objects
from lgd.data.epochs import resolve_epochs
from lgd.detectors import biased_convolutions, build_detector
from lgd.detectors.fast_losses import use_fast_losses
from lgd.detectors.initial_weights import check_initial_weights, initial_weights, load_initial_weights
from lgd.detectors.model_layout import bottom_up_of, description, predicts_masks
from lgd.detectors.weight_sources import digests, find_weights, probe, without_query
from lgd.evaluation.evaluate import check_masks
from lgd.logs import quiet_libraries
from lgd.methods.distiller import student_of
from lgd.methods.parts import Parts
from lgd.results.fingerprint import fingerprint
from lgd.training import writers
from lgd.training.device import move_to_device, resolve_device
from lgd.training.disk_space import FilesSize, check_disk_space, files_size
from lgd.training.export import load_student
from lgd.training.memory_need import step_memory
from lgd.training.optimizer import build_optimizer, lr_factor
from lgd.training.shared_work import BuildCache, NoCache
from lgd.training.uninitialized import Uninitialized


@dataclass
class Built:
    """Everything that a training needs, built from its Experiment."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRMultiplier
    dataset: DataSet
    device: torch.device
    fingerprint: str
    weights: dict[str, str]
    """SHA-256 of each file of pretrained weights, by its source."""


@dataclass(frozen=True)
class DryBuilt:
    """Properties of a training that a dry build finds."""

    fingerprint: str
    files: FilesSize | None = None
    """Of what it writes where it is to be trained; None: not known."""
    memory: int | None = None
    """Bytes of a step where it is to be trained; None: not known."""
    detector: str = ""
    """On a detector from elsewhere: what it was found to be, and what might fit it better; a line each."""
    teacher: DryBuilt | None = None
    """The dry build of the frozen teacher's training, where there is one."""


Noted = Callable[[], AbstractContextManager[None]]
"""A context that may keep the InputError raised inside, so that the next check is made too."""


def dry_build(experiment: Experiment, *, to_train: bool = False, directory: Path | None = None) -> str:
    """Build ``experiment`` on the CPU, without its parameters' values, and return its fingerprint.

    to_train: check also what only the training needs, as :func:`inspect_training`, and space in its ``directory``.
    Raises InputError, in one line, for the first thing that is wrong.
    """
    found = inspect_training(experiment, to_train=to_train)
    assert found is not None
    if directory is not None and found.files is not None:
        check_disk_space(directory, found.files.total)
    return found.fingerprint


def inspect_training(
    experiment: Experiment,
    *,
    to_train: bool = False,
    noted: Noted = nullcontext,
    shared: BuildCache | None = None,
) -> DryBuilt | None:
    """Build ``experiment`` on the CPU, without its parameters' values; None where ``noted`` kept why it cannot be.

    to_train: check also what only the training needs: the packages of logging services, that the weights can be had
    and fit, objects in both splits, masks; and the same of its frozen teacher. Each check is made inside ``noted()``.
    shared: with what other builds made already.
    """
    shared = shared or BuildCache()
    if to_train:
        with noted():
            writers.check(experiment)
    built = _build_or_none(experiment, shared, noted)
    teacher = None
    if to_train:
        with noted():
            _check_initial_weights(experiment.detector, student_of(built.model) if built else None, shared)
        if built:
            _check_data(built, noted)
            with noted():
                _check_frozen_part(experiment, student_of(built.model))
        if experiment.given_teacher is not None:
            given = experiment.given_teacher.teacher_detector(experiment.detector)
            with noted():
                _check_initial_weights(given, _given_detector(given, built) if built else None, shared)
        if experiment.teacher is not None:
            teacher = inspect_training(experiment.teacher, to_train=True, noted=noted, shared=shared)
    if built is None:
        return None
    if not to_train:
        return DryBuilt(built.fingerprint)
    files = files_size(experiment, built.model, built.optimizer)
    found = _found(experiment, student_of(built.model))
    return DryBuilt(built.fingerprint, files, step_memory(experiment, built.model), found, teacher)


def _found(experiment: Experiment, student: nn.Module) -> str:
    """What a detector from elsewhere was found to be, and what of the method might fit it better; a line each."""
    settings = experiment.detector
    if settings.is_built_in:
        return ""
    lines, named = [description(student, settings, initial_weights(settings))], f"detector {settings.label}"
    if hasattr(student, "roi_heads") and not has_rcnn_settings(experiment):
        rate = " and, with SGD, schedule.lr_per_16=0.02" if experiment.schedule.optimizer == "sgd" else ""
        lines.append(f"{named}: an R-CNN: the paper's LGD has {RCNN_SETTINGS}{rate} with them")
    if kind_of(settings.source) == "function" and experiment.method.phases(experiment.schedule).frozen_until:
        lines.append(f"{named}: its bottom-up network is frozen at first: schedule.frozen=0 if it has random values")
    return "\n".join(lines)


def _check_frozen_part(experiment: Experiment, student: nn.Module) -> None:
    """Raise InputError where the part that is frozen at first is not known."""
    if experiment.method.phases(experiment.schedule).frozen_until:
        bottom_up_of(student, experiment.detector)


def _build_or_none(experiment: Experiment, shared: BuildCache, noted: Noted) -> Built | None:
    found: list[Built] = []
    with noted(), Uninitialized():
        found.append(build(experiment, pretrained=False, device=torch.device("cpu"), shared=shared))
    return found[0] if found else None


def _check_data(built: Built, noted: Noted) -> None:
    with noted():
        check_objects(built.dataset)
    if predicts_masks(student_of(built.model)):
        with noted():
            check_masks(built.dataset)


def _given_detector(settings: Detector, built: Built) -> nn.Module:
    with Uninitialized():
        return build_detector(settings, len(built.dataset.class_names))


def _check_initial_weights(settings: Detector, detector: nn.Module | None, shared: BuildCache) -> None:
    """Raise InputError where they cannot be had; and, with the ``detector`` there is, where they do not fit it."""
    source = initial_weights(settings)
    if source == "none":
        return
    # What follows a ? is for detectron2's own checkpointer.
    weights = shared.once(("source", source), lambda: probe(find_weights(without_query(source))))
    if detector is not None and weights.is_cached:
        key = ("weights", settings.model_dump_json())
        shared.once(key, lambda: check_initial_weights(detector, settings))


def _of_teacher(experiment: Experiment) -> dict[str, str]:
    """What the model does not show of the teacher: how it was trained or where it is from, and what is inherited."""
    found = {}
    if experiment.teacher is not None:
        found["teacher"] = _teacher_fingerprint(experiment.teacher.model_dump_json())
    if experiment.given_teacher is not None:
        found["given_teacher"] = experiment.given_teacher.teacher_detector(experiment.detector).model_dump_json()
    inherit = getattr(experiment.method, "inherit", "none")
    return found if inherit == "none" else {**found, "inherit": inherit}


@cache
def _teacher_fingerprint(teacher: str) -> str:
    """Fingerprint of the experiment ``teacher`` (JSON). Cached, since several arms of a sweep share one."""
    return dry_build(Experiment.model_validate_json(teacher))


def build(
    experiment: Experiment,
    *,
    pretrained: bool = True,
    teacher: Path | None = None,
    device: torch.device | None = None,
    shared: BuildCache | None = None,
) -> Built:
    """Build data, model and optimiser (see :func:`build_model` for ``pretrained`` and ``teacher``).

    device: default is the experiment's. shared: for dry builds, networks that others made already. Raises
    InputError where the experiment cannot be built.
    """
    experiment = resolve_epochs(experiment)
    device = device or resolve_device(experiment)
    dataset = load_dataset(experiment.data)
    model = build_model(experiment, len(dataset.class_names), pretrained=pretrained, teacher=teacher, shared=shared)
    model = move_to_device(model, experiment, device)
    optimizer = build_optimizer(model, experiment)
    scheduler = LRMultiplier(optimizer, lr_factor(experiment.schedule), experiment.schedule.steps)
    found = fingerprint(
        model,
        optimizer,
        data=dataset.fingerprint,
        pipeline=_pipeline(experiment.data),
        # The optimiser's groups have the learning rate, whichever of the first two settings it came from, what is
        # decayed and AdamW's betas, which fingerprints told before there were settings for them.
        schedule=experiment.schedule.model_dump(mode="json", exclude={"lr", "lr_per_16", "decay_norms", "optimizer"}),
        precision=experiment.precision,
        weights=initial_weights(experiment.detector),
        seed=experiment.seed,
        **_of_teacher(experiment),
    )
    files = digests(experiment) if pretrained else {}
    return Built(model, optimizer, scheduler, dataset, device, found, files)


def _pipeline(data: Data) -> dict[str, Any]:
    """What is done with the images. Two directories with the same files are the same data."""
    # Trainings of before this setting existed are trainings on all images.
    whole = ("train_fraction",) if data.train_fraction == 1 else ()
    return data.model_dump(mode="json", exclude={*DATA_SET_KEYS, *keys_without_effect_on_result(Data), *whole})


def build_model(
    experiment: Experiment,
    num_classes: int,
    *,
    pretrained: bool = True,
    teacher: Path | None = None,
    shared: BuildCache | None = None,
) -> nn.Module:
    """The student, in a Distiller when the method has a teacher. Equal seeds give equal students whatever the method.

    pretrained: load the pretrained weights; False to only see what would be built. teacher: ``student.pth`` of a frozen
    teacher's training; without it a frozen teacher has random weights. shared: where equal networks of several models
    are to be one; for dry builds only.
    """
    shared = shared or NoCache()
    sizes = () if experiment.detector.is_built_in else (experiment.data.test_size, experiment.data.max_size)
    key = (num_classes, experiment.compile, experiment.memory_format, *sizes)

    def make_student(added: int = 0) -> nn.Module:
        torch.manual_seed(experiment.seed + added)
        student = build_detector(experiment.detector, num_classes, experiment.data)
        with quiet_libraries():
            if pretrained:
                load_initial_weights(student, experiment.detector)
        return use_fast_losses(student)

    student = shared.once(("student", experiment.detector.model_dump_json(), *key), make_student)

    def detector(settings: Detector) -> nn.Module:
        return build_detector(settings, num_classes, experiment.data)

    def frozen_detector() -> nn.Module:
        return _frozen_detector(experiment, num_classes, teacher, pretrained)

    parts = Parts(
        experiment,
        student,
        num_classes,
        detector=detector,
        frozen_detector=frozen_detector,
        second_student=make_student,
        once=lambda own, make: shared.once((*cast(Any, own), *key), make),
        has_values=pretrained,
        pretrained=teacher.parent if teacher else None,
    )
    with code_of(experiment.method):
        built = cast(nn.Module, experiment.method.build(parts))
    return biased_convolutions.use(built)


def _frozen_detector(experiment: Experiment, num_classes: int, trained: Path | None, pretrained: bool) -> nn.Module:
    """The teacher of a method that has a frozen one. trained: ``student.pth`` of its training, where it has one."""
    settings = experiment.method.teacher_detector(experiment.detector)
    if settings is None:
        raise ValueError(f"method {experiment.method.name} has no frozen detector")
    detector = build_detector(settings, num_classes, experiment.data)
    if trained is not None:
        load_student(detector, trained)
    elif pretrained and settings.is_pretrained:
        with quiet_libraries():
            load_initial_weights(detector, settings)
    # Its head may be read too: pooling regions is the student's work.
    return biased_convolutions.use(use_fast_losses(detector))
