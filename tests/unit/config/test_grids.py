"""Arms as interventions, the paper's tables as grids, and the plan of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch

from analysis.load import identity
from lgd.config.arms import Arm, Grid
from lgd.config.component_arms import ANSWERING_ARMS, COMPONENTS, PAPER_COMPONENTS
from lgd.config.experiment import Experiment, settings
from lgd.config.grids import (
    EVERY_DETECTOR,
    EVIDENCE,
    LOSS_WEIGHTS,
    NAMES,
    PRESET_FREE,
    TABLES,
    check_overrides,
    grid,
    plan,
)
from lgd.config.method import make
from lgd.config.paper import BackboneName, Training, paper
from lgd.config.paper_recipes import BACKBONES, define
from lgd.config.pays_grid import PAYS
from lgd.config.presets import NANO, PAPER, PAPER_TABLES_AT, TINY, Preset, at_preset, preset
from lgd.detectors.weight_sources import find_weights
from lgd.errors import InputError
from lgd.training import run as training
from lgd.training.build import inspect_training
from lgd.training.shared_work import BuildCache

PRESETS = PAPER_TABLES_AT
CASES = [(name, size) for name in NAMES for size in get_args(Preset) if name in PRESET_FREE or size in PAPER_TABLES_AT]
SIZES = ("nano", "small")


def _possible(chosen: Grid, base: Experiment) -> Grid:
    """Without arms that the preset's detector cannot be trained with: those of the grid pays, which a command picks."""

    def refused(arm: Arm) -> str:
        return make(str(arm.changes["method.name"])).refusal(base.detector, base.schedule)

    return chosen if chosen.name != PAYS else replace(chosen, arms=tuple(x for x in chosen.arms if not refused(x)))


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_arm_of_every_grid_is_possible_and_distinct(name: str, size: str, tmp_path: Path) -> None:
    chosen, base = _possible(grid(name, size), preset(size)), preset(size)
    trials = plan(chosen, base, 1, [], tmp_path)
    run = [arm for arm in chosen.arms if not arm.skipped and not arm.time_budget_from]
    assert len({t.experiment for t in trials}) == len({t.directory for t in trials}) == len(run)
    assert [t.arm for t in trials] == [arm.name for arm in run]
    references = {chosen.references[t.arm] for t in trials}
    assert all(t.experiment.method.name == "baseline" for t in trials if t.arm in references)
    assert references <= {arm.name for arm in chosen.arms}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_arms_of_a_nano_grid_build_different_things(name: str, tmp_path: Path) -> None:
    """What run.py refuses a grid for: two arms with the same model, optimiser and data."""
    small = ["data.shapes_train=12", "data.shapes_val=6"]
    trials = plan(_possible(grid(name, "nano"), NANO), NANO, 1, small, tmp_path)
    prints = {_fingerprint(t.experiment) for t in trials}
    assert len(prints) == len(trials)


SHARED = BuildCache()
"""Grids repeat each other's networks."""


@cache
def _fingerprint(experiment: Experiment) -> str:
    """As a sweep finds it before it trains."""
    found = inspect_training(experiment, shared=SHARED)
    assert found is not None
    return found.fingerprint


def test_every_table_has_a_grid_with_its_rows() -> None:
    for name in TABLES:
        table = paper().tables[name]
        assert [arm.training for arm in grid(name).arms] == table.trainings
        assert grid(name).title == table.title
    skipped = {arm.training.method for name in TABLES for arm in grid(name).arms if arm.training and arm.skipped}
    assert skipped == {"tfkd"}, "on RetinaNet, for which the paper has no number either"
    assert len(grid("main").arms) == 24
    assert len(grid("teacher-based").arms) == 15
    assert {len(grid("loss-weights").arms), len(grid("noise-floor").arms)} == {16, 1}
    assert grid("noise-floor").seeds == 10


