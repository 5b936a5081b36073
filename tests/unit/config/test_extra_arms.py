"""Arms that a command adds to any grid, and the grids over one number of the schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.config.experiment import settings
from lgd.config.extra_arms import AGAIN_SEEDS, EVERY, ExtraArms, bigger, questioned, with_extra_arms
from lgd.config.grids import experiment_of, grid, plan
from lgd.config.methods_grid import CHOSEN_WEIGHTS, TUNING_SEEDS, WEIGHT_FACTORS, methods_grid
from lgd.config.pays_grid import pays_grid
from lgd.config.presets import preset
from lgd.config.tuning_grids import EQUAL_COST_FACTORS, LENGTH_FACTORS, RATE_FACTORS


def test_equal_cost_and_the_baseline_twice_join_any_grid() -> None:
    whole = with_extra_arms(grid("components", "nano"), EVERY, preset("nano"))
    added = {arm.name: arm for arm in whole.arms if arm.name not in {x.name for x in grid("components", "nano").arms}}
    assert {
        "baseline again",
        "baseline at the cost of LGD",
        "bigger baseline",
        "bigger baseline at the cost of LGD",
    } <= {*added}
    longer, larger = added["baseline at the cost of LGD"], added["bigger baseline at the cost of LGD"]
    assert (longer.time_budget_from, longer.steps_from, longer.reference) == ("LGD", "baseline", "baseline")
    assert (larger.time_budget_from, larger.steps_from, larger.reference) == ("LGD", "bigger baseline", "baseline")
    assert added["bigger baseline"].changes["detector.backbone.name"] == "resnet34"
    assert not any(arm.answers for arm in added.values())
    assert with_extra_arms(grid("components", "nano"), ExtraArms(), preset("nano")) is grid("components", "nano")


def test_a_grid_with_equal_time_arms_gets_no_second_ones() -> None:
    own = grid("evidence", "nano")
    assert with_extra_arms(own, ExtraArms(equal_cost=("longer",)), preset("nano")) == own
    table = with_extra_arms(grid("main", "paper"), ExtraArms(equal_cost=("longer",)), preset("paper"))
    references = table.references
    for arm in (x for x in table.arms if x.time_budget_from):
        assert references[arm.name] == references[arm.time_budget_from] == arm.steps_from
    assert len(questioned(table)) == len(grid("main", "paper").arms) / 2


def test_the_second_baseline_has_seeds_of_its_own(tmp_path: Path) -> None:
    whole = with_extra_arms(grid("noise-floor", "nano"), ExtraArms(again=True), preset("nano"))
    trials = plan(whole, preset("nano"), 2, [], tmp_path)
    assert [(t.arm, t.experiment.seed) for t in trials] == [
        ("baseline", 0), ("baseline again", AGAIN_SEEDS), ("baseline", 1), ("baseline again", AGAIN_SEEDS + 1),
    ]  # fmt: skip
    assert trials[0].experiment == trials[1].experiment.override({"seed": 0})


def test_the_bigger_backbone_keeps_the_kind_of_its_weights() -> None:
    paper = preset("paper")
    baseline = grid("components", "paper").arms[0]
    found = bigger(paper, baseline)
    assert found["detector.backbone.name"] == "resnet101"
    assert found["detector.backbone.weights"].endswith("R-101.pkl")
    assert paper.override(found).detector.backbone.name == "resnet101"
    # Weights of a whole detector do not fit another backbone.
    assert bigger(preset("finetune"), baseline) == {}


@pytest.mark.parametrize("size", ["nano", "tiny", "small", "paper", "finetune"])
@pytest.mark.parametrize(
    ("name", "key", "factors"),
    [("learning-rate", "schedule.lr_per_16", RATE_FACTORS), ("schedule-length", "schedule.steps", LENGTH_FACTORS)],
)
def test_factors_are_of_what_the_command_says(name: str, key: str, factors: tuple[float, ...], size: str) -> None:
    base, own = preset(size), grid(name, size)
    start = settings(base)[key]
    for overrides, value in (([], start), ([f"{key}={start * 3}"], start * 3)):
        found: dict[str, list[float]] = {}
        for arm in (x for x in own.arms if not x.on_request):
            experiment = experiment_of(arm, base, overrides)
            found.setdefault(arm.name.split(" at ")[0], []).append(settings(experiment)[key])
            assert own.references[arm.name].startswith("baseline")
        assert all(values == pytest.approx([value * x for x in factors]) for values in found.values())
        assert len(found) > 1
    assert next(arm.name for arm in own.arms if arm.answers) == "LGD"


def test_a_longer_training_is_evaluated_as_often_and_decays_in_its_own_time() -> None:
    base = preset("nano")
    arms = {arm.name: experiment_of(arm, base, []) for arm in grid("schedule-length", "nano").arms}
    long = arms["LGD at 4x steps"]
    assert (long.schedule.steps, long.evaluation.every) == (4 * base.schedule.steps, 4 * int(base.evaluation.every))
    assert long.schedule.milestones == base.schedule.milestones
    assert grid("schedule-length", "nano").references["LGD at 4x steps"] == "baseline at 4x steps"


def test_the_longest_arms_have_baselines_of_their_cost_on_request() -> None:
    asked = [x for x in grid("schedule-length", "nano").arms if x.on_request]
    arms = [x for x in asked if x.name.startswith("baseline")]
    assert [arm.name for arm in arms] == ["baseline at 16x steps", "baseline at 18x steps"]
    assert {arm.reference for arm in arms} == {"baseline"}
    base = preset("nano")
    steps = [experiment_of(arm, base, []).schedule.steps for arm in arms]
    assert steps == [factor * base.schedule.steps for factor in EQUAL_COST_FACTORS]
    assert min(EQUAL_COST_FACTORS) >= 2 * max(LENGTH_FACTORS)
    rest = [x for x in asked if x not in arms]
    assert [x.name for x in rest][-1] == "without imitation at 8x steps"
    assert [experiment_of(x, base, []).schedule.steps for x in rest] == [
        x * base.schedule.steps for x in LENGTH_FACTORS
    ]
    assert {experiment_of(x, base, []).method.model_dump()["distill_weight"] for x in rest} == {0.0}


@pytest.mark.parametrize("size", ["tiny", "nano"])
def test_images_are_seen_often_enough_for_their_number_to_matter(size: str) -> None:
    base = preset(size)
    for arm in grid("gain-by-data", size).arms:
        experiment = experiment_of(arm, base, [])
        draws = experiment.schedule.steps * experiment.schedule.batch
        assert draws >= 2 * experiment.data.shapes_train * experiment.data.train_fraction
        assert experiment.schedule.steps % int(experiment.evaluation.every) == 0
        if arm.changes.get("method.name") == "pkd":
            chosen = CHOSEN_WEIGHTS.get(size, {}).get("pkd", 1.0)
            assert experiment.method.model_dump()["distill_weight"] == chosen


def test_a_rate_that_is_set_itself_is_scaled_too() -> None:
    arm = next(x for x in grid("learning-rate", "nano").arms if x.name == "LGD at 2x rate")
    assert experiment_of(arm, preset("nano"), ["schedule.lr=0.01"]).schedule.resolved_lr == pytest.approx(0.02)


def test_every_method_has_an_arm_that_answers() -> None:
    own = pays_grid()
    assert [arm.name for arm in own.arms[:3]] == ["baseline", "LGD", "FGFI"]
    assert questioned(own) == list(own.arms[1:])
    assert not any("stage1" in str(arm.changes["method.name"]) for arm in own.arms)


@pytest.mark.parametrize("size", ["tiny", "paper"])
def test_every_method_is_tried_at_each_weight_on_other_seeds(size: str, tmp_path: Path) -> None:
    base, own = preset(size), grid("distill-weight", size)
    weights: dict[str, list[float]] = {}
    for arm in (x for x in own.arms if not x.skipped):
        experiment = experiment_of(arm, base, [])
        if experiment.method.name != "baseline":
            name = arm.name.partition(" at ")[0]
            weights.setdefault(name, []).append(settings(experiment)["method.distill_weight"])
    assert weights.keys() == {x.name for x in grid("methods", size).arms if x.answers and not x.skipped}
    assert all(sorted(x) == list(WEIGHT_FACTORS) for x in weights.values())
    trials = plan(own, base, 1, [], tmp_path)
    assert {x.experiment.seed for x in trials} == {TUNING_SEEDS}


def test_a_chosen_weight_is_a_setting_that_a_command_may_change() -> None:
    chosen = {"tiny": {"pkd": 0.1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lgd.config.methods_grid.CHOSEN_WEIGHTS", chosen)
        for size, wanted in (("tiny", 0.1), ("small", 1.0)):
            arm = next(x for x in methods_grid(preset(size), size).arms if x.name == "PKD")
            found = experiment_of(arm, preset(size), [])
            assert settings(found)["method.distill_weight"] == wanted
            assert ("0.1 of its weight" in arm.question) == (size == "tiny")
        arm = next(x for x in methods_grid(preset("tiny"), "tiny").arms if x.name == "PKD")
        assert settings(experiment_of(arm, preset("tiny"), ["method.distill_weight=2"]))["method.distill_weight"] == 2


def test_a_method_that_inherits_is_compared_without_it_too() -> None:
    arms = {x.name: x for x in grid("methods", "nano").arms}
    (alone,) = (x for x in arms if x.endswith(", nothing inherited"))
    whole = arms[alone.removesuffix(", nothing inherited")]
    both = [settings(experiment_of(x, preset("nano"), [])) for x in (whole, arms[alone])]
    assert [x["method.inherit"] for x in both] == ["fpn_and_head", "none"]
    assert {k for k in both[0] if both[0][k] != both[1][k]} == {"method.inherit"}
