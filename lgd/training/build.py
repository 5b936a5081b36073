"""What a training is made of, built from an Experiment: data set, model, optimiser and learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from lgd.config.experiment import Data, Experiment, Schedule
from lgd.config.phases import Phases
from lgd.config.settings import keys_without_effect_on_result
from lgd.data.catalog import load_dataset
from lgd.data.dataset import DataSet, check_objects
from lgd.data.epochs import resolve_epochs
from lgd.detectors import build_detector
from lgd.detectors.retinanet_fast import use_fast_losses
from lgd.detectors.weights import check_weights, load_weights
from lgd.errors import InputError
from lgd.evaluation.evaluate import check_masks
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Distiller, student_of
from lgd.methods.fgfi import FrozenTeacher, ImitationDistance
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.results.fingerprint import fingerprint
from lgd.training import writers
from lgd.training.device import move_to_device, resolve_device
from lgd.training.disk_space import check_disk_space, files_size
from lgd.training.export import load_student
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


def dry_build(experiment: Experiment, *, to_train: bool = False, directory: Path | None = None) -> str:
    """Build ``experiment`` on the CPU, without its parameters' values, and return its fingerprint.

    to_train: check also what only the training needs: that the weights can be had and fit, the packages of logging
    services, objects in the data, masks, space in its ``directory``; and the same of its frozen teacher. Raises
    InputError, in one line, as :func:`build` does.
    """
    with Uninitialized():
        built = build(experiment, pretrained=False, device=torch.device("cpu"))
    if to_train:
        writers.check(experiment)
        settings = experiment.detector
        check_weights(student_of(built.model), settings.initial_weights, whole=settings.is_pretrained)
        check_objects(built.dataset)
        if makes_masks(experiment):
            check_masks(built.dataset)
        if directory is not None:
            check_disk_space(directory, files_size(experiment, built.model, built.optimizer))
        if experiment.teacher is not None:
            dry_build(experiment.teacher, to_train=True)
    return built.fingerprint


@cache
def _teacher_fingerprint(teacher: str) -> str:
    """Of the experiment that ``teacher`` is as JSON: several arms of a sweep share one."""
    return dry_build(Experiment.model_validate_json(teacher))


def build(
    experiment: Experiment,
    *,
    pretrained: bool = True,
    teacher: Path | None = None,
    device: torch.device | None = None,
) -> Built:
    """Build data, model and optimiser (see :func:`build_model` for ``pretrained`` and ``teacher``).

    device: default is the experiment's. Raises InputError where the experiment cannot be built.
    """
    experiment = resolve_epochs(experiment)
    device = device or resolve_device(experiment)
    dataset = load_dataset(experiment.data)
    model = build_model(experiment, len(dataset.class_names), pretrained=pretrained, teacher=teacher)
    model = move_to_device(model, experiment, device)
    optimizer = build_optimizer(model, experiment)
    scheduler = LRMultiplier(optimizer, lr_factor(experiment.schedule), experiment.schedule.steps)
    found = fingerprint(
        model,
        optimizer,
        data=dataset.fingerprint,
        # Two directories with the same files are the same data.
        pipeline=experiment.data.model_dump(mode="json", exclude={"source", *keys_without_effect_on_result(Data)}),
        # The learning rate is in the optimiser's groups, whichever of these two settings it came from.
        schedule=experiment.schedule.model_dump(mode="json", exclude={"lr", "lr_per_16"}),
        precision=experiment.precision,
        weights=experiment.detector.initial_weights,
        seed=experiment.seed,
        **({"teacher": _teacher_fingerprint(experiment.teacher.model_dump_json())} if experiment.teacher else {}),
    )
    return Built(model, optimizer, scheduler, dataset, device, found)


def build_model(
    experiment: Experiment, num_classes: int, *, pretrained: bool = True, teacher: Path | None = None
) -> nn.Module:
    """The student, in a Distiller when the method has a teacher. Equal seeds give equal students whatever the method.

    pretrained: load the pretrained weights; False to only see what would be built. teacher: ``student.pth`` of a frozen
    teacher's training; without it a frozen teacher has random weights.
    """
    method = experiment.method
    torch.manual_seed(experiment.seed)
    student = build_detector(experiment.detector, num_classes)
    with quiet_libraries():
        if pretrained:
            load_weights(student, experiment.detector.initial_weights, whole=experiment.detector.is_pretrained)
    use_fast_losses(student)
    if method.name == "baseline":
        return student
    if method.name == "fgfi":
        return _with_frozen_teacher(experiment, student, num_classes, teacher)
    return _with_implicit_teacher(experiment, student, num_classes)


def _with_implicit_teacher(experiment: Experiment, student: nn.Module, num_classes: int) -> Distiller:
    """The student with LGD's teacher, which is trained together with it."""
    method = experiment.method
    channels = {shape.channels for shape in cast(Any, student.backbone).output_shape().values()}
    if len(channels) != 1:
        raise InputError(f"LGD needs the same number of channels on every level, the backbone has {sorted(channels)}")
    width = channels.pop()
    implicit = ImplicitTeacher(
        width,
        num_classes,
        encoder=method.encoder,
        adapter=method.adapter,
        mapper=method.mapper,
        variant=method.variant,
        context=method.context,
        detach_appearance=method.detach_appearance,
    )
    return Distiller(
        student,
        implicit,
        DistillationDistance(width),
        phases=experiment.schedule.phases,
        distill_weight=method.distill_weight,
        instructive_weight=method.instructive_weight,
    )


