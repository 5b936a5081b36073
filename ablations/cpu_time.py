"""Duration of trainings without a GPU, estimated before they begin."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ablations.display import say
from lgd.config.grids import Trial
from lgd.errors import InputError

LONGEST = 86400.0
"""Seconds on the CPU from which on a sweep must be confirmed."""


def check_cpu_time(trials: Sequence[Trial], max_concurrent: int, console: Console) -> None:
    """Say how long ``trials`` take on this machine's CPU, if that is long. Raises InputError where it is over a day.

    One training of each arm is timed on a small image; no more arms than it takes to know that it is over a day.
    """
    long = _long(trials)
    if not long:
        return
    # Here, not at the top: it loads torch and detectron2.
    from lgd.training.estimate import cpu_seconds

    say(console, "no GPU for the trials: measuring how long the CPU will take")
    seconds = 0.0
    known: dict[str, float] = {}
    for done, trial in enumerate(long, start=1):
        if trial.arm not in known:
            known[trial.arm] = cpu_seconds(trial.experiment)
        seconds += known[trial.arm] / max_concurrent
        if seconds > LONGEST:
            at_least = "at least " if done < len(long) else ""
            raise InputError(
                f"{done} of {len(trials)} trials would take {at_least}about {_shown(seconds)} on this machine's CPU:"
                " train on a GPU, shorten them (--preset tiny, --set schedule.steps=N), or say --yes"
            )
    say(console, f"about {_shown(seconds)} on this machine's CPU")


def cpu_note(trials: Sequence[Trial]) -> str:
    """What a sweep does first that would train these on the CPU; "" where that is not long."""
    if not _long(trials):
        return ""
    return (
        "no GPU for the trials: a run measures first how long the CPU takes, and refuses more than a day of it without"
        " --yes"
    )


def _long(trials: Sequence[Trial]) -> list[Trial]:
    """Those that may take long on a CPU."""
    # Here, not at the top: it loads torch and detectron2.
    from lgd.training.__main__ import LONG_TRAINING
    from lgd.training.estimate import training_pixels

    return [t for t in trials if training_pixels(t.experiment) >= LONG_TRAINING]


def _shown(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:,.0f} days" if days > 2 else f"{24 * days:.1f} hours"
