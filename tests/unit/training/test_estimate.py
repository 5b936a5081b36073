"""The time that a training takes on a CPU, and the question whether it is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lgd.config.paper_recipes import named
from lgd.config.presets import NANO
from lgd.data.catalog import load_dataset
from lgd.errors import InputError
from lgd.training.__main__ import main
from lgd.training.estimate import cpu_seconds, pixels_per_image, training_pixels
from tests.helpers import quick_experiment

PAPER = ["retinanet_r50_2x_ms", "--method", "baseline"]


def test_the_papers_images_have_their_size() -> None:
    experiment = named("retinanet_r50_2x_ms").experiment
    # Shorter sides of 640 to 800, 4:3.
    assert 640**2 * 4 / 3 < pixels_per_image(experiment) < 800**2 * 4 / 3
    assert training_pixels(experiment) == pixels_per_image(experiment) * 16 * 180_000
    assert pixels_per_image(NANO.override({"data.min_sizes": [96], "data.max_size": 96})) == 72 * 96


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_a_step_is_measured(detector: str) -> None:
    experiment = quick_experiment(detector__name=detector)
    assert 0 < cpu_seconds(experiment) < 600


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("days", "refused"), [(40.0, True), (0.2, False)])
def test_more_than_a_day_on_a_cpu_has_to_be_meant(
    days: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is built."""

    def train(*_: object, **__: object) -> None:
        raise InputError("it would begin now")

    monkeypatch.setattr("lgd.training.teacher.train_with_teacher", train)
    monkeypatch.setattr("lgd.training.estimate.cpu_seconds", lambda _: days * 86400)
    data = load_dataset(quick_experiment().data).root
    assert main([*PAPER, "--data", f"coco-json:{data}", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert ("it would begin now" in said.err) is not refused
    assert "no GPU here" in said.out
    if refused:
        assert "180000 steps would take about 40 days on this machine's CPU" in said.err
        assert "--yes" in said.err
    else:
        assert "about 5 hours on this machine's CPU" in said.out
        assert "--yes" not in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--data", "coco-json:/nowhere"], "/nowhere"),
        (["--set", "detector.weights=/no/student.pth"], "there is no file /no/student.pth"),
        (["--workers", "3"], "schedule.batch 16 does not split over 3 workers"),
        (["--elastic", "3:2"], "--elastic 3:2"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_measured(
    wrong: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lgd.training.estimate.cpu_seconds", lambda _: 1 / 0)
    data = f"coco-json:{load_dataset(quick_experiment().data).root}"
    assert main([*PAPER, "--data", data, "--output", str(tmp_path / "out"), *wrong]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_yes_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PAPER, "--yes", "--data", "coco-json:/nowhere", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "no GPU here" not in said.out
    assert "/nowhere" in said.err


def test_an_empty_output_is_not_the_working_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PAPER, "--output", ""]) == 2
    assert "argument --output: an empty name" in capsys.readouterr().err
