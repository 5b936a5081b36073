"""A table of texts as Markdown, LaTeX (booktabs) or HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

NONE = "–"
"""What a cell without a number shows."""


@dataclass(frozen=True)
class Shown:
    """A table as texts. left: columns, from the first, that hold words; the others hold numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)
    left: int = 1


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table without a final newline: the first ``left`` columns flush left, the others right.

    Texts are shown as they are: see :func:`markdown_text` for those that may hold Markdown's own characters.
    """
    align = ["left" if i < left else "right" for i in range(len(header))]
    return tabulate(rows, header, tablefmt="pipe", colalign=align, disable_numparse=True)


def markdown(shown: Shown, *, title: bool = True) -> str:
    """A pipe table, its notes as a list; ends in a newline."""
    return "\n".join(
        [
            *([f"### {markdown_text(shown.title)}", ""] if title else []),
            pipe_table(
                [markdown_text(text) for text in shown.header],
                [[markdown_text(text) for text in row] for row in shown.rows],
                shown.left,
            ),
            "",
            *(f"- {markdown_text(note)}" for note in shown.notes),
            "",
        ]
    )


WIDE = 6
"""Columns from which on a LaTeX table is scaled to the page's width."""


def latex(shown: Shown) -> str:
    """A ``table`` environment for a document that loads booktabs and graphicx; ends in a newline."""
    columns = "l" * shown.left + "r" * (len(shown.header) - shown.left)
    wide = len(shown.header) > WIDE

    def line(row: Sequence[str]) -> str:
        return " & ".join(map(latex_text, row)) + r" \\"

    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(shown.title)}}}",
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(shown.header),
            r"\midrule",
            *map(line, shown.rows),
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            *([r"\par\medskip\begin{minipage}{\textwidth}\footnotesize"] if shown.notes else []),
            *(rf"{latex_text(note)}\par" for note in shown.notes),
            *([r"\end{minipage}"] if shown.notes else []),
            r"\end{table}",
            "",
        ]
    )


def html_table(shown: Shown) -> str:
    """``<table>`` and its notes, every text escaped; ends in a newline."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = ("" if i < shown.left else ' class="number"' for i in range(len(row)))
        texts = zip(row, kinds, strict=True)
        return "".join(f"<{tag}{kind}>{html.escape(_one_line(text))}</{tag}>" for text, kind in texts)

    notes = "".join(f"<li>{html.escape(_one_line(note))}</li>" for note in shown.notes)
    return "\n".join(
        [
            f"<table><caption>{html.escape(_one_line(shown.title))}</caption>",
            f"<thead><tr>{cells(shown.header, 'th')}</tr></thead>",
            "<tbody>",
            *(f"<tr>{cells(row, 'td')}</tr>" for row in shown.rows),
            "</tbody></table>",
            *([f'<ul class="notes">{notes}</ul>'] if notes else []),
            "",
        ]
    )


def markdown_text(text: str) -> str:
    """``text`` on one line, so that Markdown shows it as it is: error messages hold every character."""
    text = re.sub(r"([\\`*|<~]|\](?=\())", r"\\\1", _one_line(text))
    # Between letters an underscore is only itself, and file names stay readable.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


_LATEX = {
    **{x: rf"\{x}" for x in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "–": "--",
    "×": r"$\times$",
    "±": r"$\pm$",
}


def latex_text(text: str) -> str:
    """``text`` on one line with LaTeX's own characters escaped; what a plain pdflatex cannot set becomes ``?``."""
    return "".join(_LATEX.get(x, x if " " <= x <= "~" else "?") for x in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
