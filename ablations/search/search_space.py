"""The search space: LGD's weights and components around a sweep's base experiment. Loads no Optuna."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from ablations.trial_config import TrialConfig
from lgd.config.components import AdapterVariant, component_conflict
from lgd.config.experiment import parse
from lgd.results.record import Record

OBJECTIVES = {"AP": "max", "gpu_hours": "min"}
"""Objectives of a search: the student's AP in percent, and the device-hours of its training."""

VARIANTS: tuple[AdapterVariant, ...] = get_args(AdapterVariant)
WITHOUT_ADAPTER = " (adapter off)"
"""Ends the name of a parameter that has other choices there: to Optuna another parameter."""

DIGITS = 3
"""Significant digits of a weight or factor that is trained with."""


def suggest(trial: Any, base: TrialConfig) -> dict[str, Any]:
    """Ask an Optuna trial for every parameter that has a choice, given those before it.

    A component is asked about only where it may be off, the adapter's variant only among those that work with the
    components that are on. Returns the constants that the trial's configuration holds besides.
    """
    # A search's is LGD.
    method: Any = parse(base["experiment"]).method
    context = method.context
    mapper = trial.suggest_categorical("method.mapper", [True, False]) if context else True
    encoder = trial.suggest_categorical("method.encoder", [True, False])
    adapter = trial.suggest_categorical("method.adapter", [True, False]) if mapper or encoder else True
    possible = [
        v
        for v in VARIANTS
        if not component_conflict(encoder=encoder, adapter=adapter, mapper=mapper, variant=v, context=context)
    ]
    if len(possible) > 1:
        trial.suggest_categorical(f"method.variant{'' if adapter else WITHOUT_ADAPTER}", possible)
    trial.suggest_float("method.distill_weight", 0.1, 10, log=True)
    trial.suggest_float("method.instructive_weight", 0.1, 10, log=True)
    trial.suggest_float("method.lr_factor", 0.3, 3, log=True)
    return {"base": base}


def settings_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys from an Optuna trial's parameters, rounded to DIGITS."""
    return {
        name.removesuffix(WITHOUT_ADAPTER): float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in sorted(parameters.items())
    }


def assignments(parameters: Mapping[str, Any]) -> list[str]:
    """The same as ``key=value``."""
    return [
        f"{key}={json.dumps(value) if isinstance(value, (bool, int, float)) else value}"
        for key, value in settings_of(parameters).items()
    ]


def proposed_trial(config: Mapping[str, Any]) -> TrialConfig:
    """The trial that a search proposed. config: Optuna's parameters, with ``base`` and the trial's ``name``."""
    base: TrialConfig = config["base"]
    name = str(config["name"])
    parameters = {key: value for key, value in config.items() if key not in ("base", "name")}
    labels = base["labels"]
    return {
        **base,
        "name": name,
        "experiment": parse(base["experiment"]).override(settings_of(parameters)).model_dump(mode="json"),
        "directory": f"{base['directory']}/trials/{name}",
        "labels": {**labels, "arm": name, "overrides": [*labels["overrides"], *assignments(parameters)]},
    }


def objectives(record: Record) -> dict[str, float]:
    """The objectives' values of a trial that ended; empty without an AP."""
    ap = record.student.AP if record.student else None
    spent = sum(record.device_seconds.values())
    return {} if ap is None else {"AP": ap, "gpu_hours": spent / 3600}
