"""Tables of texts as Markdown, LaTeX (booktabs), HTML or for the terminal, and the numbers in them as texts."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tabulate import tabulate

from analysis.stats.differences import CONFIDENCE, Difference

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "–"
"""A cell without a number."""

MOST_LISTED = 20
"""Names that a sentence lists, or lines of one kind among the notes; of more it says how many there are."""


def listed(names: Sequence[str]) -> str:
    """``a, b, c``, or the first MOST_LISTED and how many more."""
    more = f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


@dataclass(frozen=True)
class TextTable:
    """A table as texts."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)
    left: int = 1
    """Columns, from the first, that hold words; the others hold numbers."""
    minor: Sequence[str] = ()
    """Columns that a narrow terminal may leave out, those first that are missed least."""


def pipe_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table without a final newline: the first ``left`` columns flush left, the others right.

    Texts are shown as they are: see :func:`markdown_text` for those that may hold Markdown's own characters.
    """
    align = ["left" if i < left else "right" for i in range(len(header))]
    return tabulate(rows, header, tablefmt="pipe", colalign=align, disable_numparse=True)


def markdown(table: TextTable, *, title: bool = True) -> str:
    """A pipe table, its notes as a list; ends in a newline."""
    return "\n".join(
        [
            *([f"### {markdown_text(table.title)}", ""] if title else []),
            pipe_table(
                [markdown_text(text) for text in table.header],
                [[markdown_text(text) for text in row] for row in table.rows],
                table.left,
            ),
            "",
            *(f"- {markdown_text(note)}" for note in table.notes),
            "",
        ]
    )


WIDE = 6
"""Columns from which on a LaTeX table is scaled to the page's width."""


def latex(table: TextTable) -> str:
    """A ``table`` environment for a document that loads booktabs and graphicx; ends in a newline."""
    columns = "l" * table.left + "r" * (len(table.header) - table.left)
    wide = len(table.header) > WIDE

    def line(row: Sequence[str]) -> str:
        return " & ".join(map(latex_text, row)) + r" \\"

    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            *([r"\par\medskip\begin{minipage}{\textwidth}\footnotesize"] if table.notes else []),
            *(rf"{latex_text(note)}\par" for note in table.notes),
            *([r"\end{minipage}"] if table.notes else []),
            r"\end{table}",
            "",
        ]
    )


