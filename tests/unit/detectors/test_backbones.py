"""Backbones: detectron2's names and shapes, deformable convolution, Swin, and each of them under LGD."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone import resnet as detectron2_resnet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from detectron2.utils.events import EventStorage
from pydantic import ValidationError
from torch import nn

from lgd.config.experiment import Backbone, Detector
from lgd.config.phases import Phases
from lgd.detectors import build_detector
from lgd.detectors.backbones import build_bottom_up, build_fpn, out_channels
from lgd.detectors.conventions import conventions
from lgd.detectors.deformable import DeformableBottleneck, ModulatedDeformConv
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import capture_features, inject_features
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.training.export import export_student
from tests.helpers import CLASSES, batch

ALL = ["res2", "res3", "res4", "res5"]

EVERY = [
    Backbone(name="resnet18", width=8),
    Backbone(name="resnet34", width=8),
    Backbone(name="resnet50", width=8),
    Backbone(name="resnet101", width=8),
    Backbone(name="resnext101_32x8d", width=8),
    Backbone(name="swin_t", width=8),
    Backbone(name="resnet50", width=8, deformable=True),
    Backbone(name="resnet101", width=8, deformable=True),
    Backbone(name="resnext101_32x8d", width=8, deformable=True),
    Backbone(name="resnet50", width=32),
]
IDS = [f"{x.name}{'_dcnv2' if x.deformable else ''}_{x.resolved_norm}" for x in EVERY]


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with EventStorage(0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # The tensors are so small that two threads mostly wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _detector(backbone: Backbone, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_detector(Detector(backbone=backbone, channels=16, head_convs=1, anchor_scale=2.0), CLASSES)


# Under LGD


@pytest.mark.parametrize("backbone", EVERY, ids=IDS)
def test_injecting_its_own_features_reproduces_the_losses_exactly(backbone: Backbone) -> None:
    detector = _detector(backbone).train()
    data = batch([3, 0])
    same = deepcopy(detector)
    with capture_features(detector.backbone) as capture:
        first = detector(data)
    with inject_features(same.backbone, capture.features):
        second = same(data)
    assert {k: v.item() for k, v in second.items()} == {k: v.item() for k, v in first.items()}


@pytest.mark.parametrize("backbone", EVERY, ids=IDS)
def test_a_step_reaches_every_parameter_and_the_exported_student_detects_the_same(
    backbone: Backbone, tmp_path: Path
) -> None:
    student = _detector(backbone)
    model = Distiller(student, ImplicitTeacher(16, CLASSES), DistillationDistance(16), phases=Phases()).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    sum(model(batch([3, 2])).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    optimizer.step()

    # Detections with something to compare: scores above the threshold.
    nn.init.constant_(student.head.cls_score.bias, 0.0)
    export_student(model, tmp_path / "student.pth")
    plain = _detector(backbone, seed=9)
    stored = torch.load(tmp_path / "student.pth", weights_only=True)["model"]
    assert list(stored) == list(plain.state_dict())
    plain.load_state_dict(stored, strict=True)
    data = batch([1, 1], seed=5)
    for ours, theirs in zip(model.eval()(data), plain.eval()(data), strict=True):
        assert len(ours["instances"]) > 0
        assert torch.equal(ours["instances"].pred_boxes.tensor, theirs["instances"].pred_boxes.tensor)
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores)


@pytest.mark.parametrize("backbone", EVERY, ids=IDS)
def test_detectron2s_own_network_takes_the_weights_strictly_and_detects_the_same(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backbone.name in ("resnet18", "resnet34"):
        # detectron2 builds these at one width.
        backbone = backbone.model_copy(update={"width": 64, "norm": "BN"})
    ours = _detector(backbone)
    nn.init.constant_(ours.head.cls_score.bias, 0.0)
    for module in ours.modules():
        if isinstance(module, DeformableBottleneck):
            nn.init.normal_(module.conv2_offset.weight, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            # The batch's own statistics: with none, a hundred random layers leave float32's range.
            module.momentum = None
    with torch.no_grad():
        ours.train()(batch([1, 1]))
    theirs = _stock(backbone, monkeypatch)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    data = batch([1, 1], seed=5)
    for x, y in zip(ours.eval()(data), theirs.eval()(data), strict=True):
        assert len(x["instances"]) > 0
        assert torch.equal(x["instances"].pred_boxes.tensor, y["instances"].pred_boxes.tensor)
        assert torch.equal(x["instances"].scores, y["instances"].scores)


def _stock(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The detector of :func:`_detector` as detectron2 builds it from a config; around its own Swin for swin_t."""
    cfg = get_cfg()
    cfg.merge_from_file(
        str(Path(detectron2.__file__).parent / "model_zoo/configs/COCO-Detection/retinanet_R_50_FPN_3x.yaml"),
        allow_unsafe=True,
    )
    width, assumed = backbone.resolved_width, conventions(backbone)
    swin = backbone.name == "swin_t"
    depth = 50 if swin else int(backbone.name.split("_")[0].lstrip("resnxt"))
    changes = {
        "DEVICE": "cpu",
        "PIXEL_STD": assumed.pixel_std,
        "BACKBONE.FREEZE_AT": 0,
        "FPN.OUT_CHANNELS": 16,
        "RETINANET.NUM_CLASSES": CLASSES,
        "RETINANET.NUM_CONVS": 1,
        "ANCHOR_GENERATOR.SIZES": [[2.0 * s * 2 ** (i / 3) for i in range(3)] for s in (8, 16, 32, 64, 128)],
        "RESNETS.DEPTH": depth,
        "RESNETS.NORM": "BN" if swin else backbone.resolved_norm,
        "RESNETS.STEM_OUT_CHANNELS": width,
        "RESNETS.RES2_OUT_CHANNELS": width if swin else out_channels(backbone, 2),
        "RESNETS.NUM_GROUPS": 32 if "next" in backbone.name else 1,
        "RESNETS.WIDTH_PER_GROUP": width // 8 if "next" in backbone.name else width,
        "RESNETS.STRIDE_IN_1X1": assumed.stride_in_1x1,
        "RESNETS.DEFORM_ON_PER_STAGE": [False, *[backbone.deformable] * 3],
        "RESNETS.DEFORM_MODULATED": backbone.deformable,
    }
    cfg.merge_from_list([y for key, value in changes.items() for y in (f"MODEL.{key}", value)])
    # The operator needs detectron2's compiled extension; the block around it does not.
    monkeypatch.setattr(
        detectron2_resnet, "ModulatedDeformConv", lambda *sizes, bias, **rest: ModulatedDeformConv(*sizes, **rest)
    )
    built = build_model(cfg)
    if swin:
        network = SwinTransformer(embed_dim=width, num_heads=(1, 2, 4, 8), drop_path_rate=0.0, out_indices=(1, 2, 3))
        # Its p1 to p3 are res3 to res5.
        built.backbone = FPN(network, ["p1", "p2", "p3"], 16, top_block=LastLevelP6P7(8 * width, 16, in_feature="p3"))
    return built


