"""How gains depend on the number of training images and on what the backbone's weights are at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis.load import arm_of
from analysis.rates import Curve, data_curves, on_like_hardware, pairs
from analysis.render import MISSING, TextTable, difference_text, number, with_mark, with_unit
from analysis.stats.differences import (
    CONFIDENCE,
    FEW_SEEDS,
    Difference,
    paired_difference,
    paired_ratio,
    verdict,
)
from analysis.teachers import frozen_teacher
from analysis.templating import render_sentence
from lgd.config.experiment import Experiment
from lgd.config.method import title_of
from lgd.results.record import Record

PRETRAINED, FROM_SCRATCH = "pretrained", "from scratch"


@dataclass(frozen=True)
class Cell:
    """What a method gains over its baseline with one number of training images."""

    gain: Difference
    by_seed: dict[int, float]
    """Each seed's gain."""
    cost: float | None
    """Device-seconds over the baseline's, a frozen teacher's training included; the median over the seeds."""
    baseline: float
    """The baseline's AP, the mean over the gain's seeds."""
    ended: int
    """How many of the arm's and the baseline's trainings diverged or failed: the others are no fair sample."""

    @property
    def verdict(self) -> str:
        """``more``, ``less`` or ``noise``; "" where there are too few seeds to say, or some have ended early."""
        return _verdict(self.gain) if not self.ended else ""


@dataclass(frozen=True)
class Row:
    """A method with one backbone, by number of training images."""

    method: str
    network: str
    cells: dict[int, Cell]

    @property
    def label(self) -> str:
        return f"{self.method}, {self.network}"


class Turn(NamedTuple):
    """Where a gain changes its sign with the backbone: both intervals leave zero out, on opposite sides."""

    images: int
    pretrained: Difference
    from_scratch: Difference


def gains_by_data(records: Sequence[Record]) -> list[Row]:
    """A row for each method and backbone that was trained on parts of the images, as its baseline was.

    The pretrained ones come first.

    Images are counted with those that have no object, which training leaves out: records do not say how many.
    """
    # A training that failed early has not counted them.
    images = {arm_of(x): x.data["train_images"] for x in records if "train_images" in x.data}
    ours = {arm_of(x): x.ours for x in records}
    ended = Counter(arm_of(x) for x in records if x.status != "finished")
    found = []
    for base, arm in pairs(data_curves(records)):
        whole = images.get(base.arms[max(base.points)])
        if isinstance(whole, int):
            cells = {
                round(whole * part): cell
                for part in arm.points
                if part in base.points and (cell := _cell(base, arm, part, ended)) is not None
            }
            found.append(Row(with_mark(title_of(arm.method), ours[arm.name]), _network(arm), cells))
    return sorted(found, key=lambda row: row.network == FROM_SCRATCH)


def _cell(base: Curve, arm: Curve, part: float, ended: Counter[str]) -> Cell | None:
    gain = paired_difference(arm.points[part], base.points[part])
    if gain is None:
        return None
    theirs, ours = on_like_hardware(base, arm)
    cost = paired_ratio(ours.costs.get(part, {}), theirs.costs.get(part, {}))
    by_seed = {seed: arm.points[part][seed] - base.points[part][seed] for seed in gain.seeds}
    baseline = sum(base.points[part][seed] for seed in gain.seeds) / gain.n
    lost = ended[arm.arms[part]] + ended[base.arms[part]]
    return Cell(gain, by_seed, cost.value if cost else None, baseline, lost)


def _network(curve: Curve) -> str:
    detector = curve.setting.detector
    if not detector.is_built_in:
        return detector.label
    return FROM_SCRATCH if detector.backbone.from_scratch else PRETRAINED


def _verdict(found: Difference | None) -> str:
    return verdict(found.low, found.high) if found is not None and found.n >= FEW_SEEDS else ""


def data_table(records: Sequence[Record]) -> TextTable | None:
    """:func:`gains_by_data` for people, a row a method and backbone; None without any."""
    found = gains_by_data(records)
    if not found:
        return None
    columns = sorted({images for row in found for images in row.cells})
    rows = []
    for network in dict.fromkeys(row.network for row in found):
        of = [row for row in found if row.network == network]
        # Of the method that has most seeds: the mean is over those.
        baselines = [max((row.cells[x] for row in of if x in row.cells), key=_seeds, default=None) for x in columns]
        rows.append([f"baseline's AP, {network}", *(number(x.baseline) if x else MISSING for x in baselines)])
        rows += [[row.label, *(_text(row.cells.get(x)) for x in columns)] for row in of]
    return TextTable("Gain by training images", ["", *(f"{x:,} images" for x in columns)], rows, _notes(records, found))


def _seeds(cell: Cell) -> int:
    return cell.gain.n


