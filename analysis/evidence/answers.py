"""What the newest studies of the default preset say: sentences and tables for the top of ``docs/evidence.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.evidence.curves import equal_cost_sentences, length_sentences, more_training
from analysis.evidence.elsewhere import ahead_sentences, elsewhere_sentences, other_settings, settings_table
from analysis.evidence.studies import Study
from analysis.frame import row_dicts
from analysis.load import changes, other_load
from analysis.noise_floor import noise_floor
from analysis.noise_floor import sentences as noise_sentences
from analysis.rates import batch_of, pairs, rate_curves, rate_notes
from analysis.render import TextTable
from analysis.stats.differences import verdict
from analysis.table_builders.gain_by_data import data_sentences
from analysis.table_builders.methods_table import methods_table
from analysis.table_builders.tuning_tables import LEARNING_RATE, SCHEDULE_LENGTH
from analysis.templating import render_sentence
from analysis.verdicts.questions import asked
from analysis.verdicts.sentences import conclusion, numbers, parts, summary
from analysis.verdicts.split_gains import imitation_sentences
from analysis.verdicts.verdict import Verdict, verdicts
from lgd.config.component_arms import COMPONENTS
from lgd.config.grids import NOISE_FLOOR
from lgd.config.methods_grid import METHODS
from lgd.config.presets import preset
from lgd.config.when_grids import GAIN_BY_DATA, TEACHER_NEEDS
from lgd.results.sweep_spec import MIN_GAIN

DEFAULT = "tiny"
"""The preset that commands train unless they are told otherwise."""

BUSY = 0.1
"""Part of the cores that other work used, from which on the page says so."""

EQUAL_COST = "At equal cost"


@dataclass(frozen=True)
class Point:
    """Sentences under a heading, and the study that they are from."""

    heading: str
    study: Study
    sentences: Sequence[str]
    figure: str = ""
    """One of the study's own figures, in its directory."""


@dataclass(frozen=True)
class Answers:
    """What opens the page."""

    setting: str = ""
    caveat: str = ""
    conclusions: Sequence[str] = ()
    points: Sequence[Point] = ()
    settings: TextTable | None = None
    """Of every detector and data set: what each arm gained, for what cost, and why."""
    components: Study | None = None
    brief: Sequence[str] = ()
    """For the README: what each arm gains, at equal steps and at equal cost, and the conclusion."""


def newest(studies: Sequence[Study], grid: str) -> Study | None:
    """The last study of a grid at the default preset; None without.

    One with a method comes before one of the baseline alone, one with nothing changed before others, and one from the
    preset's first seed on before one that repeats it.
    """

    def rank(study: Study) -> tuple[bool, bool, bool, str]:
        methods = {x.experiment.method.name for x in study.records} - {"baseline"}
        return bool(methods), not any(map(changes, study.records)), not _repeats(study), study.last

    return max((x for x in studies if x.preset == DEFAULT and x.grid.name == grid), key=rank, default=None)


def _repeats(study: Study) -> bool:
    """Whether it begins at another seed than the preset does."""
    return any(override.startswith("seed=") for record in study.records for override in record.overrides)


def answers(studies: Sequence[Study], table: pd.DataFrame) -> Answers | None:
    """None where no study of the grids that answer is of the default preset. table: the studies' comparisons."""
    components, rates, lengths, methods, needs, by_data = (
        newest(studies, name)
        for name in (COMPONENTS.name, LEARNING_RATE, SCHEDULE_LENGTH, METHODS, TEACHER_NEEDS, GAIN_BY_DATA)
    )
    used = [study for study in (components, rates, lengths, methods, needs, by_data) if study is not None]
    if not used:
        return None
    found, conclusions, brief = list[Point](), list[str](), list[str]()
    if components is not None:
        rows = row_dicts(table[table["study"] == components.name])
        found_verdicts = _verdicts(components)
        conclusions = [conclusion(x) for x in found_verdicts]
        found += _of_components(components, found_verdicts, rows, lengths)
        brief = [f"{numbers(x)} {conclusion(x)}" for x in found_verdicts]
        if not any(x.equal_cost for x in found_verdicts):
            brief += [line for point in found if point.heading == EQUAL_COST for line in point.sentences]
    if lengths is not None:
        found.append(Point("Longer training", lengths, length_sentences(lengths)))
    others = other_settings(studies, DEFAULT)
    if others:
        found.append(Point("Other detectors and data", others[-1], elsewhere_sentences(others)))
        conclusions += ahead_sentences(others)
        brief += ahead_sentences(others, brief=True)
    if rates is not None:
        found.append(Point("Learning rates", rates, _of_rates(rates)))
    if methods is not None:
        found.append(Point("All methods, at equal steps", methods, _of_methods(methods_table(methods.runs, METHODS))))
    if needs is not None:
        found.append(Point("What the teacher needs", needs, imitation_sentences(needs.records), "imitation-lead"))
    if by_data is not None:
        found.append(Point("Images and features", by_data, data_sentences(by_data.records), "gain-by-data"))
    found += _noise(studies, table)
    return Answers(
        _setting(used[0]),
        _caveat(used[0]),
        conclusions,
        [x for x in found if x.sentences],
        settings_table([x for x in (lengths or components,) if x is not None] + others),
        components,
        brief,
    )


