"""A fingerprint is read back from what was built."""

from __future__ import annotations

from typing import Any

import pytest

from lgd.config.presets import NANO
from lgd.results.fingerprint import fingerprint
from lgd.training.build import build_model
from lgd.training.optimizer import build_optimizer


def _shown(**changes: Any) -> str:
    experiment = NANO.override({k.replace("__", "."): v for k, v in changes.items()})
    model = build_model(experiment, 4)
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
