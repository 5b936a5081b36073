"""The default preset's comparison, its own and on other detectors and data: the table that opens the evidence page.

Studies of the grids ``components``, ``schedule-length`` and ``methods`` in which only what belongs to the detector, the
data or the schedule was changed, or that were trained from scratch at preset ``nano``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from analysis.evidence.curves import at_equal_cost, compared, imitation
from analysis.evidence.studies import AP, Study
from analysis.frame import row_dicts
from analysis.load import changes
from analysis.render import MISSING, TextTable, difference_text, number, with_unit
from analysis.stats.differences import Difference, paired_difference, verdict
from analysis.stats.power import MOST_SEEDS, seeds_for
from analysis.table_builders.methods_table import methods_table
from analysis.table_builders.tuning_tables import SCHEDULE_LENGTH
from analysis.teachers import frozen_teacher
from analysis.templating import render_sentence
from analysis.verdicts.questions import asked
from analysis.verdicts.verdict import FLOOR, verdicts
from lgd.config.component_arms import COMPONENTS
from lgd.config.detector import NO_WEIGHTS
from lgd.config.methods_grid import METHODS
from lgd.results.sweep_spec import MIN_GAIN

OF_A_SETTING = (
    "detector.", "data.", "schedule.", "evaluation.every=", "method.context=", "method.detach_appearance=",
    "method.teacher.",
)  # fmt: skip
"""Settings that belong to a detector, as the paper has them, to data, to a length, or to a frozen teacher."""


GRIDS = (COMPONENTS.name, SCHEDULE_LENGTH, METHODS)
"""The grids whose studies join the table."""

FROM_SCRATCH = "nano"
"""The preset that trains from scratch what the default one starts from ImageNet weights."""


@dataclass(frozen=True)
class Elsewhere:
    """An arm in another setting. Differences are points of AP."""

    detector: str
    data: str
    steps: int
    arm: str
    baseline_ap: float | None
    gain: Difference
    imitation: Difference | None
    """Of the gain, over the same arm without it."""
    lead: Difference | None
    """Its teacher's AP over its own."""
    equal_cost: Difference | None
    """Over a baseline that cost as much."""
    cost: float | None
    longer: Difference | None
    """The baseline trained longer over itself: zero where it has converged."""
    longer_by: float | None
    """How many times as long."""
    teacher: str = ""
    """A frozen one's: what it is, and how strongly it is imitated."""
    val_images: int | None = None
    """How many images all of this is scored on."""

    @property
    def label(self) -> str:
        """The arm, with its frozen teacher."""
        return f"{self.arm} ({self.teacher})" if self.teacher else self.arm

    @property
    def is_at_floor(self) -> bool:
        """Whether neither the baseline nor the arm has learnt enough for their difference to say anything."""
        return self.baseline_ap is not None and max(self.baseline_ap, self.baseline_ap + self.gain.mean) < FLOOR


def other_settings(studies: Sequence[Study], preset: str) -> list[Study]:
    """The last study of each grid, detector and data that are not the preset's own."""
    found: dict[tuple[str, ...], Study] = {}
    for study in sorted(studies, key=lambda x: x.last):
        changed = {x.strip() for record in study.records for x in changes(record)}
        other = bool(changed) if study.preset == preset else study.preset == FROM_SCRATCH
        if other and study.grid.name in GRIDS and all(x.startswith(OF_A_SETTING) for x in changed):
            found[study.grid.name, detector(study), study.data, study.lengths] = study
    return list(found.values())


def detector(study: Study) -> str:
    """As the table names it."""
    scratch = study.records[0].experiment.detector.initial_weights == NO_WEIGHTS
    return f"{study.families[0].detector}{' from scratch' if scratch else ''}"


def rows(study: Study) -> Iterator[Elsewhere]:
    """Of a study of lengths each arm and length, of another one each arm that has a verdict."""
    return _by_length(study) if study.grid.name == SCHEDULE_LENGTH else _by_verdict(study)