def _noise(studies: Sequence[Study], table: pd.DataFrame) -> list[Point]:
    """How far trainings that differ by their seed alone lie apart."""
    found = []
    floor = newest(studies, NOISE_FLOOR.name)
    if floor is not None:
        found.append(Point("Noise", floor, noise_sentences(noise_floor(floor.runs))))
    again = [row for row in row_dicts(table[table["kind"] == "again"]) if row["gain"] is not None]
    for study in (x for x in studies if x.preset == DEFAULT):
        rows = [row for row in again if row["study"] == study.name]
        lines = [render_sentence("baseline_again", baseline=row["other"], row=row) for row in rows]
        found += [Point("A/A", study, lines)] if lines else []
    return found


def _setting(study: Study) -> str:
    """What was trained, in words."""
    record = study.records[0]
    data, machine = record.experiment.data, record.hardware
    gpu = machine.get("gpu", "none")
    return render_sentence(
        "setting",
        network=study.network,
        lengths=study.lengths,
        batch=record.experiment.schedule.batch,
        images=record.data.get("train_images"),
        side=max(data.min_sizes),
        data="" if data.source == "shapes" else study.data,
        preset=study.preset,
        gpu="" if gpu == "none" else gpu,
        cores=machine.get("cores"),
    )


def _caveat(study: Study) -> str:
    """How far that is from the paper's training, and what else used the machine."""
    paper, own = preset("paper").schedule, study.records[0].experiment.schedule
    times = paper.steps * paper.batch / (own.steps * own.batch)
    load = max((x for record in study.records if (x := other_load(record)) is not None), default=0.0)
    return render_sentence("caveat", times=times, load=load if load >= BUSY else None)


def _verdicts(study: Study) -> list[Verdict]:
    return [x for x in verdicts(study.records, asked(study.directory, study.records)) if x.gain is not None]


# ------------------------------------------------------------------------------------------ components


def _of_components(
    study: Study, verdicts: Sequence[Verdict], rows: Sequence[Mapping[str, Any]], lengths: Study | None
) -> list[Point]:
    cost, split = list[str](), list[str]()
    for x in verdicts:
        arm, base = x.question.arm, x.question.reference
        if x.equal_cost is not None and x.margin is not None:
            cost.append(
                render_sentence("arm_at_equal_cost", arm=arm, baseline=base, longer=x.equal_cost, margin=x.margin)
            )
        split += [parts(x)] if parts(x) else []
    if not cost:
        cost = equal_cost_sentences(lengths) if lengths else [render_sentence("equal_cost_not_measured")]
        split += more_training(lengths) if lengths else []
    return [
        Point(EQUAL_COST, study, cost),
        Point("More training, second loss, imitation", study, split),
        Point("The teacher", study, _teachers(study, [x.question.arm for x in verdicts])),
        Point("The components", study, _variants(rows)),
    ]


def _teachers(study: Study, arms: Sequence[str]) -> list[str]:
    """Whether teachers were ever better than their students, and where they ended."""
    lines = []
    for arm in arms:
        known = [x.teacher_beat_student for x in study.finished(arm).values() if x.teacher_beat_student is not None]
        if known:
            lines.append(render_sentence("teacher", arm=arm, ahead=sum(known), of=len(known), lead=study.lead(arm)))
    return lines


def _variants(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The variants that differ beyond noise from the arm they are one of, and how many do not."""
    found = [row for row in rows if row["kind"] == "LGD" and row["verdict"]]
    differ = [row for row in found if row["verdict"] != "noise"]
    if not found:
        return []
    if not differ:
        return [render_sentence("no_variant_differs", of=len(found))]
    same = [row["arm"] for row in found if row["verdict"] == "noise"]
    return [render_sentence("variants_that_differ", of=len(found), differ=differ, same=same)]


# ------------------------------------------------------------------------------------- rates and methods


def _of_rates(study: Study) -> list[str]:
    """Where arms are best, and what each gains there."""
    noted, found = rate_notes(study.records), pairs(rate_curves(study.records))
    same = []
    if found and not any("differ" in x for x in noted):
        arms, first = list(dict.fromkeys(x.name for pair in found for x in pair)), found[0][0]
        same = [
            render_sentence(
                "best_at_the_same_rate", arms=arms, best=first.best, of=len(first.points), batch=batch_of(first)
            )
        ]
    return [*same, *noted, *(x.numbers for x in summary(study.records, study.directory).verdicts)]


def _of_methods(frame: pd.DataFrame) -> list[str]:
    """Which methods gain, which lose, and which are within noise of the baseline, with what they cost."""
    rows = [row for row in row_dicts(frame) if row["gain"] is not None]
    verdicts = {row["arm"]: verdict(row["gain_low"], row["gain_high"]) for row in rows}
    lines = [render_sentence("how_gains_of_methods_are_listed")]
    for kind in ("more", "less", "noise", ""):
        methods = [row for row in rows if verdicts[row["arm"]] == kind]
        if methods or kind in ("more", "less"):
            lines.append(render_sentence("methods_by_verdict", verdict=kind, methods=methods, of=len(rows)))
    if compared := sum(bool(x) for x in verdicts.values()):
        lines.append(render_sentence("intervals_by_chance", of=compared))
        widths = [(row["gain_high"] - row["gain_low"]) / 2 for row in rows if verdicts[row["arm"]]]
        hidden = sum(x > MIN_GAIN for x in widths)
        lines.append(render_sentence("what_methods_could_show", min_gain=MIN_GAIN, widths=widths, hidden=hidden))
    if ended := [row for row in row_dicts(frame) if row["ended"]]:
        lines.append(render_sentence("methods_without_a_result", methods=ended, place=""))
    return lines
