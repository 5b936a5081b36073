"""How much larger batches are than their images, and that synthetic ones are as large."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.padding import main, measure, resized
from lgd.config.paper import COCO_BATCH_ASPECT
from tests.helpers_data import REPOSITORY, write_coco


def test_sizes_are_resized_as_in_training() -> None:
    assert resized([(400, 800), (300, 200), (100, 1000)], 200, 500) == [(200, 400), (300, 200), (50, 500)]


def test_landscape_and_portrait_are_not_mixed() -> None:
    # Of either kind alone every batch is 100 x 200.
    assert measure([(100, 200)] * 3 + [(200, 100)], 4, 50) == {"aspect": 2.0, "pixels": 1.0}
    # Two images: half of the batches have both, which are padded from 100 x 100 and 100 x 200 to 100 x 200.
    found = measure([(100, 100), (100, 200)], 2, 4000)
    assert found["aspect"] == 2.0
    assert found["pixels"] == pytest.approx(1 + 0.5 / 3, abs=0.01)


def test_the_size_of_synthetic_images_was_measured() -> None:
    (kept,) = (REPOSITORY / "benchmarks" / "results").glob("padding_coco_tiny_*.csv")
    row = pd.read_csv(kept).iloc[0]
    assert (row["batch"], row["side"], row["max_size"]) == (16, 800, 1333)
    assert row["aspect"] == COCO_BATCH_ASPECT


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco, output = write_coco(tmp_path / "coco"), tmp_path / "x.csv"
    assert main([f"coco-json:{coco}", "--batch", "2", "--draws", "10", "--output", str(output)]) == 0
    assert pd.read_csv(output)["draws"].tolist() == [10]
    assert "batches of 2" in capsys.readouterr().out
    for arguments, words in (
        ([f"coco-json:{tmp_path}/no"], "does not exist"),
        ([str(coco), "--side", "0"], "--side 0"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
