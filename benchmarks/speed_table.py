"""The table of speed.py, from the rows that it measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.render import MISSING, pipe_table
from benchmarks.contention import contention_note
from benchmarks.options import read_results
from benchmarks.timer_spec import NAIVE, OURS
from lgd.config.paper import COCO_BATCH_ASPECT

REFERENCES = Path(__file__).with_name("reference.yaml")

RENAMED_SIDES = {"straightforward": NAIVE, "quick losses": "fast losses", "repeated labels": "cached targets"}
"""In the column ``side`` of files that were measured before these were renamed."""

SAME_ASPECT = 0.97
"""Batches are as wide as MS-COCO's from this part of their width on."""

SIX_DIGITS = 1e-5
"""Relative difference of two numbers of six digits from which on they surely differ."""

COLUMNS = (
    *("arm", "side", "round", "median_ms", "peak_mib", "first_loss", "detector", "backbone", "batch", "height"),
    *("width", "objects", "gpu", "cpu", "torch", "git_commit", "started", "command"),
)


def read(path: Path) -> pd.DataFrame:
    """The rows that speed.py wrote. Raises InputError, one line, for any other file."""
    frame = read_results(path, COLUMNS)
    for former, word in RENAMED_SIDES.items():
        frame["side"] = frame["side"].str.replace(former, word)
    if "loss_difference" in frame:
        frame["loss_difference"] = pd.to_numeric(frame["loss_difference"])
    return frame


def reference_file() -> dict[str, Any]:
    """Figures of others, and the limits of a GPU."""
    return dict(yaml.safe_load(REFERENCES.read_text(encoding="utf-8")))


