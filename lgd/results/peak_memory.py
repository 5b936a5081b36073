"""The largest memory of this process, and of its GPU.

This module does not import torch: what uses no GPU must not take the seconds that this takes.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def reset_peak_memory() -> None:
    """Reset the peaks, so that a process which runs several trainings reports each one's own."""
    # What an earlier training has freed still belongs to the process: give it back to the system, or each training in
    # a process would start, and so end, higher than the one before.
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    cuda = initialized_cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    # Where this is not Linux, or not allowed, the host's peak is that of the process so far.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> dict[str, float]:
    """Largest memory since the last reset, MiB: ``host`` (resident) and, with a GPU, ``device`` (allocated)."""
    peaks = {"host": _host_peak_mib()}
    cuda = initialized_cuda()
    if cuda is not None:
        peaks["device"] = cuda.max_memory_allocated() / 2**20
    return peaks


def initialized_cuda() -> Any:
    """``torch.cuda`` where this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_available() and cuda.is_initialized() else None


def _host_peak_mib() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024
