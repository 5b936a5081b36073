"""One table as Markdown, LaTeX and HTML: golden files, escaping, and LaTeX that compiles."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.load import Run
from analysis.render import TextTable, html_table, latex, latex_text, markdown, pipe_table
from analysis.table_builders.build import build
from lgd.config.grids import NAMES, grid, plan
from lgd.config.presets import NANO, PAPER
from lgd.results.record import Record, Scores

GOLDEN = Path(__file__).parent / "golden"

NASTY = TextTable(
    title="100% of $5 & #1_a {x} ~ ^ \\\\ <b>",
    header=["a|b", "n"],
    rows=[["<script>alert('x')</script> & | * _ `", "± 1.0"], ["two\nlines", "–"]],
    notes=["C:\\\\path [x](y) <i> ünï"],
)


def _runs() -> list[Run]:
    """Two settings of teacher-based: one of the paper's preset with three seeds, one tiny."""
    runs = []
    for preset, base, seeds, first in (("paper", PAPER, 3, 38.0), ("nano", NANO, 1, 8.0)):
        for trial in plan(grid("teacher-based", preset), base, seeds, [], Path("/r")):
            seed, r101, method = trial.experiment.seed, " R-101 " in trial.arm, trial.experiment.method.name
            if method in ("fgfi", "labelenc") or r101 is (preset == "paper") or "DCNv2" in trial.arm:
                continue
            ap = first + 0.3 * seed + (1.5 + 0.2 * seed if method == "lgd" else 0)
            scores = Scores(AP=ap, AP50=None, AP75=None, APs=None, APm=None, APl=None)
            record = Record(
                status="finished", preset=preset, arm=trial.arm, experiment=trial.experiment, student=scores
            )
            runs.append(Run(record, trial.directory))
    return runs


@pytest.mark.parametrize(("name", "how"), [("teacher-based.md", markdown), ("teacher-based.tex", latex)])
def test_golden_table(name: str, how, request: pytest.FixtureRequest) -> None:  # type: ignore[no-untyped-def]
    """When a change is meant: ``python -m tests.unit.analysis.test_render``."""
    assert how(build("teacher-based", _runs())[1]) == (GOLDEN / name).read_text(encoding="utf-8")


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_shows_every_text_as_it_is() -> None:
    parser = _Texts()
    parser.feed(html_table(NASTY))
    texts = [NASTY.title, *NASTY.header, *NASTY.rows[0], *NASTY.rows[1], *NASTY.notes]
    assert {" ".join(x.split()) for x in texts} <= set(parser.texts)
    assert set(parser.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li"}


def test_latex_escapes_its_own_characters() -> None:
    assert latex_text("50% of A_B & C #1 ±2 – €") == r"50\% of A\_B \& C \#1 $\pm$2 -- ?"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    tables = [latex(NASTY), *(latex(build(name, _runs())[1]) for name in (*NAMES, "gpu-hours"))]
    document = [
        "\\documentclass{article}",
        "\\usepackage{booktabs,graphicx}",
        "\\begin{document}",
        *tables,
        "\\end{document}",
    ]
    (tmp_path / "tables.tex").write_text("\n".join(document), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout
    assert (tmp_path / "tables.pdf").stat().st_size > 1000


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, how in (("teacher-based.md", markdown), ("teacher-based.tex", latex)):
        (GOLDEN / name).write_text(how(build("teacher-based", _runs())[1]), encoding="utf-8")


def test_a_pipe_table() -> None:
    table = pipe_table(["arm", "AP", "note"], [["LGD", "1.0", "x"], ["baseline", "10", "007"]], left=1)
    assert table.splitlines() == [
        "| arm      |   AP |   note |",
        "|:---------|-----:|-------:|",
        "| LGD      |  1.0 |      x |",
        "| baseline |   10 |    007 |",
    ]