def reference(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Figures of others for the same detector, backbone and size on the same kind of GPU; none for a CPU."""
    described = reference_file()
    first = frame.iloc[0]
    same = ("detector", "backbone", "batch", "height")
    return [
        row
        for row in described["rows"]
        if described["gpu"] in str(first["gpu"]) and all(row[key] == first[key] for key in same)
    ]


def is_padded_less(frame: pd.DataFrame) -> bool:
    """Whether the timed batches are narrower than batches of MS-COCO, which figures of others are of."""
    return bool((frame["width"] < SAME_ASPECT * COCO_BATCH_ASPECT * frame["height"]).any())


def markdown(frame: pd.DataFrame, references: Sequence[Mapping[str, Any]]) -> str:
    """A step of each row, its speed relative to the naive side within each round, and notes."""
    header = ["arm", "side", "ms", "peak MiB", "speed relative to naive", "losses differ by"]
    lines = [pipe_table(header, _cells(frame), left=2), ""]
    sides = set(frame["side"])
    if sides == {NAIVE, OURS}:
        by_round = frame.pivot_table(index="round", columns="side", values="median_ms", aggfunc="sum")
        whole = (by_round[NAIVE] / by_round[OURS]).tolist()
        lines += [f"All arms together: **{_rounds(whole)}** the speed of the naive implementation.", ""]
    elif {"baseline", "LGD"} <= set(frame["arm"]):
        lines += [*_method_costs(frame), ""]
    if references and is_padded_less(frame):
        lines += [
            "The figures of others below are of real images, in batches padded to their widest: more pixels than ours.",
            "",
        ]
    if references:
        rows = [[str(x.get(key, MISSING)) for key in ("what", "ms", "gib", "source")] for x in references]
        lines += [pipe_table(["figures of others, same GPU", "ms", "peak GiB", "source"], rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(frame)), ""])


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    sides, rows = set(frame["side"]), []
    for (arm, side), found in frame.groupby(["arm", "side"], sort=False):
        naive = frame[(frame["arm"] == arm) & (frame["side"] == _compared_with(str(side), sides))]
        cells = [str(arm), str(side), f"{found['median_ms'].median():.1f}", f"{found['peak_mib'].max():.0f}"]
        rows.append([*cells, _rounds(_ratios(naive, found)), _loss_difference(naive, found)])
    return rows


def _loss_difference(naive: pd.DataFrame, found: pd.DataFrame) -> str:
    """Relative difference to the naive side's losses of one batch."""
    if naive.empty:
        return MISSING
    if "loss_difference" in found:
        return f"{found['loss_difference'].iloc[0]:.1e}"
    # Files from before this column have the losses alone, with six digits.
    difference = abs(found["first_loss"].iloc[0] / naive["first_loss"].iloc[0] - 1)
    return f"{difference:.1e}" if difference > SIX_DIGITS else f"< {SIX_DIGITS:.0e}"


def with_loss_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with the column ``loss_difference``; NaN where there is no naive side to compare with."""
    sides, keys = set(frame["side"]), list(zip(frame["arm"], frame["side"], strict=True))
    losses = dict(zip(keys, frame["first_loss"], strict=True))
    naive = [losses.get((arm, _compared_with(side, sides)), math.nan) for arm, side in keys]
    return frame.assign(loss_difference=(frame["first_loss"] / naive - 1).abs())


def _compared_with(side: str, sides: set[str]) -> str:
    """The naive side that a side is compared with; "" for a naive one."""
    if side.startswith(NAIVE):
        return ""
    return NAIVE if NAIVE in sides else f"{NAIVE} fp32"


def _method_costs(frame: pd.DataFrame) -> list[str]:
    """Cost of LGD and FGFI beyond our fastest baseline, within rounds."""
    by = {key: x.set_index("round")["median_ms"] for key, x in frame.groupby(["arm", "side"])}
    fastest = {
        arm: min((key for key in by if key[0] == arm), key=lambda key: by[key].median())
        for arm in dict.fromkeys(frame["arm"])
    }
    base = by[fastest["baseline"]]
    lines = [f"Fastest: {', '.join(f'{arm} as {side}' for arm, side in fastest.values())}."]
    lgd = (by[fastest["LGD"]] / base - 1).tolist()
    lines.append(f"LGD's extra over our fastest baseline: **{_rounds(lgd, '')}** of that baseline.")
    if {"FGFI", "FGFI's teacher in training"} <= fastest.keys():
        fgfi = by[fastest["FGFI"]] - base + by[fastest["FGFI's teacher in training"]]
        saved = (1 - (by[fastest["LGD"]] - base) / fgfi).tolist()
        lines.append(
            f"Method-specific cost, if teacher and student take as many steps: LGD's is **{_rounds(saved, '')}** below"
            " FGFI's (as a share of it)."
        )
    return lines


def _notes(frame: pd.DataFrame) -> list[str]:
    first = frame.iloc[0]
    notes = [
        f"{first['detector']} {first['backbone']}, {first['batch']} images of {first['height']} x {first['width']}"
        f" pixels with {first['objects']:.3g} boxes on average; median over rounds, in brackets lowest and highest.",
        f"{first['gpu'] if first['gpu'] != 'none' else first['cpu']}; torch {first['torch']}, commit"
        f" {first['git_commit'][:12]}; measured {first['started']} by `{first['command']}`.",
    ]
    if "other_cores" in frame:
        spread = ((frame["q75_ms"] - frame["q25_ms"]) / frame["median_ms"]).median()
        notes.append(contention_note(list(frame["other_cores"]), int(first["cores"]), float(spread)))
    return notes


def _ratios(naive: pd.DataFrame, ours: pd.DataFrame) -> list[float]:
    pairs = naive.set_index("round")["median_ms"] / ours.set_index("round")["median_ms"] if len(naive) else None
    return [] if pairs is None else pairs.dropna().tolist()


def _rounds(values: Sequence[float], unit: str = "x") -> str:
    """Median of the rounds, lowest and highest."""
    if not values:
        return MISSING
    return f"{statistics.median(values):.2f}{unit} [{min(values):.2f}, {max(values):.2f}]"
