"""``lgd bench load``: all of it at tiny sizes, and the stub that it puts in the place of the training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from ablations.command import main
from ablations.scaling import stub_training
from lgd.results.cost_meter import HEARTBEAT_FILE, read_heartbeat
from lgd.results.record import load
from lgd.training import run
from lgd.training.progress import Stopped
from tests.helpers import quick_experiment


def test_the_stub_trains_nothing_and_leaves_the_rest_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Restored at the end.
    monkeypatch.setattr(run, "_attempt", run._attempt)
    monkeypatch.setattr(run, "_fields", run._fields)
    stub_training._patch(run)
    reported: list[float] = []
    beats: list[float] = []

    def on_progress(progress: dict[str, float | int]) -> None:
        reported.append(progress["step"])
        beats.append(read_heartbeat(tmp_path).attempts)

    experiment = quick_experiment(**{"schedule.steps": 4, "schedule.warmup_steps": 1})
    record = run.run(experiment, tmp_path, arm="LGD", grid="components", on_progress=on_progress)
    assert (record.status, record.steps, record.arm, reported) == ("finished", 4, "LGD", [1, 2, 3, 4])
    assert set(beats) == {1}
    assert load(tmp_path / "record.json") == record
    assert not (tmp_path / HEARTBEAT_FILE).exists()
    assert not (tmp_path / "student.pth").exists()
    # One that is stopped goes on from its checkpoint; each step counts once.
    again, experiment = tmp_path / "again", experiment.override({"checkpoint.every": 1})
    with pytest.raises(Stopped):
        run.run(experiment, again, on_progress=on_progress, should_stop=lambda: reported[-1] == 2)
    record = run.run(experiment, again)
    assert (record.attempts, [step for step, _ in record.losses["loss"]]) == (2, [1, 2, 3, 4])


@pytest.mark.slow
def test_the_benchmark_runs_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--trials", "6", "--records", "20,50", "--samples", "20"]
    assert main(["bench", "load", *sizes, "--output", str(tmp_path / "load.csv")]) == 0
    frame = pd.read_csv(tmp_path / "load.csv")
    assert set(frame["part"]) == {"sweep", "records", "study"}
    assert (frame["value"] >= 0).all()
    found = dict(zip(zip(frame["part"], frame["quantity"], strict=True), frame["value"].astype(float), strict=True))
    for part in ("sweep", "records", "study"):
        assert found[part, "status"] > 0
        assert found[part, "table"] > 0
        assert found[part, "report.html"] < 20
    assert found["sweep", "sweep's file handles"] > 10
    assert found["sweep", "sweep's memory"] > 50
    assert found["study", "study.db"] > 0
    assert {x.name for x in tmp_path.iterdir()} == {"load.csv", "load.md", "load.png", "load.svg"}
    assert main(["bench", "load", "--table", str(tmp_path / "load.csv")]) == 0
    assert capsys.readouterr().out.endswith((tmp_path / "load.md").read_text() + "\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "records,tables"], "--parts tables: one of sweep, records, study"),
        (["--trials", "50,51"], "--trials 51: an even number"),
        (["--records", "100,50"], "--records 100,50: rising numbers"),
        (["--samples", "many"], "--samples many: numbers, separated by commas"),
        (["--steps", "1"], "--steps 1: at least 2"),
        (["--parts", "records", "--sweep", "nowhere"], "--sweep nowhere: not a sweep's results directory"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "load", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
