"""Does it help? ``docs/evidence.md``, its figure and each study's page, wholly from records.

python -m analysis.evidence                                          # from the studies in benchmarks/results
python -m analysis.evidence results/components-tiny --keep benchmarks/results
python -m analysis.evidence results/components-tiny --output mine.md
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.cli import Parser, exit_status
from lgd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.evidence.studies import Study

ROOT = Path("benchmarks/results")
"""Where studies are kept."""

OUTPUT = Path("docs/evidence.md")

README = Path("README.md")
"""Has a paragraph that is written from the records, between :data:`MARKS`."""

MARKS = ("<!-- begin: python -m analysis.evidence -->", "<!-- end -->")

READING = "notes.md"
"""Beside the studies: a person's reading of the older ones, with numbers from the comparisons (see :func:`page`)."""

READING_OF_DEFAULT = "notes-default.md"
"""Beside the studies: the same of those of the default preset."""

OLDER_TEMPLATE, STUDIES_TEMPLATE = "evidence_nano.md.j2", "evidence_studies.md.j2"

FIGURE = Path("figures/gain-against-cost")
"""Beside the page, without a suffix."""

FEWEST_SEEDS = 3
"""Fewest seeds of a comparison on the page; the studies' own pages show all."""


def kept_studies(root: Path = ROOT) -> list[Path]:
    """The directories in ``root`` with a sweep's records, newest first."""
    found = {x.parents[2] for x in root.glob("*/trials/*/record.json")}
    return sorted(found, key=lambda path: (_date(path), path.name), reverse=True)


def _date(directory: Path) -> str:
    return directory.name.rpartition("_")[2]


