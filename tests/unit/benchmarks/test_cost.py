"""The command that measures steps: the order it does so in, its files, its complaints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import pytest

from benchmarks import cost
from benchmarks.step_timer import Job, Stretch
from benchmarks.table7 import costs, read
from lgd.config.presets import TINY

ROOT = Path(__file__).parents[3]

QUICK = [
    "--side", "64", "--batch", "2", "--objects", "2", "--set", "detector.backbone.width=8",
    "--set", "method.fgfi.backbone.width=8", "--set", "detector.channels=16", "--set", "detector.head_convs=1",
]  # fmt: skip

MS = {"baseline": 100.0, "fgfi": 150.0, "fgfi teacher": 120.0, "lgd": 200.0}


class Pretender:
    """A worker that has measured everything already, and notes what it was asked."""

    asked: ClassVar[list[tuple[str, str, int]]] = []
    jobs: ClassVar[list[Job]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, what: str, job: Job) -> None:
        assert what == "build"
        self.job = job
        self.jobs.append(job)

    def receive(self) -> None: ...

    def request(self, what: str, stage: Any, drop: int, steps: int) -> Stretch:
        assert what == "stretch"
        self.asked.append((self.job.name, str(stage), drop))
        return Stretch((MS[self.job.name],) * steps, 1.0, {"host": 10.0, "device": 20.0})


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[Pretender]:
    monkeypatch.setattr(cost, "Worker", Pretender)
    Pretender.asked.clear()
    Pretender.jobs.clear()
    return Pretender


def test_methods_take_turns_and_every_second_round_runs_backwards(pretended: type[Pretender], tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    assert cost.main(["--rounds", "3", "--steps", "4", "--output", str(path), "--price-per-gpu-hour", "2"]) == 0
    names = [(method, stage) for method, stage, _ in pretended.asked]
    plan = [
        ("baseline", "free"), ("fgfi", "free"), ("fgfi", "distilling"), ("fgfi teacher", "free"), ("lgd", "free"),
        ("lgd", "distilling"),
    ]  # fmt: skip
    assert names == [*plan, *plan[::-1], *plan]
    # What is slow the first time is over before anything counts.
    assert [drop for _, _, drop in pretended.asked] == [5] * 6 + [2] * 12
    frame = pd.read_csv(path)
    assert len(frame) == 18
    assert set(frame["timed_steps"]) == {4}
    assert set(frame["memory"]) == {"device"}
    assert set(frame["peak_mib"]) == {20.0}
    assert set(frame["threads"]) == {1}
    assert frame.loc[frame["method"] == "lgd", "stage_steps"].tolist() == [83, 417, 417, 83, 83, 417]
    for column in ("gpu", "cpu", "torch", "git_commit", "command", "started"):
        assert frame[column].notna().all()
    found = costs(read(path))
    assert found["lgd"].ratio.value == pytest.approx(2)
    assert found["fgfi"].overall.value == pytest.approx((20 * 150 + 480 * 150 + 500 * 120) / 3.6e6)
    assert found["lgd"].reduction is not None
    assert found["lgd"].reduction.value == pytest.approx(1 - 100 / 170)
    assert "| LGD" in path.with_suffix(".md").read_text()


def test_the_four_trainings_are_built_on_equal_terms(pretended: type[Pretender], tmp_path: Path) -> None:
    options = ["--preset", "paper", "--detector", "faster_rcnn", "--precision", "bf16", "--devices", "8"]
    options += ["--teacher-backbone", "resnext101_32x8d", "--schedule-steps", "90000", "--set", "device=cpu"]
    assert cost.main([*options, "--rounds", "1", "--output", str(tmp_path / "x.csv")]) == 0
    by_name = {job.name: job.experiment for job in pretended.jobs}
    assert list(by_name) == ["baseline", "fgfi", "fgfi teacher", "lgd"]
    assert {x.schedule.batch for x in by_name.values()} == {2}
    assert {x.precision for x in by_name.values()} == {"bf16"}
    assert {x.detector.name for x in by_name.values()} == {"faster_rcnn"}
    assert by_name["lgd"].method.detach_appearance, "as the paper has it for R-CNN"
    assert not by_name["lgd"].method.context
    assert by_name["fgfi teacher"].detector.backbone.name == "resnext101_32x8d"
    assert by_name["fgfi teacher"].detector.backbone.weights.endswith("X-101-32x8d.pkl")
    assert len({job.images for job in pretended.jobs}) == 1
    images = pretended.jobs[0].images
    assert images is not None
    assert images.size == (800, 1067)
    assert images.classes == 80
    frame = pd.read_csv(tmp_path / "x.csv")
    assert set(frame["batch"]) == {16}
    assert set(frame["devices"]) == {8}
    assert frame.groupby("method")["stage_steps"].sum().to_dict() == dict.fromkeys(MS, 90_000)
    assert set(frame.loc[frame["method"] == "lgd", "stage"]) == {"frozen", "free", "distilling"}


def test_a_measured_file_makes_its_table_again(
    pretended: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    cost.main(["--rounds", "2", "--output", str(path)])
    asked, first = len(pretended.asked), capsys.readouterr().out
    assert cost.main(["--table", str(path)]) == 0
    assert len(pretended.asked) == asked
    again = capsys.readouterr().out
    assert first.startswith(again.rstrip("\n"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset", "huge"], "no preset 'huge'"),
        (["--detector", "yolo"], "no detector 'yolo': choose one of retinanet"),
        (["--backbone", "vgg"], "detector.backbone.name"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["--steps", "1"], "--steps 1: at least 2"),
        (["--devices", "0"], "--devices 0: at least one"),
        (["--devices", "3"], "--devices 3: a batch of 8 in 1 parts does not divide by it"),
        (["--side", "8"], "--side 8: at least 32 pixels"),
        (["--objects", "0"], "--objects 0: from 1 to 1000"),
        (["--price-per-gpu-hour", "-1"], "--price-per-gpu-hour -1: a price from 0"),
        (["--output", "x.txt"], "--output x.txt: give it the suffix .csv"),
        (["--table", "absent.csv"], "absent.csv: cannot be read"),
        (["--table", "absent.csv", "--devices", "2"], "--table takes a measurement as it is"),
        (["--schedule-steps", "10"], "must be below"),
        (["--set", "schedule.stepz=10"], "did you mean 'schedule.steps'?"),
        (["--precision", "int8"], "invalid choice: 'int8'"),
        (["--set", "precision=fp16"], "precision fp16 needs a GPU"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_input_gives_one_line(
    arguments: list[str], complaint: str, pretended: type[Pretender], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost.main(arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not pretended.asked


def test_variants_differ_in_nothing_but_the_method() -> None:
    found = cost.variants(TINY)
    assert found["fgfi teacher"].detector.backbone == TINY.method.fgfi.backbone
    same = {
        x.override({"method.name": "baseline", "seed": 0}) for x in (found["baseline"], found["lgd"], found["fgfi"])
    }
    assert len(same) == 1


@pytest.mark.slow
def test_the_command_measures_in_processes_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "real.csv"
    command = [sys.executable, str(ROOT / "benchmarks" / "cost.py"), *QUICK, "--output", str(path)]
    done = subprocess.run(
        [*command, "--rounds", "2", "--steps", "2"], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "round 1 of 2\nround 2 of 2\n"
    frame = read(path)
    assert len(frame) == 12
    assert (frame["q25_ms"] <= frame["median_ms"]).all()
    assert (frame["median_ms"] <= frame["q75_ms"]).all()
    # Four networks, each in a process that holds no other.
    assert frame.groupby("method")["peak_mib"].max().nunique() == 4
    assert str(path) in done.stdout