def _with_frozen_teacher(
    experiment: Experiment, student: nn.Module, num_classes: int, weights: Path | None
) -> Distiller:
    """The student with FGFI's frozen teacher (docs/method.md)."""
    described, imitation = cast(Experiment, experiment.teacher), experiment.method.fgfi
    detector = build_detector(described.detector, num_classes)
    if weights is not None:
        load_student(detector, weights)
    distance = ImitationDistance(
        student,
        detector,
        levels=imitation.levels,
        threshold=imitation.threshold,
        weight=imitation.weight,
        relu=imitation.relu,
    )
    return Distiller(
        student,
        FrozenTeacher(detector, student),
        distance,
        phases=Phases(distill_from=imitation.from_step),
        distill_weight=experiment.method.distill_weight,
    )


def build_optimizer(model: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    """SGD over student, teacher and distillation adapter; norm layers get no weight decay."""
    schedule, method = experiment.schedule, experiment.method

    def factor(name: str) -> float:
        return method.lr_factor if name.startswith(("teacher.", "distance.")) else 1.0

    groups = get_default_optimizer_params(
        model,
        base_lr=schedule.resolved_lr,
        weight_decay=schedule.weight_decay,
        weight_decay_norm=0.0,
        lr_factor_func=factor,
    )
    # The fused kernel takes a third of foreach's time on the CPU, which the teacher's wide layers make noticeable.
    optimizer = torch.optim.SGD(groups, lr=schedule.resolved_lr, momentum=schedule.momentum, fused=True)
    if schedule.momentum:
        # The fused kernel refuses a group in which only some parameters have a momentum buffer, which is the case when
        # the backbone is unfrozen. SGD starts from a momentum of zero, so this changes no result.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def match_momentum_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give every momentum buffer its parameter's memory format, which the fused kernel requires.

    They differ after loading the checkpoint of a training with another ``memory_format``.
    """
    for parameter, state in optimizer.state.items():
        momentum = state.get("momentum_buffer")
        if momentum is not None and momentum.stride() != parameter.stride():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)


def lr_factor(schedule: Schedule) -> WarmupParamScheduler:
    """Factor of the learning rate: linear warm-up, then multiplied by ``gamma`` at each milestone."""
    # In a training of a few steps milestones may round to the same step, or to one after the last.
    falls = [x for x in (round(x * schedule.steps) for x in schedule.milestones) if x < schedule.steps]
    at = sorted({0, *falls})
    steps = MultiStepParamScheduler(
        values=[schedule.gamma ** sum(fall <= x for fall in falls) for x in at],
        milestones=at[1:],
        num_updates=schedule.steps,
    )
    warmup = schedule.resolved_warmup_steps / schedule.steps
    return WarmupParamScheduler(steps, schedule.warmup_factor, warmup, "linear")


def makes_masks(experiment: Experiment) -> bool:
    """Whether the detector predicts masks, and so needs them in the data."""
    return experiment.detector.name == "mask_rcnn"
