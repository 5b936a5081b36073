"""What to train first on eight GPUs and how long it takes, from the newest step times that a GPU session measured."""

from __future__ import annotations

from pathlib import Path

from analysis.render import TextTable, number
from analysis.templating import render_sentence
from lgd.config.paper import COCO_BATCH_ASPECT
from lgd.config.presets import preset
from lgd.errors import InputError

GPUS = 8

SEEDS = 3
"""Of each arm: what ``lgd pays`` begins with."""

NOTE = "note.md"
"""In a session's directory: what has to be known of its numbers, written by hand."""

SPEED = "gpu-session_*/speed-retinanet/speed.csv"
"""Step times of RetinaNet R-50 at the paper's size, in a directory of results (benchmarks/gpu_session.py)."""

SIDE = "ours bf16"

COMMAND = "lgd pays --data coco-json:datasets/coco --preset paper --methods lgd,fgfi --set precision=bf16"

BASELINE, LGD, FGFI, TEACHER = "baseline", "LGD", "FGFI", "FGFI's teacher in training"
"""Names in the measurements."""


def first_run(results: Path) -> TextTable | None:
    """The trainings that :data:`COMMAND` begins with, with their device-hours; None where no session measured them.

    Evaluations are not in them. Raises InputError for measurements that lack a row.
    """
    import pandas as pd

    # Names end with the date. What needs a note is no forecast.
    sound = (x for x in results.glob(SPEED) if not (x.parents[1] / NOTE).is_file())
    found = sorted(sound, key=lambda path: path.parents[1].name.rpartition("_")[2])
    if not found:
        return None
    frame = pd.read_csv(found[-1])
    medians = frame[frame["side"] == SIDE].groupby("arm")["median_ms"].median()
    missing = [x for x in (BASELINE, LGD, FGFI, TEACHER) if x not in medians.index]
    if missing:
        raise InputError(f"{found[-1]}: no row of {missing[0]!r} as {SIDE!r}")
    steps = preset("paper").schedule.steps
    hours = {arm: steps * float(ms) / 3_600_000 for arm, ms in medians.items()}
    of_fgfi = hours[FGFI] + hours[TEACHER]
    trainings = [
        (BASELINE, medians[BASELINE], hours[BASELINE], SEEDS),
        (LGD, medians[LGD], hours[LGD], SEEDS),
        (f"{BASELINE} at the cost of {LGD}", medians[BASELINE], hours[LGD], SEEDS),
        ("FGFI's teacher, R-101", medians[TEACHER], hours[TEACHER], 1),
        (FGFI, medians[FGFI], hours[FGFI], SEEDS),
        (f"{BASELINE} at the cost of {FGFI}", medians[BASELINE], of_fgfi, SEEDS),
    ]
    rows = [[name, number(ms), number(each), str(n), number(n * each)] for name, ms, each, n in trainings]
    total = sum(n * each for *_, each, n in trainings)
    # A student waits for its teacher, and a baseline of the same cost for the student.
    least = max(total / GPUS, of_fgfi + of_fgfi)
    rows.append(["all", "", "", str(sum(n for *_, n in trainings)), number(total)])
    first = frame.iloc[0]
    note = render_sentence(
        "first_run", measured=first, steps=steps, session=found[-1].parent.parent.name, gpus=GPUS, least=number(least),
        pixels=COCO_BATCH_ASPECT * first["height"] / first["width"],
    )  # fmt: skip
    return TextTable(
        f"With {GPUS} GPUs: run this first", ["training", "ms a step", "hours each", "seeds", "GPU-h"], rows, [note]
    )
