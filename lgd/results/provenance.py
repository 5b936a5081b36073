"""Where a result comes from: versions, hardware, commit and time.

torch and detectron2 are imported by the functions that need them: a command that only names a commit or a time must not
take the seconds that their import takes.
"""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

import lgd

PACKAGES = ("torch", "torchvision", "ray", "optuna", "numpy", "pycocotools", "fvcore")


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of this suite and of the packages that its numbers depend on."""
    import detectron2

    found = {
        "python": platform.python_version(),
        "lgd": lgd.__version__,
        "detectron2": detectron2.__version__,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


@cache
def hardware() -> dict[str, str]:
    """Host, processor, memory and GPU (``none`` without one)."""
    import torch

    gpu = "none"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "gpu": gpu,
    }


COMMIT = "LGD_COMMIT"
"""Environment variable: the commit of the code, for a copy of it that git does not know (a container's)."""


def git_commit() -> str:
    """Commit of this checkout, with ``+changes`` when the working tree differs; ``unknown`` where there is none."""
    if given := os.environ.get(COMMIT, ""):
        return given
    root = Path(lgd.__file__).parent.parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(root, "status", "--porcelain") else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
