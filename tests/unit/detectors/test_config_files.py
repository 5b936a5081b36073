"""Detectors from detectron2's configs: what is read, what is refused, and what is found by looking at the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lgd.detectors import build_detector, config_files
from lgd.detectors.from_elsewhere import initial_weights
from lgd.detectors.model_layout import (
    bottom_up_of,
    bottom_up_path,
    description,
    levels_of,
    pixel_statistics,
    predicts_masks,
)
from lgd.errors import InputError
from tests.helpers import CLASSES, batch
from tests.helpers_detectors import (
    NARROW_MASK_RCNN,
    NARROW_RETINANET,
    ZOO_FCOS,
    ZOO_MASK_RCNN,
    ZOO_RETINANET,
    source,
    vitdet,
)

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def test_numbers_of_classes_in_lists_are_set_and_masks_of_no_class_stay() -> None:
    heads = {
        "num_classes": 80,
        "box_predictors": [{"num_classes": 80}, {"num_classes": "${roi_heads.num_classes}"}],
        "mask_head": {"num_classes": 1},
    }
    config = OmegaConf.create({"roi_heads": heads})
    assert config_files.set_classes(config, "num_classes", CLASSES) == 2
    found = OmegaConf.to_container(config, resolve=True)
    of_each = [{"num_classes": CLASSES}] * 2
    assert found == {"roi_heads": {"num_classes": CLASSES, "box_predictors": of_each, "mask_head": {"num_classes": 1}}}
    # A detector of one class has masks of that class.
    of_one = OmegaConf.create({"roi_heads": {"num_classes": 1, "mask_head": {"num_classes": 1}}})
    assert config_files.set_classes(of_one, "num_classes", CLASSES) == 2


def test_a_config_of_the_zoo_for_the_datas_classes() -> None:
    settings = source(ZOO_RETINANET, *NARROW_RETINANET)
    detector: Any = build_detector(settings, CLASSES)
    assert (detector.num_classes, detector.head.cls_score.out_channels) == (CLASSES, 9 * CLASSES)
    assert {name: (x.stride, x.channels) for name, x in levels_of(detector).items()} == {
        f"p{i}": (2**i, 16) for i in range(3, 8)
    }
    assert bottom_up_of(detector, settings) is detector.backbone.bottom_up
    assert not predicts_masks(detector)
    line = description(detector, settings, MSRA)
    assert "p3 (stride 8), p4 (stride 16)" in line
    assert "16 channels each; bottom-up network backbone.bottom_up; images BGR, mean 103.5 116.3 123.7" in line
    assert line.endswith(f"weights {MSRA}")


def test_mask_rcnn_has_masks() -> None:
    detector: Any = build_detector(source(ZOO_MASK_RCNN, *NARROW_MASK_RCNN), CLASSES)
    assert predicts_masks(detector)
    assert detector.roi_heads.mask_head.predictor.out_channels == CLASSES


def test_weights_are_those_that_the_config_names() -> None:
    for name in (ZOO_RETINANET, ZOO_FCOS):
        settings = source(name)
        assert initial_weights(settings) == "none"
        assert initial_weights(settings.model_copy(update={"weights": "config"})) == MSRA
        assert initial_weights(settings.model_copy(update={"weights": "my.pth"})) == "my.pth"
    none = source(ZOO_RETINANET, "MODEL.WEIGHTS=", weights="config")
    assert initial_weights(none) == "none"


def test_a_yaml_file_may_be_based_on_the_zoo(tmp_path: Path) -> None:
    """By the zoo's name, or as it was in the zoo that the file was copied from."""
    found = []
    for base in ("zoo:Base-RetinaNet.yaml", "../Base-RetinaNet.yaml"):
        path = tmp_path / "mine.yaml"
        path.write_text(f"_BASE_: {base}\nMODEL:\n  RESNETS: {{DEPTH: 50}}\n")
        detector = build_detector(source(str(path), *NARROW_RETINANET), CLASSES)
        found.append([(name, x.shape) for name, x in detector.state_dict().items()])
    zoo = build_detector(source(ZOO_RETINANET, *NARROW_RETINANET), CLASSES)
    assert found[0] == found[1] == [(name, x.shape) for name, x in zoo.state_dict().items()]


def test_a_yaml_file_runs_no_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "mine.yaml", tmp_path / "ran"
    path.write_text(f"MODEL:\n  WEIGHTS: !!python/object/apply:pathlib.Path.touch [!!python/name:int {trace}]\n")
    with pytest.raises(InputError, match=r"mine\.yaml: a Python tag would run code .*_BASE_: zoo:Base-RetinaNet"):
        build_detector(source(str(path)), CLASSES)
    path.write_text("_BASE_: zoo:Base-RetinaNet.yaml\nMODEL:\n  X: !!python/object/apply:eval ['1']\n")
    with pytest.raises(InputError, match="a Python tag would run code"):
        build_detector(source(str(path)), CLASSES)


