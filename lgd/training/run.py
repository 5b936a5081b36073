"""An Experiment -> a Record, through detectron2's trainer and hooks.

python -m lgd.train EXPERIMENT --method baseline|lgd    # one of lgd/config/paper_recipes.py; see lgd/training/__main__.py
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from detectron2.engine import HookBase, hooks
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from lgd.config.experiment import Experiment, Schedule
from lgd.config.phases import Phases
from lgd.data import DataSet, check_objects, load_dataset, train_loader
from lgd.detectors import build_detector
from lgd.detectors.retinanet_fast import use_fast_losses
from lgd.detectors.weights import check_source, load_weights
from lgd.distributed import ranks
from lgd.errors import InputError
from lgd.evaluation.evaluate import check_masks, evaluate
from lgd.files import write_text
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Distiller, student_of
from lgd.methods.feature_capture import running_state
from lgd.methods.fgfi import FrozenTeacher, ImitationDistance
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.methods.phases import FreezeBackbone
from lgd.results import provenance
from lgd.results.cost_meter import (
    HEARTBEAT_FILE,
    Heartbeat,
    Meter,
    Spent,
    gpu_energy,
    read_heartbeat,
    reset_peak_memory,
)
from lgd.results.fingerprint import fingerprint
from lgd.results.record import EvaluationPoint, Record
from lgd.training import checkpoint, writers
from lgd.training.compiled import compile_parts
from lgd.training.export import export_student, load_student
from lgd.training.trainer import (
    Progress,
    Report,
    RestoreHistory,
    SaveAndStop,
    StepTimes,
    Stopped,
    Trainer,
    curves,
    cut_log,
    loss_history,
    write_period,
)

__all__ = ["Built", "Progress", "Stopped", "Trainer", "build", "build_model", "failed_record", "run"]


EVALUATIONS_FILE = "evaluations.jsonl"
"""The EvaluationPoints of a training so far, one a line."""


@dataclass
class Built:
    """Everything a run needs, made from its description."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRMultiplier
    dataset: DataSet
    device: torch.device
    fingerprint: str


def dry_build(experiment: Experiment, *, to_train: bool = False) -> str:
    """The fingerprint of what ``experiment`` would train, built on the CPU whatever its device.

    to_train: refuse besides what only the training would find missing: the file of the weights, a package that it logs
    with, objects, masks. Raises InputError, one line, and as :func:`build` does.
    """
    built = build(experiment, pretrained=False, device=torch.device("cpu"))
    if to_train:
        writers.check(experiment)
        for each in filter(None, (experiment, experiment.teacher)):
            check_source(each.detector.backbone.weights)
        check_objects(built.dataset)
        if _makes_masks(experiment):
            check_masks(built.dataset)
    return built.fingerprint


def build(
    experiment: Experiment,
    *,
    pretrained: bool = True,
    teacher: Path | None = None,
    device: torch.device | None = None,
) -> Built:
    """Build data, model and optimiser (see :func:`build_model` for ``pretrained`` and ``teacher``).

    Raises InputError where the description cannot be met.
    """
    device = device or resolve_device(experiment)
    dataset = load_dataset(experiment.data)
    model = build_model(experiment, len(dataset.class_names), pretrained=pretrained, teacher=teacher)
    model = move_to_device(model, experiment, device)
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
        **({"teacher": dry_build(experiment.teacher)} if experiment.teacher else {}),
    )
    return Built(model, optimizer, scheduler, dataset, device, shown)


def build_model(
    experiment: Experiment, num_classes: int, *, pretrained: bool = True, teacher: Path | None = None
) -> nn.Module:
    """The student, in a Distiller when the method has a teacher. Equal seeds give equal students whatever the method.

    With ``pretrained`` False the backbone's weights are not read, for a look at what would be built. teacher: the
    ``student.pth`` of a frozen teacher's training; without it that teacher is as random as a new one.
    """
    method = experiment.method
    torch.manual_seed(experiment.seed)
    student = build_detector(experiment.detector, num_classes)
    with quiet_libraries():
        load_weights(student, experiment.detector.backbone.weights if pretrained else "none")
    use_fast_losses(student)
    if method.name == "baseline":
        return student
    if method.name == "fgfi":
        return _imitating(experiment, student, num_classes, teacher)
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


