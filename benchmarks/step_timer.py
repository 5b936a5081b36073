"""Processes that build one training each and take its steps on request, so that several can be timed in turn.

Every step is the project's own (:class:`lgd.training.trainer.Trainer`), on a network of random weights: what they are changes
what a step finds, not what it takes.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from detectron2.engine import HookBase
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.naive_lgd import plain_sgd, undone
from lgd.config.experiment import Experiment
from lgd.config.phases import Phases
from lgd.data import DataSet, train_loader, val_loader
from lgd.errors import InputError
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Batch, Distiller, student_of
from lgd.methods.phases import FreezeBackbone
from lgd.results.cost_meter import FIRST_STEPS, peak_memory_mib, reset_peak_memory
from lgd.training import run as training
from lgd.training.trainer import AUTOCAST, Trainer

ASPECT = 4 / 3
"""Longer side of a made image to its shorter one: that of most of COCO's."""

POOL = 64
"""Made images at least, so that their numbers of objects spread as they shall."""

RATE = 1e-6
"""Learning rate: next to nothing, so that every stretch sees the same network."""

NEVER = 1 << 60
"""A step that no training gets to."""


@dataclass(frozen=True)
class Stage:
    """What the steps of a part of the schedule have in common: METHOD's phases, which cost differently.

    frozen: the bottom-up network has no backward pass. distils: the distillation loss reaches the student.
    """

    frozen: bool = False
    distils: bool = False

    def __str__(self) -> str:
        names = [name for name, on in (("frozen", self.frozen), ("distilling", self.distils)) if on]
        return ", ".join(names) or "free"


def stages(experiment: Experiment) -> dict[Stage, int]:
    """The steps of a training by stage, in the order in which the stages first come."""
    steps, method = experiment.schedule.steps, experiment.method
    if method.name == "baseline":
        return {Stage(): steps}
    phases = experiment.schedule.phases if method.name == "lgd" else Phases(distill_from=method.fgfi.from_step)
    bounds = {0, phases.frozen_until, phases.distill_from, phases.distill_until or steps, steps}
    found: dict[Stage, int] = {}
    for start, end in itertools.pairwise(sorted(x for x in bounds if x <= steps)):
        stage = Stage(phases.freezes_backbone(start), phases.distills_student(start))
        found[stage] = found.get(stage, 0) + end - start
    return found


@dataclass(frozen=True)
class Images:
    """Batches made in advance. side: shorter side, pixels; longest: of the longer one, which is ASPECT times as long.

    objects: boxes an image, on average; they spread as in COCO, where most images have few and some have many.
    """

    side: int
    longest: int
    objects: float
    classes: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.side, min(round(self.side * ASPECT), self.longest)


@dataclass(frozen=True)
class Job:
    """What a worker builds. images: None for the experiment's own data, through its loader. name: for its errors.

    without: changes of straightforward.py to undo, for made images only.
    """

    experiment: Experiment
    images: Images | None = None
    name: str = "training"
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stretch:
    """Milliseconds of a number of steps, those after the dropped ones.

    first_s: seconds of the first FIRST_STEPS, dropped ones included. peak_mib: largest memory, ``device`` or ``host``.
    """

    steps_ms: tuple[float, ...]
    first_s: float
    peak_mib: dict[str, float]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.steps_ms)

    @property
    def mean_ms(self) -> float:
        return statistics.fmean(self.steps_ms)


