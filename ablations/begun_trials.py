"""How far trials without a record are, by the names of their checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lgd.storage.outputs import names_in

CHECKPOINT = re.compile(r"(?:.*/)?checkpoints/step-(\d+)\.pth")


def begun_trials(directory: Path) -> dict[str, int | None]:
    """By name of each trial in a results directory that has begun: the step of its last checkpoint, None without."""
    names: dict[str, list[str]] = {}
    for path in directory.glob("trials/*/"):
        names[path.name] = []
    for name in names_in(directory / "trials"):
        names.setdefault(name.partition("/")[0], []).append(name)
    return {trial: last_checkpoint(files) for trial, files in names.items()}


def last_checkpoint(names: Iterable[str]) -> int | None:
    """Steps done at the newest checkpoint among files of one trial; None where there is none."""
    return max((int(found[1]) for name in names if (found := CHECKPOINT.fullmatch(name))), default=None)
