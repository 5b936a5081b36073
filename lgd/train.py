"""An Experiment -> a Record, through detectron2's trainer and hooks.

python -m lgd.train EXPERIMENT --method baseline|lgd    # one of lgd/experiments.py; see lgd/command.py
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import JSONWriter
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from lgd import provenance
from lgd.data import DataSet, ShapesSpec, resolve, train_loader
from lgd.detectors import build_detector
from lgd.detectors.weights import load_weights
from lgd.distance import DistillationDistance
from lgd.distiller import Distiller
from lgd.errors import InputError
from lgd.evaluate import check_masks, evaluate, quiet
from lgd.experiment import Data, Experiment, Schedule
from lgd.export import export_student, student_of
from lgd.fingerprint import fingerprint
from lgd.meter import Meter, peak_memory_mib, reset_peak_memory
from lgd.phases import FreezeBackbone
from lgd.record import Curve, EvaluationPoint, Record
from lgd.teacher import ImplicitTeacher

WRITE_PERIOD = 20
"""Steps between looks at the losses: each look waits for the device, and is when divergence is noticed. Shorter in
trainings of less than ten such periods."""

CURVE_POINTS = 200
"""Points kept of a loss curve in the record; more are averaged."""

Progress = dict[str, float | int]
"""``step``, ``steps``, ``loss``, ``eta`` (seconds) of a running training."""


@dataclass
class Built:
    """Everything a run needs, made from its description."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRMultiplier
    dataset: DataSet
    device: torch.device
    fingerprint: str


def dataset_of(settings: Data) -> DataSet:
    """The data set that ``settings`` name, generated or looked up, registered with detectron2."""
    spec = ShapesSpec(
        train=settings.shapes_train,
        val=settings.shapes_val,
        size=settings.shapes_side,
        seed=settings.shapes_seed,
    )
    return resolve(settings.source, shapes=spec)


def build(experiment: Experiment, *, pretrained: bool = True) -> Built:
    """Build data, model and optimiser (see :func:`build_model` for ``pretrained``).

    Raises InputError where the description cannot be met.
    """
    device = device_of(experiment)
    dataset = dataset_of(experiment.data)
    model = build_model(experiment, len(dataset.class_names), pretrained=pretrained).to(device)
    optimizer = build_optimizer(model, experiment)
    scheduler = LRMultiplier(optimizer, lr_factor(experiment.schedule), experiment.schedule.steps)
    shown = fingerprint(
        model,
        optimizer,
        data=dataset.fingerprint,
        # Two directories with the same files are the same data.
        pipeline=experiment.data.model_dump(mode="json", exclude={"source", "workers"}),
        # The optimiser says which learning rate its settings came to.
        schedule=experiment.schedule.model_dump(mode="json", exclude={"lr", "lr_per_16"}),
        precision=experiment.precision,
        weights=experiment.detector.backbone.weights,
        seed=experiment.seed,
    )
    return Built(model, optimizer, scheduler, dataset, device, shown)


def build_model(experiment: Experiment, num_classes: int, *, pretrained: bool = True) -> nn.Module:
    """The student, in a Distiller when the method is LGD. Equal seeds give equal students whatever the method.

    With ``pretrained`` False the backbone's weights are not read, for a look at what would be built.
    """
    method = experiment.method
    torch.manual_seed(experiment.seed)
    student = build_detector(experiment.detector, num_classes)
    with quiet():
        load_weights(student, experiment.detector.backbone.weights if pretrained else "none")
    if method.name == "baseline":
        return student
    channels = {shape.channels for shape in cast(Any, student.backbone).output_shape().values()}
    if len(channels) != 1:
        raise InputError(f"LGD needs the same number of channels on every level, the backbone has {sorted(channels)}")
    width = channels.pop()
    teacher = ImplicitTeacher(
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
        teacher,
        DistillationDistance(width),
        phases=experiment.schedule.phases,
        distill_weight=method.distill_weight,
        instructive_weight=method.instructive_weight,
    )


