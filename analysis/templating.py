"""Jinja templates of the pages that are built from records (analysis/templates)."""

from __future__ import annotations

import re
import textwrap
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from analysis.render import difference_text, markdown, markdown_text, number, points, signed, with_interval, with_unit
from analysis.stats.differences import CONFIDENCE
from lgd.errors import InputError


@cache
def environment(*, html: bool = False) -> Environment:
    """The package's own templates. html: escape what is put in."""
    return _with_names(
        Environment(
            loader=PackageLoader("analysis", "templates"), autoescape=html, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )
    )  # fmt: skip


def _of_text() -> Environment:
    """For text from a file: its expressions reach no attribute that leads to Python, change nothing, load nothing."""
    return _with_names(ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True))


def _with_names(found: Environment) -> Environment:
    """``found`` with the filters and functions that templates use."""
    found.filters |= {"number": number, "signed": signed, "unit": with_unit, "pipe_table": _pipe_table}
    found.filters |= {"text": markdown_text, "wrap": _wrap, "difference": difference_text, "points": points}
    found.globals |= {"with_interval": with_interval, "confidence": f"{CONFIDENCE:.0%}", "confidence_level": CONFIDENCE}
    return found


def _pipe_table(table: object) -> str:
    return markdown(table, title=False).rstrip("\n")  # type: ignore[arg-type]


def _wrap(text: str, indent: str = "") -> str:
    """In lines of 120 characters at most; ``indent`` begins all but the first. Links are not broken."""
    return textwrap.fill(" ".join(text.split()), 120, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def render(template: str, **values: object) -> str:
    """A Markdown page: no line ends in spaces, no two blank lines follow each other, one newline at the end."""
    return tidy(environment().get_template(template).render(values))


def render_sentence(macro: str, /, **values: object) -> str:
    """What a macro of ``sentences.j2`` makes of ``values``, on one line."""
    text = getattr(environment().get_template("sentences.j2").module, macro)(**values)
    return " ".join(text.split())


def render_text(text: str, name: str, **values: object) -> str:
    """Markdown with Jinja expressions in it. Raises InputError, naming ``name``, for what cannot be rendered."""
    try:
        return _of_text().from_string(text).render(values).strip()
    except InputError:
        raise
    except Exception as error:  # an expression can raise anything: {{ 1 / 0 }}
        raise InputError(f"{name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def tidy(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n") + "\n"
