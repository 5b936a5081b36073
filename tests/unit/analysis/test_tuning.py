"""Learning rates and lengths: which is best, whether that is fair, and where arms cross."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from analysis.load import Run, load_runs
from analysis.plots.style import STYLE
from analysis.plots.tuning import distill_weights, learning_rates, schedule_lengths
from analysis.rates import Curve, length_curves, rate_curves, rate_notes, weight_curves, weight_notes
from analysis.table_builders.build import build
from analysis.table_builders.crossing import cost_crossings, crossing, crossings, first_change
from lgd.config.method import BUILT_IN
from lgd.config.methods_grid import CHOSEN_WEIGHTS
from lgd.results.record import Record

from .conftest import MakeRecord

RATES = {0.05: (20.0, 22.0), 0.1: (25.0, 24.0), 0.2: (23.0, 27.0)}
"""AP of the baseline and of LGD."""

LENGTHS = {300: (20.0, 16.0), 600: (25.0, 23.0), 1200: (28.0, 30.0)}


def _records(make: MakeRecord, key: str, values: dict[Any, tuple[float, float]], spread: float = 0.1) -> list[Record]:
    """Three seeds of both arms at each value."""
    records = []
    for i, (value, scores) in enumerate(values.items()):
        for arm, ap in zip(("baseline", "LGD"), scores, strict=True):
            for seed in range(3):
                record = make(arm, seed, ap + spread * (seed - 1) * (1 + i) * (1 if arm == "LGD" else -1), 10.0)
                changed = record.experiment.override({key: value})
                name = arm if i == 1 else f"{arm} at {value:g}"
                update = {"experiment": changed, "arm": name, "grid": "learning-rate"}
                records.append(record.model_copy(update=update))
    return records


def _runs(records: list[Record]) -> list[Run]:
    return [Run(record, Path("/r") / record.name) for record in records]


def test_arms_whose_best_rates_differ_are_told(make_record: MakeRecord) -> None:
    records = _records(make_record, "schedule.lr", RATES)
    base, lgd = rate_curves(records)
    assert (base.name, base.is_baseline, base.best, base.edge) == ("baseline", True, 0.1, "")
    assert (lgd.name, lgd.best, lgd.edge, lgd.arms[0.2]) == ("LGD", 0.2, "highest", "LGD at 0.2")
    assert rate_notes(records) == [
        "Best learning rates differ (batch of 8): baseline 0.1 (AP 25.0), LGD 0.2 (AP 27.0).",
        "LGD is best at 0.2, the highest learning rate tried: its best may lie beyond.",
    ]
    low = rate_notes(x for x in records if x.experiment.schedule.resolved_lr <= 0.1)
    end = "best at 0.1 (batch of 8), the highest learning rate tried: its best may lie beyond."
    assert low == [f"{arm} is {end}" for arm in ("baseline", "LGD")]
    noisy = _records(make_record, "schedule.lr", RATES, spread=4.0)
    assert rate_notes(noisy)[0].startswith("Best learning rates differ, within noise (batch of 8): ")


def test_the_best_weight_of_each_method(make_record: MakeRecord) -> None:
    records = [make_record("baseline", 0, 25.0, 10.0)]
    for name, scores in {"pkd": (24.0, 26.0, 12.0), "cwd": (23.0, 22.0, 1.0)}.items():
        for factor, ap in zip((0.01, 0.1, 1.0), scores, strict=True):
            record = make_record("LGD", 0, ap, 10.0)
            changed = {"method.name": name, "method.distill_weight": factor}
            title = name.upper() if factor == 1 else f"{name.upper()} at {factor:g}x weight"
            update = {"experiment": record.experiment.override(changed), "arm": title}
            records.append(record.model_copy(update=update))
    assert weight_notes(records) == [
        "PKD is best at 0.1 of its weight: AP 26.0 (at its own: 12.0); the baseline has 25.0.",
        "CWD is best at 0.01 of its weight (the lowest tried: its best may lie beyond): AP 23.0 (at its own: 1.0);"
        " the baseline has 25.0.",
    ]
    with mpl.rc_context(STYLE):
        figure = distill_weights(_runs(records))
    assert figure is not None
    (axes,) = figure.axes
    assert [np.asarray(x.get_ydata()).tolist() for x in axes.get_lines() if x.get_linestyle() == "--"] == [[25.0, 25.0]]
    # One method alone is another grid's question.
    assert weight_notes(records[:4]) == []
    assert distill_weights(_runs(records[:4])) is None


def test_one_rate_has_nothing_to_tell(make_record: MakeRecord) -> None:
    records = _records(make_record, "schedule.lr", {0.1: (20.0, 22.0)})
    assert rate_curves(records) == []
    assert rate_notes(records) == []
    assert learning_rates(_runs(records)) is None
    assert schedule_lengths(_runs(records)) is None


def test_the_crossing_by_hand(make_record: MakeRecord) -> None:
    """From -2 at 600 to +2 at 1,200 steps: half way in the logarithm."""
    (found,) = crossings(_records(make_record, "schedule.steps", LENGTHS))
    assert found.at == pytest.approx(600 * 2**0.5)
    assert found.low is not None
    assert found.high is not None
    assert 600 < found.low < 600 * 2**0.5 < found.high < 1200
    assert (found.ahead, found.seeds) == ("baseline", 3)
    assert found.line.startswith("LGD overtakes baseline at 849 steps [")
    assert found.line.endswith("] (3 seeds, bootstrap over them, too narrow for so few).")


def test_no_crossing_says_up_to_where(make_record: MakeRecord) -> None:
    records = _records(make_record, "schedule.steps", {300: (20.0, 16.0), 600: (25.0, 23.0), 1200: (30.0, 29.0)})
    (found,) = crossings(records)
    assert found.at is None
    # -1 with a standard deviation of 0.6 over three seeds.
    nobody = "neither is ahead beyond noise at the last length"
    assert found.line == f"LGD and baseline: no crossing up to 1,200 steps; {nobody} (3 seeds)."
    one = [record for record in records if record.experiment.seed == 0]
    assert crossings(one)[0].low is None
    # A single seed has no noise to compare its difference with.
    assert crossings(one)[0].line.endswith(f"{nobody} (1 seed).")


def _differing(make: MakeRecord, differences: dict[int, tuple[float, ...]]) -> list[Record]:
    """By length, what LGD has more than the baseline, a seed each; nine seconds a step."""
    records = []
    for steps, of_seeds in differences.items():
        for seed, difference in enumerate(of_seeds):
            for arm, ap in (("baseline", 20.0), ("LGD", 20.0 + difference)):
                record = make(arm, seed, ap, 9.0 * steps)
                records.append(
                    record.model_copy(update={"experiment": record.experiment.override({"schedule.steps": steps})})
                )
    return records


def test_an_interval_may_hold_a_crossing_that_the_mean_does_not(make_record: MakeRecord) -> None:
    """Two of three seeds cross. 8 of the 27 ways to draw three leave out the third, and go from -2 to 0.5; others do
    not cross: the interval's lower end is where the 8 do, and it has no upper end."""
    records = _differing(make_record, {160: (-2.0, -2.0, -2.0), 1280: (0.5, 0.5, -1.2)})
    (found,) = crossings(records)
    assert (found.at, found.high) == (None, np.inf)
    assert found.low == pytest.approx(160 * 8**0.8)
    assert found.line == (
        "LGD and baseline: no crossing up to 1,280 steps (95% bootstrap interval: 844 steps to none; lengths 160"
        " and 1,280); neither is ahead beyond noise at the last length (3 seeds)."
    )
    (found,) = cost_crossings(records)
    assert found.low == pytest.approx(0.4 * 8**0.8)
    assert found.line == (
        "At equal cost LGD and baseline: no crossing up to 3.2 CPU-h (95% bootstrap interval: 2.11 CPU-h to none; costs"
        " 0.4 and 3.2 CPU-h); neither is ahead beyond noise at that cost (3 seeds)."
    )


