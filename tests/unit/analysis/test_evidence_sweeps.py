"""Studies of the other grids: their pages, and what they say on the evidence page, from made-up records."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.evidence.answers import answers, newest
from analysis.evidence.curves import at_equal_cost
from analysis.evidence.page import MARKS, STUDIES_TEMPLATE, figure_rows, main, page, readme
from analysis.evidence.studies import Study, comparisons, kept_name, load_studies
from analysis.evidence.study_page import draw_study, study_page
from analysis.rates import length_curves, pairs
from lgd.config.extra_arms import ExtraArms
from lgd.config.grids import Trial
from lgd.config.presets import preset

from .made_sweeps import made_sweep

LONGER = "baseline at the cost of LGD residual (ours)"

COMPONENT_AP = {
    "baseline": (30.0, None), "LGD": (25.0, 10.0), "LGD residual (ours)": (32.0, 34.0),
    "own-label start (ours)": (30.1, 29.0), "ours without imitation": (33.0, 35.0),
    "ours without encoder": (32.1, 33.0), "ours without adapter": (32.0, 33.0), "ours without mapper": (29.0, 20.0),
    LONGER: (34.0, None), "baseline at the cost of LGD": (34.0, None),
}  # fmt: skip


def _rates(trial: Trial) -> tuple[float, float | None]:
    """The baseline is best at the preset's rate, LGD at the highest."""
    factor = trial.experiment.schedule.lr_per_16 / preset("tiny").schedule.lr_per_16
    if trial.arm.startswith("baseline"):
        return 30.0 - abs(factor - 1.0), None
    return 20.0 + factor, 20.0


def _lengths(trial: Trial) -> tuple[float, float | None]:
    """LGD starts ten points below and overtakes after four times the steps; residual is two ahead throughout."""
    factor = trial.experiment.schedule.steps / preset("tiny").schedule.steps
    base = 30.0 + 2 * factor
    if trial.arm.startswith("baseline"):
        return base, None
    if "ours" in trial.arm:
        return base + (2.0 if "residual" in trial.arm else 1.5), base
    return base - 10.0 + 2.0 * factor, base


