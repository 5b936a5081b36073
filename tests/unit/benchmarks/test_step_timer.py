"""Synthetic batches, stages of a schedule, and the processes that time steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from benchmarks.step_timer import StepTimer
from benchmarks.synthetic_batches import make_batches, object_counts
from benchmarks.timer_process import TimerProcess
from benchmarks.timer_spec import Stage, StepTimes, SyntheticImages, TimerSpec, stages
from lgd.config.presets import NANO, PAPER
from lgd.errors import InputError
from lgd.methods.distiller import Distiller, student_of
from lgd.methods.frozen_teacher import FrozenTeacher
from tests.helpers import quick_experiment

IMAGES = SyntheticImages(64, 96, 3, 7)


def test_stages_of_the_papers_schedules() -> None:
    rest, frozen, distilling = Stage(), Stage(frozen=True), Stage(distils=True)
    assert stages(PAPER.override({"method.name": "baseline"})) == {rest: 180_000}
    assert stages(PAPER) == {frozen: 20_000, rest: 10_000, distilling: 150_000}
    assert stages(PAPER.override({"method.name": "fgfi"})) == {rest: 400, distilling: 179_600}
    # Where distillation ends early, the last steps cost what those before it did.
    early = stages(PAPER.override({"schedule.distill_until": 130 / 180}))
    assert early == {frozen: 20_000, rest: 60_000, distilling: 100_000}
    assert stages(PAPER.override({"schedule.frozen": 0.5})) == {
        frozen: 30_000,
        Stage(frozen=True, distils=True): 60_000,
        distilling: 90_000,
    }
    assert [str(x) for x in (rest, frozen, distilling)] == ["not distilling", "frozen", "distilling"]


@pytest.mark.parametrize("mean", [3.4, 7.3, 20.0])
def test_objects_spread_around_their_mean(mean: float) -> None:
    counts = object_counts(64, mean)
    assert min(counts) >= 1
    assert sum(counts) / 64 == pytest.approx(mean, rel=0.06)
    # As an exponential distribution: most have fewer than the mean, some several times as many.
    assert sorted(counts)[32] < mean
    assert max(counts) > 3 * mean


def test_synthetic_batches_are_what_the_loaders_yield() -> None:
    batches = make_batches(SyntheticImages(48, 100, 4, 5), batch=3, count=4, masks=True, seed=1)
    assert [len(x) for x in batches] == [3] * 4
    counts = []
    for i, image in enumerate(image for x in batches for image in x):
        assert image["image"].dtype == torch.uint8
        # The widest first, as the batches of MS-COCO are padded.
        width = (75, 64, 72)[i % 3]
        assert image["image"].shape == (3, 48, width)
        boxes = image["instances"].gt_boxes
        counts.append(len(boxes))
        assert (boxes.tensor >= 0).all()
        assert (boxes.tensor[:, 2] <= width).all()
        assert (boxes.tensor[:, 3] <= 48).all()
        assert (boxes.area() > 0).all()
        assert len(image["instances"].gt_masks) == len(boxes)
        assert image["instances"].gt_classes.max() < 5
    assert sorted(counts) == sorted(object_counts(12, 4))
    assert SyntheticImages(48, 100, 4, 5).size == (48, 75)
    assert SyntheticImages(48, 60, 4, 5).size == (48, 60)


class Watch(HookBase):
    """What a step of a stage has switched on."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.trains: set[bool] = set()
        self.distils: set[bool] = set()

    def after_step(self) -> None:
        student: Any = student_of(self.model)
        self.trains.add(any(p.grad is not None for p in student.backbone.bottom_up.parameters()))
        if isinstance(self.model, Distiller):
            self.distils.add(self.model.phases.distills_student(self.trainer.iter))


@pytest.fixture(scope="module")
def lgd_timer() -> StepTimer:
    return StepTimer(TimerSpec(quick_experiment(), IMAGES))


@pytest.mark.parametrize(
    ("stage", "trains", "distils"),
    [(Stage(frozen=True), False, False), (Stage(), True, False), (Stage(distils=True), True, True)],
    ids=str,
)
def test_timed_steps_are_of_their_stage(stage: Stage, trains: bool, distils: bool, lgd_timer: StepTimer) -> None:
    watch = Watch(lgd_timer.model)
    lgd_timer.trainer(stage, watch).train(0, 2)
    assert watch.trains == {trains}
    assert watch.distils == {distils}


def test_only_the_steps_after_the_warmup_are_timed_and_the_network_stays_as_it_is() -> None:
    timer = StepTimer(TimerSpec(quick_experiment(method__name="baseline"), IMAGES))
    before = {name: x.clone() for name, x in timer.model.named_parameters()}
    found = timer.time_steps(Stage(), 2, 5)
    assert len(found.steps_ms) == 5
    assert all(x > 0 for x in found.steps_ms)
    assert found.first_s * 1e3 >= sum(found.steps_ms[:3])
    assert found.peak_mib["host"] > 100
    assert found.median_ms == sorted(found.steps_ms)[2]
    for name, x in timer.model.named_parameters():
        torch.testing.assert_close(x, before[name], atol=1e-4, rtol=1e-3)


