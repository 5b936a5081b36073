"""pydantic's complaints in one line: which setting, what is expected, what was given."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list in brackets, such as [1, 2]",
    "list_type": "a list in brackets, such as [1, 2]",
    "dict_type": "a group of settings",
    "model_type": "a group of settings",
    "model_attributes_type": "a group of settings",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text of at least {min_length} character(s)",
}
"""How to correct a value, by pydantic's type of the error; its context fills in the braces."""


def explain(error: ValidationError) -> str:
    """One line for the first thing that is wrong: its key, what is expected there, and what was given."""
    first: Any = error.errors(include_url=False)[0]
    place = list(first["loc"])
    # An entry of a list of values is counted from 1.
    entry = f"entry {place.pop() + 1} " if place and isinstance(place[-1], int) else ""
    key = ".".join(map(str, place))
    given = first.get("input")
    message = f"{entry}{_message(first)}{_given(first['type'], given)}"
    if entry and isinstance(given, str) and "," in given:
        message += f"; write a list as [{', '.join(x.strip() for x in given.split(','))}]"
    # A key in a file may hold line breaks.
    return " ".join((f"{key}: {message}" if key else message).splitlines())


def _given(kind: str, value: object) -> str:
    # Not a whole group of settings, of which two do not fit together.
    if kind == "missing" or isinstance(value, BaseModel) or (kind == "value_error" and isinstance(value, dict)):
        return ""
    return f" (given: {value!r})"


def _message(error: dict[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        return _one_of(context["expected"], error["input"])
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "is not known"
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind].format(**context)}"
    return str(error["msg"]).removeprefix("Value error, ")


def _one_of(expected: str, given: object) -> str:
    """``expected`` is pydantic's "'a', 'b' or 'c'"."""
    choices = [x.strip("'") or "''" for x in expected.replace(" or ", ", ").split(", ")]
    close = get_close_matches(str(given), choices, n=1)
    return f"must be {'one of ' if len(choices) > 1 else ''}{', '.join(choices)}" + (
        f"; did you mean {close[0]}?" if close else ""
    )
