"""Descriptions of runs: overrides, refusals, phases."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lgd.config.experiment import (
    NEUTRAL_KEYS,
    Backbone,
    Checkpoints,
    Data,
    Detector,
    Evaluation,
    Experiment,
    Method,
    Schedule,
    difference,
    parse,
    settings,
    without_neutral_settings,
)
from lgd.config.presets import NANO, PAPER, preset
from lgd.errors import InputError
from tests.helpers_settings import undescribed


def test_overrides_reach_their_setting() -> None:
    changed = NANO.override(
        ["schedule.steps=100", "method.encoder=false", "schedule.lr=1e-3", "data.min_sizes=[64, 96]"]
    )
    assert changed.schedule.steps == 100
    assert changed.method.model_dump()["encoder"] is False
    assert changed.schedule.lr == 1e-3
    assert changed.data.min_sizes == (64, 96)
    assert NANO.schedule.steps != 100


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
        NANO.override([assignment])
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
        NANO.override(changes)


def test_an_experiment_survives_its_own_dump() -> None:
    for experiment in (NANO, PAPER):
        assert parse(experiment.model_dump(mode="json")) == experiment


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        NANO.seed = 3


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
    with pytest.raises(InputError, match="nano, tiny, small, paper, finetune"):
        preset("huge")


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("log=wandbx", "log: entry 1 must be one of wandb, mlflow; did you mean wandb? (given: 'wandbx')"),
        ("data.min_sizes=64, 96", "data.min_sizes: entry 1 must be a whole number (given: '64, 96');"
         " write a list as [64, 96]"),
        ("data.min_sizes=[64, x]", "data.min_sizes: entry 2 must be a whole number (given: 'x')"),
        ("data.min_sizes=[]", "data.min_sizes: must be a list of at least 1 (given: [])"),
        ("schedule.milestones={a: 1}", "schedule.milestones: must be a list in brackets, such as [1, 2]"
         " (given: {'a': 1})"),
        ("schedule.steps=many", "schedule.steps: must be a whole number (given: 'many')"),
        ("schedule.steps=1.5", "schedule.steps: must be a whole number (given: 1.5)"),
        ("schedule.steps=true", "schedule.steps: must be a number (given: True)"),
        ("schedule.steps=0", "schedule.steps: must be above 0 (given: 0)"),
        ("schedule.steps=10000000000", "schedule.steps: must be 1000000000 or less (given: 10000000000)"),
        ("schedule.lr=fast", "schedule.lr: must be a number (given: 'fast')"),
        ("schedule.momentum=2", "schedule.momentum: must be 1 or less (given: 2)"),
        ("seed=-1", "seed: must be 0 or more (given: -1)"),
        ("data.flip=maybe", "data.flip: must be true or false (given: 'maybe')"),
        ("data.source=3", "data.source: must be text (given: 3)"),
        ("detector.name=fcoss", "detector.name: must be one of retinanet, fcos, faster_rcnn, mask_rcnn, atss, poto;"
         " did you mean fcos? (given: 'fcoss')"),
        ("detector.backbone.width=x", "detector.backbone.width: must be auto or a whole number from 1 to 4096"
         " (given: 'x')"),
        ("schedule.warmup_steps=x", "schedule.warmup_steps: must be auto or a whole number from 0 (given: 'x')"),
    ],
)  # fmt: skip
def test_a_wrong_value_says_what_to_write(assignment: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        NANO.override([assignment])
    assert str(caught.value) == line


def test_a_single_value_is_a_list_of_one() -> None:
    assert NANO.override(["log=wandb"]).log == ("wandb",)
    assert NANO.override(["log=wandb"]).override(["log="]).log == ()
    assert NANO.override(["data.min_sizes=96"]).data.min_sizes == (96,)


def test_every_setting_that_changes_no_result_is_marked_at_its_field() -> None:
    assert NEUTRAL_KEYS == (
        "data.workers", "checkpoint.every", "checkpoint.keep", "log", "device", "threads", "memory_format", "compile",
        "method.teacher.gate", "method.teacher.floor",
    )  # fmt: skip
    changed = NANO.override(["data.workers=3", "checkpoint.keep=5", "log=wandb", "compile=true", "threads=7"])
    assert without_neutral_settings(changed) == without_neutral_settings(NANO)
    assert difference(changed, NANO) == ""
    pkd = NANO.override(["method.name=pkd"])
    ungated = pkd.override(["method.teacher.gate=off", "method.teacher.floor=7"])
    assert without_neutral_settings(ungated) == without_neutral_settings(pkd)
    assert difference(ungated, pkd) == ""
    assert "method.teacher.seed is 1" in difference(pkd.override(["method.teacher.seed=1"]), pkd)
    assert "seed is 1 there and 0 here" in difference(NANO.override(["seed=1"]), NANO)


def test_every_setting_says_what_it_is() -> None:
    """By the string below its field."""
    for part in (Experiment, Data, Backbone, Detector, Schedule, Method, Evaluation, Checkpoints):
        assert undescribed(part) == set(), part


# Epochs


def test_epochs_become_steps_when_the_number_of_images_is_known() -> None:
    asked = NANO.override(["schedule.epochs=3"])
    assert (asked.schedule.epochs, asked.schedule.steps) == (3, NANO.schedule.steps)
    known = asked.override({"schedule.epoch_images": 1001})
    # 3003 images in steps of 8.
    assert known == NANO.override(["schedule.steps=376"])
    assert asked.override(["schedule.epoch_images=1001", "schedule.batch=4"]).schedule.steps == 751
    assert NANO.override(["schedule.epochs=0.5", "schedule.epoch_images=1000"]).schedule.steps == 63
    # What floating point adds to a whole number of steps makes no further step.
    assert NANO.override(["schedule.epochs=1.1", "schedule.epoch_images=800"]).schedule.steps == 110


def test_steps_and_epochs_together_are_refused() -> None:
    with pytest.raises(InputError, match="both set the length"):
        NANO.override(["schedule.epochs=3", "schedule.steps=100"])
    # One after the other, the last one counts.
    asked = NANO.override(["schedule.epochs=3"])
    assert asked.override(["schedule.steps=100"]) == NANO.override(["schedule.steps=100"])
    for images in ("1e400", ".inf"):
        with pytest.raises(InputError, match="epochs times epoch_images are too many steps"):
            NANO.override(["schedule.epochs=2", f"schedule.epoch_images={images}"])
    with pytest.raises(InputError, match="epoch_images is read with epochs only"):
        NANO.override(["schedule.epoch_images=10"])


def test_too_few_steps_for_the_warm_up_are_refused_once_they_are_known() -> None:
    asked = NANO.override(["schedule.epochs=1"])
    with pytest.raises(InputError, match="warmup_steps 50 must be below steps 5"):
        asked.override(["schedule.epoch_images=40"])
    assert (
        asked.override(["schedule.epoch_images=40", "schedule.warmup_steps=auto"]).schedule.resolved_warmup_steps == 0
    )


def test_an_automatic_warm_up_is_the_papers_but_at_most_a_tenth() -> None:
    def warm_up(steps: int) -> int:
        return PAPER.override({"schedule.steps": steps, "schedule.warmup_steps": "auto"}).schedule.resolved_warmup_steps

    assert [warm_up(x) for x in (180_000, 10_000, 9_990, 5)] == [1000, 1000, 999, 0]


def test_fgfis_teacher_may_have_steps_of_its_own_beside_epochs() -> None:
    asked = NANO.override(
        ["method.name=fgfi", "method.teacher.steps=70", "schedule.epochs=2", "schedule.epoch_images=400"]
    )
    assert asked.teacher is not None
    assert (asked.schedule.steps, asked.teacher.schedule.steps) == (100, 70)


@pytest.mark.parametrize(
    ("every", "steps", "expected"), [("auto", 500, 100), ("auto", 503, 101), ("auto", 1, 1), (7, 50, 7), (0, 50, 0)]
)
def test_evaluations_of_auto_follow_the_steps(every: str | int, steps: int, expected: int) -> None:
    experiment = NANO.override({"evaluation.every": every, "schedule.steps": steps, "schedule.warmup_steps": 0})
    assert experiment.evaluation.resolved_every(experiment.schedule.steps) == expected


def test_the_finetune_preset_starts_from_a_detector_and_counts_in_epochs() -> None:
    found = preset("finetune")
    assert found.schedule.epochs == 24
    assert found.detector.is_pretrained
    assert found.detector.initial_weights.startswith("detectron2://COCO-Detection/retinanet_R_50")
    # A teacher of another backbone cannot start from the student's file.
    fgfi = found.override(["method.name=fgfi", "schedule.epoch_images=4000"]).teacher
    assert fgfi is not None
    assert fgfi.detector.initial_weights == fgfi.detector.backbone.weights
    # The paper's recipe: 24 epochs of MS-COCO's 117,266 images with objects are its 180,000 steps of 16, within 3%.
    whole = found.override(["schedule.epoch_images=117266", "schedule.batch=16", "schedule.warmup_steps=1000"]).schedule
    assert whole.steps == pytest.approx(PAPER.schedule.steps, rel=0.03)
    # But for the decay of norms, which is the paper's code's alone.
    assert whole.model_copy(update={"steps": PAPER.schedule.steps, "decay_norms": True}) == PAPER.schedule


def test_the_teacher_is_scored_in_every_evaluation_unless_it_is_not_asked_for() -> None:
    assert Evaluation().scores_teacher
    assert Evaluation(teacher=True).scores_teacher
    assert not Evaluation(teacher=False).scores_teacher
