"""The whole plan of a session on a GPU, on the CPU at toy sizes."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import gpu_session
from benchmarks.gpu_plan import plan
from benchmarks.gpu_session import main, run_limited
from tests.integration.commands import ONE_BY_ONE, without_figures

pytestmark = pytest.mark.slow

MODULES = {"lgd.train": "lgd.training.__main__", "ablations/run.py": "ablations.run"}
"""Where the ``main`` of a command is, if not in the module of its file."""


def _called_here(command: Sequence[str], log: Path, seconds: float, **named: Any) -> int | None:
    """The command, called in this process: each of a process of its own would import torch and start Ray anew."""
    _, *arguments = command
    if arguments[:2] == ["-m", "pytest"]:
        return run_limited(command, log, seconds, **named)
    name, *rest = arguments[1:] if arguments[0] == "-m" else arguments
    module = importlib.import_module(MODULES.get(name) or name.removesuffix(".py").replace("/", "."))
    more = ONE_BY_ONE if name == "ablations/run.py" else []
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        status: int = module.main([*rest, *more])
    return status


def test_the_whole_plan_runs(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "run_limited", _called_here)
    with without_figures():
        assert main(["--dry", "--output", str(tmp_path), "--minutes", "30"]) == 0
    planned = plan()
    state = json.loads((tmp_path / "session.json").read_text())
    assert [x["status"] for x in state["measurements"].values()] == ["done"] * len(planned), capsys.readouterr()
    frame = pd.read_csv(tmp_path / "session.csv")
    assert list(frame["measurement"]) == [x.name for x in planned]
    assert set(frame["device"]) == {"cpu"}
    assert (frame["figures"].str.len() > 0).all()
    for name in (f"speed-{detector}-compiled" for detector in ("retinanet", "faster-rcnn")):
        for arm in ("LGD", "FGFI"):
            speeds = pd.read_csv(tmp_path / f"{name}-{arm.lower()}" / "speed.csv")
            assert set(speeds["arm"]) == {arm}
            assert set(speeds["side"]) == {f"ours {x}{y}" for x in ("fp32", "bf16") for y in ("", " compiled")}
    page = (tmp_path / "session.md").read_text()
    assert "no number of it means anything" in page
    assert "target" not in page