def shown_rows(studies: Sequence[Study], comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """Comparisons of the evidence grid that the page shows: of arms that every detector has, from FEWEST_SEEDS on."""
    from analysis.frame import row_dicts
    from lgd.config.grids import EVERY_DETECTOR, EVIDENCE

    names = {study.name for study in studies if study.grid.name == EVIDENCE}
    return [
        row
        for row in row_dicts(comparisons)
        if row["study"] in names
        and row["kind"] in ("baseline", "equal time")
        and row["pairs"] >= FEWEST_SEEDS
        and row["arm"].removeprefix(f"{row['detector']} ") in EVERY_DETECTOR
    ]


def figure_rows(studies: Sequence[Study], comparisons: pd.DataFrame) -> list[dict[str, Any]]:
    """What the figure shows: the newest components study of the default preset, or else the evidence grid's."""
    from analysis.evidence.answers import newest
    from analysis.frame import row_dicts
    from lgd.config.component_arms import COMPONENTS

    study = newest(studies, COMPONENTS.name)
    rows = [
        row
        for row in row_dicts(comparisons)
        if study is not None
        and row["study"] == study.name
        and row["kind"] in ("baseline", "equal time", "longer", "again")
        and row["pairs"] >= FEWEST_SEEDS
    ]
    return rows or shown_rows(studies, comparisons)


def older_page(studies: Sequence[Study], output: Path) -> Path | None:
    """Where the evidence grid's studies have a page of their own: all at ``nano``, and others answer at ``output``."""
    from analysis.evidence.answers import DEFAULT
    from lgd.config.grids import EVIDENCE

    of_evidence = {study.preset for study in studies if study.grid.name == EVIDENCE}
    alone = of_evidence == {"nano"} and any(study.preset == DEFAULT for study in studies)
    return output.with_name(f"{output.stem}-nano{output.suffix}") if alone else None


def studies_page(output: Path) -> Path:
    """Where what each study says stands, beside the page in ``output``."""
    return output.with_name(f"{output.stem}-studies{output.suffix}")


def page(studies: Sequence[Study], table: pd.DataFrame, output: Path, template: str = "evidence.md.j2") -> str:
    """The page that lies in ``output``, with the figure of :func:`write` beside it.

    template: STUDIES_TEMPLATE for what lies at ``studies_page(output)``, OLDER_TEMPLATE for ``older_page``.

    table: the studies' comparisons. What only a person can judge is read from ``notes.md`` (the older studies) and
    ``notes-default.md`` (those of the default preset) beside the studies: Markdown with expressions in it. There
    ``gain(STUDY, ARM, OTHER)`` stands for a difference with its interval, ``of_setting(STUDY, ARM, "imitation")`` (or
    ``lead``, ``equal_cost``) for that of the first table, ``over(STUDY, ARM, OTHER)`` for any two arms, and
    ``lead(STUDY, ARM)`` for a teacher's; STUDY begins the directory's name.
    """
    from analysis.evidence.answers import answers
    from analysis.evidence.first_run import COMMAND as FIRST_COMMAND
    from analysis.evidence.first_run import first_run
    from analysis.evidence.older import count, older
    from analysis.report.html_report import ABOUT
    from analysis.templating import render
    from lgd.config.grids import EVIDENCE, NOISE_FLOOR
    from lgd.results.sweep_spec import MIN_GAIN

    of_older = (EVIDENCE, NOISE_FLOOR.name)
    elsewhere, answered = older_page(studies, output), answers(studies, table)
    is_older = template == OLDER_TEMPLATE
    drawn = [(x.study, x.figure) for x in answered.points if x.figure] if answered else []
    return render(
        template,
        older_page=elsewhere.name if elsewhere else "",
        studies_page=studies_page(output).name,
        main_page=output.name,
        answers=answered,
        figures=[(study, name, ABOUT[name]) for study, name in drawn if (study.directory / f"{name}.png").exists()],
        older=older(shown_rows(studies, table)),
        presets=sorted({study.preset for study in studies if study.grid.name == EVIDENCE}),
        count=count,
        fewest=FEWEST_SEEDS,
        min_gain=MIN_GAIN,
        links={study.name: _relative(study.directory, output) for study in studies},
        listed=[x for x in studies if not elsewhere or (x.preset == "nano" and x.grid.name in of_older) == is_older],
        figure=f"{FIGURE}.png" if figure_rows(studies, table) else "",
        reading=_reading(studies, table, READING),
        reading_of_default=_reading(studies, table, READING_OF_DEFAULT),
        any_gpu=any(study.on_gpu for study in studies),
        first=first_run(studies[0].directory.parent),
        first_command=FIRST_COMMAND,
    )


def _reading(studies: Sequence[Study], table: pd.DataFrame, name: str) -> str:
    """A person's reading beside the studies, its headings one level down; "" without."""
    from analysis.templating import render_text

    notes = studies[0].directory.parent / name
    if not notes.exists():
        return ""
    text = render_text(notes.read_text(encoding="utf-8"), str(notes), **_lookups(studies, table))
    return "\n".join(f"#{line}" if line.startswith("## ") else line for line in text.splitlines())


def readme(studies: Sequence[Study], table: pd.DataFrame, text: str) -> str:
    """``text``, the README, with its paragraph on the evidence written anew. Raises InputError without the marks."""
    from analysis.evidence.answers import answers
    from analysis.evidence.older import count, older
    from analysis.templating import render

    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise InputError(f"README: no paragraph between {MARKS[0]!r} and {MARKS[1]!r}")
    said = render(
        "evidence_readme.md.j2", answers=answers(studies, table), older=older(shown_rows(studies, table)), count=count,
        any_gpu=any(study.on_gpu for study in studies),
    )  # fmt: skip
    return f"{before}{begin}\n{said}{end}{after}"


def write(directories: Sequence[Path], output: Path, readme_file: Path | None = None) -> list[Path]:
    """Write the page, its figure and every study's page, and the README's paragraph where a file is given; their paths.

    Raises InputError for a directory without runs of a grid, and for a README without the paragraph's marks.
    """
    from analysis.evidence.answers import answers
    from analysis.evidence.studies import comparisons, load_studies
    from analysis.evidence.study_page import write_study_page
    from analysis.plots.gain_against_cost import gain_against_cost
    from lgd.files import write_text

    studies = load_studies(directories)
    table = comparisons(studies)
    paragraph = readme(studies, table, readme_file.read_text(encoding="utf-8")) if readme_file else ""
    written = [x for study in studies for x in write_study_page(study, table[table["study"] == study.name])]
    rows, figure = figure_rows(studies, table), output.parent / FIGURE
    figure.parent.mkdir(parents=True, exist_ok=True)
    if rows:
        written += gain_against_cost(rows, figure)
    write_text(output, page(studies, table, output))
    written.append(output)
    if answers(studies, table):
        write_text(studies_page(output), page(studies, table, output, STUDIES_TEMPLATE))
        written.append(studies_page(output))
    if elsewhere := older_page(studies, output):
        write_text(elsewhere, page(studies, table, elsewhere, OLDER_TEMPLATE))
        written.append(elsewhere)
    if readme_file is None:
        return written
    write_text(readme_file, paragraph)
    return [*written, readme_file]


def _lookups(studies: Sequence[Study], table: pd.DataFrame) -> dict[str, Callable[..., str]]:
    """Functions that notes may call."""
    from statistics import fmean

    from analysis.evidence.elsewhere import rows as by_setting
    from analysis.evidence.studies import AP
    from analysis.frame import row_dicts
    from analysis.render import difference_text, number, with_interval, with_unit
    from analysis.stats.differences import paired_difference

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

    def of_setting(study: str, arm: str, part: str) -> str:
        """part: ``imitation``, ``lead`` or ``equal_cost`` of :class:`analysis.evidence.elsewhere.Elsewhere`."""
        for x in (x for of in studies if of.name.startswith(study) for x in by_setting(of)):
            if x.arm == arm:
                return difference_text(getattr(x, part))
        raise InputError(f"notes: {study} has no arm {arm!r} beside its baseline")

    def over(study: str, arm: str, other: str) -> str:
        """Any two arms of a study, also of different lengths."""
        for x in (x for x in studies if x.name.startswith(study)):
            found = paired_difference(x.values(arm, AP), x.values(other, AP))
            if found is not None:
                return difference_text(found)
        raise InputError(f"notes: {study} has no seed of both {arm!r} and {other!r}")

    def lead(study: str, arm: str) -> str:
        """An arm's teacher over its student."""
        found = next((x.lead(arm) for x in studies if x.name.startswith(study)), None)
        if found is None:
            raise InputError(f"notes: {study} has no teacher of {arm!r}")
        return difference_text(found)

    def ap(study: str, arm: str) -> str:
        """Mean over its seeds."""
        found = next((x.values(arm, AP) for x in studies if x.name.startswith(study)), {})
        if not found:
            raise InputError(f"notes: {study} has no seed of {arm!r}")
        return number(fmean(found.values()))

    return {"gain": gain, "cost": cost, "of_setting": of_setting, "over": over, "lead": lead, "ap": ap}


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
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"(default: {OUTPUT}, and the paragraph in {README})"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="copy each RESULTS there first, without weights, and build from all that is there",
    )
    options = parser.parse_args(arguments)

    from analysis.evidence.studies import keep, kept_name

    if options.keep and not options.results:
        raise InputError("--keep: name results directories to copy")
    places: list[Path] = options.results or kept_studies()
    if not places:
        raise InputError(f"no study in {ROOT}: name results directories")
    if options.keep:
        for place, name in [(place, kept_name(place)) for place in places]:
            print(f"kept {len(keep(place, options.keep / name))} files in {options.keep / name}")
        # The page is of all that is kept, not of what was added alone.
        places = kept_studies(options.keep)
    for path in write(places, options.output or OUTPUT, None if options.output else README):
        print(f"wrote {path}")
    return 0