@pytest.mark.parametrize(("sign", "ahead"), [(1, "LGD"), (-1, "baseline")])
def test_ahead_is_who_is_so_beyond_noise_at_the_last_length(sign: int, ahead: str, make_record: MakeRecord) -> None:
    """1 with a standard deviation of 0.1 over three seeds: the interval is 0.25 wide to either side."""
    last = (sign * 0.9, sign * 1.0, sign * 1.1)
    records = _differing(make_record, {300: (sign * 5.0,) * 3, 600: last})
    (found,), (at_cost,) = crossings(records), cost_crossings(records)
    assert found.last.low == pytest.approx(sign * 1.0 - 0.248, abs=0.001)
    assert found.line == (
        f"LGD and baseline: no crossing up to 600 steps (lengths 300 and 600); {ahead} is ahead at the last length"
        " (3 seeds)."
    )
    assert at_cost.line.endswith(f"(costs 0.75 and 1.5 CPU-h); {ahead} is ahead at that cost (3 seeds).")
    # Of the last length every seed counts, those too that were not trained for all lengths.
    (found,) = crossings([x for x in records if x.experiment.schedule.steps == 600 or x.experiment.seed])
    assert found.line.endswith(f"{ahead} is ahead at the last length (2 seeds, 3 at the last length).")


