"""The naive implementation computes what ours does; it is only slower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.utils.events import EventStorage

from benchmarks.naive_lgd import NaiveTeacher, default_sgd, without_optimizations
from benchmarks.timer_spec import OPTIMIZATIONS
from lgd.config.presets import TINY
from lgd.training.build import build_model, build_optimizer
from lgd.training.device import move_to_device
from tests.helpers import CLASSES, batch

SMALL = TINY.override({"detector.backbone.width": 8, "detector.channels": 16, "detector.head_convs": 1})


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
    for plain in (False, True):
        model: Any = build_model(experiment, CLASSES)
        optimizer = build_optimizer(model, experiment)
        if plain:
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
                losses = model(batch([3, 0, 9], size=(128, 128), seed=seed))
                sum(losses.values()).backward()
                if seed == 0:
                    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                optimizer.step()
        found.append(({k: v.item() for k, v in losses.items()}, gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert our_gradients.keys() == their_gradients.keys()
    scale = torch.cat([x.flatten() for x in their_gradients.values()]).norm()
    for name, gradient in their_gradients.items():
        assert (our_gradients[name] - gradient).norm() < 1e-3 * gradient.norm() + 1e-5 * scale, name


def test_it_has_detectron2s_own_losses() -> None:
    model: Any = without_optimizations(build_model(SMALL, CLASSES))
    assert "losses" not in vars(model.student)
    assert model.student.losses.__func__ is RetinaNet.losses
    assert not model.joint_head
    assert not model.cache_targets


@pytest.mark.parametrize("change", OPTIMIZATIONS)
def test_one_change_can_be_undone(change: str) -> None:
    model: Any = without_optimizations(build_model(SMALL, CLASSES), [change])
    there = {
        "joint head": model.joint_head,
        "cached targets": model.cache_targets,
        "fast losses": "losses" in vars(model.student),
        "vectorised teacher": not isinstance(model.teacher, NaiveTeacher),
        "fused SGD": True,
    }
    assert [name for name, kept in there.items() if not kept] == ([] if change == "fused SGD" else [change])
