"""Networks of timm as bottom-up networks: feature maps, norms, frozen stages, and under LGD."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.utils.events import EventStorage
from pydantic import ValidationError
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from lgd.config.experiment import Backbone, Detector
from lgd.config.phases import Phases
from lgd.detectors import build_detector
from lgd.detectors.backbones import build_bottom_up, out_channels
from lgd.detectors.conventions import conventions
from lgd.detectors.fast_convolutions import depthwise_by_matrix
from lgd.detectors.timm_network import TimmNetwork, inspect_timm
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.training.export import export_student, load_student
from tests.helpers import CLASSES, batch

DENSE = ["res3", "res4", "res5"]
LITE0 = "timm:tf_efficientnet_lite0"


def _frozen(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if not p.requires_grad}


def _of_parts(network: nn.Module, *parts: str) -> set[str]:
    return {name for name, _ in network.named_parameters() if name.startswith(tuple(f"body.{x}." for x in parts))}


@pytest.mark.parametrize(
    ("name", "channels"),
    [("test_convnext", (32, 48, 64)), ("test_resnet", (48, 192, 96)), ("mambaout_femto", (96, 192, 288))],
)
def test_feature_maps_are_timms_own_of_rgb_images(name: str, channels: tuple[int, ...]) -> None:
    network = TimmNetwork(name, DENSE).eval()
    assert tuple(x.channels for x in network.output_shape().values()) == channels
    own = timm.create_model(name, features_only=True, **inspect_timm(name).arguments).eval()
    # timm's network for all feature maps has no parts but those of ours.
    own.load_state_dict(network.body.state_dict(), strict=True)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = network(images), own(images[:, [2, 1, 0]])[-3:]
    assert [x.stride for x in network.output_shape().values()] == [8, 16, 32]
    for stride, ours, theirs in zip((8, 16, 32), found.values(), expected, strict=True):
        assert ours.shape[2:] == (64 // stride, 96 // stride)
        rearranged = theirs.permute(0, 3, 1, 2) if theirs.shape[3] == ours.shape[1] else theirs
        assert torch.equal(ours, rearranged)


@pytest.mark.parametrize(
    ("name", "freeze_at", "parts"),
    [
        ("tf_efficientnet_lite0", 1, ("conv_stem", "bn1", "blocks.0")),
        ("tf_efficientnet_lite0", 3, ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")),
        ("test_convnext", 1, ("stem_0", "stem_1")),
        ("test_convnext", 2, ("stem_0", "stem_1", "stages_0")),
        ("test_resnet", 1, ("conv1", "bn1")),
        ("test_resnet", 2, ("conv1", "bn1", "layer1")),
        ("test_resnet", 5, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
    ],
)
def test_stages_are_frozen_up_to_a_stride(name: str, freeze_at: int, parts: tuple[str, ...]) -> None:
    network = TimmNetwork(name, DENSE, freeze_at=freeze_at).train()
    assert _frozen(network) == _of_parts(network, *parts)
    for part, module in network.body.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # Batch norms of a frozen part are replaced by frozen ones.
            assert not f"{part}.".startswith(tuple(f"{x}." for x in parts))


def test_no_gradient_is_computed_below_a_frozen_stage() -> None:
    network = TimmNetwork("test_resnet", DENSE, norm="FrozenBN", freeze_at=2).train()
    seen: dict[str, bool] = {}
    for part in ("layer1", "layer2"):
        network.body.get_submodule(part).register_forward_hook(
            lambda _m, _i, out, part=part: seen.__setitem__(part, out.requires_grad)
        )
    network(torch.randn(1, 3, 32, 32))
    assert seen == {"layer1": False, "layer2": True}


def test_norms_are_what_is_asked_for() -> None:
    kept = TimmNetwork("test_resnet", DENSE)
    frozen = TimmNetwork("test_resnet", DENSE, norm="FrozenBN").train()
    synchronised = TimmNetwork("test_resnet", DENSE, norm="SyncBN")
    count = sum(isinstance(x, nn.BatchNorm2d) for x in kept.modules())
    assert count > 10
    assert not any(isinstance(x, nn.modules.batchnorm._BatchNorm) for x in frozen.modules())
    assert sum(isinstance(x, nn.SyncBatchNorm) for x in synchronised.modules()) == count
    before = {name: x.clone() for name, x in frozen.named_buffers()}
    frozen(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(x, before[name]) for name, x in frozen.named_buffers())
    # A stock network of timm takes the weights strictly.
    timm.create_model("test_resnet", features_only=True).load_state_dict(frozen.body.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_frozen_norms_inside_convolutions_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = TimmNetwork(name, DENSE, norm="FrozenBN").train()
    norms: list[Any] = [x for x in network.modules() if isinstance(x, (FrozenBatchNorm2d, FrozenBatchNormAct2d))]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.normal_(norm.bias, std=0.1)
    plain = deepcopy(network)
    unfolded = sum("forward" in vars(x) and bool(vars(x).pop("forward")) for x in plain.modules())
    assert unfolded == 2 * len(norms)
    images = torch.randn(2, 3, 64, 96)
    for x in (network, plain):
        sum(m.square().mean() for m in x(images).values()).backward()
    expected = dict(plain.named_parameters())
    for key, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network(images), plain(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "size"), [(3, (4, 4)), (5, (3, 5)), (5, (6, 6))])
def test_depthwise_convolutions_by_matrices_are_convolutions(kernel: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 8, *size, requires_grad=True)
    weight, bias = torch.randn(8, 1, kernel, kernel, requires_grad=True), torch.randn(8)
    ours = depthwise_by_matrix(x, weight, bias, (kernel // 2, kernel // 2))
    theirs = nn.functional.conv2d(x, weight, bias, padding=kernel // 2, groups=8)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    for found, expected in zip(*(torch.autograd.grad(y, (x, weight), gradient) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_stochastic_depth_of_a_frozen_stage_is_off() -> None:
    network = TimmNetwork("test_convnext", DENSE, freeze_at=2).train()
    assert not any(x.training for x in network.body.get_submodule("stages_0").modules() if not list(x.children()))
    assert all(x.training for x in network.body.get_submodule("stages_1").modules())


@pytest.mark.parametrize(
    ("name", "norm", "freeze_at", "features", "words"),
    [
        ("resnet19", "BN", 0, DENSE, "timm:resnet19: timm .* has no such model; did you mean resnet18"),
        ("resnet18.nonsense", "BN", 0, DENSE, "Invalid pretrained tag"),
        ("test_vit", "BN", 0, DENSE, "test_vit has no feature maps at strides 8, 16 and 32, but at 16, 16"),
        ("coatnet_nano_rw_224", "BN", 0, DENSE, "cannot read images of any size, such as 96 x 160"),
        ("csatv2", "BN", 0, ["res2", *DENSE], "maps at strides 8, 16, 32, and this detector needs 4, 8, 16, 32"),
        ("csatv2", "BN", 2, DENSE, "has no part that ends at stride 4: set freeze_at to 0"),
    ],
)
def test_what_is_no_bottom_up_network_is_refused_in_one_line(
    name: str, norm: str, freeze_at: int, features: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        TimmNetwork(name, features, norm=norm, freeze_at=freeze_at)
    assert "\n" not in str(refused.value)


def test_frozen_norms_are_refused_where_there_is_nothing_to_freeze() -> None:
    with pytest.raises(InputError, match="timm:test_convnext has no batch norms: leave norm at auto"):
        build_bottom_up(Backbone(name="timm:test_convnext", norm="FrozenBN", weights="x.pth"), DENSE)
    build_bottom_up(Backbone(name="timm:test_convnext", weights="x.pth"), DENSE)


def test_settings() -> None:
    scratch, pretrained = Backbone(name=LITE0), Backbone(name=LITE0, weights="package:efficientnet-lite0")
    assert (scratch.resolved_norm, scratch.resolved_freeze_at) == ("BN", 0)
    assert (pretrained.resolved_norm, pretrained.resolved_freeze_at) == ("FrozenBN", 0)
    assert Backbone(name="timm:convnext_tiny", weights="timm").weights_source == "timm://convnext_tiny"
    assert [out_channels(scratch, i) for i in range(2, 6)] == [24, 40, 112, 320]
    assumed = conventions(Backbone(name="timm:convnext_tiny"))
    # ImageNet's, blue first.
    assert assumed.pixel_mean == pytest.approx((103.53, 116.28, 123.675))
    assert assumed.pixel_std == pytest.approx((57.375, 57.12, 58.395))
    assert conventions(scratch).pixel_std == pytest.approx((127.5,) * 3)
    assert conventions(pretrained).pixel_mean == (127.0, 127.0, 127.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "timm:resnet18", "width": 16}, "width 16 does not apply to timm:resnet18"),
        ({"name": "timm:resnet50", "deformable": True}, "deformable does not apply"),
        ({"name": "timm:resnet50", "norm": "GN"}, "use auto, BN, SyncBN or FrozenBN"),
        ({"name": "timm:resnet50", "norm": "FrozenBN"}, "from scratch"),
        ({"name": "timm:"}, "timm:NAME"),
        ({"name": "timm:hf-hub/x"}, "timm:NAME"),
        ({"name": "resnet50", "weights": "timm"}, "for a model of timm's, such as timm:resnet50"),
        ({"name": LITE0, "weights": "package:efficientnet-lite9"}, "efficientnet-lite0, efficientnet-lite1"),
        ({"name": LITE0, "weights": "package:efficientnet-lite1"}, "are for backbone timm:tf_efficientnet_lite1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Backbone.model_validate(changes)


def _detector(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    backbone = Backbone(name="timm:test_resnet")
    return build_detector(Detector(backbone=backbone, channels=16, head_convs=1, anchor_scale=2.0), CLASSES)


def test_equal_seeds_give_equal_detectors_whether_the_model_was_looked_at_before_or_not() -> None:
    inspect_timm.cache_clear()
    first, second = _detector().state_dict(), _detector().state_dict()
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_lgd_reaches_every_parameter_and_the_exported_student_detects_the_same(tmp_path: Path) -> None:
    student = _detector()
    model = Distiller(student, ImplicitTeacher(16, CLASSES), DistillationDistance(16), phases=Phases()).train()
    with EventStorage(0):
        sum(model(batch([3, 2])).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    torch.optim.SGD(model.parameters(), 0.01).step()
    nn.init.constant_(student.head.cls_score.bias, 0.0)
    export_student(model, tmp_path / "student.pth")
    plain = _detector(seed=9)
    load_student(plain, tmp_path / "student.pth")
    data = batch([1], seed=5)
    ours, theirs = (x.eval()(data)[0]["instances"] for x in (model, plain))
    assert len(ours) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    # The network alone goes back to timm.
    exported: dict[str, Tensor] = torch.load(tmp_path / "student.pth", weights_only=True)["model"]
    beginning = "backbone.bottom_up.body."
    stock = timm.create_model("test_resnet", features_only=True, out_indices=(2, 3, 4))
    own = {k.removeprefix(beginning): v for k, v in exported.items() if k.startswith(beginning)}
    stock.load_state_dict(own, strict=True)
