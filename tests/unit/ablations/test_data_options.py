"""--train-json, --val-json and --images in every command that reads data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ablations import run as door
from ablations import sweep_command
from lgd.training import __main__ as train_command

FILES = ["--train-json", "/d/t.json", "--val-json", "/d/v.json", "--images", "/d/i"]
SOURCE = "coco-files:/d/t.json,/d/v.json,/d/i"
Main = Callable[[Sequence[str]], int]


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The data that the subcommands of a sweep are asked for; nothing is run."""
    asked: list[Any] = []

    def note(options: argparse.Namespace) -> int:
        asked.append(options.data)
        return 0

    for name, (add_options, _, summary) in sweep_command.SUBCOMMANDS.items():
        monkeypatch.setitem(sweep_command.SUBCOMMANDS, name, (add_options, note, summary))
    return asked


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (sweep_command.main, ["run", "components"]),
        (sweep_command.main, ["plan", "components"]),
        (sweep_command.main, ["search", "components"]),
        (sweep_command.main, ["resume", "/results"]),
        (door.main, ["--grid", "components"]),
        (sweep_command.main, ["resume", "/results", "--plan"]),
        (door.main, ["--resume", "/results"]),
        (door.main, ["--resume", "/results", "--dry-run"]),
    ],
)
def test_sweeps(main: Main, arguments: list[str], sources: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, *FILES]) == 0
    assert main(arguments) == 0
    assert sources == [SOURCE, None]
    assert main([*arguments, *FILES[:4]]) == 2
    assert main([*arguments, *FILES, "--data", "voc:/x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --images missing: --train-json, --val-json and --images go together",
        "error: data voc:/x and --train-json, --val-json, --images name two data sets: leave one out",
    ]


def test_the_status_of_a_sweep_takes_no_data(sources: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["--status", "/results", *FILES]) == 2
    assert "take the sweep as it is: leave out --train-json" in capsys.readouterr().err


def test_one_training(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["retinanet_r50_2x_ms", "--method", "baseline", "--show"]
    assert train_command.main([*arguments, *FILES]) == 0
    assert SOURCE in capsys.readouterr().out
    assert train_command.main([*arguments, *FILES[:2]]) == 2
    assert "--val-json and --images missing" in capsys.readouterr().err


def test_a_split_of_the_data(
    sources: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As settings of every trial, which the record keeps; a sweep that goes on has its own."""
    asked: list[list[str]] = []
    add_options, _, summary = sweep_command.SUBCOMMANDS["run"]

    def note(options: argparse.Namespace) -> int:
        asked.append(options.overrides)
        return 0

    monkeypatch.setitem(sweep_command.SUBCOMMANDS, "run", (add_options, note, summary))
    split = ["--val-fraction", "0.2", "--split-seed", "3"]
    settings = ["data.val_fraction=0.2", "data.split_seed=3"]
    assert sweep_command.main(["run", "components", "--data", "yolo:/d", "--set", "seed=1", *split]) == 0
    assert door.main(["--grid", "components", *split, "--resplit"]) == 0
    assert asked == [["seed=1", *settings], [*settings, "data.resplit=true"]]
    assert train_command.main(["finetune", "--method", "lgd", "--data", "yolo:/d", *split, "--show"]) == 0
    assert set(settings) <= set(capsys.readouterr().out.splitlines())
    assert sweep_command.main(["resume", "/results", *split]) == 2
    assert door.main(["--resume", "/results", *split]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --val-fraction: resuming takes the sweep's own split",
        "error: --resume and --status take the sweep as it is: leave out --val-fraction",
    ]
