"""Where a training may write to, and what it leaves there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgd.config.experiment import Experiment
from lgd.results.cost_meter import HEARTBEAT_FILE
from lgd.results.record import FILE, Record, load
from lgd.storage.store import StorageError
from lgd.training.__main__ import main
from lgd.training.progress import Progress


def test_a_sweeps_directory_is_not_trained_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    assert main(["retinanet_r50_2x_ms", "--method", "lgd", "--data", "shapes", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: {tmp_path} holds a sweep's results: choose another --output\n"
    assert said.out == ""
    assert [x.name for x in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_a_training_that_has_its_result_is_not_failed_by_what_comes_after(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(experiment: Experiment, directory: Path, **_: Any) -> Record:
        Record.model_validate({"status": status, "experiment": experiment, "finished": "now"}).save(directory)
        raise RuntimeError("the workers\ndid not end")

    monkeypatch.setattr("lgd.training.teacher.train_with_teacher", train)
    arguments = ["retinanet_r50_2x_ms", "--method", "lgd", "--data", "shapes", "--yes", "--output", str(tmp_path)]
    ended = int(status == "diverged")
    assert main(arguments) == ended
    said = capsys.readouterr()
    assert said.err.endswith(
        f"warning: the training was {status}; what failed came after it: RuntimeError: the workers did not end\n"
    )
    assert f"record: {tmp_path}/record.json" in said.out
    assert load(tmp_path / FILE).status == status
    assert not (tmp_path / "error.txt").exists()
    assert main(arguments) == ended
    assert "trained already, on now" in capsys.readouterr().out


@pytest.mark.parametrize("under_ray", [False, True])
@pytest.mark.parametrize("begun", ["", "before", "now"])
def test_a_store_that_is_away_ends_a_training_as_it_does_a_sweep(
    begun: str, under_ray: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the status of what can go on; before there is anything to go on with, it is the input that is wrong."""
    why = "s3://bucket/1.jpg: no answer for 300 s"

    def train(*_: Any, on_progress: Callable[[Progress], None], **__: Any) -> Record:
        if begun == "now":
            on_progress({"step": 1, "steps": 2, "loss": 1.0, "eta": 1.0})
        raise StorageError(why)

    if begun == "before":
        (tmp_path / HEARTBEAT_FILE).write_text("{}")
    monkeypatch.setattr("lgd.training.teacher.train_with_teacher", train)
    monkeypatch.setattr("lgd.training.worker.train_on_workers", train)
    arguments = ["retinanet_r50_2x_ms", "--method", "lgd", "--data", "shapes", "--yes", "--output", str(tmp_path)]
    assert main([*arguments, *(["--workers", "2"] if under_ray else [])]) == (3 if begun else 2)
    (*_, line) = capsys.readouterr().err.splitlines()
    assert line == (f"{why}; the same command goes on" if begun else f"error: {why}")
    assert not (tmp_path / FILE).exists()
    assert not (tmp_path / "error.txt").exists()
