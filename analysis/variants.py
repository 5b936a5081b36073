"""Runs of one arm that were trained with different settings, told apart by what differs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.load import Run, arm_of, identity
from lgd.config.experiment import settings


@dataclass(frozen=True)
class Variant:
    """The runs of one setting, their arms renamed with it."""

    label: str
    """What differs, "" where nothing does."""
    runs: tuple[Run, ...]

    def name(self, arm: str) -> str:
        return f"{arm} ({self.label})" if self.label else arm


def variants(runs: Sequence[Run]) -> list[Variant]:
    """``runs`` by their settings, in the order of their labels.

    What an arm's runs differ in, seeds and what changes no result aside, is what tells the settings apart: two sweeps
    of one grid, one with ``--set schedule.steps=300``, are the variants ``schedule.steps=500`` and ``=300``. Arms that
    were trained once belong to the variant whose settings they share.
    """
    described = [settings(identity(run.record.experiment)) for run in runs]
    differing = differing_keys([arm_of(run.record) for run in runs], described)
    labels = [", ".join(f"{key}={values[key]}" for key in differing if key in values) for values in described]
    found = []
    for label in sorted(set(labels)):
        variant = Variant(label, ())
        renamed = (
            run._replace(record=run.record.model_copy(update={"arm": variant.name(arm_of(run.record))}))
            if label
            else run
            for run, of in zip(runs, labels, strict=True)
            if of == label
        )
        found.append(Variant(label, tuple(renamed)))
    return found


def differing_keys(names: Sequence[Hashable], described: Sequence[dict[str, Any]]) -> list[str]:
    """Settings in which two runs of one name differ. described: those of each run, by dotted key."""
    first: dict[Hashable, dict[str, Any]] = {}
    keys: dict[str, None] = {}
    for name, values in zip(names, described, strict=True):
        other = first.setdefault(name, values)
        keys |= dict.fromkeys(key for key, value in values.items() if other.get(key) != value)
    return list(keys)
