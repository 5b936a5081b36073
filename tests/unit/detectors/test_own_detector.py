"""The detector of docs/own-detector.md, distilled without a change to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from lgd.config.presets import NANO
from lgd.detectors.detections import in_original_pixels
from lgd.errors import InputError
from lgd.methods.distiller import student_of
from lgd.methods.feature_capture import capture_features, inject_features
from lgd.training.build import build_model
from lgd.training.export import export_student
from tests.helpers import CLASSES, batch, one_thread

PAGE = Path(__file__).parents[3] / "docs" / "own-detector.md"


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with one_thread(), EventStorage(0) as opened:
        yield opened


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's code defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    defined: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), defined)
    return defined


def test_it_trains_under_the_distiller(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = page["distiller"](CLASSES).train()
    losses = model(batch([3, 0]))
    assert set(losses) == {
        "loss_score",
        "loss_size",
        "instructive/loss_score",
        "instructive/loss_size",
        "loss_distill",
    }
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_both_sets_of_losses_fall(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = page["distiller"](CLASSES).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    data = batch([3, 2])
    totals = []
    for _ in range(60):
        losses = model(data)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append((losses["loss_size"].item(), losses["instructive/loss_size"].item()))
    assert totals[-1][0] < 0.7 * totals[0][0]
    assert totals[-1][1] < 0.7 * totals[0][1]


def test_injecting_its_own_features_reproduces_its_losses(page: dict[str, Any]) -> None:
    torch.manual_seed(0)
    detector = page["CentreDetector"](CLASSES, 16).train()
    data = batch([3, 2])
    with capture_features(detector.backbone) as capture:
        first = detector(data)
    with inject_features(detector.backbone, capture.features):
        second = detector(data)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}


def test_it_detects_and_exports_alone(page: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = page["distiller"](CLASSES)
    export_student(model, tmp_path / "student.pth")
    plain = page["CentreDetector"](CLASSES, 16).eval()
    plain.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True)["model"], strict=True)
    data = batch([1, 1])
    with torch.no_grad():
        ours, theirs = model.eval()(data), plain(data)
        with model.teacher_inference():
            with_teacher = model.student(data)
    for a, b, c in zip(ours, theirs, with_teacher, strict=True):
        assert len(a["instances"]) == 8 * 12
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert not torch.equal(a["instances"].scores, c["instances"].scores)


def test_a_command_trains_it(page: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of its function, as the page says."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "page_detector.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = NANO.override(
        {"detector.source": "page_detector:build", "detector.overrides": ["channels=8"], "method.name": "lgd"}
    )
    model = build_model(experiment, CLASSES).train()
    assert student_of(model).backbone.coarse.out_channels == 8  # type: ignore[union-attr]
    assert list(model(batch([3, 2])))[:2] == ["loss_score", "loss_size"]


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_its_boxes_are_those_of_the_original_image(page: dict[str, Any], factor: float) -> None:
    """It returns those of the image that it was given."""
    found = Instances((40, 60), pred_boxes=Boxes(torch.tensor([[6.0, 4.0, 30.0, 20.0]])), scores=torch.ones(1))
    height, width = int(40 * factor), int(60 * factor)
    scaled = in_original_pixels(found, height, width)
    assert scaled.image_size == (height, width)
    assert (scaled.pred_boxes.tensor == factor * torch.tensor([[6.0, 4.0, 30.0, 20.0]])).all()
    assert found.pred_boxes.tensor[0, 0] == 6


def test_masks_of_another_size_are_refused() -> None:
    found = Instances((40, 60), pred_masks=torch.ones(1, 40, 60))
    with pytest.raises(InputError, match="masks of 60x40 pixels for an image of 120x80"):
        in_original_pixels(found, 80, 120)
