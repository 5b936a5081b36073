"""The search space: LGD's weights and components around a sweep's base experiment. Loads no Optuna."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, get_args

from ablations.trial_config import TrialConfig
from lgd.config.components import AdapterVariant
from lgd.config.experiment import parse
from lgd.config.settings import Settings
from lgd.results.record import Record

OBJECTIVES = {"AP": "max", "gpu_hours": "min"}
"""Objectives of a search: the student's AP in percent, and the device-hours of its training."""

VARIANTS: tuple[AdapterVariant, ...] = get_args(AdapterVariant)
WITHOUT_ADAPTER = " (adapter off)"
"""Ends the name of a parameter that has other choices there: to Optuna another parameter."""

DIGITS = 3
"""Significant digits of a weight or factor that is trained with."""


SEARCHED = tuple(
    f"method.{key}"
    for key in ("mapper", "encoder", "adapter", "variant", "distill_weight", "instructive_weight", "lr_factor")
)
"""The settings that a search chooses itself."""


def suggest(trial: Any, base: TrialConfig) -> dict[str, Any]:
    """Ask an Optuna trial for every parameter that has a choice, given those before it.

    A component is asked about only where it may be off, the adapter's variant only among those that work with the
    components that are on, and with what the base experiment has besides. Returns the constants that the trial's
    configuration holds besides.
    """
    method = parse(base["experiment"]).method
    chosen: dict[str, Any] = {}
    for key in ("mapper", "encoder", "adapter"):
        choices = [x for x in (True, False) if _is_possible(method, {**chosen, key: x})]
        chosen[key] = trial.suggest_categorical(f"method.{key}", choices) if len(choices) > 1 else choices[0]
    possible = [x for x in VARIANTS if _is_possible(method, {**chosen, "variant": x})]
    if len(possible) > 1:
        trial.suggest_categorical(f"method.variant{'' if chosen['adapter'] else WITHOUT_ADAPTER}", possible)
    trial.suggest_float("method.distill_weight", 0.1, 10, log=True)
    trial.suggest_float("method.instructive_weight", 0.1, 10, log=True)
    trial.suggest_float("method.lr_factor", 0.3, 3, log=True)
    return {"base": base}


def _is_possible(method: Settings, chosen: Mapping[str, Any]) -> bool:
    """Whether ``method`` can be trained with the ``chosen`` components and some choice of the others."""
    whole = {"mapper": (True, False), "encoder": (True, False), "adapter": (True, False), "variant": VARIANTS}
    free = [key for key in whole if key not in chosen]
    described = method.model_dump()
    for values in itertools.product(*(whole[key] for key in free)):
        with suppress(ValueError):
            type(method).model_validate({**described, **chosen, **dict(zip(free, values, strict=True))})
            return True
    return False


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
