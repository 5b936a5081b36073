"""Modules whose forward pass is replaced for a GPU compute, and can be changed, as before."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import detectron2.layers
import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock
from torch import Tensor, nn

from lgd.detectors import biased_convolutions, resnet_fast


class OfTwo(nn.Sequential):
    def forward(self, input: Any) -> Tensor:
        found: Tensor = self[0](input["x"]) + self[1](input["y"])
        return found


def test_convolutions_take_what_they_took() -> None:
    torch.manual_seed(0)
    own = detectron2.layers.Conv2d(3, 4, 3, activation=nn.ReLU())
    model = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), nn.Conv2d(3, 2, 1), own])
    x = torch.randn(2, 3, 8, 8)
    expected = [module(x) for module in model]
    biased_convolutions.use(model)
    # Twice changes nothing.
    biased_convolutions.use(model)
    for module, before in zip(model, expected, strict=True):
        assert torch.equal(module(x), before)
        assert torch.equal(copy.deepcopy(module)(x), before)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), before)
    plain: Any = model
    assert torch.equal(plain[0](input=x), expected[0])
    assert torch.equal(plain[1](input=x), expected[1])
    assert torch.equal(plain[2](x=x), expected[2])
    with pytest.raises(TypeError, match=r"argument|conv2d"):
        plain[0]([x])


def test_a_copy_has_its_own_weights() -> None:
    model = biased_convolutions.use(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    x = torch.randn(1, 3, 8, 8)
    other: Any = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias += 10
    assert not torch.equal(other(x), model(x))


def test_a_sequence_of_another_class_is_left_alone() -> None:
    model = biased_convolutions.use(OfTwo(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)))
    assert "forward" not in vars(model)
    assert model({"x": torch.randn(1, 3, 4, 4), "y": torch.randn(1, 5, 4, 4)}).shape == (1, 4, 4, 4)


@pytest.mark.parametrize("kind", [BasicStem, BottleneckBlock])
def test_a_block_can_be_changed_afterwards(kind: Any) -> None:
    torch.manual_seed(0)
    stem = kind is BasicStem
    block: Any = kind(3, 8, norm="FrozenBN") if stem else kind(3, 8, bottleneck_channels=4, norm="FrozenBN")
    x = torch.randn(2, 3, 16, 16)
    before = block(x)
    resnet_fast.use(block)
    assert torch.equal(block(x), before)
    block.conv1.norm = None
    assert block(x).shape == before.shape
    block.conv1 = nn.Sequential(nn.Conv2d(3, 4 if not stem else 8, 1, 2 if stem else 1))
    assert block(x).shape == before.shape


def test_a_norms_scale_follows_its_buffers() -> None:
    norm, affines = FrozenBatchNorm2d(4), resnet_fast._Affines()
    first = affines.of("conv1", norm)
    assert affines.of("conv1", norm) is first
    norm.load_state_dict({**norm.state_dict(), "weight": torch.full((4,), 3.0)})
    torch.testing.assert_close(affines.of("conv1", norm)[0], torch.full((4,), 3.0), atol=1e-4, rtol=0)
    norm.bias = torch.full((4,), 2.0)
    torch.testing.assert_close(affines.of("conv1", norm)[1], torch.full((4,), 2.0))
    with torch.inference_mode():
        moved = FrozenBatchNorm2d(4)
        assert affines.of("conv2", moved)[0].shape == (4,)
