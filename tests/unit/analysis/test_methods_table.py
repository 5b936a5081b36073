"""The table of the grid ``methods``: gains, costs with the teacher's training, and where each row is from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.load import load_runs
from analysis.render import markdown
from analysis.table_builders.build import build
from analysis.table_builders.methods_table import methods_table, methods_text
from analysis.teachers import shared_teacher_note
from lgd.config.grids import experiment_of, grid
from lgd.config.presets import NANO
from lgd.results.record import Pretraining, Record, Scores

SMALL = ["data.shapes_train=12", "data.shapes_val=6"]


def _teacher(**changes: Any) -> Pretraining:
    described = {"fingerprint": "f", "backbone": "resnet34", "steps": 9, "AP": 33.0, "reused": True, "gate": "passed"}
    return Pretraining.model_validate(described | {"device_seconds": {"training": 7200.0}} | changes)


def _save(directory: Path, arm: str, seed: int, ap: float, hours: float, **changes: Any) -> None:
    experiment = experiment_of(next(x for x in grid("methods", "nano").arms if x.name == arm), NANO, SMALL)
    scores = Scores(AP=ap, AP50=ap, AP75=ap, APs=None, APm=None, APl=None)
    record = Record(
        status="finished", grid="methods", preset="nano", arm=arm, experiment=experiment.override({"seed": seed}),
        student=scores, device_seconds={"training": 3600 * hours}, seconds={"training": 3600 * hours}, steps=500,
        data={"name": "shapes", "fingerprint": "d"},
    )  # fmt: skip
    record.model_copy(update=changes).save(directory / "trials" / f"{arm}-{seed}".replace(" ", "-"))


@pytest.fixture
def runs(tmp_path: Path) -> Any:
    for seed, base in ((0, 30.0), (1, 32.0)):
        _save(tmp_path, "baseline", seed, base, 1.0)
        _save(tmp_path, "LGD", seed, base + 1, 2.0)
        _save(tmp_path, "PKD", seed, base + 3, 1.5, pretraining=_teacher())
        _save(tmp_path, "MGD", seed, base + 2, 1.5, pretraining=_teacher(weights="zoo.pkl", hours_known=False))
    _save(tmp_path, "CWD", 0, 0, 0, status="failed", reason="the teacher's AP is 12.0", student=None)
    return load_runs(tmp_path)


def test_gains_costs_and_teachers(runs: Any) -> None:
    frame = methods_table(runs, "methods").set_index("arm")
    assert list(frame.index) == [arm.name for arm in grid("methods").arms]
    pkd = frame.loc["PKD"]
    assert (pkd["AP"], pkd["gain"], pkd["pairs"]) == (34.0, 3.0, 2)
    assert (pkd["gpu_hours"], pkd["overall_hours"], pkd["cost_ratio"]) == (1.5, 3.5, 3.5)
    assert (pkd["teacher"], pkd["teacher_AP"], pkd["teacher_hours"], pkd["gate"]) == ("resnet34", 33.0, 2.0, "passed")
    assert (pkd["inherit"], pkd["authors_inherit"]) == ("none", "none")
    assert list(frame.loc[["FGD", "LabelEnc"], "authors_inherit"]) == ["fpn_and_head"] * 2
    assert frame.loc["baseline", ["reference", "gain", "teacher"]].isna().all()
    assert frame.loc["LGD", "cost_ratio"] == 2
    # Hours that nobody said are not zero hours.
    assert frame.loc["MGD", "teacher"] == "zoo.pkl"
    assert frame["teacher_hours"].isna()["MGD"]
    assert frame.loc["CWD", "ended"] == "failed: the teacher's AP is 12.0"
    assert "softmax" in str(frame.loc["tf-KD (our definition)", "skipped"])


def test_the_table_for_people_keeps_others_figures_apart(runs: Any) -> None:
    frame, text = build("methods", runs)
    assert methods_text(runs, "methods", frame).rows == text.rows
    shown = markdown(text)
    cells = {row[0]: row for row in text.rows}
    assert cells["MGD"][9] == "not known"
    assert "PKD's authors report, on MS-COCO with other teachers: 37.4 to 40.8 (RetinaNet R-50, 2x ss" in shown
    assert not any("40.8" in cell for row in text.rows for cell in row)
    # Of the method as it is, and not of a variant of ours.
    assert sum(x.startswith("LabelEnc's authors report") for x in text.notes) == 1
    assert not any(x.startswith("LabelEnc, nothing inherited's") for x in text.notes)
    assert not any("part of their methods' own weight" in x for x in text.notes)
    assert "CWD: failed: the teacher's AP is 12.0." in text.notes
    assert "Not known, and in no hours: the training of zoo.pkl." in text.notes


def test_weights_that_are_not_the_methods_own_are_told(tmp_path: Path) -> None:
    arm = next(x for x in grid("methods", "nano").arms if x.name == "LGD")
    lighter = experiment_of(arm, NANO, [*SMALL, "method.distill_weight=0.1"])
    _save(tmp_path, "baseline", 0, 30.0, 0.001)
    _save(tmp_path, "LGD", 0, 31.0, 0.002, experiment=lighter)
    frame, text = build("methods", load_runs(tmp_path))
    assert frame.set_index("arm").loc["LGD", "distill_weight"] == 0.1
    wanted = "Distillation losses at a part of their methods' own weight (grid distill-weight): LGD 0.1."
    assert wanted in text.notes
    # Hours of seconds are not all zero.
    assert [row[4] for row in text.rows[:2]] == ["0.001", "0.002"]


def test_a_teacher_of_all_seeds_is_said(runs: Any) -> None:
    """Its chance is in no interval; of one seed, or of a teacher each, there is nothing to say."""
    note = "One teacher for all seeds, so no interval holds what another teacher would change: "
    records = [x.record for x in runs]
    assert shared_teacher_note(records) == [f"{note}MGD, PKD."]
    assert any(note in x for x in build("methods", runs)[1].notes)
    assert shared_teacher_note([x for x in records if x.experiment.seed == 0]) == []
    each = [
        x.model_copy(update={"pretraining": _teacher(fingerprint=str(x.experiment.seed))}) if x.pretraining else x
        for x in records
    ]
    assert shared_teacher_note(each) == []
