"""Where a training may write to."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.training.__main__ import main


def test_a_sweeps_directory_is_not_trained_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    assert main(["retinanet_r50_2x_ms", "--method", "lgd", "--data", "shapes", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: {tmp_path} holds a sweep's results: choose another --output\n"
    assert said.out == ""
    assert [x.name for x in tmp_path.iterdir()] == ["sweep.json"]
