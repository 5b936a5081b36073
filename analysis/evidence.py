"""Does it help? ``docs/evidence.md``, its figure and each study's page, wholly from records.

python -m analysis.evidence                                          # from the studies in benchmarks/results
python -m analysis.evidence results/evidence-tiny --keep benchmarks/results
python -m analysis.evidence results/evidence-tiny --output mine.md
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.cli import Parser, exit_status
from lgd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.studies import Study

ROOT = Path("benchmarks/results")
"""Where studies are kept."""

READING = "notes.md"
"""Beside the studies: a person's reading of all of them, with numbers from the comparisons (see :func:`page`)."""

FIGURE = Path("figures/gain-against-cost")
"""Beside the page, without a suffix."""

FEWEST_SEEDS = 3
"""Fewest seeds of a comparison on the page; the studies' own pages show all."""


def kept_studies(root: Path = ROOT) -> list[Path]:
    """The directories in ``root`` with records of the two grids, newest first."""
    found = {x.parents[2] for x in root.glob("*/trials/*/record.json")}
    return sorted(found, key=lambda path: (_date(path), path.name), reverse=True)


def _date(directory: Path) -> str:
    return directory.name.rpartition("_")[2]


def shown_rows(comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """The comparisons that the page and its figure show: arms that every detector has, from FEWEST_SEEDS seeds on."""
    from analysis.frame import row_dicts
    from lgd.config.grids import EVERY_DETECTOR

    return [
        row
        for row in row_dicts(comparisons)
        if row["kind"] in ("baseline", "equal time")
        and row["pairs"] >= FEWEST_SEEDS
        and row["arm"].removeprefix(f"{row['detector']} ") in EVERY_DETECTOR
    ]


def page(studies: Sequence[Study], table: pd.DataFrame, output: Path) -> str:
    """The page that lies in ``output``, with the figure of :func:`write` beside it.

    table: the studies' comparisons. What only a person can judge is read from ``notes.md`` beside the studies: Markdown
    in which ``gain(STUDY, ARM, OTHER)`` stands for a difference with its interval; STUDY begins the directory's name.
    """
    from analysis.templating import render, render_text

    rows = shown_rows(table)
    notes = studies[0].directory.parent / READING
    reading = render_text(notes.read_text(encoding="utf-8"), str(notes), **_lookups(table)) if notes.exists() else ""
    return render(
        "evidence.md.j2",
        rows=rows,
        fewest=FEWEST_SEEDS,
        detectors_lgd=sorted({f"{row['detector']} LGD" for row in rows}),
        data=sorted({row["data"] for row in rows}),
        links={study.name: _relative(study.directory, output) for study in studies},
        studies=studies,
        overrides={
            study.name: sorted({x for r in study.records for x in r.overrides if not x.startswith("data.source")})
            for study in studies
        },
        figure=f"{FIGURE}.png" if rows else "",
        reading=reading,
        any_gpu=any(study.on_gpu for study in studies),
    )


def write(directories: Sequence[Path], output: Path) -> list[Path]:
    """Write the page, its figure and every study's page; their paths.

    Raises InputError for a directory without runs of the two grids.
    """
    from analysis.plots.gain_against_cost import gain_against_cost
    from analysis.studies import comparisons, load_studies
    from analysis.study_page import write_study_page
    from lgd.files import write_text

    studies = load_studies(directories)
    table = comparisons(studies)
    written = [x for study in studies for x in write_study_page(study, table[table["study"] == study.name])]
    rows, figure = shown_rows(table), output.parent / FIGURE
    figure.parent.mkdir(parents=True, exist_ok=True)
    if rows:
        written += gain_against_cost(rows, figure)
    write_text(output, page(studies, table, output))
    return [*written, output]


def _lookups(table: pd.DataFrame) -> dict[str, Callable[..., str]]:
    """Functions that notes may call."""
    from analysis.frame import row_dicts
    from analysis.render import with_interval, with_unit

    rows = row_dicts(table)

    def find(study: str, arm: str, other: str) -> Mapping[str, Any]:
        for row in rows:
            if row["study"].startswith(study) and row["arm"] == arm and other in (row["other"], row["kind"]):
                return row
        raise InputError(f"notes: {study} has no comparison of {arm!r} with {other!r}")

    def gain(study: str, arm: str, other: str = "baseline") -> str:
        row = find(study, arm, other)
        return with_interval(row["gain"], row["gain_low"], row["gain_high"])

    def cost(study: str, arm: str, other: str = "baseline") -> str:
        return with_unit(find(study, arm, other)["cost"], "x")

    return {"gain": gain, "cost": cost}


def _relative(path: Path, output: Path) -> str:
    return Path(os.path.relpath(path, output.parent)).as_posix()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr for wrong input."""
    return exit_status(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m analysis.evidence", description=__doc__)
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="RESULTS", help=f"results directories (default: all studies in {ROOT})"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/evidence.md"), metavar="FILE")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="copy each RESULTS there first, without weights, and build from that"
    )
    options = parser.parse_args(arguments)

    from analysis.studies import keep

    places: list[Path] = options.results or kept_studies()
    if not places:
        raise InputError(f"no study in {ROOT}: name results directories")
    if options.keep:
        targets = [options.keep / place.resolve().name for place in places]
        for place, target in zip(places, targets, strict=True):
            print(f"kept {len(keep(place, target))} files in {target}")
        # The page is of all that is kept, not of what was added alone.
        places = kept_studies(options.keep)
    for path in write(places, options.output):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
