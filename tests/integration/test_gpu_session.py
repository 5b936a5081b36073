"""The whole plan of a session on a GPU, on the CPU at toy sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.gpu_plan import plan
from benchmarks.gpu_session import has_compiler, main

pytestmark = pytest.mark.slow


def test_the_whole_plan_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry", "--output", str(tmp_path), "--minutes", "30"]) == 0
    planned = plan(compiles=has_compiler())
    state = json.loads((tmp_path / "session.json").read_text())
    assert [x["status"] for x in state["measurements"].values()] == ["done"] * len(planned), capsys.readouterr()
    frame = pd.read_csv(tmp_path / "session.csv")
    assert list(frame["measurement"]) == [x.name for x in planned]
    assert set(frame["device"]) == {"cpu"}
    assert (frame.loc[frame["measurement"] != "breakdown", "figures"].str.len() > 0).all()
    page = (tmp_path / "session.md").read_text()
    assert "no number of it means anything" in page
    assert "target" not in page
