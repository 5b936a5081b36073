"""What a step waits for: counted operator by operator, and none in RetinaNet's step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks.wait_counter import WaitCounter, as_on_gpu
from benchmarks.waits import main
from lgd import device_waits

TOY = (
    "detector.backbone.width=8", "detector.channels=16", "detector.head_convs=1", "detector.fc_dim=32",
    "detector.regions=16", "detector.proposals=50",
)  # fmt: skip
"""The operators of a step are the same at any width."""


def test_each_kind_of_wait_is_counted() -> None:
    x = torch.tensor([3.0, 1.0, 2.0])
    with WaitCounter() as counter:
        assert float(x[0]) == 3
        assert x.tolist() == [3.0, 1.0, 2.0]
        (x > 1).nonzero()
        x[x > 1].sum()
        x[x > 1] = 0
        torch.unique(x)
        x.repeat_interleave(torch.tensor([1, 2, 0]))
    assert counter.waits == {
        "reading a number": 1,
        "reading a tensor": 1,
        "places of the true": 1,
        "boolean index": 2,
        "unique values": 1,
        "repeat_interleave": 1,
    }


def test_views_launch_nothing_and_known_sizes_wait_for_nothing() -> None:
    x = torch.ones(4, 6)
    with WaitCounter() as counter:
        x.view(6, 4).transpose(0, 1)[1:].unsqueeze(0)
    assert counter.launches == 0
    with WaitCounter() as counter:
        torch.nonzero_static(x > 1, size=3)
        x[torch.tensor([0, 2])] + 1
        torch.where(x > 0, x, 0)
        x.new_full((2, 2), 0.5)
    assert not counter.waits
    assert counter.launches >= 5


def test_the_way_of_a_gpu_is_taken_inside_the_block_only() -> None:
    x = torch.zeros(1)
    assert not device_waits.reading_waits(x)
    with as_on_gpu():
        assert device_waits.reading_waits(x)
    assert not device_waits.reading_waits(x)


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "atss", "poto", "faster_rcnn", "mask_rcnn"])
def test_a_step(tmp_path: Path, detector: str, capsys: pytest.CaptureFixture[str]) -> None:
    """None in the dense detectors' step but POTO's, whose matching is solved on the host."""
    output = tmp_path / "waits.csv"
    toy = [x for setting in TOY for x in ("--set", setting)]
    options = ["--preset", "nano", "--batch", "2", "--side", "64", "--detector", detector, *toy]
    assert main([*options, "--output", str(output)]) == 0
    assert "| detector" in capsys.readouterr().out
    frame: Any = pd.read_csv(output, keep_default_na=False).set_index(["method", "side"])
    # Of each pass: how many anchors and regions R-CNN draws from. Of both: POTO's matching.
    by_pass = int(detector.endswith("rcnn"))
    for method, passes in (("baseline", 1), ("lgd", 2)):
        ours = frame.loc[(method, "ours")].to_dict()
        assert ours["waits"] == passes * by_pass + (detector == "poto")
        assert ours["launches"] > 100
    theirs = frame[frame.index.get_level_values("side") == "detectron2's losses"]["waits"]
    # detectron2 has no losses of these two.
    assert len(theirs) == (0 if detector in ("atss", "poto") else 2)
    assert (theirs > 10).all()
    assert main(["--table", str(output)]) == 0


def test_former_losses_are_a_side_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "waits.csv"
    toy = [x for setting in TOY for x in ("--set", setting)]
    options = ["--preset", "nano", "--batch", "2", "--side", "64", "--before", "abc123", *toy]
    assert main([*options, "--output", str(output)]) == 0
    frame: Any = pd.read_csv(output)
    assert [*zip(frame["detector"], frame["method"], strict=True)] == [
        (detector, method) for detector in ("atss", "poto") for method in ("baseline", "lgd")
    ]
    assert set(frame["side"]) == {"per-image losses (before abc123)"}
    assert "by `git checkout abc123^ -- lgd/detectors/{atss,poto,common}.py && " in capsys.readouterr().out