@pytest.mark.parametrize("backbone", EVERY, ids=IDS)
def test_fpn_from_res2(backbone: Backbone) -> None:
    fpn = build_fpn(backbone, 16, ALL, None)
    shapes = fpn.bottom_up.output_shape()
    assert [shapes[f"res{i}"].channels for i in range(2, 6)] == [out_channels(backbone, i) for i in range(2, 6)]
    with torch.no_grad():
        features = fpn.eval()(torch.randn(1, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        f"p{i}": (1, 16, 64 >> i, 96 >> i) for i in range(2, 6)
    }


# The same networks as detectron2's


def _described(network: nn.Module) -> list[Any]:
    """Everything by which two ResNets could differ without random numbers: names, shapes, freezing, strides."""
    convolutions = [(n, m) for n, m in network.named_modules() if hasattr(m, "stride") and hasattr(m, "dilation")]
    return [
        {name: tuple(x.shape) for name, x in network.state_dict().items()},
        {name: p.requires_grad for name, p in network.named_parameters()},
        {n: (_pair(m.stride), _pair(m.padding), _pair(m.dilation), m.groups) for n, m in convolutions},
    ]


def _pair(x: Any) -> Any:
    return (x, x) if isinstance(x, int) else x


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), ("resnet34", 34), ("resnet50", 50), ("resnet101", 101)])
def test_resnets_are_detectron2s(name: Any, depth: int) -> None:
    with torch.device("meta"):
        ours = build_bottom_up(Backbone(name=name, weights="r.pkl"), ALL)
        kind = {"norm": "FrozenBN"} if depth < 50 else {"norm": "FrozenBN", "stride_in_1x1": True}
        stages = ResNet.make_default_stages(depth, **kind)
        theirs = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=ALL, freeze_at=2)
    assert _described(ours) == _described(theirs)


