"""Costs are compared between trainings on like hardware alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from analysis.costs import cost_ratio, extra_cost, hardware_of, on_like_hardware
from analysis.evidence.curves import at_equal_cost
from analysis.load import cost_seconds
from analysis.rates import Curve, equal_cost_steps
from analysis.table_builders.arms import arms_table
from analysis.table_builders.crossing import cost_crossing
from analysis.verdicts.questions import asked
from analysis.verdicts.verdict import verdicts
from lgd.config.experiment import Experiment
from lgd.results.record import Pretraining, Record

from .conftest import MakeRecord

SLOW = {"cpu": "A processor", "cores": "2", "memory_gib": "8", "gpu": "none"}
FAST = {**SLOW, "cpu": "Another processor"}


@pytest.fixture
def mixed(make_record: MakeRecord) -> list[Record]:
    """The third seed of LGD ran on a processor twice as fast as its baseline's; the fourth of both did."""
    baselines = [make_record("baseline", seed, 20.0, 100.0, hardware=SLOW) for seed in range(3)]
    arm = [make_record("LGD", seed, 21.0, 200.0, hardware=SLOW) for seed in range(2)]
    return [
        *baselines,
        make_record("baseline", 3, 20.0, 50.0, hardware=FAST),
        *arm,
        make_record("LGD", 2, 21.0, 100.0, hardware=FAST),
        make_record("LGD", 3, 21.0, 100.0, hardware=FAST),
    ]


def _runs(records: list[Record], arm: str) -> dict[int, Record]:
    return {x.experiment.seed: x for x in records if x.arm == arm}


def test_a_seed_on_unlike_hardware_is_left_out(mixed: list[Record]) -> None:
    arm, baseline = _runs(mixed, "LGD"), _runs(mixed, "baseline")
    ratio, extra = cost_ratio(arm, baseline), extra_cost(arm, baseline)
    assert ratio is not None
    assert extra is not None
    assert ratio.seeds == (0, 1, 3)
    assert ratio.value == pytest.approx(2.0)
    # The median of 100, 100 and 50: it would be 75 with the third seed, whose difference is 0.
    assert extra == pytest.approx(100.0)


def test_the_table_and_the_verdict_leave_it_out(mixed: list[Record], tmp_path: Path) -> None:
    table = arms_table(mixed, ["baseline", "LGD"], "baseline")
    assert table["training_cost"].tolist() == pytest.approx([1.0, 2.0])
    (verdict,) = verdicts(mixed, asked(tmp_path, mixed))
    assert verdict.cost == pytest.approx(2.0)
    assert verdict.gain is not None
    assert verdict.gain.seeds == (0, 1, 2, 3)


@pytest.mark.parametrize(("hardware", "compares"), [(SLOW, True), ({}, True), (FAST, False)])
def test_a_teacher_that_was_trained_on_other_hardware_has_seconds_that_do_not_compare(
    hardware: dict[str, str], compares: bool, make_record: MakeRecord
) -> None:
    """Nor does a given one, whose hours somebody said, name any."""
    teacher = Pretraining(
        fingerprint="", backbone="r101", steps=9, AP=30.0, device_seconds={"training": 100.0}, hardware=hardware,
        reused=True,
    )  # fmt: skip
    pkd = make_record("PKD", 0, 21.0, 100.0, hardware=SLOW).model_copy(update={"pretraining": teacher})
    ratio = cost_ratio({0: pkd}, {0: make_record("baseline", 0, 20.0, 100.0, hardware=SLOW)})
    assert (ratio.value if ratio else None) == (pytest.approx(2.0) if compares else None)


def test_no_seed_on_like_hardware(make_record: MakeRecord) -> None:
    arm, baseline = ({0: make_record("LGD", 0, 20.0, hardware=x)} for x in (SLOW, FAST))
    assert on_like_hardware(arm, baseline) == ({}, {})
    assert cost_ratio(arm, baseline, cost_seconds) is None
    assert extra_cost(arm, baseline) is None


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({"memory_gib": "16", "host": "another"}, True),
        ({"cores": "64"}, False),
        ({"gpu": "1 x H100, 80 GiB"}, False),
    ],
)
def test_what_decides_on_a_cpu(make_record: MakeRecord, changes: dict[str, str], alike: bool) -> None:
    one, other = (make_record("LGD", 0, 20.0, hardware={**SLOW, **x}) for x in ({}, changes))
    assert (hardware_of(one) == hardware_of(other)) is alike


def test_how_many_gpus_a_node_has_does_not_matter(make_record: MakeRecord) -> None:
    nodes = [{**SLOW, "gpu": "1 x H100, 80 GiB"}, {**FAST, "cores": "64", "gpu": "8 x H100, 80 GiB"}]
    one, other = (make_record("LGD", 0, 20.0, hardware=x) for x in nodes)
    assert hardware_of(one) == hardware_of(other)


def test_curves_over_hours_are_of_the_seeds_on_like_hardware() -> None:
    def curve(name: str, hours: float, machines: dict[int, tuple[str, ...]]) -> Curve:
        """machines: the last training's by seed; the shorter one of each seed ran on the slow one."""
        points = {80.0: {0: 10.0, 1: 12.0}, 160.0: {0: 20.0, 1: 22.0}}
        costs = {steps: dict.fromkeys(of, hours * steps) for steps, of in points.items()}
        used: dict[float, dict[int, tuple[str, ...]]] = {80.0: {0: slow, 1: slow}, 160.0: machines}
        return Curve(name, Experiment(), name.lower(), points=points, costs=costs, machines=used)

    slow, fast = ("slow", "2"), ("fast", "2")
    base = curve("baseline", 1.0, {0: slow, 1: slow})
    arm = curve("LGD", 1.0, {0: slow, 1: fast})
    found = cost_crossing(base, arm)
    assert found is not None
    assert found.seeds == 1
    # What an arm costs more is read where a seed's two trainings are alike; AP is every seed's.
    arm.costs = {80.0: {0: 80.0, 1: 80.0}, 160.0: {0: 240.0, 1: 100.0}}
    base.points[320.0] = {0: 30.0, 1: 32.0}
    assert equal_cost_steps(base, arm) == {80.0: 80.0, 160.0: 240.0}
    equal = at_equal_cost(base, arm)
    assert {x: d.seeds for x, d in equal.items()} == {80.0: (0, 1), 160.0: (0, 1)}
    assert equal[160.0].mean == pytest.approx(-10 * math.log2(1.5))
    assert equal_cost_steps(base, curve("LGD", 1.0, {0: fast, 1: fast})).keys() == {80.0}
