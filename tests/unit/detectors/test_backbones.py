"""Backbones: detectron2's names and shapes, deformable convolution, Swin, and each of them under LGD."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone import resnet as detectron2_resnet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.swin import SwinTransformer
from detectron2.utils.events import EventStorage
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lgd.config.experiment import Backbone, Detector
from lgd.config.phases import Phases
from lgd.detectors import build_detector
from lgd.detectors.backbones import build_bottom_up, build_fpn, out_channels
from lgd.detectors.conventions import conventions
from lgd.detectors.deformable import DeformableBottleneck, ModulatedDeformConv
from lgd.detectors.swin import Swin
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


def _reference(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int, dilation: int, parts: int
) -> Tensor:
    """The operator as its authors define it, point by point. 3x3 with as much padding as dilation."""

    def at(channel: np.ndarray, row: float, column: float) -> float:
        # Bilinear: what lies outside the map counts as zero.
        total = 0.0
        for r, c in itertools.product(
            (math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)
        ):
            if 0 <= r < channel.shape[0] and 0 <= c < channel.shape[1]:
                total += channel[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
        return total

    # numpy, whose single numbers are read in a tenth of the time.
    values, offsets, masks, weights = (z.detach().numpy() for z in (x, offset, mask, weight))
    images, channels, height, width = x.shape
    out, inner = weight.shape[:2]
    groups = channels // inner
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    y = np.zeros((images, out, rows, columns))
    for b, o, i, j in itertools.product(range(images), range(out), range(rows), range(columns)):
        for c, n in itertools.product(range(inner), range(9)):
            source = o // (out // groups) * inner + c
            part = source // (channels // parts)
            row = i * stride - dilation + n // 3 * dilation + offsets[b, part * 18 + 2 * n, i, j]
            column = j * stride - dilation + n % 3 * dilation + offsets[b, part * 18 + 2 * n + 1, i, j]
            value = at(values[b, source], row, column) * masks[b, part * 9 + n, i, j]
            y[b, o, i, j] += weights[o, c, n // 3, n % 3] * value
    return torch.from_numpy(y)


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "parts"), [(1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2), (2, 2, 2, 2)]
)
def test_deformable_convolution_is_the_original_operator(stride: int, dilation: int, groups: int, parts: int) -> None:
    torch.manual_seed(0)
    block = DeformableBottleneck(
        4,
        4,
        bottleneck_channels=4,
        stride=stride,
        num_groups=groups,
        dilation=dilation,
        deform_num_groups=parts,
        norm="",
    ).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    nn.init.normal_(block.conv2_offset.weight, std=0.5)
    nn.init.normal_(block.conv2_offset.bias)
    inner = block.conv1(x).relu()
    # detectron2 cuts into three equal parts and joins the first two again.
    first, second, mask = block.conv2_offset(inner).chunk(3, dim=1)
    offset = torch.cat((first, second), dim=1)
    assert offset.abs().max() > 2
    expected = _reference(inner, offset, mask.sigmoid(), block.conv2.weight, stride, dilation, parts)
    torch.testing.assert_close(block.conv2(inner, offset, mask.sigmoid()), expected)
    # The block joins it with its neighbours as any bottleneck does.
    residual = x if block.shortcut is None else block.shortcut(x)
    if stride == 1:
        torch.testing.assert_close(block(x), (block.conv3(expected.relu()) + residual).relu())


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_without_offset_it_is_a_plain_convolution(groups: int, stride_in_1x1: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "bottleneck_channels": 32,
        "stride": 2,
        "num_groups": groups,
        "norm": "BN",
        "stride_in_1x1": stride_in_1x1,
    }
    plain, deformable = BottleneckBlock(16, 64, **options).eval(), DeformableBottleneck(16, 64, **options).eval()
    found = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == ["conv2_offset.weight", "conv2_offset.bias"]
    assert found.unexpected_keys == []
    x = torch.randn(2, 16, 9, 11)
    # Masks start at sigmoid(0) = 1/2: twice the weight undoes it.
    with torch.no_grad():
        deformable.conv2.weight.mul_(2)
        torch.testing.assert_close(deformable(x), plain(x))
        deformable.conv2.weight.mul_(0.5)
        deformable.conv2_offset.bias[18:] = 50.0
        torch.testing.assert_close(deformable(x), plain(x))


@pytest.mark.parametrize(("stride", "dilation", "groups", "parts"), [(1, 1, 1, 1), (2, 2, 2, 2)])
def test_gradients_of_the_deformable_convolution(stride: int, dilation: int, groups: int, parts: int) -> None:
    torch.manual_seed(0)
    layer = ModulatedDeformConv(
        4, 2, 3, stride=stride, padding=dilation, dilation=dilation, groups=groups, deformable_groups=parts
    ).double()
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    size = (2, 2) if stride == 2 else (4, 3)
    # Not at whole cells, where the bilinear weights have a kink.
    offset = (torch.randint(-2, 2, (2, 18 * parts, *size)) + 0.2 + 0.6 * torch.rand(2, 18 * parts, *size)).double()
    mask = torch.rand(2, 9 * parts, *size, dtype=torch.float64)

    def run(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x, offset, mask))
        return y

    inputs = (x, offset.requires_grad_(), mask.requires_grad_(), layer.weight)
    assert torch.autograd.gradcheck(run, inputs)


def test_deformable_block_under_autocast() -> None:
    torch.manual_seed(0)
    block = DeformableBottleneck(16, 32, bottleneck_channels=8, stride=2)
    nn.init.normal_(block.conv2_offset.weight, std=0.3)
    x = torch.randn(2, 16, 12, 12)
    exact = block(x)
    seen: list[torch.dtype] = []
    handle = block.conv2_offset.register_forward_hook(lambda _m, _i, y: seen.append(y.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = block(x)
    handle.remove()
    assert seen == [torch.float32]
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)
    rough.float().square().sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels 6 cannot be split into 4 groups"):
        ModulatedDeformConv(6, 8, 3, deformable_groups=4)


# Swin


def test_swin_is_detectron2s_without_timm() -> None:
    ours = Swin(8, ALL[1:]).eval()
    theirs = SwinTransformer(embed_dim=8, num_heads=(1, 2, 4, 8), drop_path_rate=0.0, out_indices=(1, 2, 3)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(1, 3, 90, 133)
    with torch.no_grad():
        features = ours(images)
        expected = theirs(images)
    assert list(features) == ALL[1:]
    for ours_, theirs_ in zip(features.values(), expected.values(), strict=True):
        assert torch.equal(ours_, theirs_)
    assert features["res3"].shape == (1, 16, 12, 17)


def test_swin_drops_paths_in_training_only_and_ever_more_of_them() -> None:
    swin = Swin(8, ALL)
    rates = [x.p for x in swin.modules() if isinstance(x, StochasticDepth)]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.2, 12)[1:])
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(swin.eval()(images)["res5"], swin(images)["res5"])
        swin.train()
        found = [swin(images)["res5"] for _ in range(8)]
    assert any(not torch.equal(found[0], x) for x in found[1:])


def test_swin_stages_that_nobody_reads_are_not_built() -> None:
    swin = Swin(8, ["res2", "res3"])
    assert len(swin.layers) == 2
    # The rates are those of the whole network.
    assert [round(x.p, 3) for x in swin.modules() if isinstance(x, StochasticDepth)] == [0.018, 0.036, 0.055]
    sum(x.sum() for x in swin(torch.randn(1, 3, 32, 32)).values()).backward()
    assert all(p.grad is not None for p in swin.parameters())


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, []), (1, ["patch_embed"]), (2, ["patch_embed", "layers.0"])])
def test_swin_freezes_like_a_resnet(freeze_at: int, frozen: list[str]) -> None:
    swin = build_bottom_up(Backbone(name="swin_t", width=8, weights="s.pth", freeze_at=freeze_at), ALL).train()
    still = {name for name, p in swin.named_parameters() if not p.requires_grad}
    assert still == {name for name, _ in swin.named_parameters() if name.startswith(tuple(f"{x}." for x in frozen))}
    drops = [x.training for x in swin.layers[0].modules() if isinstance(x, StochasticDepth)]
    assert drops == [freeze_at < 2]


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
