"""Whether what a sweep's trainings write and hold fits on this machine's disk and in its memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lgd.config.grids import Trial
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.files import free_space

if TYPE_CHECKING:
    from lgd.training.build import DryBuilt

CLEARLY = 1.5
"""How many times the free memory an estimate must be to be refused: it is no closer than that."""


def check_disk(directory: Path, trials: Sequence[tuple[Trial, DryBuilt]], max_concurrent: int) -> None:
    """Raise InputError, one line, where the files of all ``trials`` together do not fit.

    Every trial leaves its student and logs; checkpoints are there of those only that train at the same time. Frozen
    teachers that trials share are counted once. Checkpoints that are there already will be replaced: they count as
    free.
    """
    from lgd.training import checkpoint

    built = [x for _, x in trials]
    teachers = {x.teacher.fingerprint: x.teacher for x in built if x.teacher is not None}
    files = [x.files for x in (*built, *teachers.values()) if x.files is not None]
    largest = sorted((x.checkpoints for x in files), reverse=True)[:max_concurrent]
    needed = sum(x.results for x in files) + sum(largest)
    free = free_space(directory) + sum(checkpoint.size(x) for x in {trial.directory for trial, _ in trials})
    if free < needed:
        count = f"{len(trials)} trial{'s' * (len(trials) != 1)}"
        raise InputError(
            f"{directory}: {_mib(free)} free, and checkpoints, exported students and logs of {count} need about"
            f" {_mib(needed)}: free some, choose another --output, or set checkpoint.keep lower"
        )


def check_memory(built: Sequence[DryBuilt], resources: Resources) -> str:
    """A note on the memory that steps take; "" where it cannot be told. An estimate: see lgd/training/memory_need.py.

    Raises InputError, one line, where that is clearly more than what is free.
    """
    each = [y.memory for x in built for y in (x, x.teacher) if y is not None and y.memory is not None]
    if not each:
        return ""
    # Of a trial's workers each has its part of the images, and a copy of the model.
    one = max(each) // resources.workers
    if resources.gpus:
        together, where, free = max(1, int(1 / resources.gpus)), "GPU", _free_gpu_memory()
    else:
        together, where, free = resources.max_concurrent * resources.workers, "machine", _free_memory()
    beside = f", {together} side by side about {_gib(together * one)}" if together > 1 else ""
    note = f"a step needs about {_gib(one)} of memory{beside}"
    if free is not None and together * one > CLEARLY * free:
        raise InputError(
            f"{note}, and the {where} has {_gib(free)} free: set schedule.batch lower or schedule.accumulate higher"
            + (", or run fewer side by side (--cpus, --gpus)" if together > 1 else "")
        )
    return f"{note} (an estimate{'' if free is None else f'; the {where} has {_gib(free)} free'})"


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _free_gpu_memory() -> int | None:
    """Bytes that are free on the GPU with the least, of CUDA_VISIBLE_DEVICES where that is set; None where that is not
    known. Does not open a CUDA context in this process."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            names = visible.replace(" ", "").split(",")
            by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
            if any(x.isdigit() for x in names) and not by_bus and len({*map(pynvml.nvmlDeviceGetName, handles)}) > 1:
                # CUDA counts the fastest first, NVML by bus.
                return None
            handles = [handles[int(x)] if x.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(x) for x in names]
        return min(int(pynvml.nvmlDeviceGetMemoryInfo(x).free) for x in handles)
    except Exception:  # no driver, no package, or a device that does not say
        return None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