class Bench:
    """What a worker process does when it is asked. Times are in seconds unless they say otherwise."""

    def __init__(self, job: Job) -> None:
        self.experiment = experiment = job.experiment.override({"schedule.lr": RATE})
        begun = time.perf_counter()
        self.dataset: DataSet | None = None
        if job.images is None:
            built = training.build(experiment, pretrained=False)
            self.model, self.optimizer, self.device = built.model, built.optimizer, built.device
            self.dataset = built.dataset
        else:
            self.device = training.resolve_device(experiment)
            model = training.build_model(experiment, job.images.classes, pretrained=False)
            self.model = training.move_to_device(undone(model, job.without), experiment, self.device)
            self.optimizer = training.build_optimizer(self.model, experiment)
            if "fused SGD" in job.without:
                self.optimizer = plain_sgd(self.optimizer)
        self.setup_s = time.perf_counter() - begun
        self._parts = experiment.schedule.accumulate
        self._masks = experiment.detector.name == "mask_rcnn"
        if job.images is None:
            batches = self._loader()
            self._batches: list[Batch] = [next(batches)]
            self._stream: Iterator[Batch] | None = batches
        else:
            part = experiment.schedule.batch // self._parts
            # As many as a step's parts go into, so that every stretch gets the same ones.
            count = self._parts * math.ceil(POOL / experiment.schedule.batch)
            self._batches = make_batches(job.images, part, count, masks=self._masks, seed=experiment.seed)
            if self.device.type == "cuda":
                # As the loader's are.
                for image in itertools.chain.from_iterable(self._batches):
                    image["image"] = image["image"].pin_memory()
            self._stream = None
        self._enter(Stage(distils=True))
        settle_norms(self.model, self._batches[0])
        self._release()

    def losses(self) -> dict[str, float]:
        """Of the first batch; nothing is trained."""
        precision = AUTOCAST[self.experiment.precision]
        with EventStorage(), torch.no_grad(), torch.autocast(self.device.type, precision, enabled=bool(precision)):
            found = {name: float(x) for name, x in self.model(self._batches[0]).items()}
        self._release()
        return found

    def _release(self) -> None:
        # Others may need the memory until it is this process's turn again.
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def setup(self) -> float:
        """How long data, model and optimiser took."""
        return self.setup_s

    def stretch(self, stage: Stage, drop: int, steps: int) -> Stretch:
        """Train ``drop`` + ``steps`` steps of a stage and time the latter, each from the end of the one before."""
        clock = _Clock(self.device)
        trainer = self.trainer(stage, clock)
        reset_peak_memory()
        with quiet_libraries():
            trainer.train(0, drop + steps)
        peak = peak_memory_mib()
        marks = clock.seconds()
        self._release()
        taken = tuple(1e3 * (b - a) for a, b in itertools.pairwise(marks[drop:]))
        return Stretch(taken, marks[min(FIRST_STEPS, drop + steps)] - marks[0], peak)

    def trainer(self, stage: Stage, *hooks: HookBase) -> Trainer:
        """The project's own, whose steps are of ``stage``, on this bench's batches from the first one on."""
        batches = itertools.cycle(self._batches) if self._stream is None else self._stream
        trainer = Trainer(self.model, batches, self.optimizer, self.experiment, self.device)
        trainer.register_hooks([self._enter(stage), *hooks])
        return trainer

    def evaluation(self, images: int) -> tuple[float, float]:
        """Fixed part, and what an image takes, of scoring the student on the first ``images`` of the validation split.

        It is made to find as much on every image as it may: what a random network finds is soon scored.
        """
        if self.dataset is None:
            raise ValueError("made batches have no validation split")
        student, data = student_of(self.model), self.experiment.data
        begun = time.perf_counter()
        loader = val_loader(
            self.dataset, min_size=data.test_size, max_size=data.max_size, workers=data.workers, with_labels=False
        )
        tasks = ("bbox", "segm") if self._masks else ("bbox",)
        with quiet_libraries(), torch.no_grad(), _finding_all(student):
            evaluator = COCOEvaluator(self.dataset.val, tasks=tasks, distributed=False, use_fast_impl=False)
            evaluator.reset()
            fixed = time.perf_counter() - begun
            seen = []
            for inputs in itertools.islice(loader, images):
                evaluator.process(inputs, student(inputs))
                seen += [x["image_id"] for x in inputs]
            evaluator.evaluate(img_ids=seen)
        total = time.perf_counter() - begun
        return fixed, (total - fixed) / len(seen)

    def checkpoint(self) -> float:
        """Writing the model and the optimiser's state to disk."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with tempfile.TemporaryDirectory(prefix="lgd-") as directory:
            begun = time.perf_counter()
            with (Path(directory) / "state.pth").open("wb") as file:
                torch.save(state, file)
                os.fsync(file.fileno())
            return time.perf_counter() - begun

    def _loader(self) -> Iterator[Batch]:
        assert self.dataset is not None
        data, schedule = self.experiment.data, self.experiment.schedule
        return iter(
            train_loader(
                self.dataset,
                batch_size=schedule.batch // self._parts,
                min_sizes=data.min_sizes,
                max_size=data.max_size,
                flip=data.flip,
                masks=self._masks,
                seed=self.experiment.seed,
                workers=data.workers,
            )
        )

    def _enter(self, stage: Stage) -> HookBase | None:
        """Have the coming steps be of ``stage``; the hook that does the rest."""
        phases = Phases(NEVER if stage.frozen else 0, 0 if stage.distils else NEVER)
        if not isinstance(self.model, Distiller):
            return None
        self.model.phases = phases
        backbone = cast(nn.Module, student_of(self.model).backbone)
        return FreezeBackbone(cast(nn.Module, getattr(backbone, "bottom_up", backbone)), phases)


class _Clock(HookBase):
    """The end of every step, without waiting for a GPU before the last one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def before_train(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._mark()

    def after_step(self) -> None:
        self._mark()

    def seconds(self) -> list[float]:
        """From the first mark on."""
        if self._device.type != "cuda":
            return [x - self._marks[0] for x in self._marks]
        torch.cuda.synchronize(self._device)
        return [self._marks[0].elapsed_time(x) / 1e3 for x in self._marks]

    def _mark(self) -> None:
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)


