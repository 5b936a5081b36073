"""GroupNorm in half precision: float32 statistics, a result of the map's type, and no float32 copy of a large map."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from lgd.config.experiment import Backbone
from lgd.detectors import build_detector, group_norms
from lgd.detectors.fast_losses import use_detectron2_losses, use_fast_losses
from lgd.results.fingerprint import fingerprint
from tests.helpers import CLASSES, one_thread, tiny_settings
from tests.helpers_memory import LargestFloat32

B, C, GROUPS = 2, 16, 4
CELLS = 64 * 96 // 64
"""Of the finest level that a head sees of the images of these tests."""


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    torch.manual_seed(0)
    with one_thread():
        yield


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norms, "MIN_ELEMENTS", 0)


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_norms, "DEVICE", "cpu")


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast turns itself off where there is no GPU, which fake tensors do not need."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def _norm() -> nn.GroupNorm:
    norm = nn.GroupNorm(GROUPS, C)
    with torch.no_grad():
        norm.weight.normal_(1, 0.5)
        norm.bias.normal_()
    return norm


def _replaced(norm: nn.GroupNorm) -> nn.GroupNorm:
    found = copy.deepcopy(norm)
    group_norms.use(found)
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_stays_near_float32(memory_format: torch.memory_format, device: str) -> None:
    # Channels that differ, so that a group's statistics are not those of a channel.
    shift = torch.randn(C, 1, 1) * 3 + 2
    x = (torch.randn(B, C, 12, 20) * 3 + shift).to(device, torch.bfloat16, memory_format=memory_format).requires_grad_()
    norm, gradient = _norm().to(device), torch.randn(B, C, 12, 20).to(device, torch.bfloat16)
    with LargestFloat32() as largest:
        found = group_norms.normalize(x, GROUPS, norm.weight, norm.bias, norm.eps)
        gradients = torch.autograd.grad(found, [x, norm.weight, norm.bias], gradient)
    assert found.dtype is gradients[0].dtype is torch.bfloat16
    assert found.is_contiguous(memory_format=memory_format)
    assert largest.elements <= B * C
    reference = x.detach().float().requires_grad_()
    wanted = F.group_norm(reference, GROUPS, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=2**-8)
    exact = torch.autograd.grad(wanted, [reference, norm.weight, norm.bias], gradient.float())
    for ours, theirs in zip(gradients, exact, strict=True):
        assert (ours.float() - theirs).norm() / theirs.norm() < 2**-7
    # No shift of a whole map, which half-precision statistics would give.
    assert (found.float() - wanted).mean((2, 3)).abs().max() < 2e-3


def test_a_constant_map_becomes_the_bias() -> None:
    norm = _norm()
    found = group_norms.normalize(torch.full((1, C, 1, 1), 300.0).bfloat16(), GROUPS, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(found.float().flatten(), norm.bias, rtol=2**-8, atol=2e-2)


@pytest.mark.usefixtures("any_size", "as_on_gpu")
def test_float32_is_torchs_bit_for_bit() -> None:
    norm, x = _norm(), torch.randn(B, C, 5, 7, requires_grad=True)
    ours = _replaced(norm)
    results = []
    for module in (norm, ours):
        with torch.autocast("cpu", torch.bfloat16):
            cast = module(x)
        y = module(input=x) + module(x) + cast
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    # A model that is bfloat16 as a whole keeps torch's own norm too: autocast is off.
    assert torch.equal(ours.bfloat16()(x.bfloat16()), norm.bfloat16()(x.bfloat16()))


@pytest.mark.usefixtures("any_size", "as_on_gpu")
def test_a_norm_without_shift_and_one_of_another_class_stay() -> None:
    class Own(nn.GroupNorm):
        pass

    model = nn.Sequential(Own(2, 4), nn.GroupNorm(2, 4, bias=False), nn.GroupNorm(2, 4, affine=False))
    group_norms.use(model)
    assert not any("forward" in vars(x) for x in model)


@pytest.mark.usefixtures("as_on_gpu")
def test_which_maps_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, x = _replaced(_norm()), torch.randn(B, C, 5, 7).bfloat16()
    made = []
    with torch.autocast("cpu", torch.bfloat16):
        for elements in (x.numel(), x.numel() + 1):
            monkeypatch.setattr(group_norms, "MIN_ELEMENTS", elements)
            made.append(type(ours(x).grad_fn).__name__)
    assert made == ["_GroupNormBackward", "NativeGroupNormBackward0"]


@pytest.mark.usefixtures("any_size", "as_on_gpu")
def test_compiles_in_one_piece() -> None:
    norm = _norm()
    compiled: Any = torch.compile(_replaced(norm), backend="eager", fullgraph=True)
    x = torch.randn(B, C, 5, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x), norm(x))


def _forward_on_fake_gpu(name: str, dtype: torch.dtype, fast: bool, **changes: Any) -> tuple[int, set[torch.dtype]]:
    """Elements of the largest float32 tensor saved for the backward pass, and types of the normed maps."""
    saved: list[Tensor] = []
    types: set[torch.dtype] = set()

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    settings = tiny_settings(name)
    settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update=changes)})
    with FakeTensorMode(), torch.device("cuda"):
        detector: Any = build_detector(settings, CLASSES).train()
        if fast:
            use_fast_losses(detector)
        for module in detector.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_hook(lambda _module, _inputs, y: types.add(y.dtype))
        images = torch.randn(B, 3, 64, 96)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), cuda_autocast(dtype):
            detector.head(list(detector.backbone(images).values()))
    parameters = {id(x) for x in detector.parameters()}
    sizes = [x.numel() for x in saved if x.dtype is torch.float32 and id(x) not in parameters]
    return max(sizes), types


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", ["fcos", "atss", "poto", "retinanet"])
def test_nothing_of_a_maps_size_is_saved_in_float32(name: str) -> None:
    backbone = {"norm": "GN", "width": 32}
    channels = tiny_settings(name).channels
    for dtype in (torch.bfloat16, torch.float16):
        plain, types = _forward_on_fake_gpu(name, dtype, False, **backbone)
        assert types == {torch.float32}
        assert plain >= B * channels * CELLS
        ours, types = _forward_on_fake_gpu(name, dtype, True, **backbone)
        assert types == {dtype}
        if dtype is torch.bfloat16:
            # No more than statistics; the images themselves are cast.
            assert ours < plain / 100


def test_the_detector_stays_what_it_is() -> None:
    settings = tiny_settings("fcos")
    detector = build_detector(settings.model_copy(update={"backbone": Backbone(norm="GN", width=32)}), CLASSES)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    names, printed = list(detector.state_dict()), fingerprint(detector, optimizer)
    use_fast_losses(detector)
    norms = [x for x in detector.modules() if isinstance(x, nn.GroupNorm)]
    assert norms
    assert all("forward" in vars(x) for x in norms)
    assert list(detector.state_dict()) == names
    assert fingerprint(detector, optimizer) == printed
    use_detectron2_losses(detector)
    assert not any("forward" in vars(x) for x in norms)


def test_norms_of_a_detector_of_ones_own_stay() -> None:
    # What it does with their results may need float32.
    detector = use_fast_losses(nn.Sequential(nn.GroupNorm(2, 4)))
    assert not any("forward" in vars(x) for x in detector.modules())
