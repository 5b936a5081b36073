"""torchvision's detectors: one transform a step, labels from 1, its own losses, and a student for the stock model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torchvision
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models.detection import ssdlite
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from lgd.config.experiment import Data, Experiment
from lgd.config.presets import NANO
from lgd.detectors import build_detector
from lgd.detectors.from_elsewhere import initial_weights
from lgd.detectors.model_layout import bottom_up_path, levels_of, predicts_masks
from lgd.detectors.own_weights import _places_in_ssd, load_own_weights
from lgd.detectors.torchvision_models import _detections, prepare_batch
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.training.build import build_model
from lgd.training.export import export_student
from tests.helpers import CLASSES, batch
from tests.helpers_detectors import source, torchvision_rcnn, torchvision_retinanet

RETINANET, RCNN = "tests.helpers_detectors:torchvision_retinanet", "tests.helpers_detectors:torchvision_rcnn"
STOCK: dict[str, Any] = {RETINANET: torchvision_retinanet, RCNN: torchvision_rcnn}

each = pytest.mark.parametrize("name", STOCK)

MOBILE = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"


def _images(data: list[dict[str, Any]]) -> list[Tensor]:
    """A batch's images as torchvision takes them: RGB, 0 to 1."""
    return [x["image"].flip(0) / 255 for x in data]


def _targets(data: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    return [{"boxes": x["instances"].gt_boxes.tensor, "labels": x["instances"].gt_classes + 1} for x in data]


def _model(name: str, **settings: Any) -> Distiller:
    model = build_model(NANO.override({"detector.source": name, "seed": 3, **settings}), CLASSES)
    assert isinstance(model, Distiller)
    return model


@each
def test_losses_are_the_stock_models_own(name: str) -> None:
    """By its names, for the same images and boxes, with 0 for the background and labels from 1."""
    stock, data = STOCK[name](CLASSES), batch([2, 3])
    ours: Any = build_detector(source(name), CLASSES)
    ours.load_state_dict(stock.state_dict())
    torch.manual_seed(0)
    expected = stock.train()(_images(data), _targets(data))
    torch.manual_seed(0)
    found = ours.train()(data)
    assert list(found) == list(expected)
    assert all(torch.equal(found[x], expected[x]) for x in expected)


@each
def test_lgd_sees_what_the_transform_made_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes get one transformed batch, and the teacher its boxes: half the size of those that were loaded."""
    model = _model(name, **{"detector.overrides": ["min_size=32", "max_size=48"]}).train()
    data, resized, seen = batch([2, 3], (64, 96)), list[int](), list[Any]()
    once, forward = GeneralizedRCNNTransform.resize, cast(Any, model.teacher.forward)

    def resize(*arguments: Any) -> Any:
        resized.append(1)
        return once(*arguments)

    def teach(capture: Any, labels: Any) -> Any:
        seen.append((capture, labels))
        return forward(capture, labels)

    monkeypatch.setattr(GeneralizedRCNNTransform, "resize", resize)
    monkeypatch.setattr(model.teacher, "forward", teach)
    with EventStorage(10**6):
        losses = model(data)
    assert len(resized) == len(data)
    ((capture, instances),) = seen
    assert capture.image_size == (32, 64)
    for x, original in zip(instances, data, strict=True):
        assert x.image_size == (32, 48)
        assert torch.allclose(x.gt_boxes.tensor, original["instances"].gt_boxes.tensor / 2)
        assert torch.equal(x.gt_classes, original["instances"].gt_classes)
    own = [x for x in losses if "/" not in x and x != "loss_distill"]
    assert list(losses) == [*own, *(f"instructive/{x}" for x in own), "loss_distill"]
    sum(losses.values()).backward()
    assert [x for x, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@each
def test_the_head_runs_once_for_both_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(name).train()
    head: Any = model.student.rpn.head if isinstance(model.student, GeneralizedRCNN) else model.student.head
    calls, forward = list[int](), type(head).forward

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return forward(*arguments)

    monkeypatch.setattr(type(head), "forward", counted)
    with EventStorage(10**6):
        joint = model(batch([2, 3]))
    assert len(calls) == 1
    model.joint_head = False
    if not isinstance(model.student, GeneralizedRCNN):  # which samples its regions anew
        with EventStorage(10**6):
            apart = model(batch([2, 3]))
        assert all(torch.allclose(joint[x], apart[x], rtol=1e-4) for x in joint)


@each
def test_an_exported_student_is_the_stock_models(name: str, tmp_path: Path) -> None:
    """It loads strictly into torchvision's own model, which detects the same, bit for bit."""
    model = _model(name)
    export_student(model, tmp_path / "student.pth")
    stock = STOCK[name](CLASSES).eval()
    stock.load_state_dict(torch.load(tmp_path / "student.pth")["model"], strict=True)
    data = [{x: y for x, y in z.items() if x != "instances"} for z in batch([0, 0], (70, 100))]
    with torch.no_grad():
        found, expected = model.eval()(data), stock(_images(data))
    for x, theirs in zip(found, expected, strict=True):
        real = theirs["labels"] > 0
        assert real.any()
        assert torch.equal(x["instances"].pred_boxes.tensor, theirs["boxes"][real])
        assert torch.equal(x["instances"].scores, theirs["scores"][real])
        assert torch.equal(x["instances"].pred_classes, theirs["labels"][real] - 1)
        assert x["instances"].pred_classes.max() < CLASSES


def test_detections_are_in_the_pixels_of_the_image_before_it_was_loaded() -> None:
    detector: Any = build_detector(source(RETINANET), CLASSES).eval()
    (small,) = batch([0], (64, 96))
    large = {**small, "height": 128, "width": 192}
    with torch.no_grad():
        found, doubled = (detector([x])[0]["instances"] for x in (small, large))
    assert doubled.image_size == (128, 192)
    assert len(found) > 0
    assert torch.allclose(doubled.pred_boxes.tensor, 2 * found.pred_boxes.tensor)


def test_what_is_detected_as_background_is_none() -> None:
    found = {
        "boxes": torch.arange(8.0).reshape(2, 4), "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 1]),
        "masks": torch.tensor([0.6, 0.4]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4),
    }  # fmt: skip
    detections = _detections(found, (4, 4))
    assert detections.pred_classes.tolist() == [0]
    assert not detections.pred_masks.any()


def test_masks_become_torchvisions() -> None:
    detector: Any = build_detector(source(RETINANET, "min_size=32", "max_size=32"), CLASSES)
    labels = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[0.0, 0, 32, 64]])), gt_classes=torch.tensor([2]))
    labels.gt_masks = PolygonMasks([[torch.tensor([0.0, 0, 32, 0, 32, 64, 0, 64]).numpy()]])
    prepared = prepare_batch(detector.train(), [{"image": torch.zeros(3, 64, 64), "instances": labels}])
    assert prepared.targets is not None
    assert prepared.targets[0]["masks"].shape == (1, 32, 32)
    assert prepared.targets[0]["masks"].float().mean() == 0.5
    assert prepared[0]["instances"].gt_masks.tensor.shape == (1, 32, 32)
    assert prepare_batch(detector, prepared) is prepared