@pytest.mark.parametrize("as_base", [False, True])
def test_a_path_that_leads_out_of_the_zoo_is_no_file_of_the_zoo(as_base: bool, tmp_path: Path) -> None:
    """It begins as the zoo's files do, of which some may evaluate expressions."""
    trace, outside = tmp_path / "ran", tmp_path / "outside.yaml"
    outside.write_text(f"MODEL:\n  WEIGHTS: !!python/object/apply:os.system ['touch {trace}']\n")
    up = "/".join([".."] * (len(config_files.CONFIGS.parts) - 1))
    leads_out = f"{config_files.CONFIGS}/{up}{outside}"
    assert Path(leads_out).samefile(outside)
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {leads_out}\n")
    with pytest.raises(InputError, match="a Python tag would run code"):
        build_detector(source(str(path) if as_base else leads_out), CLASSES)
    assert not trace.exists()


@pytest.mark.parametrize("base", ["http://127.0.0.1:9/x.yaml", "['https://127.0.0.1:9/x.yaml']", "s3://bucket/x.yaml"])
def test_a_base_by_url_is_refused_in_a_line(base: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {base}\n")
    with pytest.raises(InputError, match="x.yaml is a URL: download it, and name the file") as refused:
        build_detector(source(str(path)), CLASSES)
    assert "\n" not in str(refused.value)


def test_a_lazy_config_is_found_to_be_what_it_is(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="detectron2's ViT takes its layers from timm")
    settings = source(vitdet(tmp_path), "model.backbone.net.depth=1")
    detector: Any = build_detector(settings, CLASSES)
    assert len(detector.backbone.net.blocks) == 1
    assert detector.head.cls_score.out_channels == 3 * CLASSES
    assert bottom_up_path(detector, settings) == "backbone.net"
    assert list(levels_of(detector)) == ["p3", "p4", "p5"]
    statistics = pixel_statistics(detector)
    assert statistics is not None
    assert statistics.order == "RGB"
    # It is given BGR, as all detectors here, and reads RGB.
    detector.eval()
    data, seen = batch([1]), list[Any]()
    handle = detector.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        detector(data)
    handle.remove()
    image = (data[0]["image"].flip(0) - detector.pixel_mean) / detector.pixel_std
    assert torch.equal(seen[0][0], image)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zoo:COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "trains on proposals that were computed before, which no"),
        ("zoo:COCO-Detection/rpn_R_50_FPN_1x.yaml", "proposes regions without classes"),
        ("zoo:COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "trains on keypoints, which no data set here has"),
        ("zoo:COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", "trains on semantic segmentation"),
    ],
)
def test_what_cannot_be_trained_here_is_refused_in_a_line(name: str, words: str) -> None:
    narrow = NARROW_MASK_RCNN if "PrecomputedProposals" not in name else ()
    with pytest.raises(InputError, match=words) as refused:
        build_detector(source(name, *narrow), CLASSES)
    assert str(refused.value).startswith(f"detector {name}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("zoo:COCO-Detection/retinanet.yaml", (), "no such config; COCO-Detection has .*retinanet_R_50_FPN_1x.yaml"),
        ("zoo:Coco/retinanet.yaml", (), "no such config; its groups are COCO-Detection"),
        ("zoo:../../../setup.py", (), "no such config"),
        ("/nowhere/config.yaml", (), "there is no such file"),
        (ZOO_RETINANET, ("MODEL.FPN.CHANNELS=3",), "KeyError|Non-existent key|AssertionError"),
        (ZOO_RETINANET, ("32",), "'32' is not of the form key=value"),
        (ZOO_FCOS, ("model.bakbone.out_channels=3",), "its config has no key model.bakbone.out_channels"),
        *(
            (ZOO_FCOS, (assignment,), "belong into the config file alone")
            for assignment in (
                "model._target_=os.system",
                "model[_target_]=os.system",
                'model.backbone.x=[{"\\x5ftarget_": os.mkdir, path: x}]',
                "model.x=${oc.decode:'{_tar${model.y}_: os.mkdir}'}",
            )
        ),
    ],
)
def test_slips_are_one_line(name: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        build_detector(source(name, *overrides), CLASSES)
    assert "\n" not in str(refused.value)


def test_a_lazy_config_that_does_not_say_how_many_classes_it_has(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    for text, words in (
        ("x = 1", "defines no `model`"),
        (
            "from detectron2.config import LazyCall as L\nmodel = L('builtins.dict')(a=1)",
            "no key num_classes in its model",
        ),
        (
            "from detectron2.config import LazyCall as L\nmodel = L('builtins.dict')(num_classes=1)",
            "its model is a dict",
        ),
        ("model = 1 / 0", "ZeroDivisionError: division by zero"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            config_files.build(str(path), (), CLASSES)
