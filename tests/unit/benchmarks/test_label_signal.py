"""The command that measures the label signal: a row for each stage, and its table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.label_signal import main, place

SMALL = [
    *("--set", "schedule.batch=2", "--set", "data.min_sizes=[64]", "--set", "data.max_size=64"),
    *("--set", "detector.backbone.width=8", "--set", "detector.channels=16"),
]


@pytest.mark.slow
def test_the_signal_is_measured_by_step_and_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "signal.csv"
    variants = ["--classes", "31", "--variants", "LGD,centred", "--steps", "3"]
    assert main([*variants, *SMALL, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    frame = pd.read_csv(output)
    assert set(frame["classes"]) == {31}
    assert set(frame["step"]) == {0, 3}
    stages = ["label embedding", "projection", "values", "attended", "instructive features"]
    assert set(frame["stage"]) == {*stages, "attention"}
    changes = frame[frame["stage"] != "attention"].set_index(["variant", "classes", "stage", "step"])["change"]
    assert changes.between(0, 2**0.5).all()
    # Both begin with a signal, and with more than they keep where nothing holds it.
    assert (changes.xs(0, level="step") > 0.02).all()
    lost = changes["LGD"].xs("label embedding", level="stage")
    assert (lost.xs(3, level="step") < lost.xs(0, level="step")).all()
    assert main(["--table", str(output)]) == 0
    assert capsys.readouterr().out.strip() == printed.partition("written:")[0].strip()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--variants", "LGD,loud"], "--variants loud: choose among LGD"),
        (["--classes", "3,x"], "--classes 3,x: whole numbers"),
        (["--classes", "85"], "--classes 85: 2 to 84 classes"),
        (["--classes", "1"], "--classes 1: 2 to 84 classes"),
        (["--steps", "501"], "--steps 501: from 1 to the training's schedule.steps 500"),
        (["--output", "table.md"], "give it the suffix .csv"),
    ],
)
def test_wrong_input(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


def test_a_table_of_a_part_of_the_rows_or_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "classes,variant,step,stage,change,torch,git_commit,started,command\n"
    rows = "".join(
        f"7,{variant},{step},values,0.5,2.14,c,now,typed\n" for variant, step in (("LGD", 0), ("LGD", 3), ("slow", 0))
    )
    path = tmp_path / "signal.csv"
    path.write_text(header + rows)
    assert main(["--table", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "0.50, 0.50" in printed
    assert "0.50, –" in printed
    path.write_text(header)
    assert main(["--table", str(path)]) == 2
    assert f"{path}: no rows" in capsys.readouterr().err


def test_an_object_has_a_place_by_quarter_and_size() -> None:
    assert place((0, 0, 10, 10), (100, 100)) == 0
    assert place((60, 0, 10, 10), (100, 100)) == 3
    assert place((60, 60, 20, 20), (100, 100)) == 10
    assert place((50, 50, 30, 30), (100, 100)) == 11