class _StandIn(nn.Module):
    """The parameters of detectron2's ModulatedDeformConv, which cannot be made without its compiled operators."""

    def __init__(self, i: int, o: int, *, kernel_size: int, groups: int, bias: bool, norm: nn.Module, **rest: Any):
        super().__init__()
        assert not bias
        self.weight = nn.Parameter(torch.empty(o, i // groups, kernel_size, kernel_size))
        self.bias = None
        self.norm = norm
        self.stride, self.padding, self.dilation, self.groups = (
            *map(rest.get, ("stride", "padding", "dilation")),
            groups,
        )


@pytest.mark.parametrize(
    ("config", "ours", "change"),
    [
        ("COCO-Detection/retinanet_R_101_FPN_3x.yaml", {"name": "resnet101"}, []),
        ("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml", {"name": "resnext101_32x8d"}, []),
        (
            # The zoo's is DCNv1; the paper's has masks too.
            "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml",
            {"name": "resnet50", "deformable": True},
            ["MODEL.RESNETS.DEFORM_MODULATED", True],
        ),
        (
            "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml",
            {"name": "resnext101_32x8d", "deformable": True},
            ["MODEL.RESNETS.DEFORM_MODULATED", True, "MODEL.RESNETS.DEPTH", 101],
        ),
    ],
)
def test_backbones_are_the_model_zoos(
    config: str, ours: dict[str, Any], change: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = get_cfg()
    # RetinaNet's anchor sizes are a Python expression.
    cfg.merge_from_file(str(Path(detectron2.__file__).parent / "model_zoo/configs" / config), allow_unsafe=True)
    cfg.merge_from_list([*change, "MODEL.RESNETS.OUT_FEATURES", ALL])
    monkeypatch.setattr(detectron2_resnet, "ModulatedDeformConv", _StandIn)
    # Names and shapes need no memory.
    with torch.device("meta"):
        theirs = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        built = build_bottom_up(Backbone(weights="zoo.pkl", **ours), ALL)
    assert _described(built) == _described(theirs)
    if ours.get("deformable"):
        assert tuple(built.res3[0].conv2_offset.weight.shape[:1]) == (27,)
        assert not hasattr(built.res2[0], "conv2_offset")


# Deformable convolution


# Swin


# Settings


def test_what_is_left_to_the_backbone() -> None:
    scratch, pretrained = Backbone(), Backbone(weights="r50.pkl")
    assert (scratch.resolved_width, scratch.resolved_norm, scratch.resolved_freeze_at) == (64, "GN", 0)
    assert (pretrained.resolved_width, pretrained.resolved_norm, pretrained.resolved_freeze_at) == (64, "FrozenBN", 2)
    assert Backbone(width=16).resolved_norm == "BN"
    swin = Backbone(name="swin_t", weights="swin.pth")
    assert (swin.resolved_width, swin.resolved_norm, swin.resolved_freeze_at) == (96, "LN", 0)
    # Going from weights to none needs no second change.
    assert Backbone.model_validate(pretrained.model_dump() | {"weights": "none"}).resolved_norm == "GN"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"name": "resnet18", "deformable": True},
            "resnet18 has no bottleneck blocks to make deformable: use resnet50",
        ),
        ({"name": "swin_t", "deformable": True}, "swin_t has no 3x3 convolutions to make deformable"),
        ({"name": "swin_t", "norm": "SyncBN"}, "norm SyncBN does not apply to swin_t"),
        ({"name": "swin_t", "norm": "FrozenBN", "weights": "s.pth"}, "norm FrozenBN does not apply to swin_t"),
        ({"norm": "FrozenBN"}, "from scratch"),
        ({"freeze_at": 1}, "from scratch"),
        ({"name": "swin_t", "freeze_at": 1}, "from scratch"),
        ({"name": "resnext101_32x8d", "width": 12}, "divisible by 8, not 12"),
        ({"norm": "GN", "width": 16}, "divisible by 32, not 16"),
        ({"freeze_at": 6}, "auto or a whole number from 0 to 5"),
        ({"freeze_at": True}, "auto or a whole number from 0 to 5"),
        ({"width": 0}, "auto or a whole number from 1 to 4096"),
        ({"width": "wide"}, "auto or a whole number from 1 to 4096"),
        ({"name": "resnet152"}, "resnet101"),
    ],
)
def test_impossible_backbones_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Backbone.model_validate(changes)
