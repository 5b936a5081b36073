"""Methods over several tasks, and the time until an arm is as good as its baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from analysis.load import Run
from analysis.plots.hours import ap_against_hours, performance_profile
from analysis.plots.style import NARROW, STYLE
from analysis.table_builders.build import build
from analysis.table_builders.time_to_target import hours_until, points, time_to_target
from analysis.verdicts.across import (
    Method,
    Task,
    gains,
    improvement,
    interquartile_mean,
    lines,
    methods,
    probability,
    profile,
    short_name,
)
from lgd.errors import InputError
from lgd.results.record import EvaluationPoint, Pretraining, Record

from .conftest import MakeRecord, assert_ticks_apart


def test_the_statistics_are_the_ones_they_are_called() -> None:
    generator = np.random.default_rng(0)
    for n in (4, 8, 20):
        scores = generator.normal(0, 1, (3, n))
        assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25, axis=1))
    arm, base = generator.integers(0, 6, (2, 5)).astype(float), generator.integers(0, 6, (2, 5)).astype(float)
    expected = [mannwhitneyu(a, b).statistic / 25 for a, b in zip(arm, base, strict=True)]
    assert improvement(arm, base) == pytest.approx(expected)


def _simulated(generator: np.random.Generator, truth: float, tasks: int = 5, seeds: int = 10) -> Method:
    """Tasks of their own level and spread; the method gains ``truth`` on each."""
    found = []
    for i in range(tasks):
        base = generator.normal(20 + 10 * i, 1, seeds)
        found.append(Task(f"task {i}", base + truth + generator.normal(0, 1, seeds), base))
    return Method("LGD", tuple(found))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = []
    for _ in range(120):
        found = gains(_simulated(generator, 0.7))
        assert found.low is not None
        assert found.high is not None
        held.append(found.low <= 0.7 <= found.high)
    # The middle half of fifty runs, drawn anew within five tasks of ten.
    assert 0.87 <= np.mean(held) <= 0.99


def test_profile_and_probability_of_a_method_that_does_nothing_and_of_one_that_gains() -> None:
    generator = np.random.default_rng(1)
    nothing, much = _simulated(generator, 0.0, seeds=40), _simulated(generator, 5.0, seeds=40)
    of_nothing, of_much = probability(nothing), probability(much)
    assert of_nothing.low is not None
    assert of_nothing.high is not None
    assert of_nothing.low < 0.5 < of_nothing.high
    assert of_much.low is not None
    assert of_much.low > 0.95
    part, low, high = profile(much)
    assert (low <= part).all()
    assert (part <= high).all()
    assert (np.diff(part) <= 0).all()
    assert (part[0], part[-1]) == (1.0, 0.0)


def _records(make: MakeRecord) -> list[Record]:
    """Three detectors, five seeds: gains of 1, 2 and 3 points."""
    found = []
    for i, (title, detector) in enumerate(
        (("RetinaNet", "retinanet"), ("FCOS", "fcos"), ("Faster R-CNN", "faster_rcnn"))
    ):
        for seed in range(5):
            for arm, ap in (("baseline", 20.0), ("LGD", 21.0 + i)):
                record = make(f"{title} {arm}", seed, ap + 10 * i + 0.1 * seed, 100.0, grid="evidence")
                method = "baseline" if arm == "baseline" else "lgd"
                experiment = record.experiment.override({"detector.name": detector, "method.name": method})
                found.append(record.model_copy(update={"experiment": experiment}))
    return found


def test_methods_are_found_beside_their_own_baselines(make_record: MakeRecord) -> None:
    records = _records(make_record)
    (method,) = methods(records)
    assert (method.name, len(method.tasks), method.runs) == ("LGD", 3, 15)
    assert gains(method).value == pytest.approx(2.0)
    assert probability(method).value == 1.0
    assert lines(records, ["LGD"])[0].startswith("LGD over 3 tasks (15 runs): interquartile mean of the gains +2.0 [")
    assert lines(records, ["FGFI"]) == []
    assert methods([x for x in records if "FCOS" in x.arm]) == []
    frame, text = build("across", [Run(x, Path("/r")) for x in records])
    assert list(frame["method"]) == ["LGD"]
    assert text.rows[0][:3] == ["LGD", "3", "15"]
    with mpl.rc_context(STYLE):
        assert performance_profile([Run(x, Path("/r")) for x in records]) is not None
        assert performance_profile([]) is None
    assert short_name("LGD", "baseline") == "LGD"
    assert short_name("Faster R-CNN LGD", "Faster R-CNN baseline") == "LGD"


def test_of_one_seed_a_task_there_is_no_interval(make_record: MakeRecord) -> None:
    """Drawn anew it is the same: a bootstrap would call it certain."""
    runs = [Run(x, Path("/r")) for x in _records(make_record) if x.experiment.seed == 0]
    records = [run.record for run in runs]
    (method,) = methods(records)
    assert (gains(method).low, gains(method).high, probability(method).low) == (None, None, None)
    assert lines(records, ["LGD"]) == [
        "LGD over 3 tasks (3 runs): interquartile mean of the gains +2.0 AP, probability of improvement 1.00, of one"
        " seed a task."
    ]
    part, low, high = profile(method)
    assert np.isnan([low, high]).all()
    assert part[0] == 1.0
    frame, text = build("across", runs)
    assert frame[["gain_low", "gain_high", "improvement_low", "improvement_high"]].isna().all(axis=None)
    assert text.rows == [["LGD", "3", "3", "+2.0", "1.00"]]
    with mpl.rc_context(STYLE):
        assert performance_profile(runs) is not None
    assert lines(_records(make_record), ["LGD"])[0].endswith("; bootstrap intervals, too narrow for 5 seeds a task.")


def _curve(make: MakeRecord, arm: str, seed: int, aps: tuple[float, ...], seconds: float, **changes: Any) -> Record:
    """Evaluated at even distances, the last time in the end."""
    record = make(arm, seed, aps[-1], seconds, **changes)
    assert record.student is not None
    evaluations = [
        EvaluationPoint(step=600 * (i + 1) // len(aps), student=record.student.model_copy(update={"AP": ap}))
        for i, ap in enumerate(aps)
    ]
    return record.model_copy(update={"evaluations": evaluations})


def test_time_to_target_by_hand(make_record: MakeRecord) -> None:
    """An hour for 600 steps, AP 10, 20 and 40 after 200, 400 and 600: AP 30 half way between the last two."""
    curve = points(_curve(make_record, "LGD", 0, (10.0, 20.0, 40.0), 3600.0))
    assert np.array(curve) == pytest.approx(np.array([(1 / 3, 10.0), (2 / 3, 20.0), (1.0, 40.0)]))
    assert hours_until(30.0, curve) == pytest.approx(5 / 6)
    assert hours_until(5.0, curve) == pytest.approx(1 / 3)
    assert hours_until(41.0, curve) == float("inf")
    alone = points(make_record("LGD", 0, 30.0, 3600.0))
    assert alone == [(1.0, 30.0)]


def test_a_teachers_training_counts(make_record: MakeRecord) -> None:
    teacher = Pretraining(
        fingerprint="f", backbone="resnet34", steps=600, AP=30.0, device_seconds={"training": 7200.0}, reused=False
    )
    record = _curve(make_record, "FGFI", 0, (10.0, 40.0), 3600.0, pretraining=teacher)
    assert points(record)[0] == pytest.approx((2.5, 10.0))


def test_settings_of_an_arm_are_kept_apart(make_record: MakeRecord) -> None:
    def weaker(record: Record) -> Record:
        return record.model_copy(update={"experiment": record.experiment.override({"method.distill_weight": 0.3})})

    records = [
        *(_curve(make_record, "baseline", seed, (10.0, 30.0), 3600.0) for seed in range(3)),
        *(_curve(make_record, "LGD", seed, (10.0, 20.0), 3600.0) for seed in range(3)),
        *(weaker(_curve(make_record, "LGD", seed, (10.0, 50.0), 3600.0)) for seed in range(2)),
    ]
    frame = time_to_target([Run(x, Path("/r")) for x in records])
    assert [(row.arm, row.seeds, row.reached) for row in frame.itertuples()] == [
        ("baseline", 3, 3), ("LGD", 3, 0), ("LGD", 2, 2),
    ]  # fmt: skip
    runs = [Run(x, Path("/r")) for x in records]
    with pytest.raises(InputError, match=r"'LGD' on shapes are different trainings: method\.distill_weight"):
        build("across", runs)
    # A report of all that there is goes on without them: with these on a second data set, too.
    there = [x.model_copy(update={"experiment": x.experiment.override({"data.source": "voc:/d"})}) for x in records]
    assert methods([*records, *there]) == []
    assert [x.name for x in methods([*records[:6], *there[:6]])] == ["LGD"]


def test_hours_of_unlike_hardware_are_not_compared(make_record: MakeRecord) -> None:
    fast = {"cpu": "Another processor", "cores": "2", "gpu": "none"}
    records = [
        *(_curve(make_record, "baseline", seed, (10.0, 30.0), 3600.0) for seed in range(3)),
        _curve(make_record, "LGD", 0, (10.0, 30.0), 7200.0),
        *(_curve(make_record, "LGD", seed, (10.0, 30.0), 360.0, hardware=fast) for seed in (1, 2)),
    ]
    frame = time_to_target([Run(x, Path("/r")) for x in records]).set_index("arm")
    assert frame.loc["LGD", "reached"] == 3
    assert frame.loc["LGD", "ratio"] == pytest.approx(2.0)


def test_a_figure_of_hours_is_of_one_kind_of_hardware(make_record: MakeRecord) -> None:
    fast = {"cpu": "Another processor", "cores": "2", "gpu": "none"}
    records = [
        *(_curve(make_record, arm, seed, (10.0, 30.0), 36.0) for arm in ("baseline", "LGD") for seed in range(3)),
        *(_curve(make_record, arm, 3, (10.0, 30.0), 3.6, hardware=fast) for arm in ("baseline", "LGD", "label only")),
    ]
    runs = [Run(x, Path("/r")) for x in records]
    with mpl.rc_context(STYLE):
        figure = ap_against_hours(runs, NARROW)
        assert ap_against_hours([*runs[:3], *runs[-2:]]) is None, "one arm on the commonest hardware"
        assert figure is not None
        assert_ticks_apart(figure)
    assert {str(x.get_label()): np.asarray(x.get_xdata()).tolist() for x in figure.axes[0].lines} == {
        "baseline": pytest.approx([0.005, 0.01]), "LGD": pytest.approx([0.005, 0.01]),
    }  # fmt: skip
    assert "means over seeds, 1 more arm left out" in figure.get_suptitle().replace("\n", " ")
    assert figure.axes[0].get_xlabel() == "CPU-hours of training"


def test_each_seed_has_its_baselines_target(make_record: MakeRecord) -> None:
    records = [
        *(_curve(make_record, "baseline", seed, (10.0, 30.0 + seed), 3600.0) for seed in range(3)),
        *(_curve(make_record, "LGD", seed, (10.0, 50.0), 7200.0) for seed in range(3)),
        *(_curve(make_record, "label only", seed, (10.0, 20.0), 7200.0) for seed in range(3)),
    ]
    runs = [Run(x, Path("/r")) for x in records]
    frame = time_to_target(runs).set_index("arm")
    assert frame["reached"].to_dict() == {"baseline": 3, "LGD": 3, "label only": 0}
    assert frame.loc["baseline", "hours"] == pytest.approx(1.0)
    # AP 31, that of the middle seed, is 21 / 40 of the way in the second hour.
    assert frame.loc["LGD", "hours"] == pytest.approx(1 + 21 / 40)
    assert frame.loc["LGD", "ratio"] == pytest.approx(1 + 21 / 40)
    assert frame.loc["label only"].isna()["hours"]
    texts = {row[0]: list(row[1:]) for row in build("time-to-target", runs)[1].rows}
    assert texts["label only"] == ["31.0", "0 of 3", "not reached", "–"]
    # Where half of the seeds reach it there is no median either.
    half = [run for run in runs if run.record.experiment.seed < 2]
    half += [
        Run(_curve(make_record, "one of two", seed, (10.0, ap), 7200.0), Path("/r"))
        for seed, ap in ((0, 50.0), (1, 20.0))
    ]
    texts = {row[0]: list(row[1:]) for row in build("time-to-target", half)[1].rows}
    assert texts["one of two"] == ["30.5", "1 of 2", "median not reached", "–"]
    with mpl.rc_context(STYLE):
        figure = ap_against_hours(runs)
        assert ap_against_hours(runs[:3]) is None
    assert figure is not None
    lgd = next(x for x in figure.axes[0].lines if x.get_label() == "LGD")
    assert np.asarray(lgd.get_xdata()).tolist() == pytest.approx([1.0, 2.0])
