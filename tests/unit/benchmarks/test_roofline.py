"""Counted FLOPs and bytes, and the bounds that follow from them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.bytes_counter import BytesCounter
from benchmarks.roofline import bounds, main, measure
from benchmarks.timer_spec import SyntheticImages
from lgd.config.presets import NANO

LIMITS = {"tflops": {"bf16": 1000.0, "fp32": 500.0}, "terabytes_per_s": 2.0, "source": "made up"}


def test_bytes_that_operators_move() -> None:
    x, y = torch.zeros(10, 10), torch.zeros(10, 10)
    with BytesCounter() as counter:
        x.view(100).t()
        assert counter.total == 0
        z = x + y
        assert counter.total == 3 * 400
        z.mul_(2)
        # Read, and written.
        assert counter.total == 3 * 400 + 2 * 400


def test_the_longer_of_two_times() -> None:
    rows = [
        {"part": "head", "direction": "forward", "gflop": 4000.0, "gbyte": 2.0},
        {"part": "head", "direction": "backward", "gflop": 6000.0, "gbyte": 2.0},
        {"part": "optimiser", "direction": "update", "gflop": 0.0, "gbyte": 4.0},
    ]
    half = bounds(pd.DataFrame(rows), LIMITS, "bf16").set_index("part")
    times = ["compute_ms", "memory_ms", "bound_ms"]
    assert list(half.loc["head"][times]) == [10.0, 1.0, 10.0]
    # The optimiser's numbers stay float32.
    assert half.loc["optimiser", "bound_ms"] == 2.0
    full = bounds(pd.DataFrame(rows), LIMITS, "fp32").set_index("part")
    assert list(full.loc["head"][times]) == [20.0, 2.0, 20.0]


def test_counts_grow_with_the_images() -> None:
    images = SyntheticImages(64, 64, 2.0, 5)
    small = NANO.override({"detector.backbone.width": 8, "detector.channels": 16})
    one, four = (_by_cut(measure(small, images, count)) for count in (1, 4))
    for cut in (("backbone", "forward"), ("mapper", "backward")):
        assert four[cut] == pytest.approx([4 * x for x in one[cut]])
    update = ("optimiser", "update")
    assert four[update] == one[update]
    assert one[update][1] > 0


def _by_cut(frame: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """GFLOP and GB of each part and direction."""
    columns = (frame[x].tolist() for x in ("part", "direction", "gflop", "gbyte"))
    return {(part, direction): [gflop, gbyte] for part, direction, gflop, gbyte in zip(*columns, strict=True)}


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "roofline.csv"
    small = ["--set", "detector.backbone.width=8", "--set", "detector.channels=16"]
    assert main(["--preset", "nano", "--side", "64", *small, "--output", str(output)]) == 0
    assert "second head pass" in capsys.readouterr().out
    assert set(pd.read_csv(output)["part"]) >= {"backbone", "encoder", "distance", "optimiser"}
    text = output.with_suffix(".md").read_text()
    assert main(["--table", str(output)]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
    assert main(["--method", "none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