def distinct_rows(studies: Sequence[Study]) -> list[tuple[Study, Elsewhere]]:
    """The rows of all studies, with the study of each. What two studies trained alike is told once: as the one says it
    that has more seeds at equal cost, or else comes first."""
    found: dict[tuple[str, str, str, int], tuple[Study, Elsewhere]] = {}
    for study in studies:
        for x in rows(study):
            key = (x.detector, x.data, _without_length(x.arm), x.steps)
            if key not in found or _seeds_at_equal_cost(x) > _seeds_at_equal_cost(found[key][1]):
                found[key] = study, x
    return list(found.values())


def _seeds_at_equal_cost(x: Elsewhere) -> int:
    return x.equal_cost.n if x.equal_cost else 0


def _by_verdict(study: Study) -> Iterator[Elsewhere]:
    for x in verdicts(study.records, asked(study.directory, study.records)):
        arm = x.question.arm
        if x.gain is not None:
            yield Elsewhere(
                detector(study), study.data, study.steps, arm, study.mean(x.question.reference, AP), x.gain,
                x.imitation, study.lead(arm), x.margin, x.cost, x.equal_cost,
                _steps_ratio(study, x.question.equal_cost, x.question.reference), *_scored(study, arm),
            )  # fmt: skip


def _steps_ratio(study: Study, arm: str, other: str) -> float | None:
    """How many times as many steps an arm was trained for."""
    steps = [[x.experiment.schedule.steps for x in study.finished(name).values()] for name in (arm, other)]
    return fmean(steps[0]) / fmean(steps[1]) if all(steps) else None


def _by_length(study: Study) -> Iterator[Elsewhere]:
    for base, arm in compared(study):
        at_cost, of_imitation = at_equal_cost(base, arm), imitation(study, arm)
        for steps, name in sorted(arm.arms.items()):
            gain = paired_difference(arm.points[steps], base.points.get(steps, {}))
            if gain is not None:
                cost = study.cost(name, base.arms[steps])
                longer = min((x for x in base.points if x > steps), default=None)
                yield Elsewhere(
                    detector(study), study.data, int(steps), name, base.mean(steps), gain,
                    of_imitation.get(steps), study.lead(name), at_cost.get(steps),
                    cost.value if cost else None,
                    paired_difference(base.points[longer], base.points[steps]) if longer else None,
                    longer / steps if longer else None, *_scored(study, name),
                )  # fmt: skip


def _scored(study: Study, arm: str) -> tuple[str, int | None]:
    """The arm's frozen teacher in words, and the number of validation images."""
    record = next(iter(study.finished(arm).values()), None)
    if record is None:
        return "", None
    images = record.data.get("val_images")
    return str(frozen_teacher(record.experiment) or ""), images if isinstance(images, int) else None


def settings_table(studies: Sequence[Study]) -> TextTable:
    """A row for each detector, data set, arm, and the shortest and longest training of it from the preset's on.

    Not where neither arm nor baseline has learnt enough to be compared.
    """
    distinct = distinct_rows(studies)
    texts = [
        [
            x.detector,
            x.data,
            _without_length(x.label),
            f"{x.steps:,}",
            str(x.gain.n),
            _needed(x.gain),
            number(x.baseline_ap),
            difference_text(x.gain),
            with_unit(x.cost, "x"),
            *(_of_seeds(part, x.gain.n) for part in (x.equal_cost, x.imitation, x.lead)),
            f"{difference_text(x.longer)} ({x.longer_by:.2g}x)" if x.longer and x.longer_by else MISSING,
        ]
        for study in studies
        for x in _ends([x for of, x in distinct if of is study and not x.is_at_floor])
    ]
    header = [
        *("detector", "data", "arm", "steps", "seeds", "needed", "baseline's AP", "gain", "cost", "gain at equal cost"),
        *("of the gain, imitation", "teacher's lead", "baseline trained longer"),
    ]
    return TextTable("", header, texts)


def _needed(gain: Difference) -> str:
    """Seeds that a gain of MIN_GAIN takes to be found with a power of POWER, where seeds differ as these do."""
    if gain.n < 2:
        return MISSING
    needed = seeds_for(MIN_GAIN, gain.spread)
    return f"{needed:,}" if needed < MOST_SEEDS else f"over {MOST_SEEDS:,}"


