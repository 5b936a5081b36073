"""What is said of weights that a detector from elsewhere starts from, and that do not fit all of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from lgd.detectors import build_detector
from lgd.detectors.own_weights import load_own_weights
from tests.helpers import CLASSES
from tests.helpers_detectors import NARROW_MASK_RCNN, NARROW_RETINANET, ZOO_MASK_RCNN, ZOO_RETINANET, source

DETECTORS = {"retinanet": (ZOO_RETINANET, NARROW_RETINANET), "mask_rcnn": (ZOO_MASK_RCNN, NARROW_MASK_RCNN)}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("retinanet", "head.cls_score"),
        (
            "mask_rcnn",
            "roi_heads.box_predictor.cls_score, roi_heads.box_predictor.bbox_pred, roi_heads.mask_head.predictor",
        ),
    ],
)
def test_layers_that_do_not_fit_are_named(
    name: str, layers: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that depend on the number of classes start anew; nobody was told."""
    config, narrow = DETECTORS[name]
    settings, path = source(config, *narrow), tmp_path / "detector.pth"
    torch.save({"model": build_detector(settings, CLASSES + 1).state_dict()}, path)
    load_own_weights(build_detector(settings, CLASSES), settings, str(path))
    (line,) = [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]
    assert line == f"weights {path}: new initial values for {layers} that do not fit"
    caplog.clear()
    load_own_weights(build_detector(settings, CLASSES + 1), settings, str(path))
    assert not [x for x in caplog.records if x.levelno == logging.WARNING]


def test_of_many_layers_five_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings, path = source(ZOO_MASK_RCNN, *NARROW_MASK_RCNN), tmp_path / "detector.pth"
    detector = build_detector(settings, CLASSES)
    kept = ("backbone.", "roi_heads.mask_head.predictor")
    torch.save({"model": {x: v for x, v in detector.state_dict().items() if x.startswith(kept)}}, path)
    load_own_weights(detector, settings, str(path))
    (line,) = [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING]
    assert line.endswith(" more layers that do not fit")
    assert line.count(", ") == 4
