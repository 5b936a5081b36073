"""Norms in bfloat16: float32 statistics without a float32 copy of the map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lgd.methods.norms import EPS, group_norm, instance_norm, square_sum
from tests.helpers_memory import LargestFloat32

NORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "group": (group_norm, lambda x: F.group_norm(x, 1, eps=EPS)),
    "instance": (instance_norm, lambda x: F.instance_norm(x, eps=EPS)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_stays_near_float32(name: str, memory_format: torch.memory_format) -> None:
    ours, exact = NORMS[name]
    torch.manual_seed(0)
    # Far from zero, as maps behind a ReLU are.
    x = (torch.randn(2, 16, 12, 20) * 3 + 5).bfloat16().to(memory_format=memory_format).requires_grad_()
    gradient = torch.randn(2, 16, 12, 20).bfloat16()
    with LargestFloat32() as largest:
        found = ours(x)
        found.backward(gradient)
    assert found.dtype is torch.bfloat16
    assert largest.elements <= 2 * 16
    assert x.grad is not None
    reference = x.detach().float().requires_grad_()
    wanted = exact(reference)
    wanted.backward(gradient.float())
    assert reference.grad is not None
    torch.testing.assert_close(found.float(), wanted, rtol=2**-8, atol=2**-8)
    error = (x.grad.float() - reference.grad).norm() / reference.grad.norm()
    assert error < 2**-7
    # No shift of a whole map, which half-precision statistics would give.
    assert abs(found.float().mean()) < 1e-3
    assert float(found.detach().float().std()) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", NORMS)
def test_float16_and_float32_are_exact(name: str) -> None:
    ours, exact = NORMS[name]
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)) + 2
    assert torch.equal(ours(x), exact(x))
    torch.testing.assert_close(ours(x.half()).float(), exact(x.half().float()), rtol=2**-10, atol=2**-10)


def test_a_map_of_one_cell_or_one_value_is_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert (instance_norm(torch.full((1, 2, 1, 1), 3.0, dtype=dtype)) == 0).all()
    constant = torch.full((1, 2, 4, 4), 3.0, dtype=torch.bfloat16)
    torch.testing.assert_close(instance_norm(constant).float(), torch.zeros(1, 2, 4, 4), rtol=0, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_square_sum(dtype: torch.dtype) -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    found = square_sum(x)
    found.backward()
    assert found.dtype is torch.float32
    assert x.grad is not None
    torch.testing.assert_close(found, x.detach().float().square().sum())
    torch.testing.assert_close(x.grad.float(), 2 * x.detach().float(), rtol=2**-7, atol=0)
    assert square_sum(torch.zeros(3, dtype=dtype, requires_grad=True)).item() == 0