def _ends(of_study: Sequence[Elsewhere]) -> list[Elsewhere]:
    """Each arm's row at the preset's own steps, or else the fewest, and at the most."""
    found: dict[str, list[Elsewhere]] = {}
    for x in of_study:
        found.setdefault(_without_length(x.arm), []).append(x)
    kept = []
    for of_arm in found.values():
        own = next((x for x in of_arm if _without_length(x.arm) == x.arm), of_arm[0])
        kept += [own] if own is of_arm[-1] else [own, of_arm[-1]]
    return kept


def _without_length(arm: str) -> str:
    """The arm's name at the grid's own length."""
    return re.sub(r" at [\d.]+x steps", "", arm)


def _of_seeds(found: Difference | None, expected: int) -> str:
    """With the number of seeds where that is another than the row's."""
    fewer = found is not None and found.n != expected
    return f"{difference_text(found)} ({found.n} seeds)" if found and fewer else difference_text(found)


class _BeyondNoise(NamedTuple):
    """How many differences are above zero and below it, beyond noise, of those with an interval."""

    above: int
    below: int
    of: int


def _beyond_noise(differences: Sequence[Difference | None]) -> _BeyondNoise:
    verdicts = [verdict(x.low, x.high) for x in differences if x is not None and x.low is not None]
    return _BeyondNoise(verdicts.count("more"), verdicts.count("less"), len(verdicts))


def elsewhere_sentences(studies: Sequence[Study]) -> list[str]:
    """How often arms gain, imitation gains, and arms beat a baseline of the same cost, beyond noise."""
    rows_of_all = [x for _, x in distinct_rows(studies)]
    found = [x for x in rows_of_all if not x.is_at_floor]
    if not found:
        return []
    settings = len({(x.detector, x.data, x.steps) for x in found})
    lines = [render_sentence("gains_elsewhere", settings=settings, counts=_beyond_noise([x.gain for x in found]))]
    imitations, leads, at_cost = [x.imitation for x in found], [x.lead for x in found], [x.equal_cost for x in found]
    if any(imitations):
        lines.append(render_sentence("imitation_elsewhere", counts=_beyond_noise(imitations)))
    if any(leads):
        lines.append(render_sentence("leads_elsewhere", counts=_beyond_noise(leads)))
    if any(at_cost):
        lines.append(render_sentence("equal_cost_elsewhere", counts=_beyond_noise(at_cost)))
    if floors := list(dict.fromkeys(f"{x.detector}, {x.data}" for x in rows_of_all if x.is_at_floor)):
        lines.append(render_sentence("at_the_floor", settings=floors, floor=FLOOR))
    for study in (x for x in studies if x.grid.name == METHODS):
        if ended := [row for row in row_dicts(methods_table(study.runs, METHODS)) if row["ended"] and not row["seeds"]]:
            place = f"{detector(study)}, {study.data}"
            lines.append(render_sentence("methods_without_a_result", methods=ended, place=place))
    return lines


def ahead_sentences(studies: Sequence[Study], *, brief: bool = False) -> list[str]:
    """How many arms are beyond noise behind a baseline of the same cost, and which are ahead; brief: without costs."""
    rows_of_all = [x for _, x in distinct_rows(studies)]
    found = [x for x in rows_of_all if x.equal_cost is not None and x.equal_cost.low is not None]
    ahead = [x for x in found if x.equal_cost and verdict(x.equal_cost.low, x.equal_cost.high) == "more"]
    if not found:
        return []
    of_data: dict[tuple[str, int | None], list[Elsewhere]] = {}
    for x in found:
        of_data.setdefault((x.data, x.val_images), []).append(x)
    places = [
        {"data": data, "val_images": images, "counts": _beyond_noise([x.equal_cost for x in there]), "of": len(there)}
        for (data, images), there in of_data.items()
    ]
    if brief:
        return [render_sentence("ahead_at_equal_cost_in_brief", ahead=ahead, places=places, of=len(found))]
    return [render_sentence("ahead_at_equal_cost", ahead=ahead, places=places, of=len(found))]
