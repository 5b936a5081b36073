"""A fingerprint is read back from what was built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from lgd.config.experiment import Experiment
from lgd.config.presets import NANO
from lgd.results.fingerprint import fingerprint
from lgd.training import build as building
from lgd.training.build import build_model
from lgd.training.optimizer import build_optimizer
from tests.helpers import quick_experiment


def _shown(**changes: Any) -> str:
    experiment = NANO.override({k.replace("__", "."): v for k, v in changes.items()})
    model = build_model(experiment, 4, pretrained=False)
    return fingerprint(model, build_optimizer(model, experiment), seed=experiment.seed)


def test_equal_builds_are_equal() -> None:
    assert _shown() == _shown()


def test_a_setting_without_effect_does_not_show() -> None:
    # With a rate that is set, so that the batch does not set it.
    assert _shown(schedule__lr=0.05) == _shown(schedule__lr=0.05, schedule__batch=4)


@pytest.mark.parametrize(
    "changes",
    [
        {"method__name": "baseline"},
        {"method__encoder": False},
        {"method__adapter": False},
        {"method__mapper": False},
        {"method__variant": "label_queries"},
        {"method__variant": "label_only"},
        {"method__context": False},
        {"method__detach_appearance": True},
        {"method__distill_weight": 0.5},
        {"method__instructive_weight": 0.5},
        {"method__lr_factor": 0.5},
        {"schedule__lr": 0.001},
        {"schedule__weight_decay": 0.0},
        {"schedule__decay_norms": True},
        {"schedule__optimizer": "adamw"},
        {"schedule__momentum": 0.5},
        {"schedule__distill_from": 0.5},
        {"detector__anchor_scale": 3.0},
        {"detector__head_convs": 3},
        {"detector__backbone__norm": "GN"},
        {"seed": 1},
    ],
    ids=str,
)
def test_what_changes_the_training_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    if changes.get("detector__backbone__norm") == "GN":
        changes = {**changes, "detector__backbone__width": 32}
    reference = {k: v for k, v in changes.items() if k == "detector__backbone__width"}
    assert _shown(**changes) != _shown(**reference)


def test_fingerprints_are_those_of_before_there_was_a_setting_for_the_decay_of_norms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedules: list[Any] = []

    def shown(*built: Any, **rest: Any) -> str:
        schedules.append(rest["schedule"])
        return fingerprint(*built, **rest)

    monkeypatch.setattr(building, "fingerprint", shown)
    experiment = quick_experiment(method__name="baseline")
    kept, changed = (building.build(experiment.override({"schedule.decay_norms": x})) for x in (False, True))
    monkeypatch.setattr(building, "build_optimizer", _optimizer_of_before)
    assert building.build(experiment).fingerprint == kept.fingerprint != changed.fingerprint
    assert all("weight_decay" in x and "decay_norms" not in x for x in schedules)


def _optimizer_of_before(model: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    schedule = experiment.schedule
    rate, decay = schedule.resolved_lr, schedule.weight_decay
    groups = get_default_optimizer_params(model, base_lr=rate, weight_decay=decay, weight_decay_norm=0.0)
    return torch.optim.SGD(groups, lr=rate, momentum=schedule.momentum, fused=True)


def test_the_decay_of_norms_does_not_show_where_no_norm_has_parameters() -> None:
    frozen = {"detector__backbone__norm": "FrozenBN", "detector__backbone__weights": "elsewhere.pkl"}
    plain = {**frozen, "detector__head_norm": ""}
    assert _shown(**plain) == _shown(**plain, schedule__decay_norms=True)
    assert _shown(**frozen) != _shown(**frozen, schedule__decay_norms=True)
