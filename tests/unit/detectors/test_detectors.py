"""Every detector through the one distiller, and its parameters against detectron2's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_model
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from pydantic import ValidationError
from torch import Tensor, nn

from lgd.config.experiment import Backbone, Detector, Experiment
from lgd.config.paper_recipes import paper_defaults
from lgd.config.phases import Phases
from lgd.detectors import BUILDERS, build_detector, common
from lgd.distributed import ranks
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import capture_features, inject_features
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.training.export import export_student
from tests.helpers import CLASSES, DETECTORS, detector_batch, one_thread, tiny_settings

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"

each_detector = pytest.mark.parametrize("name", DETECTORS)


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with one_thread(), EventStorage(0) as opened:
        yield opened


def _detector(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_detector(tiny_settings(name), CLASSES)


def _distiller(name: str) -> Distiller:
    student = _detector(name)
    options = paper_defaults(name, "resnet18")
    teacher = ImplicitTeacher(
        32, CLASSES, context=options["method.context"], detach_appearance=options["method.detach_appearance"]
    )
    return Distiller(student, teacher, DistillationDistance(32), phases=Phases())


def test_every_detector_has_a_builder_and_settings_for_it() -> None:
    assert set(BUILDERS) == set(DETECTORS) == set(Detector.model_fields["name"].annotation.__args__)  # type: ignore[union-attr]


@each_detector
def test_injecting_its_own_features_reproduces_the_losses_exactly(name: str) -> None:
    detector = _detector(name).train()
    data = detector_batch(name, [3, 0, 5])
    for seed in range(2):
        same = deepcopy(detector)
        # R-CNN draws its samples of anchors and proposals.
        torch.manual_seed(seed)
        with capture_features(detector.backbone) as capture:
            first = detector(data)
        torch.manual_seed(seed)
        with inject_features(same.backbone, capture.features):
            second = same(data)
        assert {k: v.item() for k, v in second.items()} == {k: v.item() for k, v in first.items()}
        assert all(v > 0 for v in first.values())


@each_detector
@pytest.mark.parametrize("counts", [[3, 0], [0, 0]], ids=["one image empty", "all images empty"])
def test_every_trainable_parameter_gets_a_gradient(name: str, counts: list[int]) -> None:
    model = _distiller(name).train()
    losses = model(detector_batch(name, counts))
    plain = {k for k in losses if "/" not in k} - {"loss_distill"}
    assert set(losses) == plain | {f"instructive/{k}" for k in plain} | {"loss_distill"}
    sum(losses.values()).backward()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@each_detector
def test_the_losses_are_finite_in_bfloat16(name: str) -> None:
    model = _distiller(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(detector_batch(name, [3, 0]))
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@each_detector
def test_an_exported_student_loads_strictly_into_a_plain_detector_and_detects_the_same(
    name: str, tmp_path: Path
) -> None:
    model = _distiller(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.005)
    for seed in range(2):
        optimizer.zero_grad()
        sum(model(detector_batch(name, [3, 4], seed)).values()).backward()
        optimizer.step()
    if hasattr(model.student, "head"):
        # A dense detector starts out with scores below its threshold.
        nn.init.constant_(model.student.head.cls_score.bias, 0.0)  # type: ignore[union-attr, arg-type]
    export_student(model, tmp_path / "student.pth")
    plain = _detector(name, seed=9)
    plain.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True)["model"], strict=True)
    data = detector_batch(name, [1, 1], seed=5)
    for ours, theirs in zip(model.eval()(data), plain.eval()(data), strict=True):
        ours, theirs = ours["instances"], theirs["instances"]
        assert len(ours) > 0
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        if name == "mask_rcnn":
            assert torch.equal(ours.pred_masks, theirs.pred_masks)


@each_detector
def test_the_teacher_can_be_evaluated(name: str) -> None:
    model = _distiller(name).eval()
    if hasattr(model.student, "head"):
        nn.init.constant_(model.student.head.cls_score.bias, 0.0)  # type: ignore[union-attr, arg-type]
    data = detector_batch(name, [2])
    with torch.no_grad():
        own = model.student(data)[0]["instances"]
        with model.teacher_inference():
            with_teacher = model.student(data)[0]["instances"]
    assert len(own) > 0
    assert len(own) != len(with_teacher) or not torch.equal(own.scores, with_teacher.scores)


def test_mask_rcnn_takes_bitmaps() -> None:
    data = detector_batch("mask_rcnn", [2, 0])
    found = data[0]["instances"]
    polygons = found.gt_masks.polygons
    found.remove("gt_masks")
    found.gt_masks = BitMasks.from_polygon_masks(polygons, *found.image_size)
    losses = _distiller("mask_rcnn").train()(data)
    assert losses["loss_mask"].isfinite()
    assert losses["instructive/loss_mask"] > 0


# Model-zoo equality. Built on the meta device: only names and shapes are compared.


CONFIGS = {
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_3x.yaml",
    "faster_rcnn": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
}


def _described(config: str) -> Any:
    # Not through detectron2.model_zoo, which needs pkg_resources, gone from today's setuptools.
    described = get_cfg()
    described.merge_from_file(str(ZOO / config))
    described.MODEL.DEVICE = "meta"
    return described


STOCK: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(lambda config: build_model(_described(config)), config) for name, config in CONFIGS.items()},
    "fcos": lambda: instantiate(LazyConfig.load(str(ZOO / "COCO-Detection/fcos_R_50_FPN_1x.py")).model),
}


@pytest.mark.parametrize("name", list(STOCK))
def test_the_state_dict_is_the_model_zoos_at_standard_settings(name: str) -> None:
    with torch.device("meta"):
        ours, stock = build_detector(Detector.model_validate({"name": name}), 80), STOCK[name]()
    assert type(ours) is type(stock)
    shapes = {k: tuple(v.shape) for k, v in ours.state_dict().items()}
    assert shapes == {k: tuple(v.shape) for k, v in stock.state_dict().items()}


@pytest.mark.parametrize("name", list(STOCK))
def test_what_a_state_dict_does_not_hold_is_the_model_zoos_too(name: str) -> None:
    """Thresholds, sizes of samples, numbers of candidates, strides, loss settings."""
    with torch.device("meta"):
        ours, stock = build_detector(Detector.model_validate({"name": name}), 80), STOCK[name]()
    theirs = dict(stock.named_modules())
    for key, module in ours.named_modules():
        assert (key, type(module)) == (key, type(theirs[key]))
        assert (key, _plain_settings(module)) == (key, _plain_settings(theirs[key]))


def _plain_settings(module: nn.Module) -> dict[str, Any]:
    # Written in two ways that mean the same: a weight of 1 for each loss, all levels of the backbone.
    skipped = {"training", "input_format", "loss_weight", "head_in_features"}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if name not in skipped and not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(x) for x in value)
    if isinstance(value, dict):
        return all(_is_plain(x) for x in value.values())
    return isinstance(value, (bool, float, int, str))


def _smallest_and_all(detector: Any) -> tuple[float, list[Tensor]]:
    generator = detector.anchor_generator if hasattr(detector, "head") else detector.proposal_generator.anchor_generator
    corners = list(generator.cell_anchors)
    sides = corners[0][:, 2:] - corners[0][:, :2]
    return float(sides.prod(dim=1).min().sqrt()), corners


@pytest.mark.parametrize(
    ("name", "stride", "side"), [("retinanet", 8, 32), ("faster_rcnn", 4, 32), ("mask_rcnn", 4, 32), ("atss", 8, 64)]
)
def test_anchors_scale_with_their_setting_and_are_the_papers_without(name: str, stride: int, side: float) -> None:
    settings = tiny_settings(name)
    own, anchors = _smallest_and_all(build_detector(settings.model_copy(update={"anchor_scale": "auto"}), CLASSES))
    scaled, _ = _smallest_and_all(build_detector(settings.model_copy(update={"anchor_scale": 3.0}), CLASSES))
    assert own == pytest.approx(side)
    assert scaled == pytest.approx(3 * stride)
    if name in CONFIGS:
        described = _described(CONFIGS[name])
        shapes = [ShapeSpec(stride=stride * 2**i) for i in range(5)]
        for ours, theirs in zip(anchors, build_anchor_generator(described, shapes).cell_anchors, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_images_are_normalised_as_the_weights_expect() -> None:
    for name in DETECTORS:
        for weights, deviation in (("none", 57.375), ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", 1.0)):
            backbone = Backbone(name="resnet18", width=8, norm="BN", weights=weights)
            built = build_detector(tiny_settings(name).model_copy(update={"backbone": backbone}), CLASSES)
            assert built.pixel_mean.flatten()[0] == pytest.approx(103.53)  # type: ignore[operator]
            assert built.pixel_std.flatten()[0] == pytest.approx(deviation)  # type: ignore[operator]


def test_settings_that_cannot_be_are_refused() -> None:
    narrow = Backbone(name="resnet18", width=8, norm="BN")
    for given, complaint in (
        ({"name": "fcos", "channels": 20}, "multiples of 8"),
        ({"name": "retinanet", "channels": 20, "head_norm": "GN"}, "multiples of 8"),
        ({"name": "atss", "channels": 264}, "multiples of 32"),
        ({"anchor_scale": 0}, "above 0"),
        ({"anchor_scale": "wide"}, "above 0"),
        ({"head_convs": 0}, "greater than 0"),
    ):
        with pytest.raises(ValidationError, match=complaint):
            Detector.model_validate({"backbone": narrow, **given})
    assert Detector(backbone=narrow, name="fcos", channels=20, head_norm="").resolved_head_norm == ""


@pytest.mark.parametrize("channels", [8, 32, 64, 256, 512])
def test_group_norm_is_detectron2s_from_256_channels_on(channels: int) -> None:
    norm = common.group_norm(channels)
    assert norm.num_groups == {8: 1, 32: 4, 64: 8}.get(channels, 32)
    norm(torch.randn(1, channels, 1, 1))


def test_boxes_are_decoded_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 1000
    anchors = torch.cat([corner, corner + 8], dim=1)
    deltas = torch.randn(50, 4, generator=generator)
    stock = Box2BoxTransformLinear(normalize_by_size=True)
    ours = common.LinearTransform(normalize_by_size=True)
    assert torch.equal(ours.apply_deltas(deltas, anchors), stock.apply_deltas(deltas, anchors))
    coarse = deltas.bfloat16()
    assert torch.equal(ours.apply_deltas(coarse, anchors), stock.apply_deltas(coarse.float(), anchors))


def test_a_normaliser_is_averaged_over_workers_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.mean_over_workers(torch.tensor(0.0)) == 1
    assert ranks.mean_over_workers(torch.tensor(7.0)) == 7
    monkeypatch.setattr("lgd.distributed.shares.count", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(1.0))
    own = torch.tensor(19.0)
    assert ranks.mean_over_workers(own) == 5
    assert own == 19


def test_the_papers_settings_by_detector() -> None:
    for name in DETECTORS:
        changed = Experiment().override({"detector.name": name, **paper_defaults(name, "resnet101")})
        two_stage = name.endswith("rcnn")
        method: Any = changed.method
        assert method.context is not two_stage
        assert method.detach_appearance is two_stage
        assert changed.schedule.lr == (0.02 if two_stage else 0.01)
    assert paper_defaults("fcos", "resnet50")["method.context"] is False
    assert paper_defaults("retinanet", "resnet50")["method.context"] is True
    with pytest.raises(InputError, match="no detector 'yolo'"):
        paper_defaults("yolo", "resnet50")
