"""Descriptions of runs: overrides, refusals, phases."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lgd.config.experiment import Experiment, parse, settings
from lgd.config.presets import PAPER, TINY, preset
from lgd.errors import InputError


def test_overrides_reach_their_setting() -> None:
    changed = TINY.override(
        ["schedule.steps=100", "method.encoder=false", "schedule.lr=1e-3", "data.min_sizes=[64, 96]"]
    )
    assert changed.schedule.steps == 100
    assert changed.method.encoder is False
    assert changed.schedule.lr == 1e-3
    assert changed.data.min_sizes == (64, 96)
    assert TINY.schedule.steps != 100


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("schedule.step=3", "did you mean 'schedule.steps'"),
        ("steps=3", "did you mean 'schedule.steps'"),
        ("schedule.steps.more=3", "no setting"),
        ("schedule=3", "group of settings"),
        ("schedule.steps", "not of the form key=value"),
        ("schedule.steps=many", "schedule.steps.*'many'"),
        ("schedule.steps=0", "schedule.steps"),
        ("schedule.lr=.nan", "schedule.lr"),
        ("schedule.lr=-1", "schedule.lr"),
        ("method.variant=sideways", "method.variant.*sideways"),
        ("data.min_sizes=[]", "data.min_sizes"),
        ("schedule.milestones=[0.9, 0.7]", "must rise"),
        ("schedule.warmup_steps=100000", "warmup_steps"),
        ("schedule.distill_until=0.1", "distill_until"),
        ("detector.backbone.norm=FrozenBN", "from scratch"),
        ("detector.backbone.freeze_at=2", "from scratch"),
        ("precision=fp16", "fp16 needs a GPU"),
        ("schedule.lr=[", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_one_clear_line(assignment: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        TINY.override([assignment])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method.mapper": False, "method.context": False}, "mapper off needs the context object"),
        ({"method.encoder": False, "method.adapter": False, "method.mapper": False}, "baseline"),
    ],
)
def test_impossible_methods_are_refused_before_training(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TINY.override(changes)


def test_an_experiment_survives_its_own_dump() -> None:
    for experiment in (TINY, PAPER):
        assert parse(experiment.model_dump(mode="json")) == experiment


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        TINY.seed = 3


def test_settings_lists_every_leaf() -> None:
    found = settings(Experiment())
    assert found["detector.backbone.name"] == "resnet50"
    assert found["seed"] == 0
    assert not any(isinstance(x, dict) for x in found.values())


def test_the_papers_phases() -> None:
    phases = PAPER.schedule.phases
    assert (phases.frozen_until, phases.distill_from, phases.distill_until) == (20_000, 30_000, None)
    stopped = PAPER.override({"schedule.distill_until": 130 / 180}).schedule.phases
    assert stopped.distill_until == 130_000


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match="tiny, small, paper"):
        preset("huge")
