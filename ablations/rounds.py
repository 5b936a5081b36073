"""What a sweep runs after what it has run: arms whose steps can be told now, and more seeds until it is decided."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from rich.console import Console

from ablations.display import say
from ablations.limits import Budget
from ablations.plan import Sweep, trials_of
from lgd.cli import format_duration
from lgd.errors import InputError
from lgd.results.record import FILE, Record, load
from lgd.results.sweep_spec import MOST_SEEDS_LOOKED_AT

FIRST_LOOK, STEP, MOST_SEEDS = 3, 2, 15
"""Seeds before the first look, added at each, and at most, unless the command says otherwise."""


class Next(NamedTuple):
    """sweep: with the trials to come; None where there is nothing to come. why: the budget that is in the way."""

    sweep: Sweep | None
    why: str = ""


def looks(first: int | None, most: int | None) -> tuple[int, ...]:
    """Numbers of seeds after which a sweep looks whether it is decided. Raises InputError where there are none."""
    from analysis.sequential import planned_looks

    first, most = FIRST_LOOK if first is None else first, MOST_SEEDS if most is None else most
    if first < 2:
        raise InputError(f"--seeds {first} with --until-decided: two seeds at least have a spread")
    if most > MOST_SEEDS_LOOKED_AT:
        raise InputError(f"--max-seeds {most}: {MOST_SEEDS_LOOKED_AT} at most")
    if most < first:
        raise InputError(f"--max-seeds {most}: fewer than the {first} seeds of the first look")
    return planned_looks(first, STEP, most)


def after(sweep: Sweep, budget: Budget, max_concurrent: int, console: Console) -> Next:
    """The sweep that follows when all trials of ``sweep`` have ended. max_concurrent: trials that run side by side."""
    more = trials_of(sweep.spec, sweep.directory)
    if len(more.trials) > len(sweep.trials):
        return Next(more)
    spec = sweep.spec
    to_come = [n for n in spec.looks if n > spec.seeds]
    if not to_come:
        return Next(None)
    # Here, not at the top: few sweeps look at themselves.
    from analysis.questions import asked
    from analysis.verdict import verdicts
    from analysis.verdict_text import sentence

    records = [load(path) for trial in sweep.trials if (path := trial.directory / FILE).exists()]
    found = verdicts(records, asked(sweep.directory, records))
    for verdict in found:
        say(console, f"after {spec.seeds} seeds: {sentence(verdict)}")
    if not found or all(verdict.decided for verdict in found):
        return Next(None)
    needed = max((verdict.more_seeds or 0) for verdict in found)
    if needed:
        seconds = predicted_seconds(records, needed, max_concurrent)
        say(console, f"{needed} more seeds of every arm take about {format_duration(seconds)}, by what these took")
    seconds = predicted_seconds(records, to_come[0] - spec.seeds, max_concurrent)
    if budget.left() < seconds:
        return Next(
            None,
            f"the next {to_come[0] - spec.seeds} seeds of every arm take about {format_duration(seconds)}, and"
            f" {format_duration(max(budget.left(), 0.0))} is left of {budget.option} {budget.max_time}",
        )
    return Next(trials_of(spec.model_copy(update={"seeds": to_come[0]}), sweep.directory))


def predicted_seconds(records: list[Record], seeds: int, max_concurrent: int) -> float:
    """How long ``seeds`` more trainings of every arm take: each as long as its arm's took on average."""
    by_arm: dict[str, list[float]] = {}
    for record in records:
        by_arm.setdefault(record.arm, []).append(sum(record.seconds.values()))
    each = [sum(x) / len(x) for x in by_arm.values()]
    if not each:
        return 0.0
    # Trials are whole: at least as many rounds as they fill.
    return max(sum(each) * seeds / max_concurrent, ceil(len(each) * seeds / max_concurrent) * min(each))
