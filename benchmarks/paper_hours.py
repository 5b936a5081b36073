"""GPU-hours of the paper's grids, from the step times that a session on a GPU measured (docs/tables.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from analysis.render import MISSING, pipe_table
from benchmarks.speed import BASELINE, FGFI, LGD, PRECISIONS, TEACHER
from benchmarks.timer_spec import OURS
from lgd.config.grids import TABLES, grid
from lgd.config.paper import COCO_BATCH_ASPECT, Training
from lgd.config.paper_recipes import BACKBONES, SCALES, SCHEDULES

ARMS = {"baseline": (BASELINE,), "lgd": (LGD,), "fgfi": (FGFI, TEACHER)}
"""What is measured of a method's step and, where it needs one, of its teacher's."""

StepTimes = Mapping[tuple[str, str, str], float]
"""Milliseconds by detector, arm and precision."""


def markdown(session: Path) -> str:
    """A row a grid: its trainings of one seed, and the hours of those whose steps the session measured."""
    times, gpu, (height, width) = _step_times(session)
    rows = []
    for name in TABLES:
        trainings = [arm.training for arm in grid(name, "paper").arms if arm.training and not arm.skipped]
        steps = sum(SCHEDULES[x.schedule][0] for x in trainings)
        hours = ([_hours(x, times, precision) for x in trainings] for precision in PRECISIONS)
        rows.append([name, str(len(trainings)), f"{steps / 1e6:.2f}", *map(_sum, hours)])
    header = ["grid", "trainings", "million steps", *(f"{x}: hours (of how many)" for x in PRECISIONS)]
    notes = [
        f"- One seed, on {gpu.removeprefix('1 x ')}: `{session.name}`, steps of 16 images with a shorter side of"
        f" {max(SCALES['ms'])}, as if every data set were MS-COCO; FGFI with its R-101 teacher's training. The paper's"
        " precision is fp32.",
        *_note_on_size(height, width),
        "- Not measured, and not in the hours: other backbones and detectors, the other methods, evaluations, loading.",
    ]
    return "\n".join([pipe_table(header, rows), "", *notes])


def _note_on_size(height: int, width: int) -> list[str]:
    pixels = COCO_BATCH_ASPECT * height / width
    if pixels <= 1:
        return []
    return [
        f"- The images were {height} x {width}; batches of MS-COCO are padded to about {pixels:.2f} times as many"
        " pixels, and take longer by about as much."
    ]


def _step_times(session: Path) -> tuple[StepTimes, str, tuple[int, int]]:
    """Medians over the rounds of the project's own steps at the paper's size and backbone, the GPU, and the images'
    height and width in pixels."""
    frame = pd.concat([pd.read_csv(x) for x in sorted(session.glob("speed-*/speed.csv"))])
    frame = frame[(frame["height"] == max(SCALES["ms"])) & (frame["backbone"] == BACKBONES["r50"].name)]
    found: dict[tuple[str, str, str], float] = {}
    for precision in PRECISIONS:
        own = frame[frame["side"] == f"{OURS} {precision}"]
        for (detector, arm), rows in own.groupby(["detector", "arm"]):
            found[str(detector), str(arm), precision] = float(rows["median_ms"].median())
    first = frame.iloc[0]
    return found, str(first["gpu"]), (int(first["height"]), int(first["width"]))


def _hours(training: Training, times: StepTimes, precision: str) -> float | None:
    """None where a step of it was not measured. A teacher trains as long as its student."""
    if training.backbone != "r50" or training.teacher not in (None, "r101"):
        return None
    needed = [times.get((training.detector, arm, precision)) for arm in ARMS.get(training.method, ("",))]
    measured = [ms for ms in needed if ms is not None]
    return sum(measured) * SCHEDULES[training.schedule][0] / 3.6e6 if len(measured) == len(needed) else None


def _sum(hours: list[float | None]) -> str:
    known = [x for x in hours if x is not None]
    return f"{sum(known):.0f} ({len(known)})" if known else MISSING