def _text(cell: Cell | None) -> str:
    """``+3.1 [+1.8, +4.5] (3 seeds, 1.8x)``."""
    if cell is None:
        return MISSING
    of = [f"{cell.gain.n} seed{'s' * (cell.gain.n != 1)}"]
    if cell.cost:
        of.append(with_unit(cell.cost, "x"))
    if cell.ended:
        of.append(f"{cell.ended} ended early")
    return f"{difference_text(cell.gain)} ({', '.join(of)})"


def _notes(records: Sequence[Record], found: Sequence[Row]) -> list[str]:
    there = {arm_of(x) for x in records if x.status == "finished"}
    lost = Counter(arm_of(x) for x in records if x.status != "finished" and arm_of(x) not in there)
    notes = [
        f"Gain in AP over the baseline on the same images after as many steps, with its {CONFIDENCE:.0%} t interval,"
        " paired by seed; in brackets what it cost over the baseline, a frozen teacher's training included. Images"
        " without objects, which training leaves out, are counted.",
        "Each number of images is one part of them, and each frozen teacher one training, the same for all seeds: no"
        " interval holds what others would change.",
        *_setups(records),
    ]
    if lost:
        said = ", ".join(f"{arm} ({n} trainings)" if n > 1 else arm for arm, n in lost.items())
        notes.append(f"Without a result, all trainings ended early: {said}.")
    few = sum(not x.verdict for row in found for x in row.cells.values())
    if few:
        notes.append(
            f"Not judged: {few} of {sum(len(row.cells) for row in found)} gains, of fewer than {FEW_SEEDS} seeds or"
            " with trainings that ended early."
        )
    return notes


def _setups(records: Sequence[Record]) -> list[str]:
    """What the backbones, rates, teachers and weights are: a gain is of all of them together."""
    lines: dict[str, None] = {}
    for record in records:
        experiment = record.experiment
        detector = experiment.detector
        if detector.is_built_in:
            backbone = detector.backbone
            layers = f"frozen up to stage {backbone.freeze_at}" if backbone.freeze_at else "all layers trained"
            network = FROM_SCRATCH if backbone.from_scratch else PRETRAINED
            schedule = experiment.schedule
            line = f"{network[0].upper()}{network[1:]}: {layers}, learning rate {schedule.resolved_lr:g}"
            lines[f"{line} for {schedule.batch} images."] = None
    teachers = dict.fromkeys(filter(None, (_of_teacher(record.experiment) for record in records)))
    return [*lines, *teachers]


def _of_teacher(experiment: Experiment) -> str | None:
    found, teacher = frozen_teacher(experiment), experiment.teacher
    if found is None or teacher is None:
        return None
    images = "; trained on its student's images" if teacher.data == experiment.data else ""
    detector = experiment.detector
    students = f", {FROM_SCRATCH if detector.backbone.from_scratch else PRETRAINED}" if detector.is_built_in else ""
    return f"{title_of(experiment.method.name)}{students}: its frozen teacher is a {found}{images}."


def data_sentences(records: Sequence[Record]) -> list[str]:
    """For each method: where it gains or loses beyond noise, and where that differs with the backbone's weights."""
    found = gains_by_data(records)
    if not found:
        return []
    lines, judged = [_of_row(row) for row in found], sum(bool(x.verdict) for row in found for x in row.cells.values())
    for method in dict.fromkeys(row.method for row in found):
        rows = {row.network: row for row in found if row.method == method}
        if PRETRAINED in rows and FROM_SCRATCH in rows:
            differ = _differ(rows[PRETRAINED], rows[FROM_SCRATCH])
            judged += len(differ)
            if differ:
                lines.append(_of_networks(method, rows[PRETRAINED], rows[FROM_SCRATCH], differ))
    return [render_sentence("how_gains_by_images_are_read", of=judged), *lines]


def _differ(pretrained: Row, scratch: Row) -> list[tuple[int, Difference]]:
    """The gain from scratch less that pretrained, paired by seed, where both are judged."""
    common = sorted(pretrained.cells.keys() & scratch.cells.keys())
    judged = [x for x in common if pretrained.cells[x].verdict and scratch.cells[x].verdict]
    found = [(x, paired_difference(scratch.cells[x].by_seed, pretrained.cells[x].by_seed)) for x in judged]
    return [(x, difference) for x, difference in found if difference is not None and _verdict(difference)]


def _of_networks(method: str, pretrained: Row, scratch: Row, differ: Sequence[tuple[int, Difference]]) -> str:
    turns = [
        Turn(x, pretrained.cells[x].gain, scratch.cells[x].gain)
        for x, _ in differ
        if {pretrained.cells[x].verdict, scratch.cells[x].verdict} == {"more", "less"}
    ]
    clear = sum(_verdict(x) in ("more", "less") for _, x in differ)
    return render_sentence("gain_with_other_weights", method=method, differ=differ, clear=clear, turns=turns)


def _of_row(row: Row) -> str:
    judged = [x for x in row.cells.values() if x.verdict]
    return render_sentence(
        "gains_by_images",
        label=row.label,
        cells=sorted(row.cells.items()),
        clear=sum(x.verdict in ("more", "less") for x in judged),
        of=len(judged),
    )
