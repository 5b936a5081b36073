"""Too little memory for a detector: one line that names what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lgd.errors import InputError
from lgd.training.export import DESCRIPTION_FILE

__all__ = ["enough_memory", "is_out_of_memory", "smaller_images"]

SAID = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED", "bad_alloc", "Failed to allocate memory")
"""What torch, CUDA's libraries and onnxruntime say of it, in errors that have no class of their own."""


@contextmanager
def enough_memory(device: torch.device | str, what: str, lower: str) -> Iterator[None]:
    """Inside, a detector runs on ``device``. Where its memory does not hold that, raises InputError, one line.

    what: does not fit, as the line says it. lower: the end of the line, what the user may do.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        whose = "the GPU's" if torch.device(device).type == "cuda" else "this machine's"
        raise InputError(f"{whose} memory is too small for {what}: {lower}") from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory that could not be had is why ``error`` was raised. Not an InputError, which says what it is."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return not isinstance(error, InputError) and any(x in str(error) for x in SAID)


def smaller_images(run: Path, device: torch.device | str) -> str:
    """What may be lowered for the student of the training in ``run``, for :func:`enough_memory`."""
    other = "take --device cpu, or " if torch.device(device).type == "cuda" else ""
    return f"{other}lower min_size and max_size in {run / DESCRIPTION_FILE}"