def _methods(trial: Trial) -> tuple[float, float | None]:
    return {"PKD": 31.5, "MGD": 27.0}.get(trial.arm, 30.0), None


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four sweeps by grid."""
    root = tmp_path_factory.mktemp("results")
    return {
        "components": made_sweep(
            root / "components-tiny", "components", lambda x: COMPONENT_AP[x.arm], ExtraArms(equal_cost=("longer",))
        ),
        "learning-rate": made_sweep(root / "learning-rate-tiny", "learning-rate", _rates),
        "schedule-length": made_sweep(root / "schedule-length-tiny", "schedule-length", _lengths),
        "methods": made_sweep(root / "methods-tiny", "methods", _methods),
    }


@pytest.fixture(scope="module")
def studies(places: dict[str, Path]) -> dict[str, Study]:
    return dict(zip(places, load_studies(places.values()), strict=True))


@pytest.fixture(scope="module")
def table(studies: dict[str, Study]) -> pd.DataFrame:
    return comparisons(studies.values())


def _text(study: Study, table: pd.DataFrame) -> str:
    return study_page(study, table[table["study"] == study.name])


def _cells(text: str, first: str) -> list[str]:
    line = next(x for x in text.splitlines() if x.startswith(f"| {first} "))
    return [x.strip() for x in line.split("|")[1:-1]]


def _row(table: pd.DataFrame, arm: str, kind: str) -> pd.Series:
    (row,) = [row for _, row in table[(table["arm"] == arm) & (table["kind"] == kind)].iterrows()]
    return row


def test_the_page_of_a_components_study(studies: dict[str, Study], table: pd.DataFrame) -> None:
    study = studies["components"]
    text = _text(study, table)
    assert "RetinaNet" not in study.families[0].detector or len(study.families) == 1
    for words in (
        "python ablations/run.py --grid components --preset tiny --seeds 3 --equal-cost longer --output results/",
        "- LGD residual (ours): +2.0 AP [", "over 3 seeds for 2.00x the training cost",
        "the same cost spent on longer training of baseline: +4.0", "LGD residual (ours) over longer training: -2.0 [",
        "LGD residual (ours)'s gain is +3.0", "from its second loss (ours without imitation) and -1.0",
        "from imitation; more training at the same cost gives +4.0",
        "- ours without mapper over LGD residual (ours): -3.0 [-3.0, -3.0], 3 seeds.",
        "the teacher never beat the student, which says nothing for or against LGD at full length",
        "0 of 3", "0.25",
    ):  # fmt: skip
        assert words in text, words
    assert _cells(text, "LGD residual (ours)")[:3] == ["LGD residual (ours)", "3", "34.0"]
    assert set(re.findall(r"\]\((\S+\.png)\)", text)) >= {"gain-against-cost.png"}


def test_each_variant_is_compared_with_the_arm_it_is_nearest_to(table: pd.DataFrame) -> None:
    nearest = {row["arm"]: row["other"] for _, row in table[table["kind"] == "LGD"].iterrows()}
    assert nearest == {
        "LGD residual (ours)": "LGD", "own-label start (ours)": "LGD",
        **{f"ours without {x}": "LGD residual (ours)" for x in ("imitation", "encoder", "adapter", "mapper")},
    }  # fmt: skip
    never = {
        arm: bool(_row(table, arm, kind)["never_ahead"]) for arm, kind in (("LGD", "equal time"), (LONGER, "longer"))
    }
    assert never == {"LGD": True, LONGER: False}
    assert not _row(table, "LGD residual (ours)", "equal time")["never_ahead"]
    assert _row(table, "LGD residual (ours)", "equal time")["gain"] == pytest.approx(-2.0)
    assert _row(table, LONGER, "longer")["gain"] == pytest.approx(4.0)


def test_the_page_of_a_study_of_rates(studies: dict[str, Study], table: pd.DataFrame) -> None:
    text = _text(studies["learning-rate"], table)
    assert "Best learning rates differ (batch of 8): baseline 0.015 (AP 32.0), LGD 0.06 (AP 26.0)." in text
    assert "LGD is best at 0.06, the highest learning rate tried: its best may lie beyond." in text
    assert "![AP against the learning rate, an arm a line.](learning-rate.png)" in text


def test_the_page_of_a_study_of_lengths(studies: dict[str, Study], table: pd.DataFrame) -> None:
    text = _text(studies["schedule-length"], table)
    # From -2 at 4 times the steps to +6 at 8 times: a quarter of the way, in the logarithm.
    assert f"LGD overtakes baseline at {640 * 2**0.25:.0f} steps [" in text
    assert "At equal cost LGD" in text
    assert "(schedule-length.png)" in text
    assert "80 / 160 / 320 / 640 / 1280 steps" in text
    table_at_cost = text.partition("## At equal steps and at equal cost")[2]
    assert _cells(table_at_cost, "80")[3].startswith("-10.0 [")


def test_the_page_of_a_study_of_methods(studies: dict[str, Study], table: pd.DataFrame) -> None:
    text = _text(studies["methods"], table)
    assert _cells(text, "PKD")[3].startswith("+1.5 [")
    assert "tf-KD" in text


def test_the_gain_at_equal_cost_is_read_between_lengths(studies: dict[str, Study]) -> None:
    """LGD costs twice as much a step: its steps are compared with twice as many of the baseline."""
    (base, lgd), *_ = pairs(length_curves(studies["schedule-length"].records))
    found = at_equal_cost(base, lgd)
    assert list(found) == [80, 160, 320, 640]
    # At factor f LGD has 20 + 4 f; the baseline at 2 f has 30 + 4 f.
    assert [x.mean for x in found.values()] == pytest.approx([-10.0] * 4)
    assert at_equal_cost(lgd, base).keys() == {160, 320, 640, 1280}
    # Not between lengths that lie far apart, but at them.
    sparse = replace(base, points={x: base.points[x] for x in (80, 320, 1280)})
    half = replace(lgd, points={x: lgd.points[x] for x in (80, 320)})
    assert at_equal_cost(sparse, half) == {}
    assert at_equal_cost(replace(sparse, points={x: base.points[x] for x in (80, 160)}), half).keys() == {80}


@pytest.mark.parametrize(("cost", "expected"), [(1.0, 20.0), (1.04, 20.0 + 10 * math.log2(1.04)), (1.06, None)])
def test_the_baselines_line_goes_a_little_beyond_its_last_length(
    studies: dict[str, Study], cost: float, expected: float | None
) -> None:
    (found, _), *_ = pairs(length_curves(studies["schedule-length"].records))
    machine: dict[int, tuple[str, ...]] = {0: ("cpu", "2")}
    base, arm = (
        replace(
            found,
            points={100.0: {0: 10.0}, 200.0: {0: 20.0}},
            costs={100.0: {0: 1.0}, 200.0: {0: 2.0 * factor}},
            machines={100.0: machine, 200.0: machine},
        )
        for factor in (1.0, cost)
    )
    there = at_equal_cost(base, arm)
    assert (200.0 in there) == (expected is not None)
    if expected is not None:
        assert there[200.0].mean == pytest.approx(20.0 - expected)


def test_the_first_table_has_the_presets_own_length_and_the_longest(studies: dict[str, Study]) -> None:
    """Gain, cost, gain at equal cost, imitation, and how far the teacher leads."""
    there = [studies["schedule-length"]]
    found = answers(there, comparisons(there))
    assert found is not None
    assert found.settings is not None
    rows = {(row[2], row[3]): row[4:] for row in found.settings.rows}
    assert list(rows) == [(arm, x) for arm in ("LGD", "LGD residual (ours)") for x in ("160", "1,280")]
    of_lgd, later = rows["LGD", "160"], rows["LGD", "1,280"]
    assert of_lgd[:2] == ["3", "5"], "seeds that there are, and that 0.5 AP needs"
    assert [x[:5] for x in (of_lgd[3], of_lgd[5], of_lgd[7])] == ["-8.0 ", "-10.0", "+8.0 "]
    assert (of_lgd[4], of_lgd[6]) == ("2.00x", "–")
    assert (of_lgd[8][:5], of_lgd[8][-4:], later[8]) == ("+2.0 ", "(2x)", "–"), (
        "what longer training gives the baseline"
    )
    assert [x[:5] for x in (later[3], later[5], later[7])] == ["+6.0 ", "–", "-6.0 "]
    assert rows["LGD residual (ours)", "1,280"][6] == "+0.5 [+0.5, +0.5]"


def test_other_detectors_are_beside_the_presets_own(studies: dict[str, Study], tmp_path: Path) -> None:
    """Each arm that was trained with imitation and without, by length."""
    (fcos,) = load_studies(
        [made_sweep(tmp_path / "fcos", "schedule-length", _lengths, overrides=["detector.name=fcos"])]
    )
    there = [studies["schedule-length"], fcos]
    found = answers(there, comparisons(there))
    assert found is not None
    text = {point.heading: " ".join(point.sentences) for point in found.points}
    # LGD is at -10 + 2 f over the baseline at f times the steps, its teacher at the baseline; residual at +2.
    assert text["Other detectors and data"] == (
        "In 5 settings, arms are beyond noise ahead of their baselines in 6 and behind in 4 of 10 comparisons."
        " Imitation, where it was left out for comparison, gains in 5 and loses in 0 of 5. Teachers end better than"
        " their students in 4 and worse in 6 of 10. Against a baseline of the same cost arms are ahead in 1 and behind"
        " in 6 of 8."
    )
    assert found.settings is not None
    assert [row[:4] for row in found.settings.rows[-2:]] == [
        ["FCOS", "shapes", "LGD residual (ours)", x] for x in ("160", "1,280")
    ]
    assert found.settings.rows[-1][4:] == [
        "3", "5", "48.0", "+2.0 [+1.3, +2.7]", "2.00x", "–", "+0.5 [+0.5, +0.5]", "-2.0 [-2.7, -1.3]", "–",
    ]  # fmt: skip


def test_other_data_are_beside_the_presets_own(studies: dict[str, Study], tmp_path: Path) -> None:
    place = made_sweep(
        tmp_path / "voc", "components", lambda x: COMPONENT_AP[x.arm], ExtraArms(equal_cost=("longer",)),
        ["data.source=voc:/data/bccd", "data.min_sizes=[256]", "schedule.lr_per_16=0.02"],
    )  # fmt: skip
    other = made_sweep(
        tmp_path / "weight", "components", lambda x: COMPONENT_AP[x.arm], None, ["method.instructive_weight=2"]
    )
    there = [studies["components"], *load_studies([place, other])]
    found = answers(there, comparisons(there))
    assert found is not None
    assert found.components is there[0]
    assert found.settings is not None
    lgd, residual = found.settings.rows[-2:]
    assert lgd[:7] == ["RetinaNet", "bccd", "LGD", "160", "3", "5", "32.0"]
    assert residual[7].startswith("+2.0 [")
    assert residual[9].startswith("-2.0 [")
    assert residual[10].startswith("-1.0 [")
    assert residual[12] == "+4.0 [+4.0, +4.0] (2x)"


def test_trainings_from_scratch_are_beside_the_presets_own(studies: dict[str, Study], tmp_path: Path) -> None:
    """At preset nano; with the method changed they are a study of something else."""
    place, other = (
        made_sweep(tmp_path / name, "schedule-length", _lengths, None, [changed], size="nano")
        for name, changed in (("scratch", "data.source=voc:/data/bccd"), ("weight", "method.instructive_weight=2"))
    )
    there = [studies["components"], *load_studies([place, other])]
    assert [x.preset for x in there] == ["tiny", "nano", "nano"]
    found = answers(there, comparisons(there))
    assert found is not None
    assert found.settings is not None
    rows = [row[:4] for row in found.settings.rows if row[0] != "RetinaNet"]
    assert rows == [
        ["RetinaNet from scratch", "bccd", arm, steps]
        for arm in ("LGD", "LGD residual (ours)")
        for steps in ("500", "4,000")
    ]
    text = page(there, comparisons(there), Path("docs/evidence.md"))
    assert "from scratch: preset `nano`" in text


def test_methods_on_other_data_are_beside_the_presets_own(studies: dict[str, Study], tmp_path: Path) -> None:
    place = made_sweep(
        tmp_path / "voc", "methods", _methods, None, ["data.source=voc:/data/bccd", "data.min_sizes=[256]"]
    )
    there = [studies["components"], studies["methods"], *load_studies([place])]
    found = answers(there, comparisons(there))
    assert found is not None
    assert found.settings is not None
    arms = {row[2]: row for row in found.settings.rows if row[1] == "bccd"}
    assert "PKD (tf_efficientnet_lite2, ImageNet, weight 0.01)" in arms
    rows = {arm.partition(" (")[0]: row for arm, row in arms.items()}
    assert len(rows) == 10
    assert rows["PKD"][7].startswith("+1.5 [")
    assert rows["MGD"][7].startswith("-3.0 [")
    own = next(point for point in found.points if point.heading.startswith("All methods"))
    assert own.study is there[1]


def test_the_evidence_page_opens_with_the_default_preset(
    studies: dict[str, Study], table: pd.DataFrame, tmp_path: Path
) -> None:
    text = page(list(studies.values()), table, tmp_path / "docs" / "evidence.md")
    assert "[What each study says](evidence-studies.md)" in text
    of_studies = page(list(studies.values()), table, tmp_path / "docs" / "evidence.md", STUDIES_TEMPLATE)
    plain = " ".join(f"{text} {of_studies}".split())
    for words in (
        "RetinaNet on tf_efficientnet_lite0 with ImageNet weights, trained for 160 steps of 8 on 1000 synthetic"
        " images of 128 pixels (preset `tiny`), on 2 CPU cores:",
        "**LGD residual (ours) is not worth it here: longer training is the better use of that cost.**",
        "RetinaNet | shapes | LGD | 1,280 | 3 |",
        "The baseline trained for as much as LGD residual (ours) cost gains +4.0 AP [+4.0, +4.0] over itself;",
        "from its second loss (ours without imitation) and -1.0",
        "The teacher of LGD was ahead of its student at any evaluation in 0 of 3 seeds, and ended -15.0 AP [",
        "these differ beyond noise from the arm that each is a variant of: LGD residual (ours) over LGD +7.0",
        "Within noise of theirs: ours without adapter.",
        "Best learning rates differ",
        "More AP than the baseline, beyond noise: 1 of 10 methods (PKD +1.5 [", "noise: 1 of 10 methods (MGD -3.0 [",
        "By chance alone 0.5 of 10 such intervals leave zero out.",
        "no evidence for or against a method at its authors' size: a training of the paper sees 2,250 times as many",
    ):  # fmt: skip
        assert words in plain, words
    assert "- *The components* ([study](../../" in plain
    assert "Older studies" not in text
    assert len(text.splitlines()) <= 65
    assert max(len(x) for x in text.splitlines() if not x.startswith(("|", "!", "- †", "- equal"))) <= 132


def test_without_equal_cost_arms_the_study_of_lengths_answers(studies: dict[str, Study]) -> None:
    """As LGD costs twice as much, 160 of its steps are compared with 320 of the baseline, 640 with 1,280."""
    whole = studies["components"]
    kept = tuple(run for run in whole.runs if "at the cost of" not in run.record.arm)
    there = [Study(whole.directory, kept, whole.grid), studies["schedule-length"]]
    found = answers(there, comparisons(there))
    assert found is not None
    text = {point.heading: " ".join(point.sentences) for point in found.points}
    assert (
        "LGD residual (ours) over a baseline that cost as much, read between its lengths: +0.0 [-0.7, +0.7] AP after"
        " 160 steps, -6.0 [-6.7, -5.3] AP after 640 steps."
    ) in text["At equal cost"]
    split = text["More training, second loss, imitation"]
    assert "More training alone gives the baseline +2.0 [+2.0, +2.0] after 2 times the steps" in split
    assert "and -1.0" in split
    alone = answers(there[:1], comparisons(there[:1]))
    assert alone is not None
    assert "Not measured" in alone.brief[-1]


def test_the_figure_and_the_readme_follow_the_components_study(studies: dict[str, Study], table: pd.DataFrame) -> None:
    rows = figure_rows(list(studies.values()), table)
    assert {row["study"] for row in rows} == {"components-tiny"}
    assert {(row["arm"], row["kind"]) for row in rows} >= {("LGD", "baseline"), (LONGER, "longer")}
    text = readme(list(studies.values()), table, f"# A\n\n{MARKS[0]}\nold\n{MARKS[1]}\n\nB\n")
    assert text.startswith(f"# A\n\n{MARKS[0]}\nRetinaNet on tf")
    assert text.endswith(f"{MARKS[1]}\n\nB\n")
    assert "old" not in text
    assert "LGD residual (ours): +2.0 AP [" in " ".join(text.split())


def test_part_of_a_sweep_makes_pages_and_claims_nothing(places: dict[str, Path], tmp_path: Path) -> None:
    """One seed of two arms, and what follows from that."""
    part = made_sweep(tmp_path / "components-tiny", "components", lambda x: COMPONENT_AP[x.arm])
    for path in part.glob("trials/*/record.json"):
        if not path.parent.name.endswith("seed0") or path.parent.name[:8] not in ("baseline", "lgd-seed"):
            path.unlink()
    output, kept = tmp_path / "docs" / "evidence.md", tmp_path / "kept"
    assert kept_name(part) == "components_tiny_2cores_2025-01-02"
    assert main([str(part), "--keep", str(kept), "--output", str(output)]) == 0
    there = kept / "components_tiny_2cores_2025-01-02"
    assert {x.name for x in there.iterdir()} >= {"README.md", "sweep.json", "records.csv", "table.md", "trials"}
    assert not list(there.glob("**/*.pth"))
    text = output.read_text(encoding="utf-8")
    assert "Whether LGD is worth it here cannot be said" in " ".join(text.split())
    # No figure from one seed.
    assert "![" not in text
    # It goes on under the same name; and a name that says all is left as it is.
    whole = made_sweep(tmp_path / "components-tiny", "components", lambda x: COMPONENT_AP[x.arm])
    assert kept_name(whole) == kept_name(there) == there.name


def test_figures_of_a_study_are_those_its_page_shows(studies: dict[str, Study], table: pd.DataFrame) -> None:
    study = studies["learning-rate"]
    drawn = {x.name for x in draw_study(study)}
    assert drawn == {"learning-rate.png", "learning-rate.svg"}
    assert set(re.findall(r"\]\((\S+\.png)\)", _text(study, table))) == {"learning-rate.png"}


def test_the_newest_unchanged_study_of_the_default_preset_answers(studies: dict[str, Study]) -> None:
    study = studies["components"]
    older = Study(study.directory.with_name("older"), tuple(
        run._replace(record=run.record.model_copy(update={"finished": "2024-01-01T00:00:00+00:00"}))
        for run in study.runs
    ), study.grid)  # fmt: skip
    changed, repeated = (
        Study(study.directory.with_name(name), tuple(
            run._replace(record=run.record.model_copy(
                update={"finished": "2026-01-01T00:00:00+00:00", "overrides": (override,)}
            ))
            for run in study.runs
        ), study.grid)
        for name, override in (("changed", "schedule.batch=4"), ("repeated", "seed=5"))
    )  # fmt: skip
    assert newest([older, study, changed, repeated], "components") is study
    assert newest([changed, repeated], "components") is repeated
    assert newest([study], "methods") is None
    assert answers([], comparisons([])) is None
