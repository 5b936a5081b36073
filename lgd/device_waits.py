"""Whether the host waits for the device. torch is not loaded here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def reading_waits(x: Tensor) -> bool:
    """Whether reading the values of ``x`` waits for the work launched before: on a GPU, not on the CPU.

    The benchmarks replace it to count on the CPU what a GPU would wait for.
    """
    return x.is_cuda
