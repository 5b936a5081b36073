"""Settings that are allowed, but rarely meant."""

from __future__ import annotations

from contextlib import suppress

import pytest

from lgd.config.experiment_warnings import warnings_of
from lgd.config.grids import NAMES as GRIDS
from lgd.config.grids import experiment_of, grid
from lgd.config.paper_recipes import NAMES, named
from lgd.config.presets import PAPER_TABLES_AT, Preset, preset
from lgd.errors import InputError


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "paper", "finetune"])
def test_a_preset_warns_of_nothing(name: str) -> None:
    assert warnings_of(preset(name)) == []


def test_nor_does_a_training_of_the_paper() -> None:
    assert {name: warnings_of(named(name).experiment) for name in NAMES} == {name: [] for name in NAMES}


@pytest.mark.parametrize("size", PAPER_TABLES_AT)
def test_nor_does_a_grid(size: Preset) -> None:
    found = {}
    for name in GRIDS:
        for arm in grid(name, size).arms:
            # What this detector cannot have is refused, not warned of.
            with suppress(InputError):
                found[f"{name}: {arm.name}"] = warnings_of(experiment_of(arm, preset(size), []))
    assert len(found) > 100
    assert {x: lines for x, lines in found.items() if lines} == {}


@pytest.mark.parametrize("rate", ["schedule.lr_per_16=1e-4", "schedule.lr=1e-3"])
def test_a_rate_for_sgd_with_adamw(rate: str) -> None:
    given = preset("paper").override(["schedule.optimizer=adamw"])
    (line,) = warnings_of(given)
    assert line.startswith("schedule.lr 0.01 is a rate for SGD: schedule.optimizer=adamw takes about 1e-4")
    assert warnings_of(given.override([rate])) == []


def test_a_frozen_phase_from_scratch() -> None:
    scratch = preset("paper").override(["detector.backbone.weights=none", "detector.backbone.norm=BN"])
    (line,) = warnings_of(scratch)
    assert line.startswith("schedule.frozen 0.11: the backbone has random values, and lgd leaves them so")
    assert warnings_of(scratch.override(["schedule.frozen=0"])) == []
    assert warnings_of(scratch.override(["method.name=baseline"])) == []
    # Weights of a whole detector are the backbone's, too.
    assert warnings_of(scratch.override(["detector.weights=x.pth"])) == []


def test_an_rcnn_with_the_teacher_of_a_dense_detector() -> None:
    rcnn = preset("paper").override(["detector.name=faster_rcnn"])
    (line,) = warnings_of(rcnn)
    assert "method.context=false method.detach_appearance=true" in line
    assert warnings_of(rcnn.override(["method.context=false"])) == []
    assert warnings_of(rcnn.override(["method.name=baseline"])) == []


def test_a_teacher_that_is_the_students_own_network() -> None:
    own = preset("finetune").override(
        {"detector.source": "mine:build", "detector.weights": "config", "method.name": "pkd", "schedule.steps": 100}
    )
    (line,) = warnings_of(own)
    assert line.startswith("the teacher of pkd is the student's own network, trained as long")
    for other in (
        "method.teacher.overrides=[depth=101]", "method.teacher.steps=200", "method.teacher.gate=off",
        "method.teacher.weights=teacher.pth", "method.teacher.detector=mine:large", "method.name=baseline",
    ):  # fmt: skip
        # Of the paper's, a teacher as large as its student.
        assert warnings_of(own.override([other])) == [], other
    # A born-again student's is meant to be.
    assert warnings_of(own.override(["method.name=ban"])) == []
