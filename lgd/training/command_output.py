"""What ``lgd train`` prints: its experiments, the progress of a training, and how it ended."""

from __future__ import annotations

import json
import math
import sys
import time
from datetime import timedelta
from pathlib import Path

from lgd.config.detector import is_read
from lgd.config.experiment import STEPS, Experiment, settings
from lgd.config.paper_recipes import Named
from lgd.results.record import FILE, Record, Scores
from lgd.storage.outputs import shown
from lgd.training.progress import Progress

PERIOD = 10.0
"""Seconds between two lines on the progress."""


class PrintProgress:
    """Prints a line of progress every PERIOD seconds."""

    begun = False
    """Whether any was reported."""

    def __init__(self) -> None:
        # sys.stdout is redirected while a training runs, to silence the libraries.
        self._stdout = sys.stdout
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        self.begun = True
        now = time.monotonic()
        if now < self._next or math.isnan(progress["eta"]):
            return
        self._next = now + PERIOD
        left = timedelta(seconds=round(progress["eta"]))
        # NaN until it is first read, after some steps.
        loss = "" if math.isnan(progress["loss"]) else f"loss {progress['loss']:.4g}, "
        print(f"step {progress['step']} of {progress['steps']}, {loss}{left} left", file=self._stdout, flush=True)


def print_result(record: Record, chosen: Named, directory: Path) -> int:
    if record.status != "finished":
        after = f" after {record.steps} steps" if record.steps else ""
        print(f"{record.status}{after}: {record.reason}")
        if (directory / FILE).exists():
            print(f"record: {shown(directory / FILE)}")
        return 1
    for what, scores in (
        ("box", record.student),
        ("mask", record.student_mask),
        ("teacher's box", record.teacher),
        ("teacher's mask", record.teacher_mask),
    ):
        if scores is not None:
            print(f"{what} {_ap(scores)}")
    for line in chosen.reported:
        print(f"the paper reports {line}")
    if record.fewest_devices is not None:
        print(f"workers: {record.devices_held}, {record.gpu_hours:.2f} device-hours together")
    if record.data_wait is not None:
        print(f"waited for data {record.data_wait:.1%} of the training's time")
    print(f"record: {shown(directory / FILE)}")
    print(f"student: {shown(directory / 'student.pth')}")
    return 0


def _ap(scores: Scores) -> str:
    shown = ((name, getattr(scores, name)) for name in ("AP", "AP50", "AP75"))
    return ", ".join(f"{name} {'undefined' if value is None else f'{value:.1f}'}" for name, value in shown)


def summary(experiment: Named) -> str:
    """Its name and the paper's numbers, on one line."""
    return f"{experiment.name:<30}{'; '.join(map(str, experiment.reported))}"


def print_settings(chosen: Named, experiment: Experiment) -> None:
    """Print description and settings; the line of a setting can be passed to --set as it is."""
    schedule = experiment.schedule
    notes = {
        "schedule.lr": f"{schedule.resolved_lr:g} for {schedule.batch} images" if schedule.lr is None else "",
        "detector.backbone.width": str(experiment.detector.backbone.resolved_width),
        "detector.backbone.norm": experiment.detector.backbone.resolved_norm,
        "detector.backbone.freeze_at": str(experiment.detector.backbone.resolved_freeze_at),
        "detector.head_norm": experiment.detector.resolved_head_norm or "none",
        "detector.anchor_scale": f"{experiment.detector.resolved_anchor_scale:g}",
        "evaluation.every": "" if schedule.epochs else str(experiment.evaluation.resolved_every(schedule.steps)),
    }
    for line in chosen.head:
        print(f"# {line}")
    for key, value in settings(experiment).items():
        if key == STEPS and schedule.epochs is not None:
            # They follow from the data.
            continue
        if not is_read(key, experiment.detector.source):
            continue
        shown = "auto" if value is None else value if isinstance(value, str) else json.dumps(value)
        note = notes.get(key) if shown == "auto" else None
        print(f"{key}={shown}" + (f"    # {note}" if note else ""))
