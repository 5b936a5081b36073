"""Teachers that never led are marked; the table and the figure of what they make of their labels."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest

from analysis.arms import arms_text
from analysis.load import Run
from analysis.plots.style import STYLE
from analysis.plots.teachers import label_signal
from analysis.sweep_table import Sweep, main_table
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


def test_the_figure_of_the_labels_signal(records: list[Record]) -> None:
    runs = [Run(record, Path("/r")) for record in records]
    with mpl.rc_context(STYLE):
        figure = label_signal(runs)
        assert label_signal(runs[:2]) is None
    assert figure is not None
    assert [line.get_label() for line in figure.axes[0].lines] == ["label embedding", "instructive"]
