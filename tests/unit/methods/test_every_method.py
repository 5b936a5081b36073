"""Every method on a dense detector and on R-CNN: gradients, exact resuming, costs, the exported student."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from benchmarks.wait_counter import WaitCounter, as_on_gpu
from lgd.config.experiment import Experiment
from lgd.config.method import BUILT_IN
from lgd.errors import InputError
from lgd.methods.distiller import TrainingModel, student_of
from lgd.training.build import build_model
from lgd.training.checkpoint import random_state, set_random_state
from lgd.training.compiled import parts
from lgd.training.optimizer import build_optimizer
from tests.helpers import CLASSES, detector_batch, one_thread, quick_experiment
from tests.helpers_settings import undescribed

METHODS = tuple(BUILT_IN)

CASES = [
    pytest.param(detector, method, id=f"{detector}-{method}")
    for detector in ("retinanet", "faster_rcnn")
    for method in METHODS
    if (detector, method) != ("retinanet", "tfkd")
]


def _experiment(detector: str, method: str, **changes: Any) -> Experiment:
    small = {"detector__name": detector, "detector__fc_dim": 32, "detector__regions": 16, "detector__proposals": 50}
    return quick_experiment(**small, method__name=method, **changes)


def _model(experiment: Experiment) -> Any:
    return build_model(experiment, CLASSES).train()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def _distilling(experiment: Experiment) -> int:
    """A step in which the student learns from the distance."""
    phases = experiment.method.phases(experiment.schedule)
    return max(phases.distill_from, phases.frozen_until)


def _losses(model: Any, data: list[dict[str, Any]], step: int) -> dict[str, torch.Tensor]:
    with EventStorage(step):
        found: dict[str, torch.Tensor] = model(data)
    return found


@pytest.mark.parametrize(("detector", "method"), CASES)
def test_what_is_trained_gets_a_gradient_and_the_frozen_part_none(detector: str, method: str) -> None:
    experiment = _experiment(detector, method)
    model, data = _model(experiment), detector_batch(detector, (3, 2))
    for step in {0, _distilling(experiment)}:
        model.zero_grad(set_to_none=True)
        losses = _losses(model, data, step)
        assert all(x.dim() == 0 and torch.isfinite(x) for x in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        assert [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None] == []
    if experiment.method.has_distillation:
        assert isinstance(model, TrainingModel)
        assert losses["loss_distill"] > 0
    teacher = getattr(model, "teacher", None)
    for network in getattr(teacher, "_unregistered", ()):
        assert all(not x.requires_grad and x.grad is None for x in network.parameters())
        assert not any(x.training for x in network.modules())
    # Only what is trained is in the checkpoint and in the optimiser.
    trained = {id(p) for group in build_optimizer(model, experiment).param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(("detector", "method"), CASES)
def test_a_training_goes_on_where_it_was_cut_off(detector: str, method: str) -> None:
    """Bit for bit: what a method draws comes from the training's generators, what it keeps is in the checkpoint."""
    experiment = _experiment(detector, method)
    data = [detector_batch(detector, (2, 1), seed=i) for i in range(2)]
    first = _distilling(experiment)

    def train(model: Any, optimizer: torch.optim.Optimizer, batches: list[Any], step: int) -> list[float]:
        found = []
        for i, part in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            losses = _losses(model, part, step + i)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            found.append([x.item() for x in losses.values()])
        return [x for losses in found for x in losses]

    model = _model(experiment)
    optimizer = build_optimizer(model, experiment)
    torch.manual_seed(3)
    train(model, optimizer, data[:1], first)
    saved = {name: x.clone() for name, x in model.state_dict().items()}
    kept, drawn = optimizer.state_dict(), random_state()
    running = [vars(x).get("loss_normalizer") for x in getattr(model, "detectors", (model,))]
    running = [x.clone() if isinstance(x, torch.Tensor) else x for x in running]
    kept = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, kept)
    expected = train(model, optimizer, data[1:], first + 1)

    again = _model(experiment)
    again.load_state_dict(saved)
    for one, value in zip(getattr(again, "detectors", (again,)), running, strict=True):
        if value is not None:
            one.loss_normalizer = value
    other = build_optimizer(again, experiment)
    other.load_state_dict(kept)
    set_random_state(drawn)
    assert train(again, other, data[1:], first + 1) == expected


@pytest.mark.parametrize(("detector", "method"), CASES)
def test_in_evaluation_the_model_is_its_student(detector: str, method: str) -> None:
    experiment = _experiment(detector, method)
    model = _model(experiment).eval()
    plain = build_model(experiment.override({"method.name": "baseline"}), CLASSES).eval()
    # Strictly: nothing of the method is in the student.
    plain.load_state_dict(student_of(model).state_dict())
    data = detector_batch(detector, (1,))
    with torch.no_grad():
        mine, its = model(data)[0]["instances"], plain(data)[0]["instances"]
    assert torch.equal(mine.pred_boxes.tensor, its.pred_boxes.tensor)
    assert torch.equal(mine.scores, its.scores)


def test_tfkd_says_no_to_a_detector_without_a_softmax() -> None:
    with pytest.raises(InputError, match="method tfkd needs a softmax over classes, which retinanet has not"):
        _experiment("retinanet", "tfkd")


def test_every_method_says_what_it_is(tmp_path: Path) -> None:
    for name in METHODS:
        method = quick_experiment(method__name=name, detector__name="faster_rcnn").method
        assert type(method).title
        assert type(method).learns_from
        if method.has_distillation:
            assert type(method).compares
            assert type(method).paper
        assert undescribed(type(method)) == set()


def test_what_is_compiled_of_each_method() -> None:
    """Backbone and head of each detector that is trained; the networks of teachers; nothing that reads the objects."""
    beside = {
        "labelenc": ["FPN", "WholeMapDistance"],
        "labelenc_stage1": ["FPN", "WholeMapDistance"],
        "dml": ["FPN", "RetinaNetHead"],
        "pkd": ["FPN"],
        "ban": ["FPN"],
    }
    for method, more in beside.items():
        found = [type(x).__name__ for x in parts(_model(_experiment("retinanet", method)))]
        assert found == ["FPN", "RetinaNetHead", *more]


@pytest.mark.parametrize(
    ("detector", "method"), [x for x in CASES if x.values[1] not in ("baseline", "lgd", "labelenc_stage1")]
)
def test_no_method_adds_a_wait_for_the_device(detector: str, method: str, waits: dict[str, int]) -> None:
    experiment = _experiment(detector, method)
    step = _waits(experiment)
    passes = len(getattr(_model(experiment), "detectors", (None,)))
    assert step == passes * waits[detector]


@pytest.fixture(scope="module")
def waits() -> dict[str, int]:
    """Of a step of the plain detector."""
    return {name: _waits(_experiment(name, "baseline")) for name in ("retinanet", "faster_rcnn")}


def _waits(experiment: Experiment) -> int:
    model, data = _model(experiment), detector_batch(experiment.detector.name, (3, 2))
    counter, step = WaitCounter(), _distilling(experiment)
    with as_on_gpu():
        # The first step fills caches.
        _losses(model, data, step)
        with counter:
            torch.stack(list(_losses(model, data, step).values())).sum().backward()
    return counter.waits.total()
