"""Settings that are allowed, but rarely meant."""

from __future__ import annotations

import pytest

from lgd.config.experiment_warnings import warnings_of
from lgd.config.paper_recipes import NAMES, named
from lgd.config.presets import preset


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "paper", "finetune"])
def test_a_preset_warns_of_nothing(name: str) -> None:
    assert warnings_of(preset(name)) == []


def test_nor_does_a_training_of_the_paper() -> None:
    assert {name: warnings_of(named(name).experiment) for name in NAMES} == {name: [] for name in NAMES}


def test_a_frozen_phase_from_scratch() -> None:
    scratch = preset("paper").override(["detector.backbone.weights=none", "detector.backbone.norm=BN"])
    (line,) = warnings_of(scratch)
    assert line.startswith(
        "schedule.frozen 0.111111: the backbone has random values, and lgd leaves them for 20,000 steps"
    )
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
        assert warnings_of(own.override([other])) == [], other
    # A born-again student's is meant to be.
    assert warnings_of(own.override(["method.name=ban"])) == []