@pytest.mark.parametrize("name", TABLES)
def test_the_paper_preset_is_the_papers_setting(name: str, tmp_path: Path) -> None:
    chosen = grid(name, "paper")
    found = {t.arm: t.experiment for t in plan(chosen, PAPER, 1, [], tmp_path)}
    for arm in chosen.arms:
        x = arm.training
        assert x is not None
        if arm.skipped:
            continue
        wanted = define(x.detector, x.backbone, x.schedule, x.scale, x.data)
        there, here = settings(wanted), settings(found[arm.name])
        same = [key for key in there if x.method == "lgd" or not key.startswith("method.")]
        assert {key for key in same if there[key] != here[key]} <= {"data.source"}
        assert here["method.name"] == x.method
        # Only the directory is made absolute.
        assert here["data.source"].endswith(there["data.source"].rpartition(":")[2])
        teacher = found[arm.name].teacher
        assert (teacher is None) is (x.method in ("baseline", "lgd", "dml", "tfkd"))
        if teacher is not None and x.teacher is not None:
            assert teacher.detector.backbone == BACKBONES[x.teacher]
            assert teacher.schedule == found[arm.name].schedule


def test_tiny_takes_imagenet_weights_where_the_suite_has_them() -> None:
    """Without a download; a backbone that has none trains from scratch as at nano, all of it from the first step."""
    for described in paper().tables["main"].trainings:
        nano, tiny, small = (at_preset(size, described) for size in ("nano", "tiny", "small"))
        assert nano.detector.backbone.from_scratch
        assert small.detector.backbone.from_scratch
        backbone = tiny.detector.backbone
        assert backbone.from_scratch is (described.backbone not in ("r50", "r101", "x101"))
        if backbone.from_scratch:
            assert (tiny.schedule.lr_per_16, tiny.schedule.frozen) == (nano.schedule.lr_per_16, 0.0)
        else:
            assert find_weights(backbone.weights).is_cached
            assert (tiny.schedule.lr_per_16, tiny.schedule.frozen) == (0.03, PAPER.schedule.frozen)
    names = {x: at_preset("tiny", _plain(x)).detector.backbone.name for x in ("r50", "r101", "x101")}
    assert list(names.values()) == [f"timm:tf_efficientnet_lite{i}" for i in range(3)]
    assert TINY.detector == at_preset("tiny", _plain("r50")).detector


def _plain(backbone: BackboneName) -> Training:
    return Training(detector="retinanet", backbone=backbone, schedule="2x", scale="ss", method="lgd")


def test_other_presets_keep_a_tables_shape() -> None:
    by_name = {arm.name: at_preset("nano", arm.training) for arm in grid("table12").arms if arm.training}
    one, two, three = (by_name[f"{x} LGD"] for x in ("ATSS R-50 1x ss", "ATSS R-101-DCNv2 2x ms", "POTO R-101 3x ms"))
    assert [x.schedule.steps for x in (one, two, three)] == [250, 500, 750]
    assert [len(x.data.min_sizes) for x in (one, two, three)] == [1, 3, 3]
    assert [x.detector.backbone.deformable for x in (one, two, three)] == [False, True, False]
    assert one.detector.backbone.name != three.detector.backbone.name
    for described in paper().tables["main"].trainings:
        *smaller, whole = (at_preset(size, described) for size in PRESETS)
        for x in smaller:
            assert x.detector.name == whole.detector.name
            if described.method == "lgd":
                assert x.method.context == whole.method.context
                assert x.method.detach_appearance == whole.method.detach_appearance
            assert x.schedule.distill_until == whole.schedule.distill_until
            assert x.data.source == "shapes"
    sources = [{at_preset(size, x).data.source for x in paper().tables["table8"].trainings} for size in PRESETS]
    assert sources == [{"shapes"}, {"shapes"}, {"shapes"}, {"voc0712"}]


def test_tables_share_their_trainings(tmp_path: Path) -> None:
    """Into one directory, a training that stands in two tables is one trial."""
    trials = {n: {t.directory: t.experiment for t in plan(grid(n, "nano"), NANO, 1, [], tmp_path)} for n in TABLES}
    shared = trials["teacher-based"].keys() & trials["table7"].keys()
    assert len(shared) == 4
    every: dict[Path, Experiment] = {}
    for each in trials.values():
        for directory, experiment in each.items():
            assert every.setdefault(directory, experiment) == experiment
    assert len(set(every.values())) == len(every)


def test_overrides_lie_between_a_row_and_what_the_arm_is_about(tmp_path: Path) -> None:
    overrides = ["schedule.steps=99", "method.name=baseline", "detector.channels=16"]
    trials = plan(grid("table12", "nano"), NANO, 1, overrides, tmp_path)
    assert {t.experiment.schedule.steps for t in trials} == {99}
    assert {t.experiment.detector.channels for t in trials} == {16}
    assert [t.experiment.method.name for t in trials] == ["baseline", "lgd"] * 4


