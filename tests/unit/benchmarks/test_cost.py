"""The command that measures steps: the order it does so in, its files, its complaints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
import psutil
import pytest

from benchmarks import cost
from benchmarks.table7 import costs, read
from benchmarks.timer_spec import StepTimes, TimerSpec
from lgd.config.frozen_teacher import deeper
from lgd.config.presets import NANO

ROOT = Path(__file__).parents[3]

QUICK = [
    "--preset", "nano", "--side", "64", "--batch", "2", "--objects", "2", "--set", "detector.backbone.width=8",
    "--set", "method.teacher.backbone.width=8", "--set", "detector.channels=16", "--set", "detector.head_convs=1",
]  # fmt: skip

MS = {"baseline": 100.0, "fgfi": 150.0, "fgfi teacher": 120.0, "lgd": 200.0}


class FakeProcess:
    """A timing process that knows every result without building anything, and keeps what was requested of it."""

    timed: ClassVar[list[tuple[str, str, int]]] = []
    specs: ClassVar[list[TimerSpec]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, method: str, spec: TimerSpec) -> None:
        assert method == "build"
        self.spec = spec
        self.specs.append(spec)

    def receive(self) -> None: ...

    def request(self, method: str, stage: Any, warmup: int, steps: int) -> StepTimes:
        assert method == "time_steps"
        self.timed.append((self.spec.name, str(stage), warmup))
        return StepTimes((MS[self.spec.name],) * steps, 1.0, {"host": 10.0, "device": 20.0})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcess]:
    monkeypatch.setattr(cost, "TimerProcess", FakeProcess)
    FakeProcess.timed.clear()
    FakeProcess.specs.clear()
    return FakeProcess


@pytest.mark.slow
def test_methods_take_turns_and_every_second_round_runs_backwards(fake: type[FakeProcess], tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    options = ["--preset", "nano", "--rounds", "3", "--steps", "4", "--price-per-gpu-hour", "2"]
    assert cost.main([*options, "--output", str(path)]) == 0
    names = [(method, stage) for method, stage, _ in fake.timed]
    plan = [
        ("baseline", "not distilling"), ("fgfi", "not distilling"), ("fgfi", "distilling"),
        ("fgfi teacher", "not distilling"), ("lgd", "not distilling"),
        ("lgd", "distilling"),
    ]  # fmt: skip
    assert names == [*plan, *plan[::-1], *plan]
    # What is slow the first time is over before anything counts.
    assert [warmup for _, _, warmup in fake.timed] == [5] * 6 + [2] * 12
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


def test_the_four_trainings_are_built_on_equal_terms(fake: type[FakeProcess], tmp_path: Path) -> None:
    options = ["--preset", "paper", "--detector", "faster_rcnn", "--precision", "bf16", "--devices", "8"]
    options += ["--teacher-backbone", "resnext101_32x8d", "--schedule-steps", "90000", "--set", "device=cpu"]
    assert cost.main([*options, "--rounds", "1", "--output", str(tmp_path / "x.csv")]) == 0
    by_name = {spec.name: spec.experiment for spec in fake.specs}
    assert list(by_name) == ["baseline", "fgfi", "fgfi teacher", "lgd"]
    assert {x.schedule.batch for x in by_name.values()} == {2}
    assert {x.precision for x in by_name.values()} == {"bf16"}
    assert {x.detector.name for x in by_name.values()} == {"faster_rcnn"}
    assert by_name["lgd"].method.detach_appearance, "as the paper has it for R-CNN"
    assert not by_name["lgd"].method.context
    assert by_name["fgfi teacher"].detector.backbone.name == "resnext101_32x8d"
    assert by_name["fgfi teacher"].detector.backbone.weights.endswith("X-101-32x8d.pkl")
    assert len({spec.images for spec in fake.specs}) == 1
    images = fake.specs[0].images
    assert images is not None
    assert images.size == (800, 1252)
    assert images.classes == 80
    frame = pd.read_csv(tmp_path / "x.csv")
    assert set(frame["batch"]) == {16}
    assert set(frame["devices"]) == {8}
    assert frame.groupby("method")["stage_steps"].sum().to_dict() == dict.fromkeys(MS, 90_000)
    assert set(frame.loc[frame["method"] == "lgd", "stage"]) == {"frozen", "not distilling", "distilling"}


def test_a_measured_file_makes_its_table_again(
    fake: type[FakeProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    cost.main(["--rounds", "2", "--output", str(path)])
    timed, first = len(fake.timed), capsys.readouterr().out
    assert cost.main(["--table", str(path)]) == 0
    assert len(fake.timed) == timed
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
    arguments: list[str], complaint: str, fake: type[FakeProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost.main(arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not fake.timed


def test_variants_differ_in_nothing_but_the_method() -> None:
    trainings = {name: NANO.override({"method.name": name}) for name in ("baseline", "fgfi", "pkd", "ban", "labelenc")}
    found, before = cost.with_pretrainings(trainings)
    assert found["fgfi teacher"].detector.backbone == deeper(NANO.detector.backbone)
    assert len({found[x].override({"method.name": "baseline", "seed": 0}) for x in trainings}) == 1
    # A training that several need, or that is measured anyway, is measured once.
    assert list(found) == ["baseline", "fgfi", "fgfi teacher", "pkd", "ban", "labelenc", "labelenc teacher"]
    assert before == {
        "fgfi": "fgfi teacher", "pkd": "fgfi teacher", "ban": "baseline", "labelenc": "labelenc teacher"
    }  # fmt: skip


def test_a_teacher_is_measured_under_the_name_of_the_first_that_needs_it(
    fake: type[FakeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pkd", "pkd teacher"):
        monkeypatch.setitem(MS, name, 130.0)
    path = tmp_path / "x.csv"
    assert cost.main([*QUICK, "--methods", "pkd,fgfi", "--rounds", "1", "--output", str(path)]) == 0
    found = costs(read(path))
    assert found["fgfi"].pretraining is not None
    assert found["fgfi"].pretraining == found["pkd"].pretraining


def test_all_methods_are_those_that_the_detector_can_be_trained_with(
    fake: type[FakeProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pkd", "cwd", "mgd", "fgd", "labelenc", "labelenc teacher", "ban", "dml"):
        monkeypatch.setitem(MS, name, 130.0)
    path = tmp_path / "x.csv"
    assert cost.main([*QUICK, "--methods", "all", "--rounds", "1", "--output", str(path)]) == 0
    frame = read(path)
    assert "tfkd" not in set(frame["method"])
    found = costs(frame)
    assert set(found) == {"baseline", "lgd", "fgfi", "pkd", "cwd", "mgd", "fgd", "labelenc", "ban", "dml"}
    assert found["ban"].pretraining is not None
    assert found["ban"].pretraining.value == found["baseline"].overall.value
    assert found["pkd"].pretraining == found["fgfi"].pretraining
    assert found["dml"].pretraining is None
    assert "| PKD" in path.with_suffix(".md").read_text()
    assert cost.main([*QUICK, "--methods", "pkd,cwdd"]) == 2


@pytest.mark.slow
def test_the_command_measures_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "real.csv"
    assert cost.main([*QUICK, "--output", str(path), "--rounds", "2", "--steps", "2"]) == 0
    said = capsys.readouterr()
    assert said.err == "round 1 of 2\nround 2 of 2\n"
    frame = read(path)
    assert len(frame) == 12
    assert (frame["q25_ms"] <= frame["median_ms"]).all()
    assert (frame["median_ms"] <= frame["q75_ms"]).all()
    assert frame["other_cores"].between(0, psutil.cpu_count() or 1).all()
    # Each in a process that holds no other: the smaller ones, which came after LGD in the second round, stay below it.
    peaks = frame.groupby("method")["peak_mib"].max()
    assert len(peaks) == 4
    assert peaks["baseline"] < peaks["fgfi"]
    assert peaks.drop("lgd").max() < peaks["lgd"]
    assert str(path) in said.out
    assert "other processes used" in said.out


@pytest.mark.parametrize("name", ["breakdown", "cost", "roofline", "speed"])
def test_help_needs_no_torch(name: str) -> None:
    """So it is there at once, with the examples."""
    code = (
        f"import sys; sys.argv = ['{name}.py', '--help']\n"
        f"import benchmarks.{name} as command\n"
        "try: command.main()\n"
        "finally: print({'torch', 'detectron2', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("set()")
    assert f"python benchmarks/{name}.py --preset" in done.stdout
    assert done.stderr == ""
