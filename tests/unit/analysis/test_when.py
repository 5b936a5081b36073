"""When distillation gains: what a gain is made of, images and features, and what to run first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from analysis.evidence.first_run import GPUS, SEEDS, first_run
from analysis.load import Run
from analysis.plots.style import NARROW, STYLE, WIDE
from analysis.plots.when import gain_by_data, imitation_against_lead
from analysis.render import difference_text, number
from analysis.table_builders.build import build
from analysis.table_builders.gain_by_data import data_sentences, data_table, gains_by_data
from analysis.verdicts.split_gains import imitation_sentences, split_gains, split_table
from lgd.config.grids import NAMES
from lgd.config.presets import preset
from lgd.errors import InputError
from lgd.results.record import Record, Scores

from .conftest import MakeRecord, assert_texts_inside

SEEDS_HERE = range(3)


def _runs(records: list[Record]) -> list[Run]:
    return [Run(record, Path("/r") / record.name) for record in records]


def _arm(make: MakeRecord, arm: str, ap: float, changes: dict[str, Any], teacher: float | None = None) -> list[Record]:
    """Three seeds; what a seed does to both arms alike cancels but for a tenth."""
    found = []
    for seed in SEEDS_HERE:
        wobble = seed + 0.1 * len(arm) % 0.3 * seed
        of_teacher = None if teacher is None else Scores(
            AP=teacher + wobble, AP50=None, AP75=None, APs=None, APm=None, APl=None
        )  # fmt: skip
        record = make("baseline" if arm.startswith("baseline") else "LGD", seed, ap + wobble, 10.0, teacher=of_teacher)
        update = {"experiment": record.experiment.override(changes), "arm": arm}
        found.append(record.model_copy(update=update))
    return found


@pytest.fixture
def needs(make_record: MakeRecord) -> list[Record]:
    """LGD loses by its second loss, one variant gains by imitation, another by its second loss alone."""
    records = _arm(make_record, "baseline", 20.0, {})
    for arm, changes, ap, without, teacher in (
        ("LGD", {}, 17.0, 16.5, 10.0),
        ("led", {"method.adapter": False}, 25.0, 21.0, 35.0),
        ("more", {"method.residual": True}, 22.0, 22.0, 22.5),
    ):
        records += _arm(make_record, arm, ap, changes, teacher)
        records += _arm(
            make_record, f"{arm}, no imitation", without, {**changes, "method.distill_weight": 0.0}, teacher
        )
    return records


def test_gains_are_split(needs: list[Record]) -> None:
    found = {x.arm: x for x in split_gains(needs)}
    assert list(found) == ["LGD", "led", "more"]
    for x in found.values():
        assert x.reference == "baseline"
        assert x.gain
        assert x.second_loss
        assert x.imitation
        assert x.gain.mean == pytest.approx(x.second_loss.mean + x.imitation.mean)
    assert found["led"].imitation
    assert found["led"].imitation.mean == pytest.approx(4.0, abs=0.5)
    assert found["LGD"].second_loss
    assert found["LGD"].second_loss.mean == pytest.approx(-3.5, abs=0.5)
    table = split_table(needs)
    assert table is not None
    assert [row[0] for row in table.rows] == ["LGD", "led", "more"]
    said, *each = imitation_sentences(needs)
    assert [x.partition(":")[0] for x in each] == ["LGD", "led", "more"]
    assert f"of it second loss {difference_text(split_gains(needs)[1].second_loss)}, imitation +" in each[1]
    assert said.startswith("Of 3 arms the teacher is ahead of its student in the end in ")
    assert "1 (led +3.8 [" in said
    assert imitation_sentences([x for x in needs if x.experiment.seed == 0]) == []
    for layout in (WIDE, NARROW):
        with mpl.rc_context(STYLE):
            drawn = imitation_against_lead(_runs(needs), layout)
            assert drawn is not None
            assert_texts_inside(drawn)
    # One arm alone is no comparison of teachers, and without one that imitates nothing there is nothing to split.
    assert imitation_against_lead(_runs([x for x in needs if x.arm.startswith(("baseline", "LGD"))])) is None
    assert split_table([x for x in needs if "no imitation" not in x.arm]) is None


def test_the_parts_of_a_gain_are_of_the_seeds_that_all_arms_have(needs: list[Record]) -> None:
    fewer = [x for x in needs if x.arm != "led, no imitation" or x.experiment.seed < 2]
    found = {x.arm: x for x in split_gains(fewer)}["led"]
    assert found.gain
    assert found.second_loss
    assert found.imitation
    assert found.gain.seeds == found.second_loss.seeds == found.imitation.seeds == (0, 1)
    assert found.gain.mean == pytest.approx(found.second_loss.mean + found.imitation.mean)
    # Without the baseline, imitation alone is known.
    (alone, *_) = split_gains([x for x in fewer if x.arm != "baseline"])
    assert (alone.gain, alone.second_loss) == (None, None)
    assert alone.imitation


@pytest.fixture
def by_data(make_record: MakeRecord) -> list[Record]:
    """Pretrained LGD gains from few images, from scratch it loses there."""
    records = []
    scratch = {"detector.backbone.weights": "none", "detector.backbone.norm": "BN", "detector.backbone.freeze_at": 0}
    weights = {"detector.backbone.weights": "timm", "detector.backbone.name": "timm:tf_efficientnet_lite0"}
    same = {"detector.backbone.freeze_at": 2, "detector.backbone.width": "auto", "detector.backbone.norm": "auto"}
    for title, network, gains in (("ImageNet", same | weights, (3.0, 0.0)), ("random", scratch, (-3.0, 0.05))):
        for fraction, gain in zip((0.25, 1.0), gains, strict=True):
            of = {**network, "data.train_fraction": fraction}
            suffix = f", {title}, {100 * fraction:g}% of the images"
            records += _arm(make_record, f"baseline{suffix}", 20 * fraction, of)
            records += _arm(make_record, f"LGD{suffix}", 20 * fraction + gain, of)
    return [x.model_copy(update={"data": {"train_images": 400}}) for x in records]


def test_gains_by_images_and_features(by_data: list[Record]) -> None:
    rows = {x.network: x for x in gains_by_data(by_data)}
    assert list(rows) == ["pretrained", "from scratch"]
    assert {row.method for row in rows.values()} == {"LGD"}
    assert list(rows["pretrained"].cells) == [100, 400]
    assert rows["pretrained"].cells[100].gain.mean == pytest.approx(3.0, abs=0.5)
    assert rows["from scratch"].cells[100].gain.mean == pytest.approx(-3.0, abs=0.5)
    assert rows["pretrained"].cells[100].baseline == pytest.approx(6.0, abs=0.5)
    assert rows["pretrained"].cells[100].cost == pytest.approx(1.0)
    # A training that failed before it read its data has counted no images.
    early = [x.model_copy(update={"status": "failed", "reason": "why", "student": None, "data": {}}) for x in by_data]
    assert [x.label for x in gains_by_data([*by_data, *early])] == [x.label for x in rows.values()]
    table = data_table(by_data)
    assert table is not None
    assert table.header == ["", "100 images", "400 images"]
    assert [row[0] for row in table.rows][::2] == ["baseline's AP, pretrained", "baseline's AP, from scratch"]
    assert table.rows[1][1].endswith("] (3 seeds, 1.00x)")
    notes = " ".join(table.notes)
    assert "Pretrained: frozen up to stage 2, learning rate" in notes
    assert "From scratch: all layers trained, learning rate" in notes
    assert "Not judged" not in notes
    read, *said = data_sentences(by_data)
    # Four gains, and two differences between the networks.
    assert "By chance alone 0.3 of 6 such intervals" in read
    assert len(said) == 3
    assert said[0].startswith("LGD, pretrained: +3.1 [")
    assert "] for 1.00x the cost on 100 images, " in said[0]
    assert said[0].endswith("; beyond noise on 1 of 2 numbers of images.")
    assert said[-1].startswith("LGD's gain from scratch less its gain pretrained: -6.")
    assert "; beyond noise on 1 of 2. Its sign turns on 100 images (pretrained +3.1 [" in said[-1]
    for layout in (WIDE, NARROW):
        with mpl.rc_context(STYLE):
            figure = gain_by_data(_runs(by_data), layout)
            assert figure is not None
            assert {text.get_text().split("\n")[0][:2] for text in figure.axes[0].texts} >= {"+3", "-3"}
            assert {x.get_fontweight() for x in figure.axes[0].texts} == {"bold", "normal"}
            assert_texts_inside(figure)
    assert gain_by_data(_runs([x for x in by_data if x.experiment.data.train_fraction == 1])) is None


def test_gains_of_too_few_seeds_or_with_trainings_that_ended_early_are_not_judged(by_data: list[Record]) -> None:
    two = [x for x in by_data if x.experiment.seed < 2]
    (read, *said), table = data_sentences(two), data_table(two)
    assert read.endswith("was not trained.")
    assert table is not None
    assert len(said) == 2
    assert "on 100 images (2 seeds: not judged)" in said[0]
    assert said[0].endswith("(2 seeds: not judged).")
    assert any("Not judged: 4 of 4 gains" in x for x in table.notes)
    with mpl.rc_context(STYLE):
        figure = gain_by_data(_runs(two), WIDE)
        assert figure is not None
        assert {x.get_fontweight() for x in figure.axes[0].texts} == {"normal"}
    # One that diverged is missing from its arm; one more arm has none that finished.
    diverged = next(x for x in by_data if x.experiment.seed == 2 and (x.arm or "").startswith("LGD, ImageNet, 25%"))
    only = [x for x in by_data if (x.arm or "").startswith("LGD, random, 25%")]
    rest = [x for x in by_data if x is not diverged and x not in only]
    ended = [x.model_copy(update={"status": "diverged", "student": None}) for x in (diverged, *only)]
    found = {x.network: x for x in gains_by_data([*rest, *ended])}
    assert (found["pretrained"].cells[100].gain.n, found["pretrained"].cells[100].ended) == (2, 1)
    # The arm with one number of images left is shown still.
    assert list(found["from scratch"].cells) == [400]
    table = data_table([*rest, *ended])
    assert table is not None
    assert "(2 seeds, 1.00x, 1 ended early)" in table.rows[1][1]
    assert any("all trainings ended early: LGD, random, 25% of the images (3 trainings)" in x for x in table.notes)


def test_no_change_of_sign_is_told_where_one_of_the_gains_is_noise(by_data: list[Record]) -> None:
    noisy = [
        x.model_copy(
            update={"student": x.student.model_copy(update={"AP": (x.student.AP or 0) + 20 * x.experiment.seed})}
        )
        if (x.arm or "").startswith("LGD, random") and x.student
        else x
        for x in by_data
    ]
    assert data_sentences(noisy)[-1].endswith("both beyond noise.")
    assert "No change of sign is shown" in data_sentences(noisy)[-1]


@pytest.mark.parametrize("name", ["teacher-needs", "gain-by-data"])
def test_each_grid_has_its_table(name: str, needs: list[Record], by_data: list[Record]) -> None:
    records = [x.model_copy(update={"grid": name}) for x in (needs if name == "teacher-needs" else by_data)]
    frame, text = build(name, _runs(records))
    assert set(frame["arm"]) == {x.arm for x in records}
    assert text.title == ("What each gain is made of" if name == "teacher-needs" else "Gain by training images")
    # Of a sweep that has only begun, AP and cost.
    _, begun = build(name, _runs(records[:2]))
    assert begun.rows
    assert build(name, [])[1].rows == []


def test_every_grid_has_a_table() -> None:
    for name in NAMES:
        assert build(name, [])[1].title


def test_what_to_run_first_follows_from_measured_steps(tmp_path: Path) -> None:
    assert first_run(tmp_path) is None
    ms = {"baseline": 90.0, "LGD": 150.0, "FGFI": 130.0, "FGFI's teacher in training": 120.0}
    rows = [
        {"arm": arm, "side": side, "median_ms": value * factor, "batch": 16, "height": 800, "width": 1067,
         "gpu": "a GPU", "git_commit": "0123456789abcdef"}
        for arm, value in ms.items()
        for side, factor in (("ours fp32", 2.0), ("ours bf16", 0.9), ("ours bf16", 1.1), ("ours bf16", 1.0))
    ]  # fmt: skip
    directory = tmp_path / "gpu-session_x" / "speed-retinanet"
    directory.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(directory / "speed.csv", index=False)
    table = first_run(tmp_path)
    assert table is not None
    hours = {arm: preset("paper").schedule.steps * value / 3.6e6 for arm, value in ms.items()}
    teacher = hours["FGFI's teacher in training"]
    total = SEEDS * (hours["baseline"] + 2 * hours["LGD"] + 2 * hours["FGFI"] + teacher) + teacher
    assert table.rows[-1][-1] == number(total)
    # The teacher, FGFI, and a baseline that takes as long as both: one after another, on however many GPUs.
    chain = 2 * (hours["FGFI"] + teacher)
    assert chain > total / GPUS
    assert f"{GPUS} GPUs side by side need {number(chain)} hours" in table.notes[0]
    assert not math.isnan(float(table.rows[0][2]))
    # 1.565 times 800, over 1067.
    assert "about 1.17 times as many pixels" in table.notes[0]
    pd.DataFrame(rows[:4]).to_csv(directory / "speed.csv", index=False)
    with pytest.raises(InputError, match="no row of 'LGD' as 'ours bf16'"):
        first_run(tmp_path)
