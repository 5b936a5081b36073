"""The top of a report: on what was trained, what LGD and its teacher are, and no word of what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.load import Run
from analysis.report.html_report import HOLLOW, WITH_PRETRAINING, write_page
from analysis.report.opening import LGD, RESIDUAL, trained_on, words
from analysis.table_builders.frontier import frontier, frontier_text
from analysis.table_builders.sweep_table import Sweep
from lgd.results.record import Pretraining, Record

from .conftest import MakeRecord


def _with(record: Record, *overrides: str) -> Record:
    return record.model_copy(update={"experiment": record.experiment.override(overrides)})


def test_data_images_and_steps_are_of_the_records(make_record: MakeRecord) -> None:
    counts = {"train_images": 1000, "val_images": 200}
    base, longer = (make_record("baseline", seed, 30.0, data=counts) for seed in range(2))
    assert trained_on([base]) == (
        "Data: synthetic images (shapes), 1,000 to train on, 200 to score. Trainings of 600 steps of 8 images."
    )
    of_others = [base, _with(longer, "schedule.steps=1100")]
    assert trained_on(of_others).endswith("Trainings of 600 to 1,100 steps of 8 images.")
    mine = _with(make_record("LGD", 0, 30.0), "data.source=coco-json:/data/of/mine")
    assert "1,000 to train on, 200 to score; coco-json:of/mine. Trainings" in trained_on([base, mine])
    assert trained_on([make_record("baseline", status="failed")]) == ""


def test_lgd_is_explained_where_there_is_an_arm_of_it(make_record: MakeRecord) -> None:
    base, lgd = make_record("baseline"), make_record("LGD")
    assert words([base]) == ""
    assert words([base, lgd]) == LGD
    assert words([base, lgd, _with(lgd, "method.residual=true")]) == LGD + RESIDUAL
    assert words([_with(base, "method.name=fgfi")]) == ""


@pytest.mark.slow
def test_a_page_names_what_it_has(make_record: MakeRecord, tmp_path: Path) -> None:
    """Hollow bars, and a teacher's pre-training, only where there are any."""

    def text(seeds: int, teacher: Pretraining | None = None) -> str:
        runs = [
            Run(make_record(arm, seed, 20.0 + seed * gain, 10.0, pretraining=teacher if gain > 1 else None), tmp_path)
            for arm, gain in (("baseline", 1.0), ("LGD", 2.0))
            for seed in range(seeds)
        ]
        return write_page(tmp_path, Sweep(["baseline", "LGD"], "baseline"), runs).read_text(encoding="utf-8")

    one, two = text(1), text(2)
    assert HOLLOW.strip() in one
    assert HOLLOW.strip() not in two
    assert "pre-training" not in one + two
    assert "Data: synthetic images (shapes). Trainings of 600 steps of 8 images." in one
    assert "learns to imitate the features of a teacher" in one
    teacher = Pretraining(
        fingerprint="f", backbone="resnet50", steps=9, AP=30.0, device_seconds={"training": 9.0}, reused=False
    )
    with_teacher = text(2, teacher)
    assert "pre-training counted with every run" in with_teacher
    assert WITH_PRETRAINING.partition("'")[0] in with_teacher


def test_notes_on_hours_name_a_teachers_only_where_there_is_one(make_record: MakeRecord) -> None:
    runs = [Run(make_record(arm, 0, 20.0, 10.0), Path("/r")) for arm in ("baseline", "LGD")]
    told, untold = (frontier_text(frontier(runs), pretraining=x).notes[0] for x in (True, False))
    assert "where there is none), a teacher's pre-training counted whole. gain: over" in told
    assert "where there is none). gain: over" in untold
