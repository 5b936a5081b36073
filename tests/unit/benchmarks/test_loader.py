"""The loader's benchmark runs and writes a row for either loader, with where it ran."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import loader as module
from benchmarks.loader import main
from tests.helpers_data import REPOSITORY, write_coco


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"coco-json:{write_coco(tmp_path / 'data')}", "--size", "40", "24", "--workers", "0"]
    few = ["--batch", "2", "--batches", "2", "--rounds", "3", "--output", str(tmp_path / "out")]
    assert main([*arguments, *few]) == 0
    rows = list(csv.DictReader((tmp_path / "out/loader.csv").open()))
    assert [row["loader"] for row in rows] == ["lgd", "detectron2"] * 2
    assert [row["size"] for row in rows] == ["40", "40", "24", "24"]
    for row in rows:
        assert 0 < float(row["least"]) <= float(row["images_per_second"]) <= float(row["most"])
        assert row["cpu"]
        assert row["data"] == "data"
    assert capsys.readouterr().out.count("images/s") == 4


def test_what_was_prefetched_is_used_up_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each begins every second round."""
    asked: list[tuple[str, int]] = []

    def loader(name: str) -> Callable[..., str]:
        return lambda *_: name

    def measure(name: str, batches: int) -> float:
        asked.append((name, batches))
        return 1.0

    monkeypatch.setattr(module, "lgd_loader", loader("lgd"))
    monkeypatch.setattr(module, "detectron2_loader", loader("detectron2"))
    monkeypatch.setattr(module, "measure", measure)
    options = argparse.Namespace(batches=10, rounds=2, max_size=1, cached=False, batch=8)
    module.compare(SimpleNamespace(source="x"), options, 200, 3)  # type: ignore[arg-type]
    turns = [("detectron2", 7), ("detectron2", 10), ("lgd", 7), ("lgd", 10)]
    assert asked[2:] == turns + turns[2:] + turns[:2]


def test_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"voc:{tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_is_quick_and_nothing_but_help() -> None:
    """torch's FutureWarnings used to come first."""
    for command in (["benchmarks/loader.py"], ["-m", "benchmarks.loader"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command, "--help"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith("usage: ")
        others = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        assert others == []
        assert not any(line.split("|")[-1].strip() in ("torch", "detectron2") for line in done.stderr.splitlines())


def test_wrong_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes", "--workers", "-1"]) == 2
    assert capsys.readouterr().err == "error: --workers [-1]: at least 0\n"
    assert main([]) == 2
    assert "name a DATASET" in capsys.readouterr().err
