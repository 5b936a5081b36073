"""The lines that ``lgd export --format detectron2`` prints: run as they are, they load the student's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lgd.config.experiment import Detector, Experiment
from lgd.detectors import build_detector
from lgd.inference.build_snippet import build_snippet
from lgd.inference.export import main
from lgd.training.export import describe_student, export_student
from tests.helpers_detectors import (
    NARROW_MASK_RCNN,
    NARROW_RETINANET,
    ZOO_FCOS,
    ZOO_MASK_RCNN,
    ZOO_RETINANET,
    source,
    uneven,
    vitdet,
)


def widened(num_classes: int, channels: int = 4, **others: Any) -> nn.Module:
    """As a user's own function, whose argument changes the weights' shapes."""
    detector = uneven(num_classes)
    detector.added = nn.Linear(channels, len(others) + 1)
    return detector


WIDENED = f"{__name__}:widened"


def written(directory: Path, settings: Detector, classes: int = 3) -> Path:
    directory.mkdir(exist_ok=True)
    experiment = Experiment(detector=settings)
    detector = build_detector(settings, classes, experiment.data)
    export_student(detector, directory / "student.pth")
    describe_student(detector, experiment, [f"class {i}" for i in range(classes)], directory, range(classes))
    return directory


def test_keys_of_a_lazy_config_are_those_of_its_numbers_of_classes() -> None:
    lines = build_snippet(source(ZOO_FCOS), 3)
    assert "cfg = model_zoo.get_config('COCO-Detection/fcos_R_50_FPN_1x.py')" in lines
    assert [x for x in lines if "num_classes" in x] == ["OmegaConf.update(cfg, 'model.num_classes', 3)"]


def check_loads(lines: list[str], run: Path) -> None:
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    expected = torch.load(run / "student.pth", weights_only=True)["model"]
    loaded = scope["detector"].state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], x) for name, x in expected.items())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (source(WIDENED), "detector = widened(3)"),
        (source(WIDENED, "channels=32"), "detector = widened(3, channels=32)"),
        (source(WIDENED, "channels=32", "a-b=x"), "detector = widened(3, **{'channels': 32, 'a-b': 'x'})"),
        (source(ZOO_RETINANET, *NARROW_RETINANET), "cfg.MODEL.RETINANET.NUM_CLASSES = 3"),
        (source(ZOO_MASK_RCNN, *NARROW_MASK_RCNN), "cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3"),
        (source(ZOO_FCOS, "model.head.conv_dims=[256]"), "OmegaConf.update(cfg, 'model.head.conv_dims', [256])"),
    ],
)
def test_the_printed_lines_load_the_weights(
    settings: Detector, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They left out what --detector-set says, and loaded a config of the zoo as if it were a file."""
    run = written(tmp_path / "run", settings)
    capsys.readouterr()
    assert main([str(run), "--format", "detectron2", "--detector", settings.source]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert line in lines
    check_loads(lines, run)


@pytest.mark.parametrize("based", ["zoo:Base-RetinaNet.yaml", ""])
def test_a_config_file(based: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """detectron2 alone does not find a file of the zoo by its name."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {based}\n" if based else "MODEL: {META_ARCHITECTURE: RetinaNet}\n")
    of_fpn = ("MODEL.BACKBONE.NAME=build_retinanet_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES=['res3','res4','res5']")
    levels = ("MODEL.RESNETS.OUT_FEATURES=['res3','res4','res5']",)
    features = ("MODEL.RETINANET.IN_FEATURES=['p3','p4','p5','p6','p7']",)
    anchors = ("MODEL.ANCHOR_GENERATOR.SIZES=[[32],[64],[128],[256],[512]]",)
    added = () if based else (*of_fpn, *levels, *features, *anchors)
    run = written(tmp_path / "run", source(str(path), *NARROW_RETINANET, *added))
    assert main([str(run), "--format", "detectron2"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert any("YamlConfig" in x for x in lines) == bool(based)
    check_loads(lines, run)


def test_a_lazy_config_that_lies_elsewhere_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(vitdet(tmp_path))
    run = written(tmp_path / "run", source(str(path), "model.head.conv_dims=[16]"))
    moved = path.rename(tmp_path / "moved.py")
    assert main([str(run), "--format", "detectron2", "--detector", str(moved)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert f"cfg = LazyConfig.load({str(moved)!r})" in lines
    check_loads(lines, run)