def build_optimizer(model: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    """SGD for student, teacher and distillation adapter alike; norm layers get no weight decay."""
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
    # One kernel a group: a third of foreach's time on the CPU, where the teacher's wide layers make it felt.
    optimizer = torch.optim.SGD(groups, lr=schedule.resolved_lr, momentum=schedule.momentum, fused=True)
    if schedule.momentum:
        # The fused kernel refuses a group in which some parameters have had their first gradient and others have not,
        # as when the backbone joins in. A momentum of zero is what SGD starts from, to the bit.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lr_factor(schedule: Schedule) -> WarmupParamScheduler:
    """Linear warm-up, then a step down by ``gamma`` at each milestone."""
    # In a handful of steps milestones may round to the same one, or past the last.
    falls = [x for x in (round(x * schedule.steps) for x in schedule.milestones) if x < schedule.steps]
    at = sorted({0, *falls})
    steps = MultiStepParamScheduler(
        values=[schedule.gamma ** sum(fall <= x for fall in falls) for x in at],
        milestones=at[1:],
        num_updates=schedule.steps,
    )
    return WarmupParamScheduler(steps, schedule.warmup_factor, schedule.warmup_steps / schedule.steps, "linear")


def device_of(experiment: Experiment) -> torch.device:
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch sees no GPU here")
    name = experiment.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and experiment.precision == "fp16":
        raise InputError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    return torch.device(name)


class Trainer(SimpleTrainer):
    """detectron2's trainer with autocast on any device, gradient accumulation and clipping by value.

    loader: yields a step's batch in ``schedule.accumulate`` parts of equal size (see Schedule).
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        experiment: Experiment,
        device: torch.device,
    ) -> None:
        super().__init__(model, loader, optimizer, gather_metric_period=_write_period(experiment.schedule.steps))
        self._autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[experiment.precision]
        self._scaler = torch.amp.GradScaler(device.type, enabled=experiment.precision == "fp16")
        self._clip = experiment.schedule.clip
        self._parts = experiment.schedule.accumulate
        self._device = device

    def run_step(self) -> None:
        waited = 0.0
        means: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self._device))
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self._parts):
            begun = time.perf_counter()
            batch = next(self._data_loader_iter)
            waited += time.perf_counter() - begun
            with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
                losses = self.model(batch)
            self._scaler.scale(sum(losses.values()) / self._parts).backward()
            for name, loss in losses.items():
                means[name] = means[name] + loss.detach() / self._parts
        self.after_backward()
        self._write_metrics(means, waited)
        if self._clip:
            # Once a step, when all parts are in: the scale does not change in between.
            self._scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_value_(parameters, self._clip, foreach=True)
        self._scaler.step(self.optimizer)
        self._scaler.update()


def _write_period(steps: int) -> int:
    return max(1, min(WRITE_PERIOD, steps // 10))


class _StepTimes(HookBase):
    """Seconds of a step, averaged over each stretch between two looks at the losses (which wait for the device).

    What other hooks do after a step, evaluation above all, does not count.
    """

    def __init__(self, period: int) -> None:
        self._period = period
        self.per_step: list[float] = []
        self._begun = 0.0
        self._sum, self._steps = 0.0, 0

    def before_step(self) -> None:
        self._begun = time.perf_counter()

    def after_step(self) -> None:
        self._sum += time.perf_counter() - self._begun
        self._steps += 1
        if (self.trainer.iter + 1) % self._period == 0:
            self.per_step.append(self._sum / self._steps)
            self._sum, self._steps = 0.0, 0

    def median_ms(self) -> float | None:
        # The first stretch holds allocator and kernel warm-up.
        counted = self.per_step[1:] or self.per_step
        return statistics.median(counted) * 1e3 if counted else None


class _Report(HookBase):
    """Tell the outside how far the training is, at most every ``period`` seconds."""

    def __init__(self, tell: Callable[[Progress], None], period: float = 1.0) -> None:
        self._tell, self._period = tell, period
        self._last = 0.0

    def after_step(self) -> None:
        done, now = self.trainer.iter + 1, time.perf_counter()
        storage = self.trainer.storage
        if now - self._last < self._period or "time" not in storage.histories():
            return
        self._last = now
        latest = storage.latest().get("total_loss")
        seconds = storage.history("time").median(50)
        self._tell(
            {
                "step": done,
                "steps": self.trainer.max_iter,
                "loss": float(latest[0]) if latest else math.nan,
                "eta": seconds * (self.trainer.max_iter - done),
            }
        )


def run(
    experiment: Experiment,
    directory: Path,
    *,
    grid: str = "",
    preset: str = "",
    arm: str = "",
    tell: Callable[[Progress], None] = lambda _: None,
) -> Record:
    """Train, evaluate, export the student to ``directory/student.pth`` and save ``directory/record.json``.

    A loss that becomes infinite or NaN ends the run with a record that says so. Any other error is raised (see
    :func:`failure` for its record). ``tell`` is called about once a second with the progress.
    """
    # Read now: the tree may change while the training runs.
    started, commit = now(), provenance.git_commit()
    meter = Meter()
    reset_peak_memory()
    with ExitStack() as stack:
        stack.enter_context(meter.phase("setup"))
        # fvcore's scripted losses would be fused after their first calls in a process and round otherwise from then
        # on: a worker's first training would not repeat.
        stack.enter_context(torch.jit.optimized_execution(False))  # type: ignore[attr-defined]
        if experiment.threads:
            before = torch.get_num_threads()
            torch.set_num_threads(experiment.threads)
            stack.callback(torch.set_num_threads, before)
        built = build(experiment)
        model, dataset = built.model, built.dataset
        masks = _makes_masks(experiment)
        if masks:
            check_masks(dataset)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{directory} cannot be made ({error.strerror})") from None
        times, evaluations = _StepTimes(_write_period(experiment.schedule.steps)), list[EvaluationPoint]()

        def score(step: int) -> EvaluationPoint:
            with meter.phase("evaluation"):
                student = evaluate(student_of(model), dataset, experiment.data, masks=masks)
                teacher = None
                if experiment.evaluation.teacher and isinstance(model, Distiller):
                    teacher = evaluate(model, dataset, experiment.data, teacher=True, masks=masks)
            point = EvaluationPoint(
                step=step,
                student=student.box,
                teacher=teacher.box if teacher else None,
                student_mask=student.mask,
                teacher_mask=teacher.mask if teacher else None,
            )
            evaluations.append(point)
            return point

        trainer = _trainer(built, experiment, directory, times, _Report(tell), score)
        reason, steps = "", experiment.schedule.steps
        try:
            with meter.phase("training"), quiet():
                trainer.train(0, steps)
        except FloatingPointError as error:
            reason, steps = " ".join(str(error).split()), trainer.iter
        if not reason and not all(torch.isfinite(p).all() for p in student_of(model).parameters()):
            # Nobody looked at the losses of the last steps, if they are fewer than a period.
            reason = "the student's weights became infinite or NaN in the last steps"
        if not reason:
            if not evaluations or evaluations[-1].step != steps:
                score(steps)
            export_student(model, directory / "student.pth")
    last = evaluations[-1] if evaluations and not reason else None
    record = Record(
        status="diverged" if reason else "finished",
        reason=reason,
        grid=grid,
        preset=preset,
        arm=arm,
        experiment=experiment,
        fingerprint=built.fingerprint,
        data=dataset.summary(),
        parameters={
            "student": _count(student_of(model)),
            "teacher": _count(model) - _count(student_of(model)),
        },
        steps=steps,
        student=last.student if last else None,
        teacher=last.teacher if last else None,
        student_mask=last.student_mask if last else None,
        teacher_mask=last.teacher_mask if last else None,
        evaluations=evaluations,
        losses=_curves(trainer),
        seconds={name: round(value, 3) for name, value in meter.seconds.items()},
        step_ms=times.median_ms(),
        peak_memory_mib=peak_memory_mib(),
        versions=provenance.versions(),
        hardware=provenance.hardware(),
        git_commit=commit,
        started=started,
        finished=now(),
    )
    record.save(directory)
    return record


def failure(
    experiment: Experiment, reason: str, *, grid: str = "", preset: str = "", arm: str = "", started: str = ""
) -> Record:
    """The record of a run that an error ended. Not saved."""
    return Record(
        status="failed",
        reason=" ".join(reason.split()) or "unknown error",
        grid=grid,
        preset=preset,
        arm=arm,
        experiment=experiment,
        versions=provenance.versions(),
        hardware=provenance.hardware(),
        git_commit=provenance.git_commit(),
        started=started,
        finished=now(),
    )


def _trainer(
    built: Built,
    experiment: Experiment,
    directory: Path,
    times: _StepTimes,
    report: _Report,
    score: Callable[[int], EvaluationPoint],
) -> Trainer:
    data, schedule = experiment.data, experiment.schedule
    loader = train_loader(
        built.dataset,
        batch_size=schedule.batch // schedule.accumulate,
        min_sizes=data.min_sizes,
        max_size=data.max_size,
        flip=data.flip,
        masks=_makes_masks(experiment),
        seed=experiment.seed,
        workers=data.workers,
    )
    # What a method draws while it is built must not reach what is drawn in training.
    seed_everything(experiment.seed)
    trainer = Trainer(built.model, loader, built.optimizer, experiment, built.device)
    bottom_up = getattr(student_of(built.model).backbone, "bottom_up", student_of(built.model).backbone)
    every = experiment.evaluation.every

    def evaluate_now() -> None:
        score(trainer.iter + 1)

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            FreezeBackbone(cast(nn.Module, bottom_up), schedule.phases) if isinstance(built.model, Distiller) else None,
            hooks.LRScheduler(built.optimizer, built.scheduler),
            hooks.PeriodicWriter([JSONWriter(str(directory / "metrics.json"))], period=_write_period(schedule.steps)),
            times,
            report,
            hooks.EvalHook(every, evaluate_now, eval_after_train=False) if every else None,
        ]
    )
    return trainer


def _makes_masks(experiment: Experiment) -> bool:
    return experiment.detector.name == "mask_rcnn"


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  detectron2's augmentations draw from the global state
    torch.manual_seed(seed)


def _curves(trainer: Trainer) -> dict[str, Curve]:
    curves = {}
    for name, history in trainer.storage.histories().items():
        if "loss" not in name:
            continue
        points = [(int(step) + 1, float(value)) for value, step in history.values()]
        bins = np.array_split(np.arange(len(points)), min(CURVE_POINTS, len(points)))
        curves[name] = [(points[b[-1]][0], float(np.mean([points[i][1] for i in b]))) for b in bins if len(b)]
    return curves


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    # Not from above: this module is __main__ now, and would be another than the lgd.train that the command imports.
    from lgd.command import main

    sys.exit(main())