@pytest.mark.parametrize(
    ("lengths", "between"),
    [
        ({160: -1.0, 320: -1.0, 1280: 3.0}, ", interpolated between lengths 320 and 1,280"),
        ({160: -1.0, 320: 3.0, 1280: 3.0}, ""),
        ({160: -1.0, 320: 3.0}, ", interpolated between lengths 160 and 320"),
    ],
)
def test_lengths_far_apart_are_named_where_curves_cross_between_them(
    lengths: dict[int, float], between: str, make_record: MakeRecord
) -> None:
    (found,) = crossings(_differing(make_record, {steps: (of,) * 2 for steps, of in lengths.items()}))
    # From -1 to 3: a quarter of the way, in the logarithm.
    at = 320 * 4**0.25 if lengths.get(320) == -1.0 else 160 * 2**0.25
    assert found.at == pytest.approx(at)
    shown = f"LGD overtakes baseline at {at:.0f} steps [{at:.0f}, {at:.0f}]"
    assert found.line == f"{shown}{between} (2 seeds, bootstrap over them, too narrow for so few)."


def test_means_that_cross_within_noise_overtake_nobody(make_record: MakeRecord) -> None:
    """-0.5 with a standard deviation of 2 at the first length; 1 with one of 0.1 at the last."""
    start, end = (-2.5, -0.5, 1.5), (0.9, 1.0, 1.1)
    (found,) = crossings(_differing(make_record, {300: start, 600: end}))
    assert found.line.startswith("The mean of LGD overtakes that of baseline at ")
    assert "interpolated between lengths 300 and 600; within noise at the first length (3 seeds" in found.line
    (found,) = crossings(_differing(make_record, {300: start, 600: (3.0, 0.5, -1.0)}))
    assert "; within noise at the first and the last length (3 seeds" in found.line
    (found,) = cost_crossings(_differing(make_record, {300: start, 600: end}))
    assert found.line.startswith("At equal cost the mean of LGD overtakes that of baseline at ")
    assert "; within noise at the first of these costs (3 seeds" in found.line
    back = _differing(make_record, {150: (-5.0, -5.1, -4.9), 300: (2.0, 2.1, 1.9), 600: (-5.0, -5.1, -4.9)})
    assert "; baseline is ahead again at the last length (3 seeds" in crossings(back)[0].line
    alone = crossings([x for x in back if x.experiment.seed == 0])[0]
    assert "The mean of LGD overtakes" in alone.line
    assert "; one seed tells nothing of noise (1 seed" in alone.line


def test_the_crossing_at_equal_cost_comes_later(make_record: MakeRecord) -> None:
    """LGD costs twice as much, so at equal cost it is compared with a baseline of twice its steps."""
    records = [
        record.model_copy(
            update={"seconds": {"training": record.experiment.schedule.steps * (6 if "LGD" in record.arm else 3)}}
        )
        for record in _records(make_record, "schedule.steps", {**LENGTHS, 2400: (29.0, 34.0)})
    ]
    (found,) = cost_crossings(records)
    # 29 less 23 at 600 steps of LGD, 29 less 30 at 1,200: one hour of it and two; between, half way lies at 2 ** 0.5.
    base, lgd = np.array([25.0, 28.0, 29.0]), np.array([16.0, 23.0, 30.0])
    part = (lgd - base)[1] / ((lgd - base)[1] - (lgd - base)[2])
    assert found.at == pytest.approx(1.0 * 2**part)
    assert found.unit == "CPU-h"
    assert found.line.startswith("At equal cost the mean of LGD overtakes that of baseline at 1.78 CPU-h [")
    assert cost_crossings(_records(make_record, "schedule.steps", {300: (20.0, 16.0)})) == []
    # Two seeds call nobody ahead.
    assert len(crossings(two := [x for x in records if x.experiment.seed < 2])) == 1
    assert cost_crossings(two) == []


def test_the_crossings_interval_holds_the_truth() -> None:
    """Over simulated sweeps of twelve seeds whose mean difference is zero at 400 steps."""
    at, generator = np.log([100.0, 200.0, 400.0, 800.0, 1600.0]), np.random.default_rng(0)
    truth = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
    hit = []
    for _ in range(300):
        rows = truth + generator.normal(0, 1.0, (12, 5))
        drawn = rows[generator.integers(12, size=(300, 12))].mean(axis=1)
        low, high = np.quantile(first_change(drawn, at), [0.025, 0.975])
        hit.append(low <= 400 <= high)
    # A percentile bootstrap over few seeds holds a little less often than it says.
    assert 0.85 < np.mean(hit) <= 0.99


