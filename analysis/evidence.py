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
from typing import Any

from lgd.cli import Parser, answer
from lgd.errors import InputError

ROOT = Path("benchmarks/results")
"""Where studies are kept."""

READING = "notes.md"
"""Beside the studies: a person's reading of all of them, with numbers from the comparisons (see :func:`page`)."""

FIGURE = Path("figures/gain-against-cost")
"""Beside the page, without a suffix."""

FEWEST_SEEDS = 3
"""Of a comparison that the page shows; the studies' own pages have all."""


def kept_studies(root: Path = ROOT) -> list[Path]:
    """The directories in ``root`` with records of the two grids, newest first."""
    found = {x.parents[2] for x in root.glob("*/trials/*/record.json")}
    return sorted(found, key=lambda path: (_date(path), path.name), reverse=True)


def _date(directory: Path) -> str:
    return directory.name.rpartition("_")[2]


def shown_rows(comparisons: Any) -> list[dict[str, Any]]:
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


def page(directories: Sequence[Path], output: Path) -> tuple[str, list[Path]]:
    """The page that lies in ``output``, and what was written besides: its figure and every study's page.

    What only a person can judge is read from ``notes.md`` beside the studies: Markdown in which
    ``gain(STUDY, ARM, OTHER)`` stands for a difference with its interval; STUDY begins the directory's name.
    Raises InputError for a directory without runs of the two grids.
    """
    from analysis.plots.gain_against_cost import gain_against_cost
    from analysis.studies import comparisons, load_studies
    from analysis.study_page import write_study_page
    from analysis.templating import render, render_text

    studies = load_studies(directories)
    table = comparisons(studies)
    written = [write_study_page(study, table[table["study"] == study.name]) for study in studies]
    rows = shown_rows(table)
    (output.parent / FIGURE).parent.mkdir(parents=True, exist_ok=True)
    written += gain_against_cost(rows, output.parent / FIGURE) if rows else []
    notes = directories[0].parent / READING
    reading = render_text(notes.read_text(encoding="utf-8"), str(notes), **_lookups(table)) if notes.exists() else ""
    text = render(
        "evidence.md.j2",
        rows=rows,
        fewest=FEWEST_SEEDS,
        detectors_lgd=sorted({f"{row['detector']} LGD" for row in rows}),
        data=sorted({row["data"] for row in rows}),
        links={study.name: _relative(study.directory, output) for study in studies},
        studies=[
            {
                "name": study.name,
                "link": _relative(study.directory, output),
                "data": study.data,
                "steps": study.steps,
                "grid": study.grid.name,
                "trainings": len(study.runs),
                "overrides": sorted({x for r in study.records for x in r.overrides if not x.startswith("data.source")}),
            }
            for study in studies
        ],
        figure=f"{FIGURE}.png" if rows else "",
        reading=reading,
        any_gpu=any(study.on_gpu for study in studies),
    )
    return text, written


def _lookups(table: Any) -> dict[str, Callable[..., str]]:
    """What the notes may call."""
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
    return answer(lambda: _run(arguments))


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
    from lgd.files import write_text

    places: list[Path] = options.results or kept_studies()
    if not places:
        raise InputError(f"no study in {ROOT}: name results directories")
    if options.keep:
        targets = [options.keep / place.resolve().name for place in places]
        for place, target in zip(places, targets, strict=True):
            print(f"kept {len(keep(place, target))} files in {target}")
        # The page is of all that is kept, not of what was added alone.
        places = kept_studies(options.keep)
    text, written = page(places, options.output)
    write_text(options.output, text)
    for path in (*written, options.output):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
