"""How gains depend on the number of training images and on what the backbone's weights are at first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.load import arm_of
from analysis.rates import Curve, data_curves, pairs
from analysis.render import TextTable, difference_text, number, with_mark
from analysis.stats.differences import CONFIDENCE, Difference, paired_difference, verdict
from analysis.templating import render_sentence
from lgd.config.method import title_of
from lgd.results.record import Record


@dataclass(frozen=True)
class Row:
    """A method with one backbone: its gains over the baseline, and that one's AP, by number of training images."""

    method: str
    network: str
    gains: dict[int, Difference]
    by_seed: dict[int, dict[int, float]]
    """Each seed's gain."""
    baseline: dict[int, float]

    @property
    def label(self) -> str:
        return f"{self.method}, {self.network}"


def gains_by_data(records: Sequence[Record]) -> list[Row]:
    """A row for each method and backbone that was trained on several parts of the images, as its baseline was.

    Images are counted with those that have no object, which training leaves out: records do not say how many.
    """
    # A training that failed early has not counted them.
    images = {arm_of(x): x.data["train_images"] for x in records if "train_images" in x.data}
    ours = {arm_of(x): x.ours for x in records}
    found = []
    for base, arm in pairs(data_curves(records)):
        whole = images.get(base.arms[max(base.points)])
        if not isinstance(whole, int):
            continue
        count = {fraction: round(whole * fraction) for fraction in base.points}
        gains = {
            count[x]: gain
            for x in arm.points
            if x in base.points and (gain := paired_difference(arm.points[x], base.points[x])) is not None
        }
        by_seed = {
            count[x]: {seed: arm.points[x][seed] - base.points[x][seed] for seed in gain.seeds}
            for x in arm.points
            if x in base.points and (gain := gains.get(count[x])) is not None
        }
        baseline = {count[x]: base.mean(x) for x in base.points}
        found.append(Row(with_mark(title_of(arm.method), ours[arm.name]), _network(arm), gains, by_seed, baseline))
    return found


def _network(curve: Curve) -> str:
    detector = curve.setting.detector
    if not detector.is_built_in:
        return detector.label
    return "from scratch" if detector.backbone.from_scratch else "pretrained"


def data_table(records: Sequence[Record]) -> TextTable | None:
    """:func:`gains_by_data` for people, a row a method and backbone; None without any."""
    found = gains_by_data(records)
    if not found:
        return None
    columns = sorted({images for row in found for images in row.gains})
    rows = []
    for network in dict.fromkeys(row.network for row in found):
        of = [row for row in found if row.network == network]
        rows.append([f"baseline's AP, {network}", *(number(of[0].baseline.get(x)) for x in columns)])
        rows += [[row.label, *(difference_text(row.gains.get(x)) for x in columns)] for row in of]
    note = (
        f"Gain in AP over the baseline on the same images, with its {CONFIDENCE:.0%} t interval, paired by seed. Images"
        " without objects, which training leaves out, are counted."
    )
    return TextTable("Gain by training images", ["", *(f"{x:,} images" for x in columns)], rows, [note])


def data_sentences(records: Sequence[Record]) -> list[str]:
    """For each method: where it gains or loses beyond noise, and where that differs with the backbone's weights."""
    found = gains_by_data(records)
    lines = [_of_row(row) for row in found]
    for method in dict.fromkeys(row.method for row in found):
        rows = [row for row in found if row.method == method]
        if len(rows) == 2:
            common = sorted(rows[0].gains.keys() & rows[1].gains.keys())
            if not any(rows[0].gains[x].n > 1 for x in common):
                continue
            turns = [x for x in common if rows[0].gains[x].mean * rows[1].gains[x].mean < 0]
            differ = [
                (x, d)
                for x in common
                if (d := _between(rows[0], rows[1], x)) and verdict(d.low, d.high) in ("more", "less")
            ]
            networks = [row.network for row in rows]
            lines.append(
                render_sentence(
                    "gain_with_other_weights",
                    method=method,
                    networks=networks,
                    turns=len(turns),
                    differ=differ,
                    of=len(common),
                )
            )
    return lines


def _between(one: Row, other: Row, images: int) -> Difference | None:
    """The gain with one backbone less that with another, paired by seed."""
    return paired_difference(one.by_seed[images], other.by_seed[images])


def _of_row(row: Row) -> str:
    clear = [(x, gain) for x, gain in sorted(row.gains.items()) if verdict(gain.low, gain.high) in ("more", "less")]
    return render_sentence("gains_by_images", label=row.label, gains=clear, of=len(row.gains))