def test_a_model_by_its_name() -> None:
    """Images come resized, as the data's settings say, and are not resized again unless the model is told to."""
    data = Data(test_size=96, max_size=128)
    detector: Any = build_detector(source(MOBILE), CLASSES, data)
    assert (detector.transform.min_size, detector.transform.max_size) == ((96,), 128)
    assert detector.transform._skip_resize
    own: Any = build_detector(source(MOBILE, "min_size=64"), CLASSES, data)
    assert own.transform.min_size == (64,)
    assert not own.transform._skip_resize
    assert detector.roi_heads.box_predictor.cls_score.out_features == CLASSES + 1
    assert bottom_up_path(detector, source(MOBILE)) == "backbone.body"
    assert not predicts_masks(detector)


def test_pretrained_weights_come_with_the_layers_that_torchvision_freezes(tmp_path: Path) -> None:
    """Those of the backbone alone, under the classifier's names; nothing is downloaded."""
    classifier = torchvision.models.mobilenet_v3_large()
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    settings = source(MOBILE, weights=str(tmp_path / "mobilenet.pth"))
    detector: Any = build_detector(settings, CLASSES)
    assert any(isinstance(x, FrozenBatchNorm2d) for x in detector.modules())
    assert not detector.backbone.body["0"][0].weight.requires_grad
    report = load_own_weights(detector, settings, settings.weights)
    assert (report.format, report.detector, report.initial) == ("torchvision", False, ())
    assert torch.equal(detector.backbone.body["0"][0].weight, classifier.features[0][0].weight)
    scratch: Any = build_detector(source(MOBILE), CLASSES)
    assert not any(isinstance(x, FrozenBatchNorm2d) for x in scratch.modules())
    assert all(p.requires_grad for p in scratch.parameters())


SSD, SSDLITE = "torchvision:ssd300_vgg16", "torchvision:ssdlite320_mobilenet_v3_large"


@pytest.mark.parametrize(
    ("name", "strides"), [(SSD, [8, 16, 30, 60, 100, 300]), (SSDLITE, [16, 32, 64, 107, 160, 320])]
)
def test_an_ssd_has_its_levels_at_the_size_of_its_images(name: str, strides: list[int]) -> None:
    detector = build_detector(source(name, weights="none"), CLASSES)
    assert [x.stride for x in levels_of(detector).values()] == strides


