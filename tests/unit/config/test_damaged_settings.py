"""A thousand lines of --set: each changes the experiment, or one line names it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lgd.config.experiment import settings, split_assignment
from lgd.config.paper_recipes import named
from lgd.errors import InputError
from lgd.training.__main__ import main
from tests.damage import damaged_bytes

LINES = 1000

EXPERIMENT = "retinanet_r50_2x_ms"

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


def test_the_command_takes_a_line_or_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 0 and the experiment, or 2 and one line; nothing is written either way."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "LGD_CACHE", "XDG_CACHE_HOME", "TORCH_HOME", "FVCORE_CACHE", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    rng = random.Random(0)
    keys, changed = list(settings(named(EXPERIMENT).experiment)), 0
    for _ in range(LINES):
        line = _line(rng, keys)
        status = main([EXPERIMENT, "--show", f"--set={line}"])
        printed = capsys.readouterr()
        said = printed.err.splitlines()
        if status == 0:
            changed += 1
            assert printed.out.splitlines()[-1].startswith("seed="), line
            assert all(x.startswith("warning: ") for x in said), (line, said)
        else:
            assert (status, printed.out, len(said)) == (2, "", 1), (line, said)
            assert said[0].startswith("error: "), (line, said)
            assert _names(said[0], line), (line, said)
    assert LINES / 40 < changed < LINES / 2
    assert list(tmp_path.iterdir()) == []


def test_brackets_that_are_too_deep_are_named() -> None:
    with pytest.raises(InputError, match="is not valid YAML"):
        split_assignment(f"seed={'[' * 1500}")


def _names(said: str, line: str) -> bool:
    """Whether the message has the whole line, its key or its value, or the setting that the value does not fit."""
    value = line.partition("=")[2]
    if value and repr(value) in said:
        return True
    try:
        key, _ = split_assignment(line)
    except InputError:
        return repr(line) in said
    return key in said or repr(key) in said or key.rpartition(".")[2] in said or key.partition(".")[0] in said
