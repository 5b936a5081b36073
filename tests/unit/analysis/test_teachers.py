"""Teachers that never led are marked; the table and the figure of what they make of their labels."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from analysis.frame import frame, read_csv, write_csv
from analysis.load import Run
from analysis.plots.gain_against_cost import gain_against_cost, label
from analysis.plots.style import STYLE
from analysis.plots.teachers import label_signal
from analysis.table_builders.arms import arms_text
from analysis.table_builders.sweep_table import Sweep, main_table
from analysis.teachers import never_ahead, teachers_text
from lgd.results.record import EvaluationPoint, Record, Scores

from .conftest import MakeRecord


def _scores(ap: float) -> Scores:
    return Scores(AP=ap, AP50=None, AP75=None, APs=None, APm=None, APl=None)


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    """LGD's teacher stays behind in both seeds, that of the other arm leads at first in one."""
    found = [make_record("baseline", seed, 20.0, 10.0) for seed in range(2)]
    for arm, early in (("LGD", 5.0), ("LGD residual (ours)", 15.0)):
        for seed in range(2):
            student, teacher = _scores(21.0), _scores(18.0 + seed)
            points = [
                EvaluationPoint(
                    step=300, student=_scores(10.0 + 6 * seed), teacher=_scores(early),
                    label_signal={"label embedding": 0.95, "instructive": 0.4},
                ),
                EvaluationPoint(
                    step=600, student=student, teacher=teacher, label_use=0.2, attention=0.5,
                    label_signal={"label embedding": 0.9, "instructive": 0.0},
                ),
            ]  # fmt: skip
            found.append(make_record(arm, seed, 21.0, 20.0, teacher=teacher, evaluations=points))
    return found


def test_a_teacher_that_never_led_is_marked(records: list[Record]) -> None:
    assert never_ahead(records, "LGD")
    assert not never_ahead(records, "LGD residual (ours)")
    assert not never_ahead(records, "baseline")
    text = arms_text(records, ["baseline", "LGD", "LGD residual (ours)"], "baseline")
    column = list(text.header).index("teacher AP")
    assert [row[column] for row in text.rows] == ["–", "18.5 †", "18.5"]
    runs = [Run(record, Path("/r") / record.name) for record in records]
    noted = main_table(runs, Sweep(["baseline", "LGD", "LGD residual (ours)"], "baseline")).notes
    assert (
        "† The teacher never beat the student in LGD: this arm says nothing for or against the method at full length."
        in noted
    )


def test_the_table_of_teachers(records: list[Record]) -> None:
    text = teachers_text(records)
    assert text is not None
    assert [list(row) for row in text.rows] == [
        ["LGD", "2", "21.0", "18.5", "-2.5", "0 of 2", "0.50", "0.20"],
        ["LGD residual (ours)", "2", "21.0", "18.5", "-2.5", "1 of 2", "0.50", "0.20"],
    ]
    assert teachers_text([x for x in records if x.arm == "baseline"]) is None
    assert "in which the teacher was better at any evaluation. own label" in text.notes[0]
    # Its detection loss decides where no evaluation has its AP, and is read more often.
    unscored = [x.model_copy(update={"evaluations": [], "teacher_lead": [(1, 0.5), (2, -0.5)]}) for x in records]
    text = teachers_text([x for x in unscored if x.arm == "LGD"])
    assert text is not None
    assert text.rows[0][5] == "2 of 2"
    assert "at any evaluation (in its detection loss, where none has its AP)." in text.notes[0]


def test_records_as_csv_say_which_teachers_led(records: list[Record], tmp_path: Path) -> None:
    write_csv(frame(records), tmp_path / "records.csv")
    with (tmp_path / "records.csv").open(newline="") as file:
        told = [(row["arm"], row["seed"], row["teacher_beat_student"]) for row in csv.DictReader(file)]
    assert told == [
        *(("baseline", seed, "") for seed in "01"),
        *(("LGD", seed, "False") for seed in "01"),
        ("LGD residual (ours)", "0", "True"),
        ("LGD residual (ours)", "1", "False"),
    ]
    again = read_csv(tmp_path / "records.csv")["teacher_beat_student"]
    assert again.astype(object).where(again.notna(), None).tolist() == [None, None, False, False, True, False]


def test_the_figure_of_gains_marks_a_teacher_that_never_led(tmp_path: Path) -> None:
    common = {
        "detector": "RetinaNet", "data": "shapes", "steps": 160, "pairs": 3,
        "gain": 1.0, "gain_low": -1.0, "gain_high": 3.0, "verdict": "noise", "cost": 2.0,
    }  # fmt: skip
    rows = [
        {**common, "arm": "LGD", "kind": "baseline", "never_ahead": True},
        {**common, "arm": "LGD", "kind": "equal time", "never_ahead": True},
        {**common, "arm": "baseline at the cost of LGD", "kind": "longer", "never_ahead": False},
    ]
    assert list(map(label, rows)) == [
        "LGD †", "LGD †, against a baseline trained as long", "baseline at the cost of LGD"
    ]  # fmt: skip

    def texts(shown: list[dict[str, Any]]) -> str:
        _, svg = gain_against_cost(shown, tmp_path / "figure")
        return " ".join("".join(x.itertext()) for x in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text"))

    assert "† The teacher was never better than its student" in texts(rows)
    assert "†" not in texts(rows[2:])
    assert "RetinaNet, shapes, 160 steps, 3 seeds" in texts(rows)
    assert "160 steps, 3 to 5 seeds" in texts([rows[0], {**rows[1], "pairs": 5}, *rows[2:]])


def test_the_figure_of_the_labels_signal(records: list[Record]) -> None:
    runs = [Run(record, Path("/r")) for record in records]
    with mpl.rc_context(STYLE):
        figure = label_signal(runs)
        assert label_signal(runs[:2]) is None
    assert figure is not None
    assert [line.get_label() for line in figure.axes[0].lines] == ["label embedding", "instructive"]
    # What was measured before the first evaluation comes first.
    early = [(0, {"label embedding": 0.99}), (5, {"label embedding": 0.97})]
    runs = [Run(record.model_copy(update={"label_signal": early}), Path("/r")) for record in records[2:4]]
    with mpl.rc_context(STYLE):
        figure = label_signal(runs)
    assert figure is not None
    steps = [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines]
    assert steps == [[0, 5, 300, 600], [300, 600]]