@pytest.mark.parametrize(
    ("differences", "at"),
    [
        ([0.0, 2.0, -2.0], 200 * 2**0.5), ([-3.0, 0.0, 5.0], 200.0), ([-3.0, 0.0, -5.0], math.inf),
        ([0.0, 0.0, 1.0], math.inf), ([3.0, 0.0, 0.0, -1.0], 400.0), ([0.0, 0.0, 0.0], math.inf),
    ],
)  # fmt: skip
def test_a_difference_of_zero_is_on_neither_side(differences: list[float], at: float, make_record: MakeRecord) -> None:
    lengths = [100.0 * 2**i for i in range(len(differences))]
    assert first_change(np.array([differences]), np.log(lengths)) == pytest.approx([at])
    base, arm = (
        Curve(
            name,
            make_record("baseline").experiment,
            "baseline",
            {x: {0: 20.0 + d} for x, d in zip(lengths, of, strict=True)},
        )
        for name, of in (("baseline", [0.0] * len(lengths)), ("LGD", differences))
    )
    found = crossing(base, arm)
    assert found is not None
    if math.isfinite(at):
        assert found.ahead == ("LGD" if differences[-1] < 0 else "baseline")


def test_tables_and_figures_of_both_grids(make_record: MakeRecord) -> None:
    rates, lengths = (
        _runs(_records(make_record, key, values))
        for key, values in (("schedule.lr", RATES), ("schedule.steps", LENGTHS))
    )
    frame, text = build("learning-rate", rates)
    assert list(frame["arm"]) == ["baseline"] * 3 + ["LGD"] * 3
    assert list(frame["rate"]) == [0.05, 0.1, 0.2] * 2
    assert frame["gain"].iloc[5] == pytest.approx(4.0)
    assert frame["gain"].iloc[:3].isna().all()
    assert text.header[1] == "learning rate (batch of 8)"
    assert text.rows[0][:3] == ["baseline", "0.05", "3"]
    assert any("Best learning rates differ" in note for note in text.notes)
    renamed = [run._replace(record=run.record.model_copy(update={"grid": "schedule-length"})) for run in lengths]
    assert any("overtakes" in note for note in build("schedule-length", renamed)[1].notes)
    with mpl.rc_context(STYLE):
        drawn = [learning_rates(rates), schedule_lengths(lengths)]
    for figure, curves in zip(drawn, (rate_curves, length_curves), strict=True):
        assert figure is not None
        lines = [x for x in figure.axes[0].lines if x.get_label() in ("baseline", "LGD")]
        expected = [list(curve.points) for curve in curves(x.record for x in (rates, lengths)[curves is length_curves])]
        assert [np.asarray(x.get_xdata()).tolist() for x in lines] == expected
    title = drawn[1].get_suptitle() if drawn[1] else ""
    assert "LGD overtakes baseline at 849 steps" in " ".join(title.split())


def test_an_arm_of_one_length_has_its_row_beside_a_baseline_of_several(make_record: MakeRecord) -> None:
    records = [x for x in _records(make_record, "schedule.steps", LENGTHS) if x.arm in ("LGD", "baseline")]
    longer = [x for x in _records(make_record, "schedule.steps", LENGTHS) if x.arm == "baseline at 1200"]
    runs = [
        run._replace(record=run.record.model_copy(update={"grid": "schedule-length"}))
        for run in _runs([*records, *longer])
    ]
    frame, text = build("schedule-length", runs)
    assert list(zip(frame["arm"], frame["steps"], strict=True)) == [("baseline", 600), ("baseline", 1200), ("LGD", 600)]
    assert text.rows[-1][-1].startswith("-2.0 [")
    assert (crossings([*records, *longer]), cost_crossings([*records, *longer])) == ([], [])
    assert schedule_lengths(runs) is None
    # Without any arm of several there is no curve.
    assert length_curves(records) == []


def test_curves_need_common_seeds(make_record: MakeRecord) -> None:
    records = _records(make_record, "schedule.steps", LENGTHS)
    base, lgd = length_curves(records)
    lgd.points = {steps: {seed + 5: ap for seed, ap in seeds.items()} for steps, seeds in lgd.points.items()}
    assert crossing(base, lgd) is None


def test_the_chosen_weights_are_those_of_the_kept_study() -> None:
    """The largest weight whose AP is within 1 of the method's best: of a method with and without inheritance, where it
    has more AP."""
    kept = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("distill-weight_tiny_*"))
    curves = sorted(weight_curves(run.record for run in load_runs(kept[-1])), key=lambda x: x.mean(x.best))
    largest = {x.method: max(at for at in x.points if x.mean(at) > x.mean(x.best) - 1) for x in curves}
    assert set(largest) == {x for x in BUILT_IN if x not in ("baseline", "labelenc_stage1", "tfkd")}
    assert {name: at for name, at in largest.items() if at != 1} == CHOSEN_WEIGHTS["tiny"]
