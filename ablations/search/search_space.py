"""The search space: a method's settings, LGD's components among them, around a base experiment. Loads no Optuna."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from ablations.trial_config import TrialConfig
from lgd.config.components import AdapterVariant
from lgd.config.experiment import parse, split_assignment
from lgd.config.settings import Settings
from lgd.config.validation_error import explain
from lgd.errors import InputError
from lgd.results.record import Record

OBJECTIVES = {"AP": "max", "gpu_hours": "min"}
"""Objectives of a search: the student's AP in percent, and the device-hours of its training steps (docs/cost.md)."""

VARIANTS: tuple[AdapterVariant, ...] = get_args(AdapterVariant)
WITHOUT_ADAPTER = " (adapter off)"
"""Ends the name of a parameter that has other choices there: to Optuna another parameter."""

DIGITS = 3
"""Significant digits of a weight or factor that is trained with."""


COMPONENTS = ("mapper", "encoder", "adapter")
"""Components of LGD that are on or off."""

VARIANT = "method.variant"

RANGES = {
    "method.distill_weight": (0.1, 10.0),
    "method.instructive_weight": (0.1, 10.0),
    "method.lr_factor": (0.3, 3.0),
}
"""Lowest and highest value of LGD's numbers, which are drawn on a log scale, unless ``--search-space`` says others."""

RANGES_OF_OTHERS = {"method.distill_weight": (0.001, 10.0)}
"""The same of any other method: published weights can be a thousand times too large for a short training
(``CHOSEN_WEIGHTS`` of lgd/config/methods_grid.py)."""


@dataclass(frozen=True)
class SearchSpace:
    """The settings that a search varies, and within what."""

    fixed: tuple[str, ...] = ()
    """Those that have the base experiment's value in every trial."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: RANGES)
    """Lowest and highest value of the numbers."""
    variants: tuple[str, ...] = VARIANTS
    """Choices of the adapter's variant; () where there is no adapter."""
    components: tuple[str, ...] = COMPONENTS
    """What is on or off; () for other methods than LGD."""

    @property
    def searched(self) -> tuple[str, ...]:
        """The settings that a search chooses itself, unless they are fixed."""
        return (*(f"method.{x}" for x in self.components), *((VARIANT,) if self.variants else ()), *self.ranges)

    def described(self, base: Settings) -> str:
        """In one line. base: the base experiment's method."""
        free = [x for x in self.searched if x not in self.fixed]
        components = [x for x in free if x.removeprefix("method.") in self.components]
        parts = [f"{', '.join(components)}: on or off"] if components else []
        parts += [f"{VARIANT}: {', '.join(self.variants)}"] if VARIANT in free else []
        parts += [f"{x}: {self.ranges[x][0]:g} to {self.ranges[x][1]:g}" for x in self.ranges if x in free]
        values = {x: getattr(base, x.removeprefix("method.")) for x in self.fixed}
        parts += [f"fixed: {', '.join(assignments(values))}"] if values else []
        return f"search space: {'; '.join(parts)}"


def space_of(overrides: Iterable[str], narrowed: Iterable[str], base: Settings) -> SearchSpace:
    """The space of a search. overrides: its ``key=value``, which fix what they set. narrowed: what ``--search-space``
    says. base: the base experiment's method.

    Raises InputError, one line, where a setting is fixed and has a range, or nothing is left to search.
    """
    given, asked_for, own = {split_assignment(x)[0] for x in overrides}, _parsed(narrowed), base.model_dump()
    space = _own_space(own, asked_for)
    space = replace(space, fixed=tuple(x for x in space.searched if x in given))
    _check_asked_for(asked_for, space, base)
    fixed = {x: own[x] for x in (key.removeprefix("method.") for key in space.fixed if key not in space.ranges)}
    if not _is_possible(base, fixed, space):
        values = ", ".join(assignments({f"method.{key}": value for key, value in fixed.items()}))
        raise InputError(f"--search-space {VARIANT}={','.join(space.variants)}: none of these works with {values}")
    asked = _Asked()
    _ask(asked, base, space)
    if asked.names:
        return space
    if space.fixed:
        raise InputError(f"--set of {', '.join(space.fixed)}: nothing is left to search: leave one of them out")
    numbers = ", ".join(_numbers(base))
    raise InputError(
        f"method {own['name']} has nothing that is searched by itself"
        + (f": say what with --search-space KEY=LOW:HIGH ({numbers})" if numbers else "")
    )


def _own_space(own: Mapping[str, Any], asked_for: Mapping[str, Any]) -> SearchSpace:
    """The space of a method, with what ``--search-space`` says. own: the method's settings."""
    narrowed = {key: x for key, x in asked_for.items() if key != VARIANT}
    if {*COMPONENTS, VARIANT.removeprefix("method.")} <= own.keys():
        return SearchSpace((), {**RANGES, **narrowed}, asked_for.get(VARIANT, VARIANTS))
    ranges = {key: x for key, x in RANGES_OF_OTHERS.items() if key.removeprefix("method.") in own}
    return SearchSpace((), {**ranges, **narrowed}, (), ())


