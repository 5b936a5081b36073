"""What the evidence page says of trainings that differ by their seed alone."""

from __future__ import annotations

from pathlib import Path

from analysis.evidence.answers import answers
from analysis.evidence.studies import comparisons, load_studies
from analysis.verdicts.sentences import summary
from lgd.config.extra_arms import ExtraArms
from lgd.config.grids import Trial

from .made_sweeps import made_sweep


def _aps(trial: Trial) -> tuple[float, float | None]:
    return (31.0 if "again" in trial.arm else 30.0) if trial.arm.startswith("baseline") else 25.0, None


def test_noise_floor_and_second_training_are_points_and_not_the_components(tmp_path: Path) -> None:
    places = [
        made_sweep(tmp_path / "components-tiny", "components", _aps),
        made_sweep(tmp_path / "noise-floor-tiny", "noise-floor", _aps),
        made_sweep(
            tmp_path / "a-a", "components", _aps, ExtraArms(again=True), arms="baseline",
            finished="2025-03-02T03:05:06+00:00",
        ),
    ]  # fmt: skip
    whole, floor, again = load_studies(places)
    found = answers([whole, floor, again], comparisons([whole, floor, again]))
    assert found is not None
    assert found.components is whole, "the newer study has no method"
    assert [x.numbers for x in summary(again.records, again.directory).verdicts] == [
        "baseline trained a second time with other seeds differs by +1.0 AP [+1.0, +1.0] (3 seeds each): what no"
        " difference looks like here."
    ]
    points = {x.heading: (x.study, x.sentences) for x in found.points}
    assert points["Noise"] == (
        floor,
        [
            "Between 3 seeds of one training AP has a standard deviation of 2.00 points. Were two arms independent, the"
            " interval of their difference over five seeds each would be ±3.51 points."
        ],
    )
    assert points["A/A"] == (
        again,
        [
            "The baseline trained again with other seeds differs by +1.0 [+1.0, +1.0] AP (3 seeds each): what no"
            " difference looks like."
        ],
    )