def test_accumulated_steps_take_whole_batches_of_the_pool() -> None:
    timer = StepTimer(
        TimerSpec(quick_experiment(schedule__accumulate=2, schedule__batch=4, method__name="baseline"), IMAGES)
    )
    assert {len(x) for x in timer._batches} == {2}
    assert len(timer._batches) % 2 == 0
    assert len(timer.time_steps(Stage(), 0, 2).steps_ms) == 2


def test_the_real_data_is_loaded_evaluated_and_saved() -> None:
    timer = StepTimer(TimerSpec(quick_experiment()))
    assert timer.dataset is not None
    assert len(timer.time_steps(Stage(distils=True), 1, 2).steps_ms) == 2
    fixed, image = timer.evaluation(4)
    # One image's time is the one or the other; beside other work either may be too short to be seen.
    assert fixed + image > 0
    assert timer.evaluation(1)[1] > 0
    assert timer.checkpoint() > 0
    assert timer.model.training
    student: Any = student_of(timer.model)
    assert student.test_score_thresh > 0


def test_data_is_loaded_as_the_training_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By processes beside it where there is a GPU, and of the part of the images that it trains on."""
    timer = StepTimer(TimerSpec(quick_experiment(data__train_fraction=0.5)))
    asked: dict[str, Any] = {}
    monkeypatch.setattr("benchmarks.step_timer.train_loader", lambda *_, **named: asked.update(named) or [])
    for kind in ("cpu", "cuda"):
        timer.device = torch.device(kind)
        timer._train_loader()
        assert (asked["cuda"], asked["fraction"]) == (kind == "cuda", 0.5)


@pytest.mark.parametrize("method", ["baseline", "fgfi"])
def test_frozen_norms_are_calibrated(method: str) -> None:
    """Without weights, the activations of a deep network with frozen norms stay in the range of a trained one's."""
    deep = {"name": "resnet50", "width": 16, "norm": "FrozenBN", "weights": "unread.pkl"}
    changes = {f"detector__backbone__{key}": value for key, value in deep.items()}
    if method == "fgfi":
        changes |= {f"method__teacher__backbone__{key}": value for key, value in deep.items()}
    timer = StepTimer(TimerSpec(quick_experiment(**changes, method__name=method), IMAGES))
    student: Any = student_of(timer.model)
    backbones: list[nn.Module] = [student.backbone]
    if isinstance(timer.model, Distiller):
        assert isinstance(timer.model.teacher, FrozenTeacher)
        backbones.append(timer.model.teacher._unregistered[0])
    for backbone in backbones:
        norms = [x for x in backbone.modules() if isinstance(x, FrozenBatchNorm2d)]
        assert norms
        assert all((x.running_var != 1).any() for x in norms)
        with torch.no_grad():
            features = backbone(torch.randn(2, 3, 64, 96) * 60)
        assert all(x.std() < 50 for x in features.values())
    assert math.isfinite(timer.time_steps(Stage(distils=method == "fgfi"), 0, 2).mean_ms)


@pytest.mark.slow
def test_a_process_answers_requests_and_says_what_failed() -> None:
    with TimerProcess() as process:
        process.request("build", TimerSpec(quick_experiment(), IMAGES, "LGD"))
        found = process.request("time_steps", Stage(), 0, 2)
        assert isinstance(found, StepTimes)
        assert len(found.steps_ms) == 2
        # Another training in the same process.
        process.request("build", TimerSpec(quick_experiment(method__name="baseline"), IMAGES, "plain"))
        with pytest.raises(InputError, match=r"^plain: ValueError: synthetic batches have no validation split$"):
            process.request("evaluation", 3)
        with pytest.raises(InputError, match="plain: the timing process died"):
            process.request("time_steps", Stage(), 0, 2)
    with TimerProcess() as process, pytest.raises(InputError, match=r"^here: device cuda: torch sees no GPU here$"):
        if torch.cuda.is_available():
            raise InputError("here: device cuda: torch sees no GPU here")
        process.request("build", TimerSpec(NANO.override({"device": "cuda"}), IMAGES, "here"))


@pytest.mark.gpu
def test_processes_of_the_fork_server_can_use_the_gpu() -> None:
    with TimerProcess() as process:
        process.request("build", TimerSpec(quick_experiment(device="cuda"), IMAGES, "LGD"))
        found = process.request("time_steps", Stage(), 0, 2)
        assert found.peak_mib["device"] > 0
