"""The naive implementation computes what ours does; it is only slower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.utils.events import EventStorage

from benchmarks.naive_lgd import NaiveTeacher, default_sgd, without_optimizations
from benchmarks.timer_spec import OPTIMIZATIONS
from lgd.config.presets import NANO
from lgd.kernels import usable as kernels
from lgd.training.build import build_model
from lgd.training.device import move_to_device
from lgd.training.optimizer import build_optimizer
from tests.helpers import CLASSES, batch

pytestmark = pytest.mark.usefixtures("kernels_stay_on")

SMALL = NANO.override({"detector.backbone.width": 8, "detector.channels": 16, "detector.head_convs": 1})


@pytest.fixture
def kernels_stay_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In other tests of this process."""
    monkeypatch.setattr(kernels, "_turned_off", False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method.encoder": False},
        {"method.adapter": False},
        {"method.mapper": False},
        {"method.variant": "appearance_only"},
        {"method.variant": "label_only"},
        {"method.variant": "label_queries"},
        {"method.context": False, "method.detach_appearance": True},
        {"method.name": "baseline"},
    ],
    ids=str,
)
def test_losses_and_gradients_are_the_same(changes: dict[str, Any]) -> None:
    experiment = SMALL.override(changes)
    found = []
    for naive in (False, True):
        model: Any = build_model(experiment, CLASSES)
        optimizer = build_optimizer(model, experiment)
        if naive:
            model = without_optimizations(model)
            optimizer = default_sgd(optimizer)
            assert experiment.method.name == "baseline" or isinstance(model.teacher, NaiveTeacher)
        else:
            model = move_to_device(model, experiment, torch.device("cpu"))
        model.train()
        with EventStorage():
            for seed in range(2):
                # The second step sees what the first trained; one image has no object.
                optimizer.zero_grad()
                losses = model(batch([3, 0, 6], size=(96, 64), seed=seed))
                sum(losses.values()).backward()
                if seed == 0:
                    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                optimizer.step()
        found.append(({k: v.item() for k, v in losses.items()}, gradients))
    (ours, our_gradients), (naive_losses, naive_gradients) = found
    assert ours == pytest.approx(naive_losses, rel=1e-4)
    assert our_gradients.keys() == naive_gradients.keys()
    scale = torch.cat([x.flatten() for x in naive_gradients.values()]).norm()
    for name, gradient in naive_gradients.items():
        assert (our_gradients[name] - gradient).norm() < 1e-3 * gradient.norm() + 1e-5 * scale, name


def test_it_has_detectron2s_own_losses() -> None:
    model: Any = without_optimizations(build_model(SMALL, CLASSES))
    assert "losses" not in vars(model.student)
    assert model.student.losses.__func__ is RetinaNet.losses
    assert not model.joint_head
    assert not model.cache_targets


@pytest.mark.parametrize("name", OPTIMIZATIONS)
def test_one_optimization_can_be_turned_off(name: str) -> None:
    model: Any = without_optimizations(build_model(SMALL, CLASSES), [name])
    kept_on = {
        "joint head": model.joint_head,
        "cached targets": model.cache_targets,
        "fast losses": "losses" in vars(model.student),
        "vectorised teacher": not isinstance(model.teacher, NaiveTeacher),
        "fused SGD": True,
        "Triton kernels": not kernels._turned_off,
    }
    assert [x for x, on in kept_on.items() if not on] == ([] if name == "fused SGD" else [name])
