"""Checkpoints of a running training: written atomically, the last few kept.

A checkpoint is a dict of tensors and plain values, so that ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lgd.config.experiment import Experiment, difference, parse
from lgd.detectors.weight_files import load_tensors, reason
from lgd.errors import InputError
from lgd.results import provenance
from lgd.results.record import FINGERPRINT_VERSION
from lgd.training.tensor_file import save_tensors

FORMAT = 1
DIRECTORY = "checkpoints"

NAME = re.compile(r"step-\d+\.pth")

_log = logging.getLogger(__name__)


def save(
    directory: Path, step: int, experiment: Experiment, fingerprint: str, commit: str, state: dict[str, Any]
) -> Path:
    """Write the state after ``step`` steps, and remove old checkpoints down to ``experiment.checkpoint.keep``.

    Later ones are removed, too: a training goes on from the last that can be read, so these cannot.
    """
    path = directory / DIRECTORY / f"step-{step:08}.pth"
    head = {
        "format": FORMAT,
        "step": step,
        "fingerprint": fingerprint,
        "fingerprint_version": FINGERPRINT_VERSION,
        "experiment": experiment.model_dump_json(),
        "versions": provenance.versions(),
        "commit": commit,
    }
    save_tensors({**head, "state": state}, path)
    found = _all(directory)
    kept = [x for x in found if _step_of(x) <= step][-experiment.checkpoint.keep :]
    for other in found:
        if other not in kept:
            other.unlink(missing_ok=True)
    return path


def latest(directory: Path, experiment: Experiment, fingerprint: str) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest readable checkpoint, on the CPU; None where there is none.

    Raises InputError, naming the difference, when it is of another experiment, or of code that builds another model,
    optimiser or data from the same settings.
    """
    for path in reversed(_all(directory)):
        try:
            _check_sums(path)
            found = load_tensors(path)
            if found["format"] != FORMAT:
                raise InputError(f"{path}: checkpoint format {found['format']!r} is not known: remove it to start anew")
            version = found.get("fingerprint_version", 1)
            if version != FINGERPRINT_VERSION:
                raise InputError(
                    f"{path} is of an earlier version of this suite (fingerprint version {version} there and"
                    f" {FINGERPRINT_VERSION} here): remove it or choose another directory"
                )
            if found["fingerprint"] != fingerprint:
                why = difference(parse(json.loads(found["experiment"])), experiment) or _versions(found)
                raise InputError(f"{path} is of another training ({why}): remove it or choose another directory")
            return int(found["step"]), found["state"]
        except InputError:
            raise
        except Exception as error:  # a damaged file: the one before may be intact
            _log.warning("%s cannot be read (%s): going back to the one before", path, reason(error))
    return None


def _check_sums(path: Path) -> None:
    """Raise OSError where a part of the file is not what was written: torch.load would take it as it is."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise OSError(f"{damaged} in it is damaged")


def last_step(directory: Path) -> int | None:
    """Steps done at the newest checkpoint, by its name; None where there is none."""
    found = _all(directory)
    return _step_of(found[-1]) if found else None


def size(directory: Path) -> int:
    """Bytes of all checkpoints of a directory."""
    return sum(path.stat().st_size for path in _all(directory))


def remove(directory: Path) -> None:
    """Remove every checkpoint of a directory."""
    shutil.rmtree(directory / DIRECTORY, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """The states of all random generators that a training step may use."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  detectron2 draws from the global state
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore the states that :func:`random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _all(directory: Path) -> list[Path]:
    """Oldest first."""
    return sorted(x for x in (directory / DIRECTORY).glob("step-*.pth") if NAME.fullmatch(x.name) and x.is_file())


def _versions(found: Mapping[str, Any]) -> str:
    """How the code that wrote a checkpoint differs from this code, in one line."""
    here = provenance.versions()
    changed = [f"{k} {v} there and {here.get(k)} here" for k, v in found["versions"].items() if here.get(k) != v]
    commits = f"commit {found['commit'][:12]} there and {provenance.git_commit()[:12]} here"
    return ", ".join([*changed, commits, "the same settings build another model, optimiser or data"])
