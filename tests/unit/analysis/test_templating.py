"""The macros of ``sentences.j2`` and the calls of them. mypy does not see into a template."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from jinja2 import UndefinedError, nodes

from analysis.stats.differences import paired_difference
from analysis.templating import environment, render_sentence

ANALYSIS = Path(__file__).parents[3] / "analysis"


def _macros() -> dict[str, nodes.Macro]:
    text = (ANALYSIS / "templates" / "sentences.j2").read_text(encoding="utf-8")
    return {x.name: x for x in environment().parse(text).find_all(nodes.Macro)}


def _calls() -> list[tuple[str, set[str]]]:
    """Of every call of ``render_sentence`` in the package, the macro and the arguments."""
    return [
        (ast.literal_eval(node.args[0]), {x.arg or "**" for x in node.keywords})
        for path in sorted(ANALYSIS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "render_sentence"
    ]


def test_every_sentence_has_its_macro_and_every_macro_its_arguments() -> None:
    macros = _macros()
    for macro, given in _calls():
        assert given == {x.name for x in macros[macro].args}, macro


def test_no_macro_is_left_without_a_caller() -> None:
    macros = _macros()
    called = {macro for macro, _ in _calls()}
    inside = {
        x.node.name for macro in macros.values() for x in macro.find_all(nodes.Call) if isinstance(x.node, nodes.Name)
    }
    assert macros.keys() - called - inside == set()


def test_a_sentence_is_one_line() -> None:
    found = paired_difference({0: 2.0, 1: 4.0}, {0: 1.0, 1: 2.0})
    assert render_sentence("more_training_alone", baseline="baseline", gains=[(2.0, found), (0.5, found)]) == (
        "More training alone gives the baseline +1.5 [-4.9, +7.9] after 2 times the steps, +1.5 [-4.9, +7.9] after 0.5"
        " times the steps (study of lengths)."
    )
    one = paired_difference({0: 2.0}, {0: 1.0})
    assert render_sentence("teacher", arm="LGD", ahead=0, of=1, lead=one) == (
        "The teacher of LGD was ahead of its student at any evaluation in 0 of 1 seed, and ended +1.0 AP (one seed)"
        " from it."
    )


def test_a_value_left_out_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'of'"):
        render_sentence("best_at_the_same_rate", arms=["LGD"], best=0.1)
    with pytest.raises(TypeError, match="rate"):
        render_sentence("best_at_the_same_rate", arms=["LGD"], best=0.1, of=5, rate=0.1)