def test_seeds_run_one_after_the_other(tmp_path: Path) -> None:
    trials = plan(COMPONENTS, NANO, 2, ["seed=5"], tmp_path)
    arms = len(COMPONENTS.arms)
    assert [t.experiment.seed for t in trials] == [5] * arms + [6] * arms
    assert trials[0].name == "baseline-seed5"
    assert trials[0].directory.is_absolute()


def test_an_arms_own_change_comes_on_top_of_the_overrides(tmp_path: Path) -> None:
    trials = plan(COMPONENTS, NANO, 1, ["method.distill_weight=0.5", "schedule.steps=99"], tmp_path)[:2]
    assert [t.experiment.method.name for t in trials] == ["baseline", "lgd"]
    weights = [settings(t.experiment).get("method.distill_weight") for t in trials]
    assert weights == [None, 0.5], "a setting of LGD means nothing to the baseline"
    assert all(t.experiment.schedule.steps == 99 for t in trials)


def test_an_impossible_arm_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="arm 'without mapper': .*context object"):
        plan(COMPONENTS, NANO, 1, ["method.context=false"], tmp_path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: grid("colours"), "no grid 'colours'.*main, .*components"),
        (lambda: grid("main", "huge"), "no preset 'huge'"),
        (lambda: grid("components", "huge"), "no preset 'huge'"),
        (lambda: grid("main", "finetune"), "grid main is not defined at preset finetune, .*components"),
        (lambda: grid(EVIDENCE, "finetune"), "not defined at preset finetune"),
    ],
)
def test_unknown_grid_or_preset(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize(
    ("overrides", "arms", "line"),
    [
        (
            ["method.encoder=true"],
            PAPER_COMPONENTS,
            "--set method.encoder=true has no effect on arm 'without encoder', which sets method.encoder to False:"
            " leave it out, or choose other arms with --arms",
        ),
        (["schedule.steps=99", "method.distill_weight=0.5"], LOSS_WEIGHTS.arms, "(and 14 more arms)"),
        (["method.name=baseline"], (), "--set method.name=baseline contradicts --method lgd: leave one of them out"),
        (["data.source=voc:b"], (), "--set data.source=voc:b contradicts --data voc:a"),
    ],
)
def test_an_assignment_without_effect_is_refused(overrides: list[str], arms: tuple[Arm, ...], line: str) -> None:
    options = {"method.name": ("--method lgd", "lgd"), "data.source": ("--data voc:a", "voc:a")}
    with pytest.raises(InputError) as caught:
        check_overrides(overrides, arms, options)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_assignment_that_every_arm_follows_or_repeats_is_taken() -> None:
    options = {"method.name": ("--method lgd", "lgd")}
    check_overrides(["schedule.steps=99", "method.distill_weight=0.5", "data.min_sizes=[64, 96]"], PAPER_COMPONENTS)
    check_overrides(["method.encoder=false"], [arm for arm in COMPONENTS.arms if arm.name == "without encoder"])
    check_overrides(["method.name=lgd"], (), options)
    # A number that is not equal to itself: its field says what is wrong with it.
    check_overrides(["schedule.lr=nan"], (), options)
    check_overrides(["data.min_sizes=[64, 96]"], [Arm("a", {"data.min_sizes": (64, 96)})])


def test_epochs_count_in_the_batches_of_each_arm(tmp_path: Path) -> None:
    """R-CNN's nano trainings have half of the others' batch, so the double of their steps."""
    overrides = ["schedule.epochs=3", "schedule.epoch_images=1000"]
    found = {t.arm: t.experiment.schedule for t in plan(grid("main", "nano"), NANO, 1, overrides, tmp_path)}
    retinanet, rcnn = (next(x for name, x in found.items() if name.startswith(y)) for y in ("RetinaNet", "Faster"))
    assert (retinanet.batch, retinanet.steps) == (8, 375)
    assert (rcnn.batch, rcnn.steps) == (4, 750)


def test_components_at_a_cpus_presets_are_eight_arms_that_answer(tmp_path: Path) -> None:
    for size in ("nano", "tiny"):
        chosen = grid("components", size)
        assert [arm.name for arm in chosen.arms] == [arm.name for arm in COMPONENTS.arms], "the others on request"
        assert {arm.name for arm in chosen.arms if not arm.on_request} == set(ANSWERING_ARMS)
    assert len(ANSWERING_ARMS) == 8
    assert not any(arm.on_request for arm in grid("components", "small").arms)
    planned = {t.arm: t.experiment for t in plan(COMPONENTS, PAPER, 1, [], tmp_path)}
    found = {name: experiment.method for name, experiment in planned.items()}
    led = {name for name, experiment in planned.items() if experiment.schedule.distill_from == "auto"}
    assert led == {"teacher-led imitation (ours)"}
    assert all(("ours" in name) is (bool(method.additions) or name in led) for name, method in found.items())
    assert {method.model_dump()["init"] for name, method in found.items() if name != "baseline"} == {"reference"}
    ours = found["LGD residual (ours)"].model_dump()
    for name, off in (("encoder", {"encoder"}), ("adapter", {"adapter", "own_label_start"}), ("mapper", {"mapper"})):
        there = found[f"ours without {name}"].model_dump()
        assert {key for key in ours if ours[key] != there[key]} == off
        assert not any(there[key] for key in off)


def test_slugs_are_file_names() -> None:
    assert Arm("FGFI (R-101-DCNv2)").slug == "fgfi-r-101-dcnv2"


def test_evidence_is_the_components_grid_and_two_more_detectors(tmp_path: Path) -> None:
    nano, small = ({t.arm: t.experiment for t in plan(grid(EVIDENCE, x), preset(x), 1, [], tmp_path)} for x in SIZES)
    components = replace(COMPONENTS, arms=PAPER_COMPONENTS)
    of_components = {t.arm: identity(t.experiment) for t in plan(components, NANO, 1, [], tmp_path)}
    # So runs of the components and noise-floor grids are runs of these arms.
    assert {name: identity(nano[f"RetinaNet {name}"]) for name in of_components} == of_components
    assert len(nano) == len(PAPER_COMPONENTS) + 3 + 2 * len(EVERY_DETECTOR)
    for name in ("RetinaNet", "FCOS", "Faster R-CNN"):
        assert {f"{name} {arm}" for arm in EVERY_DETECTOR} <= nano.keys()
        method = nano[f"{name} without imitation"].method
        assert (method.name, method.distill_weight) == ("lgd", 0)
        for arm, adapter in (("LGD", True), ("without adapter", False)):
            method = nano[f"{name} {arm} at weight 0.3"].method
            assert (method.instructive_weight, method.adapter) == (0.3, adapter)
    assert small.keys() - nano.keys() == {f"{name} FGFI" for name in ("RetinaNet", "FCOS", "Faster R-CNN")}
    assert [small[f"{x} LGD"].schedule.resolved_lr for x in ("RetinaNet", "FCOS", "Faster R-CNN")] == [0.01, 0.01, 0.02]
    for name, x in small.items():
        assert x.detector.backbone.name == "resnet18"
        assert x.detector.backbone.from_scratch
        assert x.schedule.frozen == 0
        assert (x.teacher is not None) is name.endswith("FGFI")
        assert x.teacher is None or x.teacher.detector.backbone.name == "resnet50"
        assert x.teacher is None or x.teacher.detector.backbone.from_scratch
    for x in (*nano.values(), *small.values()):
        assert x.evaluation.teacher
        assert x.evaluation.every in (0, x.schedule.steps // 5)
    waiting = [arm.name for arm in grid(EVIDENCE).arms if arm.time_budget_from]
    assert waiting == [f"{name} baseline in equal time" for name in ("RetinaNet", "FCOS", "Faster R-CNN")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn", "fcos", "atss", "poto", "mask_rcnn"])
def test_the_nano_learning_rate_is_one_the_detector_trains_at(name: str, tmp_path: Path) -> None:
    """With its own rate for the first steps, at which a rate that is too high shows."""
    described = next(x for t in TABLES for x in paper().tables[t].trainings if x.detector == name and x.method == "lgd")
    quick = {
        "schedule.steps": 30, "schedule.warmup_steps": 15, "data.shapes_train": 64, "data.shapes_val": 2,
        "data.min_sizes": [96], "data.max_size": 96, "data.test_size": 96,
    }  # fmt: skip
    record = training.run(
        at_preset("nano", described).override({**quick, "threads": torch.get_num_threads()}), tmp_path
    )
    assert record.status == "finished", record.reason
    assert record.losses["total_loss"][-1][1] < record.losses["total_loss"][0][1]