def move_to_device(model: nn.Module, experiment: Experiment, device: torch.device) -> nn.Module:
    """``model`` on its device, in its memory format, compiled where that is asked for."""
    channels_last = experiment.channels_last(device.type == "cuda")
    model = model.to(device)
    model = model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if experiment.compile:
        compile_parts(model)
    return model


def _imitating(experiment: Experiment, student: nn.Module, num_classes: int, weights: Path | None) -> Distiller:
    """The student with FGFI's frozen teacher (METHOD, "FGFI")."""
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


def match_momentum_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give every momentum its parameter's memory format: the fused kernel takes both as they lie in memory.

    A checkpoint's may be another, where its training had another ``memory_format``.
    """
    for parameter, state in optimizer.state.items():
        momentum = state.get("momentum_buffer")
        if momentum is not None and momentum.stride() != parameter.stride():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)


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


def resolve_device(experiment: Experiment) -> torch.device:
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch sees no GPU here")
    name = experiment.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and experiment.precision == "fp16":
        raise InputError("precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    return torch.device(name)


def run(
    experiment: Experiment,
    directory: Path,
    *,
    grid: str = "",
    preset: str = "",
    arm: str = "",
    overrides: Sequence[str] = (),
    teachers: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    share: float = 1.0,
) -> Record:
    """Train, evaluate, export the student to ``directory/student.pth`` and save ``directory/record.json``.

    Goes on from the directory's last checkpoint where there is one. Every worker of a distributed training calls it
    alike; the first one writes. teachers: where frozen teachers are kept (default: ``teachers`` beside ``directory``).
    tell: called about once a second with the progress, and after each evaluation. stop: asked after each
    step (several workers: every WRITE_PERIOD); True writes a checkpoint and raises Stopped. share: of its device that
    each worker holds.

    A loss that becomes infinite or NaN ends the run with a record that says so. Any other error is raised (see
    :func:`failure` for its record).
    """
    pretraining, weights = None, None
    if experiment.teacher is not None:
        # Here, not at the top: a teacher's training is a run, too.
        from lgd.training.teacher import pretrained

        home = teachers or directory.parent / "teachers"
        pretraining, weights = pretrained(
            experiment.teacher,
            home,
            user=directory,
            preset=preset,
            on_progress=on_progress,
            should_stop=should_stop,
            share=share,
        )
    # Read now: the tree may change while the training runs.
    started, commit = now(), provenance.git_commit()
    # What one worker refuses all refuse: the others would wait for it.
    device = ranks.run_on_all_ranks(lambda: _device(experiment))
    meter = Meter(ranks.world_size() * share, energy=gpu_energy(device, share))
    reset_peak_memory()
    with ExitStack() as stack:
        stack.enter_context(meter.phase("setup"))
        stack.enter_context(process_settings(experiment))
        built = ranks.run_on_all_ranks(lambda: _ready(experiment, weights, directory))
        heartbeat = Heartbeat(meter, directory, built.fingerprint)
        spent = ranks.broadcast(heartbeat.earlier())
        if ranks.is_main_process():
            stack.enter_context(heartbeat)
        training = _Training(built, experiment, directory, commit, meter, spent, on_progress, should_stop)
        reason, steps = training.run()
        if not reason:
            training.score(steps)
            if ranks.is_main_process():
                export_student(built.model, directory / "student.pth")
    model, last = built.model, training.evaluations[-1] if training.evaluations and not reason else None
    totals = training.totals()
    record = Record(
        status="diverged" if reason else "finished",
        reason=reason,
        grid=grid,
        preset=preset,
        arm=arm,
        experiment=experiment,
        overrides=list(overrides),
        fingerprint=built.fingerprint,
        data=built.dataset.summary(),
        parameters={
            "student": _count(student_of(model)),
            "teacher": _count(model) - _count(student_of(model)),
        },
        steps=steps,
        student=last.student if last else None,
        teacher=last.teacher if last else None,
        student_mask=last.student_mask if last else None,
        teacher_mask=last.teacher_mask if last else None,
        evaluations=training.evaluations,
        losses=curves(training.trainer.storage),
        **totals,
        devices=ranks.world_size(),
        nodes=ranks.node_count(),
        pretraining=pretraining,
        step_ms=training.times.median_ms(),
        versions=provenance.versions(),
        hardware=provenance.hardware(),
        git_commit=commit,
        started=started,
        finished=now(),
    )
    if ranks.is_main_process():
        record.save(directory)
        checkpoint.remove(directory)
        # Whatever is trained here next has a beginning of its own.
        (directory / HEARTBEAT_FILE).unlink(missing_ok=True)
    return record


def _device(experiment: Experiment) -> torch.device:
    """Where a run trains. Raises InputError where that, or a service that it logs to, is not to be had."""
    writers.check(experiment)
    return resolve_device(experiment)


def _ready(experiment: Experiment, weights: Path | None, directory: Path) -> Built:
    """All that is built for a run, and its directory. Raises InputError for what cannot be trained."""
    built = build(experiment, teacher=weights)
    if _makes_masks(experiment):
        check_masks(built.dataset)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made ({error.strerror})") from None
    return built


@contextmanager
def process_settings(experiment: Experiment) -> Iterator[None]:
    """The process as a run needs it; afterwards as it was."""
    before = torch.get_num_threads()
    # fvcore's scripted losses would be fused after their first calls in a process and round otherwise from then on: a
    # worker's first training would not repeat.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        if experiment.threads:
            torch.set_num_threads(experiment.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _Training:
    """The steps of a run from its last checkpoint on, with what is seen on the way."""

    def __init__(
        self,
        built: Built,
        experiment: Experiment,
        directory: Path,
        commit: str,
        meter: Meter,
        spent: Spent,
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._built, self._experiment, self._directory, self._meter = built, experiment, directory, meter
        self._commit, self._on_progress = commit, on_progress
        self.evaluations: list[EvaluationPoint] = []
        self.times = StepTimes(write_period(experiment.schedule.steps), meter)
        self._start, losses = self._resume(spent)
        ranks.sync_loss_normalizer(student_of(built.model))
        self.trainer = Trainer(built.model, self._loader(), built.optimizer, experiment, built.device, meter)
        self._seed_or_restore()
        self.trainer.register_hooks([RestoreHistory(losses), *self._hooks(on_progress, should_stop)])

    def run(self) -> tuple[str, int]:
        """Why the training diverged ("" if it did not), and the steps done."""
        steps = self._experiment.schedule.steps
        try:
            with self._meter.phase("training"), quiet_libraries():
                self.trainer.train(self._start, steps)
        except FloatingPointError as error:
            return " ".join(str(error).split()), self.trainer.iter
        if not all(torch.isfinite(p).all() for p in student_of(self._built.model).parameters()):
            # Nobody looked at the losses of the last steps, if they are fewer than a period.
            return "the student's weights became infinite or NaN in the last steps", steps
        return "", steps

    def score(self, step: int) -> None:
        """Evaluate after ``step`` steps, unless that was done."""
        if self.evaluations and self.evaluations[-1].step == step:
            return
        model, experiment, dataset = self._built.model, self._experiment, self._built.dataset
        scoring = partial(
            evaluate,
            dataset=dataset,
            settings=experiment.data,
            evaluation=experiment.evaluation,
            masks=_makes_masks(experiment),
            directory=self._directory,
        )
        with self._meter.phase("evaluation"):
            ranks.broadcast_buffers(model)
            student = scoring(student_of(model))
            teacher = None
            if experiment.evaluation.teacher and experiment.method.name == "lgd":
                teacher = scoring(model, teacher=True)
        point = EvaluationPoint(
            step=step,
            student=student.box,
            teacher=teacher.box if teacher else None,
            student_mask=student.mask,
            teacher_mask=teacher.mask if teacher else None,
            attention=teacher.attention if teacher else None,
            label_use=teacher.label_use if teacher else None,
        )
        self.evaluations.append(point)
        if ranks.is_main_process():
            lines = [x.model_dump_json() + "\n" for x in self.evaluations]
            write_text(self._directory / EVALUATIONS_FILE, "".join(lines))
            self._on_progress(
                {"step": step, "steps": experiment.schedule.steps, "loss": math.nan, "eta": math.nan, **self._further()}
            )

    def _further(self) -> Progress:
        ap = self.evaluations[-1].student.AP if self.evaluations else None
        return {"spent": self._meter.total(), **({} if ap is None else {"AP": ap})}

    def totals(self) -> dict[str, Any]:
        """The meter's figures as fields of a Record, of all workers together."""
        states = ranks.all_gather(self._meter.state())
        mine = states[0]
        return {
            "seconds": _rounded(mine["seconds"]),
            "device_seconds": _rounded(mine["device_seconds"]),
            "within_training": _rounded(mine["within_training"]),
            "joules": _rounded(_merged(sum, [x["joules"] for x in states])),
            "peak_memory_mib": _merged(max, [x["peaks"] for x in states]),
            "attempts": mine["attempts"],
        }

    def _resume(self, spent: Spent) -> tuple[int, dict[str, Any]]:
        """Load the last checkpoint, if there is one; the step to go on from, and the losses up to it.

        spent: what earlier attempts left word of.
        """
        built, meter = self._built, self._meter
        found = ranks.run_on_all_ranks(lambda: checkpoint.latest(self._directory, self._experiment, built.fingerprint))
        if len(set(ranks.all_gather(found and found[0]))) > 1:
            raise InputError(f"{self._directory}: the workers see different checkpoints: it must be on shared storage")
        self._random: list[Any] | None = None
        log = self._directory / "metrics.json"
        if found is None:
            if ranks.is_main_process():
                for left in (log, self._directory / EVALUATIONS_FILE):
                    left.unlink(missing_ok=True)
            if spent.attempts:
                meter.lose(spent)
            return 0, {}
        step, state = found
        built.model.load_state_dict(state["model"])
        student = student_of(built.model)
        for name, value in state["running"].items():
            setattr(student, name, value.to(built.device) if isinstance(value, torch.Tensor) else value)
        built.optimizer.load_state_dict(state["optimizer"])
        match_momentum_layout(built.optimizer)
        built.scheduler.load_state_dict(state["scheduler"])
        self._scaler, self._random = state["scaler"], state["random"]
        self.evaluations = [EvaluationPoint.model_validate_json(x) for x in state["evaluations"]]
        self.times.per_step = list(state["per_step"])
        saved = state["meter"]
        if ranks.is_main_process():
            cut_log(log, step)
        else:
            # What all workers add up is kept by the first.
            saved = {**saved, "joules": {}}
        meter.restore(saved)
        if spent.attempts:
            meter.lose(spent.beyond(saved))
        return step, state["losses"]

    def _seed_or_restore(self) -> None:
        """The random state that the next step starts from."""
        if self._random is None:
            # What a method draws while it is built must not reach what is drawn in training. Workers draw apart.
            seed_everything(self._experiment.seed + 1_000_003 * ranks.rank())
            return
        self.trainer.scaler.load_state_dict(self._scaler)
        if len(self._random) == ranks.world_size():
            checkpoint.set_random_state(self._random[ranks.rank()])
        else:
            # Another number of workers: no state to go on from, and none may be used twice.
            seed_everything(self._experiment.seed + 1_000_003 * (ranks.rank() + 1000 * self._start))

    def _save(self, step: int) -> None:
        built, experiment = self._built, self._experiment
        with self._meter.phase("checkpoint"):
            ranks.broadcast_buffers(built.model)
            random_states = ranks.all_gather(checkpoint.random_state())
            totals = ranks.all_gather(self._meter.state())
            if not ranks.is_main_process():
                return
            state = {
                "model": built.model.state_dict(),
                "running": running_state(student_of(built.model)),
                "optimizer": built.optimizer.state_dict(),
                "scheduler": built.scheduler.state_dict(),
                "scaler": self.trainer.scaler.state_dict(),
                "random": random_states,
                "evaluations": [x.model_dump_json() for x in self.evaluations],
                "losses": loss_history(self.trainer.storage),
                "per_step": self.times.per_step,
                "meter": {**totals[0], "joules": _merged(sum, [x["joules"] for x in totals])},
            }
            checkpoint.save(self._directory, step, experiment, built.fingerprint, self._commit, state)

    def _loader(self) -> Any:
        data, schedule = self._experiment.data, self._experiment.schedule
        return train_loader(
            self._built.dataset,
            batch_size=schedule.batch // schedule.accumulate,
            min_sizes=data.min_sizes,
            max_size=data.max_size,
            flip=data.flip,
            masks=_makes_masks(self._experiment),
            seed=self._experiment.seed,
            workers=data.workers,
            cuda=self._built.device.type == "cuda",
            start=self._start * schedule.batch,
        )

    def _hooks(self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> list[HookBase | None]:
        built, experiment = self._built, self._experiment
        schedule, every = experiment.schedule, experiment.evaluation.every
        student = student_of(built.model)
        bottom_up = getattr(student.backbone, "bottom_up", student.backbone)
        period = write_period(schedule.steps)
        outlets = ranks.run_on_all_ranks(
            lambda: writers.writers(experiment, self._directory, self._start) if ranks.is_main_process() else []
        )
        freezes = experiment.method.name == "lgd"
        return [
            hooks.IterationTimer(),
            # Before the others, whose work after a step is not a step's.
            self.times,
            FreezeBackbone(cast(nn.Module, bottom_up), schedule.phases) if freezes else None,
            hooks.LRScheduler(built.optimizer, built.scheduler),
            hooks.PeriodicWriter(outlets, period=period) if outlets else None,
            Report(on_progress, self._further),
            hooks.EvalHook(every, self._evaluate_now, eval_after_train=False) if every else None,
            SaveAndStop(self._save, experiment.checkpoint.resolved_every(schedule.steps), should_stop, period),
        ]

    def _evaluate_now(self) -> None:
        self.score(self.trainer.iter + 1)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _merged(how: Callable[[list[float]], float], parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The workers' values of each name, added up or the like."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: how([part[name] for part in parts if name in part]) for name in names}


def failed_record(
    experiment: Experiment,
    reason: str,
    *,
    grid: str = "",
    preset: str = "",
    arm: str = "",
    overrides: Sequence[str] = (),
    started: str = "",
    directory: Path | None = None,
) -> Record:
    """The record of a run that an error ended. Not saved. directory: of the run, where it left word of what it cost."""
    spent = read_heartbeat(directory) if directory else Spent()
    return Record(
        status="failed",
        reason=" ".join(reason.split()) or "unknown error",
        grid=grid,
        preset=preset,
        arm=arm,
        experiment=experiment,
        overrides=list(overrides),
        device_seconds={"lost": spent.device_seconds} if spent.attempts else {},
        joules={"lost": spent.joules} if spent.joules else {},
        attempts=max(1, spent.attempts),
        versions=provenance.versions(),
        hardware=provenance.hardware(),
        git_commit=provenance.git_commit(),
        started=started,
        finished=now(),
    )


def _makes_masks(experiment: Experiment) -> bool:
    return experiment.detector.name == "mask_rcnn"


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  detectron2's augmentations draw from the global state
    torch.manual_seed(seed)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