def test_an_ssdlite_starts_from_a_classifiers_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier = torchvision.models.mobilenet_v3_large()
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    settings = source(SSDLITE, weights=str(tmp_path / "mobilenet.pth"))
    detector: Any = build_detector(settings, CLASSES)
    report = load_own_weights(detector, settings, settings.weights)
    assert (report.initial, report.skipped) == ((), ())
    expected = ssdlite._mobilenet_extractor(classifier, 6, nn.BatchNorm2d).features.state_dict()
    found = detector.backbone.features.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_layers_of_vgg_that_an_ssd_has_among_its_own_start_from_the_classifier() -> None:
    detector = build_detector(source(SSD, weights="none"), CLASSES)
    places = _places_in_ssd(detector)
    convolutions = [i for i, x in enumerate(torchvision.models.vgg16().features) if isinstance(x, nn.Conv2d)]
    assert places.keys() == {f"features.{i}.{x}" for i in convolutions for x in ("weight", "bias")}
    assert [places[f"features.{i}.weight"] for i in (21, 24, 26, 28)] == [
        "backbone.features.21.weight", *(f"backbone.extra.0.{i}.weight" for i in (1, 3, 5))
    ]  # fmt: skip
    assert set(places.values()) <= detector.state_dict().keys()


@pytest.mark.parametrize(
    ("weights", "alike"), [("torchvision://SSDLite320_MobileNet_V3_Large_Weights.COCO_V1", True), ("config", False)]
)
def test_a_whole_ssdlite_is_built_as_its_weights_were_trained(weights: str, alike: bool) -> None:
    """With last layers of half the width: torchvision's own without a backbone's weights."""
    found = build_detector(source(SSDLITE, weights=weights), CLASSES).state_dict()
    stock = torchvision.models.get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=1 + CLASSES
    ).state_dict()
    assert ({k: x.shape for k, x in found.items()} == {k: x.shape for k, x in stock.items()}) == alike


def test_weights_named_by_the_builder() -> None:
    named = {"fcos_resnet50_fpn": "ResNet50_Weights.IMAGENET1K_V1", "retinanet_resnet50_fpn_v2": "none"}
    for model, weights in named.items():
        settings = Experiment().override({"detector.source": f"torchvision:{model}"}).detector
        assert initial_weights(settings).removeprefix("torchvision://") == weights


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("torchvision:retinanet", (), "torchvision has no such detector; it has .*retinanet_resnet50_fpn_v2"),
        ("torchvision:resnet50", (), "torchvision has no such detector"),
        ("torchvision:keypointrcnn_resnet50_fpn", (), "trains on keypoints"),
        (MOBILE, ("minimum=3",), "has no argument minimum; it has .*min_size"),
        (MOBILE, ("min_size",), "is not of the form key=value"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(name: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_detector(source(name, *overrides), CLASSES)


@pytest.mark.parametrize(
    "name", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "rcnn"]
)
def test_boxes_keep_their_digits_under_autocast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 would tell coordinates near 1000 pixels to 4 pixels."""
    elsewhere = RCNN if name == "rcnn" else f"torchvision:{name}"
    # Without AVX-512 a convolution of bfloat16 takes minutes in torchvision's own sizes. Digits do not depend on them.
    small = () if name == "ssdlite320_mobilenet_v3_large" else ("min_size=64", "max_size=64")
    detector: Any = build_detector(source(elsewhere, *small), CLASSES).train()
    anchors, decoded, proposals = list[Tensor](), list[Tensor](), list[Tensor]()
    for module in detector.modules():
        if isinstance(module, (AnchorGenerator, DefaultBoxGenerator)):
            module.register_forward_hook(lambda _, __, found: anchors.extend(found))
        coder: Any = getattr(module, "box_coder", None)
        if coder is not None:

            def decode(*x: Any, made: Any = coder.decode) -> Any:
                decoded.append(made(*x))
                return decoded[-1]

            monkeypatch.setattr(coder, "decode", decode)
        if isinstance(module, RoIHeads):
            sampled = module.select_training_samples

            def sample(*x: Any, sampled: Any = sampled) -> Any:
                found = sampled(*x)
                proposals.extend(found[0])
                return found

            monkeypatch.setattr(module, "select_training_samples", sample)
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        losses = detector(batch([2, 3]))
    assert all(bool(x.isfinite()) for x in losses.values())
    assert anchors
    assert bool(proposals) == (name == "rcnn")
    assert bool(decoded) == (name in ("rcnn", "fcos_resnet50_fpn"))
    assert {x.dtype for x in (*anchors, *decoded, *proposals)} == {torch.float32}