def html_table(table: TextTable) -> str:
    """``<table>`` and its notes, every text escaped; ends in a newline."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = ("" if i < table.left else ' class="number"' for i in range(len(row)))
        texts = zip(row, kinds, strict=True)
        return "".join(f"<{tag}{kind}>{html.escape(_one_line(text))}</{tag}>" for text, kind in texts)

    notes = "".join(f"<li>{html.escape(_one_line(note))}</li>" for note in table.notes)
    return "\n".join(
        [
            f"<table><caption>{html.escape(_one_line(table.title))}</caption>",
            f"<thead><tr>{cells(table.header, 'th')}</tr></thead>",
            "<tbody>",
            *(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows),
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
    "†": r"\dag{}",
}


def latex_text(text: str) -> str:
    """``text`` on one line with LaTeX's own characters escaped; what a plain pdflatex cannot set becomes ``?``."""
    return "".join(_LATEX.get(x, x if " " <= x <= "~" else "?") for x in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ----------------------------------------------------------------------------------------------- terminal

LONGEST_WORD = 10
"""Characters of a word that a narrow terminal does not break. A number is never broken."""


def print_table(table: TextTable, console: Console) -> None:
    """A table and its notes for the terminal. Words, and a column of intervals, are wrapped where it is narrow.

    Where that is not enough, columns are left out, the table's ``minor`` ones from the first on, then the others from
    the last on, and a line says which.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    left_out = _left_out(table, console.width)
    shown = [i for i, name in enumerate(table.header) if name not in left_out]
    printed = Table(box=box.SIMPLE_HEAD, padding=(0, 0), show_edge=False)
    for i, width in zip(shown, _widths(table, shown, console.width), strict=True):
        heading, wraps = table.header[i], _wraps(table, i)
        # Headings of two lines: the table should fit into 80 columns.
        text = Text(heading if wraps else heading.replace(" ", "\n"))
        printed.add_column(
            text, justify="left" if i < table.left else "right", no_wrap=not wraps, overflow="fold", width=width
        )
    for row in table.rows:
        # Text, since rich would read markup in an arm's name.
        printed.add_row(*(Text(_one_line(row[i])) for i in shown))
    console.print(printed)
    notes = [f"Left out for want of room: {', '.join(left_out)} (they are in table.md)."] if left_out else []
    for note in [*table.notes, *notes]:
        console.print(Text(f"• {_one_line(note)}"))


def _left_out(table: TextTable, width: int) -> list[str]:
    """The columns that must go for the table to fit."""
    left_out: list[str] = []
    others = [x for x in reversed(table.header[table.left :]) if x not in table.minor]
    for name in [*(x for x in table.minor if x in table.header), *others]:
        # A space stands between two columns.
        widths = [_least_width(table, i) + 1 for i, other in enumerate(table.header) if other not in left_out]
        if sum(widths) - 1 <= width:
            break
        left_out.append(name)
    return left_out


def _widths(table: TextTable, shown: Sequence[int], width: int) -> list[int]:
    """Characters of each column: what it needs at least, and what is left of ``width`` to those that lack most."""
    widths = [_least_width(table, i) for i in shown]
    wanted = [
        max(map(len, (table.header[i], *(_one_line(row[i]) for row in table.rows)))) if _wraps(table, i) else least
        for i, least in zip(shown, widths, strict=True)
    ]
    for _ in range(width - (sum(widths) + len(shown) - 1)):
        lacking = max(range(len(shown)), key=lambda i: wanted[i] - widths[i])
        widths[lacking] += wanted[lacking] > widths[lacking]
    return widths


def _wraps(table: TextTable, i: int) -> bool:
    """Whether the cells of a column may have several lines."""
    cells = [row[i] for row in table.rows]
    is_long = any(len(word) > LONGEST_WORD and not _is_number(word) for cell in cells for word in cell.split())
    return i < table.left or any(" " in x for x in cells) or is_long or table.header[i].startswith("difference")


def _is_number(word: str) -> bool:
    """Whether a cell's word is a number, with what stands around it: ``[-8.1,``, ``1.88x``, ``1,280``."""
    return bool(re.fullmatch(r"[\[(]?[+-]?[\d.,]*\d(e[+-]?\d+)?[x%]?[\]),]*", word))


def _least_width(table: TextTable, i: int) -> int:
    """Characters that a column takes at least: of its longest word; where it wraps, no more than LONGEST_WORD of one
    that is no number.

    A mean and its interval take two lines: the interval is broken between its ends.
    """
    cells = [table.header[i], *(row[i] for row in table.rows)]
    words = [word for cell in cells for word in cell.split()]
    longest = max(map(len, words), default=0)
    if not _wraps(table, i):
        return longest
    of_numbers = max((len(word) for word in words if _is_number(word)), default=0)
    of_intervals = max((len(" ".join(cell.split()[:2])) for cell in cells[1:] if "[" in cell), default=0)
    return max(min(longest, LONGEST_WORD), of_numbers, of_intervals)


# ------------------------------------------------------------------------------------------------ numbers


def number(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    # Adding 0.0 turns the -0.0 that rounding may leave into 0.0.
    return MISSING if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """``[+0.8, +3.4]``; an end that rounds to zero keeps its sign, which says whether the interval holds zero."""
    if low is None or high is None:
        return MISSING
    return f"[{low or 0.0:+.{digits}f}, {high or 0.0:+.{digits}f}]"


def with_interval(mean: float | None, low: float | None, high: float | None, digits: int = 1) -> str:
    """``+2.1 [+0.8, +3.4]``, or ``+2.1`` without an interval."""
    if low is None or high is None:
        return signed(mean, digits)
    return f"{signed(mean, digits)} {interval(low, high, digits)}"


def difference_text(found: Difference | None) -> str:
    """``+2.1 [+0.8, +3.4]``; MISSING without one."""
    return MISSING if found is None else with_interval(found.mean, found.low, found.high)


def over_seeds(found: Difference) -> str:
    """As :func:`difference_text`; of one seed it says so, in place of the interval."""
    text = with_interval(found.mean, found.low, found.high)
    return text if found.n > 1 else f"{text} (one seed)"


def points(found: Difference) -> str:
    """``+1.2 AP [+0.6, +1.8]``."""
    mean, _, ends = over_seeds(found).partition(" ")
    return f"{mean} AP {ends}".rstrip()


def with_unit(value: float | None, unit: str) -> str:
    """Three digits and the unit: ``0.0132 h``, ``12.3 h``, ``1.92x``, ``48 %``."""
    if value is None:
        return MISSING
    if unit == "%":
        return f"{value:.0f} %"
    if unit == "x":
        return f"{value:.2f}x"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 1
    return f"{value:.{min(max(digits, 0), 6)}f} {unit}"


def with_mark(text: str, mark: str | None) -> str:
    """``9.0 (tiny)``: a number that nobody shall mistake for one of the paper's setting."""
    return f"{text} ({mark})" if mark and text != MISSING else text


def marks_note(marks: Sequence[str]) -> list[str]:
    """A table's note that explains the marks of :func:`with_mark`; none without marks."""
    return [f"Marked ({'), ('.join(marks)}): not the paper's setting, so not a reproduction."] if marks else []


def image_interval_note(of: str) -> str:
    return f"over images: {CONFIDENCE:.0%} bootstrap interval of {of} over the validation images."
