"""A thousand lines of --set: each changes the experiment, or one line names it."""

from __future__ import annotations

import random

import pytest

from lgd.config.experiment import Experiment, settings, split_assignment
from lgd.config.presets import NANO
from lgd.errors import InputError
from tests.damage import damaged_bytes

LINES = 1000

VALUES = (
    "", "1", "0", "-1", "1.5", "1e-3", "1e400", "nan", ".inf", "true", "null", "auto", "none", "[]", "[1]", "[1, [2]]",
    "{}", "{a: 1}", "[", "{", "'", '"', "!!python/object/apply:os.system [ls]", "&a [*a]", "99999999999999999999999",
    "0x1f", "x" * 500, "é", "\x00", "a\nb: c", "- 1\n- 2", "2001-01-01", "2001-99-99", "12:30:45", "0x_",
    "!!timestamp x", "!!float y", "lgd", "retinanet", "@", "%", "`", "?", "|", ">", "*a", "1,2",
)  # fmt: skip


def _line(rng: random.Random, keys: list[str]) -> str:
    key = rng.choice(keys)
    kind = rng.random()
    if kind < 0.15:
        key = rng.choice([key[:-1], f"{key}.x", key.partition(".")[0], key.upper(), f" {key}", key.replace(".", "..")])
    line = f"{key}={rng.choice(VALUES)}"
    return damaged_bytes(rng, line.encode()).decode(errors="replace") if kind > 0.7 else line


def test_a_line_changes_the_experiment_or_is_named() -> None:
    rng = random.Random(0)
    keys, changed = list(settings(NANO)), 0
    for _ in range(LINES):
        line = _line(rng, keys)
        try:
            assert isinstance(NANO.override([line]), Experiment)
        except InputError as error:
            said = str(error)
            assert len(said.splitlines()) == 1, line
            assert _names(said, line), (line, said)
        else:
            changed += 1
    assert LINES / 40 < changed < LINES / 2


def test_brackets_that_are_too_deep_are_named() -> None:
    with pytest.raises(InputError, match="is not valid YAML"):
        split_assignment(f"seed={'[' * 1500}")


def _names(said: str, line: str) -> bool:
    """Whether the message has the whole line, its key, or the setting that the value does not fit."""
    try:
        key, _ = split_assignment(line)
    except InputError:
        return repr(line) in said
    return key in said or repr(key) in said or key.rpartition(".")[2] in said or key.partition(".")[0] in said
