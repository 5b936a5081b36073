"""Two sweeps that share arms and seeds under different settings are shown both, told apart by what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.load import load_runs
from analysis.table_builders.build import build
from analysis.tables import main
from analysis.variants import variants

from .conftest import MakeRecord


@pytest.fixture
def sweeps(make_record: MakeRecord, tmp_path: Path) -> tuple[Path, Path]:
    """The same arms and seeds for 600 steps and, better by ten points, for 900."""
    found = tmp_path / "short", tmp_path / "long"
    for directory, steps, better in zip(found, (600, 900), (0.0, 10.0), strict=True):
        for arm, ap in (("baseline", 20.0), ("LGD", 22.0)):
            for seed in range(2):
                record = make_record(arm, seed, ap + seed + better + (better if arm == "LGD" else 0.0), 10.0)
                experiment = record.experiment.override({"schedule.steps": steps})
                overrides = [f"schedule.steps={steps}"] if better else []
                record = record.model_copy(update={"experiment": experiment, "overrides": overrides})
                record.save(directory / "trials" / f"{arm}-seed{seed}")
    return found


def test_both_are_shown_each_with_its_own_reference(
    sweeps: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, sweeps), "--table", "components", "--resamples", "0"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells["LGD (schedule.steps=600)"][:2] == ["2", "22.5"]
    assert cells["LGD (schedule.steps=900)"][:2] == ["2", "42.5"]
    assert cells["baseline (schedule.steps=600)"][4] == cells["baseline (schedule.steps=900)"][4] == "reference"
    assert cells["LGD (schedule.steps=600)"][4].startswith("+2.0 [")
    assert cells["LGD (schedule.steps=900)"][4].startswith("+12.0 [")
    assert len(cells) - 1 == 4


def test_the_front_has_both(sweeps: tuple[Path, Path]) -> None:
    frame = build("gpu-hours", load_runs(*sweeps))[0]
    assert frame[["arm", "mark"]].values.tolist() == [
        [arm, label]
        for arm in ("LGD", "baseline")
        for label in ("nano, changed: schedule.steps=900", "nano: schedule.steps=600")
    ]  # fmt: skip
    assert frame["gain"].fillna(0.0).tolist() == [12.0, 2.0, 0.0, 0.0]


def test_runs_of_one_setting_keep_their_names(sweeps: tuple[Path, Path]) -> None:
    (one,) = variants(load_runs(sweeps[0]))
    assert one.label == ""
    assert {run.record.arm for run in one.runs} == {"baseline", "LGD"}
    # What was trained in one of the settings alone has no row in the other.
    for path in sweeps[1].glob("trials/LGD*/record.json"):
        path.unlink()
    assert build("components", load_runs(*sweeps), resamples=0)[0]["arm"].tolist() == [
        "baseline (schedule.steps=600)", "LGD (schedule.steps=600)", "baseline (schedule.steps=900)",
    ]  # fmt: skip


def test_seeds_and_machines_make_no_variants(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record("LGD", 0, 20.0)
    moved = record.experiment.override({"seed": 1, "threads": 5, "evaluation.every": 7})
    record.save(tmp_path / "trials" / "a")
    record.model_copy(update={"experiment": moved}).save(tmp_path / "trials" / "b")
    (one,) = variants(load_runs(tmp_path))
    assert (one.label, len(one.runs)) == ("", 2)
