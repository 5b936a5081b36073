"""Every detector, and RetinaNet on every backbone, plain and with LGD, overfits a few images.

The whole pipeline, on narrow networks.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lgd.config.experiment import Data, Detector
from lgd.config.paper_recipes import paper_defaults
from lgd.data.shapes import ShapesSpec, make
from lgd.detectors import build_detector
from lgd.results.record import EvaluationPoint, Scores
from lgd.training.progress import EVALUATIONS_FILE, Stopped
from lgd.training.run import run
from tests.helpers import DETECTORS, one_thread, quick_experiment

SIDE = 64
IMAGES, BACKBONE_IMAGES = 4, 2

AP50 = 80.0
"""What the boxes of each reach at least, percent. Seen: 90 (RetinaNet with LGD) to 100."""

MASK_AP50 = 30.0
"""The same of Mask R-CNN's masks. Seen: 47 plain, 73 with LGD; they are learnt after the boxes."""


BACKBONE_AP50 = 50.0
"""What RetinaNet reaches at least on each backbone, percent. Seen: 82 (ResNeXt-101 with DCNv2) to 100."""

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50": {},
    "resnet101": {},
    "resnext101_32x8d": {},
    "resnet50 DCNv2": {"detector.backbone.deformable": True},
    "resnet101 DCNv2": {"detector.backbone.deformable": True},
    "resnext101_32x8d DCNv2": {"detector.backbone.deformable": True},
    "swin_t": {"detector.backbone.norm": "auto"},
}

FEW_STEPS: dict[str, Any] = {
    "schedule.batch": BACKBONE_IMAGES,
    "schedule.steps": 30,
    "schedule.warmup_steps": 4,
    "schedule.milestones": [0.8],
    "schedule.lr": 0.75,
    "schedule.momentum": 0.7,
    # So small that a step is nearly the gradient's sign, whatever the depth that it came through.
    "schedule.clip": 0.001,
    "detector.backbone.width": 8,
    "detector.channels": 64,
    "detector.anchor_scale": 1.5,
}
"""Both images in each of 30 steps."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(tmp_path_factory, IMAGES)


@pytest.fixture(scope="module")
def two_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _made(tmp_path_factory, BACKBONE_IMAGES)


def _made(tmp_path_factory: pytest.TempPathFactory, count: int) -> Path:
    """A directory in COCO layout whose validation split is its training split."""
    made = make(ShapesSpec(train=count, val=1, size=SIDE, seed=2))
    root = tmp_path_factory.mktemp("images")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copytree(made / "train", root / split)
        shutil.copy(made / "annotations" / "instances_train.json", root / "annotations" / f"instances_{split}.json")
    return root


def _best(
    data: Path, directory: Path, settings: dict[str, Any], is_enough: Callable[[EvaluationPoint], bool]
) -> EvaluationPoint:
    """The scores on the training images, of the first evaluation that ``is_enough`` or of the last one."""
    experiment = quick_experiment(
        **{
            "data.source": f"coco-json:{data}",
            "data.min_sizes": [SIDE],
            "data.max_size": SIDE,
            "data.test_size": SIDE,
            "data.flip": False,
            "evaluation.every": settings["schedule.steps"] // 6,
            **settings,
        }
    )

    def points() -> list[EvaluationPoint]:
        path = directory / EVALUATIONS_FILE
        return [EvaluationPoint.model_validate_json(x) for x in path.read_text().splitlines()] if path.exists() else []

    with one_thread(), contextlib.suppress(Stopped):
        # Most reach it long before the last step.
        record = run(experiment, directory, should_stop=lambda: any(is_enough(x) for x in points()[-1:]))
        assert record.status == "finished"
        assert record.data["train_images"] == record.data["val_images"] == settings["schedule.batch"]
    return points()[-1]


def _reached(scores: Scores | None) -> float:
    assert scores is not None
    assert scores.AP50 is not None
    return scores.AP50


@pytest.mark.slow
@pytest.mark.parametrize("method", ["baseline", "lgd"])
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_overfits_four_images(name: str, method: str, images: Path, tmp_path: Path) -> None:
    """With the method's settings of the paper, and the learning rate that it has for 16 images."""
    published = paper_defaults(name, "resnet18")
    settings = {
        "detector.name": name,
        "detector.channels": 32,
        "detector.backbone.width": 16,
        # R-CNN's regions are most of its time at this size.
        "detector.fc_dim": 128,
        "detector.regions": 64,
        "detector.proposals": 100,
        "schedule.batch": 4,
        "schedule.steps": 180,
        "schedule.warmup_steps": 20,
        "method.name": method,
        **{key: value for key, value in published.items() if method == "lgd" or not key.startswith("method.")},
    }
    masks = name == "mask_rcnn"

    def is_enough(point: EvaluationPoint) -> bool:
        return _reached(point.student) > AP50 and (not masks or _reached(point.student_mask) > MASK_AP50)

    assert is_enough(_best(images, tmp_path, settings, is_enough))


def _quick_norms(settings: Detector, num_classes: int, data: Data | None = None) -> nn.Module:
    """The real detector. Its running statistics follow within the few steps that there are."""
    built: nn.Module = build_detector(settings, num_classes, data)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    return built


@pytest.mark.slow
@pytest.mark.parametrize("method", ["baseline", "lgd"])
@pytest.mark.parametrize("name", BACKBONES)
def test_retinanet_overfits_two_images_on_every_backbone(
    name: str, method: str, two_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgd.training.build.build_detector", _quick_norms)
    settings = {"detector.backbone.name": name.split()[0], "method.name": method, **FEW_STEPS, **BACKBONES[name]}

    def is_enough(point: EvaluationPoint) -> bool:
        return _reached(point.student) > BACKBONE_AP50

    assert is_enough(_best(two_images, tmp_path, settings, is_enough))
