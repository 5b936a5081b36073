"""The benchmark of a step's speed: rows, table, and one small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import speed
from benchmarks.options import RESULTS
from benchmarks.speed import arms, changes, forms, main
from benchmarks.speed_table import markdown, read, reference
from benchmarks.timer_spec import NAIVE, OPTIMIZATIONS, OURS
from lgd.config.presets import NANO, PAPER
from lgd.errors import InputError

SMALL = NANO.override({"detector.backbone.width": 8, "detector.channels": 16, "threads": 1, "schedule.batch": 2})


def test_the_rows_are_pairs_of_one_training() -> None:
    pairs = arms(NANO)
    for plain, ours in zip(pairs[::2], pairs[1::2], strict=True):
        assert (plain.arm, plain.side, ours.side) == (ours.arm, NAIVE, OURS)
        assert (plain.without, ours.without) == (OPTIMIZATIONS, ())
        assert plain.experiment.override({"memory_format": "auto"}) == ours.experiment
    assert len({row.arm for row in pairs}) == 8
    assert [x.side for x in changes(NANO, ["fast losses"])] == ["naive", "ours", "ours without fast losses"]
    with pytest.raises(InputError, match="--changes fast: choose from joint head"):
        changes(NANO, ["fast"])
    rows = changes(NANO)
    assert [row.without for row in rows] == [OPTIMIZATIONS, (), *((x,) for x in OPTIMIZATIONS[:-1]), ()]
    on_gpu = [row.without for row in changes(NANO, on_gpu=True)]
    assert on_gpu == [OPTIMIZATIONS, (), *((x,) for x in OPTIMIZATIONS), ()]
    assert len({row.name for row in rows}) == len(rows)


def test_the_forms_of_a_gpus_step() -> None:
    rows = forms(PAPER)
    assert len({row.name for row in rows}) == len(rows)
    assert [r.arm for r in rows if r.without] == ["baseline"] * 2 + ["LGD"] * 2
    assert not any(row.experiment.compile for row in rows)
    assert {row.experiment.method.name for row in rows if row.arm == "FGFI"} == {"fgfi"}
    compiled = forms(PAPER, compiler="eager")
    assert [(row.arm, row.side, row.experiment.compile, row.compiler) for row in compiled] == [
        (arm, f"ours {precision}{' compiled' if there else ''}", there, "eager" if there else "")
        for arm in ("baseline", "LGD", "FGFI", "FGFI's teacher in training")
        for precision in ("fp32", "bf16")
        for there in (False, True)
    ]
    assert all(row.experiment.precision in row.side for row in compiled)
    assert [row.arm for row in forms(PAPER, compiler="eager", named=["FGFI"])] == ["FGFI"] * 4
    with pytest.raises(InputError, match="--arms PKD: choose from baseline, LGD"):
        forms(PAPER, named=["PKD"])
    teachers = [row for row in rows if "teacher" in row.arm]
    assert {row.experiment.detector.backbone.name for row in teachers} == {"resnet101"}
    for arm in ("FGFI", "FGFI's teacher in training"):
        found = [(row.side, row.experiment.precision) for row in rows if row.arm == arm]
        assert found == [("ours fp32", "fp32"), ("ours bf16", "bf16")]


@pytest.mark.slow
def test_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # In the order in which they are given, though the second round is timed in reverse.
    monkeypatch.setattr(speed, "arms", lambda experiment: arms(SMALL)[2:4])
    output = tmp_path / "speed.csv"
    assert main(["--rounds", "2", "--steps", "2", "--drop", "0", "--side", "64", "--output", str(output)]) == 0
    frame = pd.read_csv(output)
    assert frame["side"].tolist() == [NAIVE, NAIVE, OURS, OURS]
    assert frame.groupby("side").size().to_dict() == {NAIVE: 2, OURS: 2}
    assert set(frame["precision"]) == {"fp32"}
    assert (frame["median_ms"] > 0).all()
    # Both sides begin with the same losses.
    first = frame.groupby("side")["first_loss"].first()
    assert first[NAIVE] == pytest.approx(first[OURS], rel=1e-4)
    assert (frame.loc[frame["side"] == OURS, "loss_difference"] < 1e-4).all()
    assert frame.loc[frame["side"] == NAIVE, "loss_difference"].isna().all()
    said = capsys.readouterr().out
    assert output.with_suffix(".md").read_text().strip() in said
    assert "All arms together" in said
    assert (frame["q25_ms"] <= frame["q75_ms"]).all()
    assert "other processes used" in said


def _frame(times: dict[tuple[str, str], float], **columns: Any) -> pd.DataFrame:
    described = {
        "peak_mib": 100.0, "first_loss": 2.0, "detector": "retinanet", "backbone": "resnet50", "batch": 16,
        "height": 800, "width": 1066, "objects": 7.3, "gpu": "none", "cpu": "a CPU", "torch": "2",
        "git_commit": "c" * 40, "started": "now", "command": "python", **columns,
    }  # fmt: skip
    rows = [
        {"arm": arm, "side": side, "round": turn, "median_ms": ms * (1 + turn / 10), **described}
        for (arm, side), ms in times.items()
        for turn in range(2)
    ]
    return pd.DataFrame(rows)


def test_ratios_are_taken_within_a_round() -> None:
    frame = _frame({("baseline", NAIVE): 10, ("baseline", OURS): 10, ("LGD", NAIVE): 40, ("LGD", OURS): 15})
    text = markdown(frame, reference(frame))
    assert "All arms together: **2.00x [2.00, 2.00]**" in text
    assert "2.67x [2.67, 2.67]" in text
    assert "figures of others" not in text


def test_what_the_methods_cost_on_a_gpu() -> None:
    fast = "ours bf16"
    times = {
        ("baseline", f"{NAIVE} fp32"): 270.0, ("baseline", fast): 100.0, ("LGD", f"{NAIVE} fp32"): 540.0,
        ("LGD", fast): 150.0, ("FGFI", fast): 140.0, ("FGFI's teacher in training", fast): 160.0,
    }  # fmt: skip
    frame = _frame(times, gpu="1 x NVIDIA H100 80GB HBM3")
    text = markdown(frame, reference(frame))
    assert "LGD's extra over our fastest baseline: **0.50 [0.50, 0.50]**" in text
    # 50 ms beside 40 + 160.
    assert "**0.75 [0.75, 0.75]** below" in text
    assert "3.60x" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["RetinaNet R-50 + LGD, fp32", "550", "44.6", "released LGD code"] in rows
    assert reference(_frame(times, gpu="1 x NVIDIA H100 80GB HBM3", height=320))
    assert not reference(_frame(times, gpu="1 x NVIDIA A100"))
    # What FGFI costs is not known without its teacher's training.
    without = {k: x for k, x in times.items() if "teacher" not in k[0]}
    assert "below" not in markdown(_frame(without, gpu="1 x NVIDIA A100"), [])


@pytest.mark.parametrize("block", ["speed", "changes"])
def test_renamed_sides_of_old_rows_are_shown_under_their_new_names(
    block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = RESULTS.glob(f"{block}_tiny-retinanet-fp32_*.csv")
    assert main(["--table", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "naive" in shown
    assert "straightforward" not in shown


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.csv: cannot be read"):
        read(tmp_path / "absent.csv")
    for content, complaint in ((b"", "not a CSV of measurements"), (b"arm,side\nLGD,ours\n", "no column 'round'")):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(InputError, match=complaint):
            read(tmp_path / "x.csv")


def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--rounds", "0"], "--rounds 0"),
        (["--output", "x.txt"], "--output x.txt"),
        (["--detector", "yolo"], "no detector 'yolo'"),
        (["--preset", "nano", "--arms", "LGD"], "--compile and --arms are of a GPU's step"),
        (["--preset", "nano", "--changes", "--compile"], "--compile and --arms are of a GPU's step"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert len(said.splitlines()) == 1