def object_counts(images: int, mean: float) -> list[int]:
    """Boxes of each of so many images: an exponential distribution's quantiles, from 1 on.

    COCO's counts spread like that, their deviation being as large as their mean.
    """
    return [max(1, round(-mean * math.log(1 - (i + 0.5) / images))) for i in range(images)]


def make_batches(images: Images, batch: int, count: int, *, masks: bool = False, seed: int = 0) -> list[Batch]:
    """``count`` batches of noise as the project's loaders yield them: uint8 images, boxes inside, all on the host.

    masks: each object's box as a polygon.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = object_counts(batch * count, images.objects)
    order = torch.randperm(len(counts), generator=generator).tolist()
    made = [_image(images, counts[i], masks, generator) for i in order]
    return [made[i : i + batch] for i in range(0, len(made), batch)]


def _image(images: Images, objects: int, masks: bool, generator: torch.Generator) -> dict[str, Any]:
    height, width = images.size
    # Sides from a twentieth to four fifths of the image's, small ones as frequent as large.
    sides = 0.05 * 16 ** torch.rand(objects, 2, generator=generator)
    corner = torch.rand(objects, 2, generator=generator) * (1 - sides)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + sides], dim=1) * torch.tensor([width, height] * 2))
    instances.gt_classes = torch.randint(images.classes, (objects,), generator=generator)
    if masks:
        instances.gt_masks = PolygonMasks(
            [[box[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for box in instances.gt_boxes.tensor]
        )
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": pixels, "instances": instances, "height": height, "width": width}


@torch.no_grad()
def settle_norms(model: nn.Module, batch: Batch) -> None:
    """Give every frozen norm of ``model`` the statistics of what it sees in ``batch``.

    Where no weights were read, activations would otherwise grow from block to block until proposals overflow.
    """

    def measure(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.copy_(inputs[0].float().mean(dim=(0, 2, 3)))
            module.running_var.copy_(inputs[0].float().var(dim=(0, 2, 3)))

    # On every module there is: a frozen teacher is no submodule.
    handle = register_module_forward_pre_hook(measure)
    try:
        with EventStorage():
            model.train()
            model(batch)
    finally:
        handle.remove()


@contextlib.contextmanager
def _finding_all(student: nn.Module) -> Iterator[None]:
    """In evaluation mode, without a threshold on the scores."""
    owners: list[Any] = [x for x in student.modules() if hasattr(x, "test_score_thresh")]
    before, was_training = [x.test_score_thresh for x in owners], student.training
    for owner in owners:
        owner.test_score_thresh = 0.0
    student.eval()
    try:
        yield
    finally:
        student.train(was_training)
        for owner, value in zip(owners, before, strict=True):
            owner.test_score_thresh = value


class Worker:
    """A process that asks a :class:`Bench` what it is told to; a context manager that ends it.

    :meth:`tell` and :meth:`hear` are :meth:`ask` in two, for several workers at once. An error over there is raised
    here as InputError, in one line that begins with the job's name. gpu: its number, None for torch's choice.
    """

    def __init__(self, gpu: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = ""
        self._pipe, theirs = context.Pipe()
        # No daemon: those may have no loader processes.
        self._process = context.Process(target=_serve, args=(theirs, gpu))
        self._process.start()
        theirs.close()

    def send(self, what: str, *arguments: Any) -> None:
        """Ask for a method of Bench, or to ``build`` the one that a Job describes."""
        if what == "build":
            self._name = arguments[0].name
        # Where nobody is there any more, hear() says so.
        with contextlib.suppress(OSError):
            self._pipe.send((what, arguments))

    def receive(self) -> Any:
        """What it answers."""
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise InputError(f"{self._name}: the measuring process died ({self._process.exitcode})") from None
        if not fine:
            raise InputError(f"{self._name}: {answer}")
        return answer

    def request(self, what: str, *arguments: Any) -> Any:
        self.send(what, *arguments)
        return self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def request_all(workers: Sequence[Worker], what: str, *arguments: Any) -> list[Any]:
    """What every worker answers, all of them at work at the same time."""
    for worker in workers:
        worker.send(what, *arguments)
    return [worker.receive() for worker in workers]


def _serve(pipe: Any, gpu: int | None) -> None:
    # As Ray's workers: Linux shares a busy machine out by sessions. It also leaves interrupts to the parent.
    os.setsid()
    if gpu is not None:
        torch.cuda.set_device(gpu)
    bench: Bench | None = None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:
        try:
            while True:
                what, arguments = pipe.recv()
                if what == "build":
                    bench = None
                    stack.close()
                    stack.enter_context(training.process_settings(arguments[0].experiment))
                    bench = Bench(*arguments)
                    pipe.send((True, None))
                else:
                    pipe.send((True, getattr(bench, what)(*arguments)))
        except EOFError:
            return
        except Exception as error:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            with contextlib.suppress(OSError):
                pipe.send((False, kind + " ".join(str(error).split())[:300]))
