"""What a training reports while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.training import hooks
from lgd.training.progress import Progress
from lgd.training.run import run
from tests.helpers import quick_experiment


def test_every_report_says_of_which_step_its_ap_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a step that is evaluated only after it: its AP is of the evaluation before."""
    monkeypatch.setattr(hooks.ReportProgress.__init__, "__defaults__", (0.0,))
    said: list[Progress] = []
    record = run(quick_experiment(evaluation__every=2), tmp_path, on_progress=said.append)
    curve = {x.step: x.student.AP for x in record.evaluations}
    assert [*curve] == [2, 4, 6]
    assert [(x["step"], x.get("evaluated_step")) for x in said if x["step"] in curve][:3] == [(2, 2), (4, 2), (4, 4)]
    assert all(x["AP"] == curve[int(x["evaluated_step"])] for x in said if "AP" in x)
    assert all(("AP" in x) == ("evaluated_step" in x) for x in said)
