"""Base class of everything that is set by the user, and what can be read from its fields."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value: object) -> object:
    # pydantic would read true as 1.
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


LARGEST_INT = 10**9

PositiveInt = Annotated[int, BeforeValidator(_no_bool), Field(gt=0, le=LARGEST_INT)]
NonNegativeInt = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=LARGEST_INT)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]

AUTO_IS_NONE: Final = BeforeValidator(lambda value: None if value == "auto" else value)
"""Metadata of a setting whose None is written "auto"."""


def auto_or_int(value: object) -> object:
    """Check of a setting that is "auto" or a whole number from 0."""
    if value != "auto" and (type(value) is not int or value < 0):
        raise ValueError("must be auto or a whole number from 0")
    return value


class ChangesNoResult:
    """Metadata of a setting that changes whether or how a training goes (how fast, where, what is logged), not its
    result.

    ``threads: Annotated[int, CHANGES_NO_RESULT]``; :func:`keys_without_effect_on_result` lists them.
    """


CHANGES_NO_RESULT: Final = ChangesNoResult()


class Settings(BaseModel):
    """A group of settings: immutable, unknown keys refused. The string below a field describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def settings(group: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every setting of a group and of the groups in it, by dotted key, in order."""
    found: dict[str, Any] = {}
    for name in type(group).model_fields:
        value = getattr(group, name)
        found |= settings(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return found


def keys_without_effect_on_result(group: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """The dotted keys of the settings that are marked with :class:`ChangesNoResult`, in order."""
    found: list[str] = []
    for name, field in group.model_fields.items():
        if any(isinstance(x, ChangesNoResult) for x in field.metadata):
            found.append(f"{prefix}{name}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys_without_effect_on_result(field.annotation, f"{prefix}{name}.")
    return tuple(found)