def _check_asked_for(asked_for: Mapping[str, Any], space: SearchSpace, base: Settings) -> None:
    """Raise InputError where ``--search-space`` names what is fixed, or what the method ``base`` does not have."""
    own = base.model_dump()
    for key, value in asked_for.items():
        if key in space.fixed:
            raise InputError(f"--search-space {key} and --set {key}: searched or fixed: leave one of them out")
        if key == VARIANT:
            if not space.variants:
                raise InputError(f"--search-space {key}: method {own['name']} has no adapter")
            continue
        if key not in (numbers := _numbers(base)):
            known = f"those are {', '.join(numbers)}" if numbers else "it has none"
            raise InputError(f"--search-space {key}: no setting of method {own['name']} that takes a range: {known}")
        for bound in value:
            try:
                type(base).model_validate({**own, key.removeprefix("method."): bound})
            except ValidationError as error:
                raise InputError(f"--search-space method.{explain(error)}") from None


def _numbers(method: Settings) -> list[str]:
    """The settings of a method that a range can be said of; they may be None unless they are set."""
    return [f"method.{key}" for key, x in type(method).model_fields.items() if _is_float(x.annotation)]


def _is_float(annotation: Any) -> bool:
    of_union = get_origin(annotation) in (Annotated, Union, UnionType)
    return annotation is float or (of_union and any(_is_float(x) for x in get_args(annotation)))


def normalized(narrowed: Iterable[str]) -> tuple[str, ...]:
    """What ``--search-space`` says, in one form. Raises InputError, one line, for what is no range or choice."""
    found, usual = _parsed(narrowed), [VARIANT, *RANGES]
    return tuple(
        f"{x}={','.join(found[x]) if x == VARIANT else ':'.join(repr(y) for y in found[x])}"
        for x in sorted(found, key=lambda x: (usual.index(x) if x in usual else len(usual), x))
    )


def _parsed(narrowed: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in narrowed:
        key, _, value = (x.strip() for x in text.partition("="))
        if key in found:
            raise InputError(f"--search-space {key} is given twice")
        if key == VARIANT:
            found[key] = _variants(text, value)
        elif key.startswith("method.") and key.removeprefix("method.") not in COMPONENTS:
            found[key] = _range(text, value)
        else:
            raise InputError(
                f"--search-space {text}: numbers of the method ({', '.join(RANGES)}) take a range, LOW:HIGH, and"
                f" {VARIANT} takes A,B"
            )
    return found


def _range(text: str, value: str) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in value.split(":"))
    except ValueError:
        raise InputError(f"--search-space {text}: a range, LOW:HIGH") from None
    if not 0 < low < high < math.inf:
        raise InputError(f"--search-space {text}: numbers above 0, the lower one first")
    return low, high


def _variants(text: str, value: str) -> tuple[str, ...]:
    chosen = {x.strip() for x in value.split(",")}
    if not chosen <= set(VARIANTS) or len(chosen) < 2:
        raise InputError(f"--search-space {text}: at least two of {', '.join(VARIANTS)}, with commas between")
    return tuple(x for x in VARIANTS if x in chosen)


class _Asked:
    """In an Optuna trial's stead: notes what is asked."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.names.append(name)
        return choices[0]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        self.names.append(name)
        return low


def suggest(trial: Any, base: TrialConfig, space: SearchSpace | None = None) -> dict[str, Any]:
    """Ask an Optuna trial for every parameter that has a choice, given those before it.

    A component is asked about only where it may be off, the adapter's variant only among those that work with the
    components that are on, and with what the base experiment has besides. Returns the constants that the trial's
    configuration holds besides.
    """
    _ask(trial, parse(base["experiment"]).method, space or SearchSpace())
    return {"base": base}


def _ask(trial: Any, method: Settings, space: SearchSpace) -> None:
    own = method.model_dump()
    fixed = [x.removeprefix("method.") for x in space.fixed if x not in space.ranges]
    chosen: dict[str, Any] = {key: own[key] for key in fixed}
    for key in (x for x in space.components if x not in fixed):
        choices = [x for x in (True, False) if _is_possible(method, {**chosen, key: x}, space)]
        chosen[key] = trial.suggest_categorical(f"method.{key}", choices) if len(choices) > 1 else choices[0]
    if space.variants and VARIANT not in space.fixed:
        possible = [x for x in space.variants if _is_possible(method, {**chosen, "variant": x}, space)]
        # The base experiment's own needs no saying.
        if len(possible) > 1 or possible != [own["variant"]]:
            trial.suggest_categorical(f"{VARIANT}{'' if chosen['adapter'] else WITHOUT_ADAPTER}", possible)
    for key in space.ranges:
        if key not in space.fixed:
            trial.suggest_float(key, *space.ranges[key], log=True)


def _is_possible(method: Settings, chosen: Mapping[str, Any], space: SearchSpace) -> bool:
    """Whether ``method`` can be trained with the ``chosen`` components and some choice of the others."""
    whole: dict[str, Sequence[Any]] = dict.fromkeys(space.components, (True, False))
    whole |= {"variant": space.variants} if space.variants else {}
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
    """The objectives' values of a trial that ended, those that are known; empty without an AP.

    Hours are those of its training steps: what an interruption lost, an evaluation took or a teacher that all trials
    share, says nothing of the parameters.
    """
    # Here, not at the top: commands that only plan do without.
    from analysis.load import training_device_seconds

    ap = record.student.AP if record.student else None
    if ap is None:
        return {}
    seconds = training_device_seconds(record)
    return {"AP": ap, **({} if seconds is None else {"gpu_hours": seconds / 3600})}
