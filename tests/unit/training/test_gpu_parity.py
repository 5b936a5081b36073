"""A GPU's results against the CPU's, and half precision's against float32's.

The same tests run on the CPU as far as they can, so that they are known to work before there is a GPU.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

from lgd.config.presets import NANO
from lgd.detectors.deformable import ModulatedDeformConv
from lgd.methods.distiller import batch_to_device
from lgd.training.build import build_model
from lgd.training.device import move_to_device
from lgd.training.trainer import AUTOCAST
from tests.helpers import CLASSES, batch

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize(("stride", "groups", "parts"), [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_deformable_convolution_and_its_gradients(device: str, stride: int, groups: int, parts: int) -> None:
    """In float32, on the device, against float64 on the CPU."""
    torch.manual_seed(0)
    layer = ModulatedDeformConv(8, 4, 3, stride=stride, padding=1, groups=groups, deformable_groups=parts)
    size = (12 // stride, 16 // stride)
    x, gradient = torch.randn(2, 8, 12, 16), torch.randn(2, 4, *size)
    # Not at whole cells, where the bilinear weights have a kink.
    offset = torch.randint(-3, 3, (2, 18 * parts, *size)) + 0.2 + 0.6 * torch.rand(2, 18 * parts, *size)
    mask = torch.rand(2, 9 * parts, *size)

    def run(device: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [z.to(device, dtype).requires_grad_() for z in (x, offset, mask)]
        there = copy.deepcopy(layer).to(device, dtype)
        y = there(*inputs)
        y.backward(gradient.to(device, dtype))
        return [z.cpu().double() for z in (y.detach(), *(z.grad for z in (*inputs, there.weight)))]

    expected = run("cpu", torch.float64)
    torch.testing.assert_close(run(device, torch.float32), expected, rtol=1e-4, atol=1e-4)
    assert all(z.abs().max() > 0.1 for z in expected)


def _losses(device: str, precision: str) -> dict[str, float]:
    experiment = NANO.override({"device": device, "method.name": "lgd"})
    model: Any = move_to_device(build_model(experiment, CLASSES), experiment, torch.device(device)).train()
    images = batch_to_device(batch([3, 0, 9], size=(128, 160)), torch.device(device))
    dtype = AUTOCAST[precision]
    # As the trainer does.
    with EventStorage(0), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        return {name: float(x.detach()) for name, x in model(images).items()}


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), *(pytest.param("cuda", x, marks=pytest.mark.gpu) for x in ("bf16", "fp16"))],
)
def test_the_losses_in_half_precision(device: str, precision: str) -> None:
    """RetinaNet's with LGD are float32's within the tolerance of tests/parity."""
    exact, half = _losses(device, "fp32"), _losses(device, precision)
    assert "loss_distill" in exact
    assert half != exact
    assert half == pytest.approx(exact, rel=2e-2)
