"""What a sweep runs after what it has run: arms whose steps can be told now, and more seeds until it is decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from ablations.display import say
from ablations.limits import Budget
from ablations.plan import Sweep, trials_of
from lgd.cli import format_duration
from lgd.config.grids import Trial
from lgd.errors import InputError
from lgd.results.record import FILE, Record, load
from lgd.results.sweep_spec import MOST_SEEDS_LOOKED_AT, SweepSpec

if TYPE_CHECKING:
    from analysis.verdicts.verdict import Verdict

LEAST_CHANCE = 0.05
"""Planned looks at which the chance of an answer is smaller are skipped: it saves rounds, more of them the wider seeds
spread, and costs hardly a seed (tests/unit/analysis/test_until_decided.py). Going straight to the seeds of 80% power
would train many more: a clear difference is often told by fewer."""


class Next(NamedTuple):
    """The next round of a sweep."""

    sweep: Sweep | None
    """With the trials to come; None where there is nothing to come."""
    why: str = ""
    """The budget that is in the way."""


def looks(first: int | None, most: int | None) -> tuple[int, ...]:
    """Numbers of seeds after which a sweep looks whether it is decided. Raises InputError where there are none."""
    from analysis.stats.differences import FEW_SEEDS
    from analysis.stats.sequential import FIRST_LOOK, LAST_LOOK, STEP, planned_looks

    first, most = FIRST_LOOK if first is None else first, LAST_LOOK if most is None else most
    if first < FEW_SEEDS:
        raise InputError(f"--seeds {first} with --until-decided: {FEW_SEEDS} seeds at least, fewer decide nothing")
    if most > MOST_SEEDS_LOOKED_AT:
        raise InputError(f"--max-seeds {most}: {MOST_SEEDS_LOOKED_AT} at most")
    if most < first:
        raise InputError(f"--max-seeds {most}: fewer than the {first} seeds of the first look")
    return planned_looks(first, STEP, most)


def after(
    sweep: Sweep, budget: Budget, side_by_side: Callable[[Sequence[Trial]], int], console: Console, spent: float = 0.0
) -> Next:
    """The sweep that follows when all trials of ``sweep`` have ended.

    side_by_side: how many of some trials run at a time. spent: device-seconds of the command so far.
    """

    def seconds_of(seeds: int) -> float:
        return predicted_seconds(records, seeds, side_by_side(sweep.one_of_each_arm() * seeds))

    more = trials_of(sweep.spec, sweep.directory)
    if len(more.trials) > len(sweep.trials):
        return Next(more)
    spec = sweep.spec
    to_come = [n for n in spec.looks if n > spec.seeds]
    if not to_come:
        return Next(None)
    # Here, not at the top: few sweeps look at themselves.
    from analysis.verdicts.questions import asked
    from analysis.verdicts.sentences import sentence
    from analysis.verdicts.verdict import verdicts

    records = [load(path) for trial in sweep.trials if (path := trial.directory / FILE).exists()]
    found = verdicts(records, asked(sweep.directory, records))
    for verdict in found:
        say(console, f"after {spec.seeds} seeds: {sentence(verdict)}")
    if not found or all(verdict.decided for verdict in found):
        return Next(None)
    needed = max((verdict.more_seeds or 0) for verdict in found)
    if needed:
        took = format_duration(seconds_of(needed))
        say(console, f"{needed} more seeds of every arm take about {took}, by what these took")
    wanted = next_look(found, spec)
    whole = sum(mean_by_arm(records, lambda x: math.fsum(x.device_seconds.values())))
    lacks = {
        n: budget.lacks(seconds_of(n - spec.seeds), whole * (n - spec.seeds), spent) for n in to_come if n <= wanted
    }
    affordable = [n for n, lack in lacks.items() if not lack]
    if not affordable:
        return Next(None, f"the next {to_come[0] - spec.seeds} seeds of every arm take about {lacks[to_come[0]]}")
    seeds = affordable[-1]
    if seeds > to_come[0]:
        say(console, f"next look after {seeds} seeds: before, an answer has a chance below {LEAST_CHANCE:.0%}")
    return Next(trials_of(spec.model_copy(update={"seeds": seeds}), sweep.directory))


def next_look(found: Sequence[Verdict], spec: SweepSpec) -> int:
    """Seeds of the first planned look at which every open verdict may be decided, as seeds spread; else of the last.

    All planned looks are paid for by wider intervals, so those that are skipped make no error likelier.
    """
    from analysis.verdicts.verdict import chance_to_decide

    still_open = [x for x in found if not x.decided]
    to_come = [n for n in spec.looks if n > spec.seeds]
    for n in to_come:
        if all(chance_to_decide(x, n - spec.seeds) >= LEAST_CHANCE for x in still_open):
            return n
    return to_come[-1]


def predicted_seconds(records: list[Record], seeds: int, max_concurrent: int) -> float:
    """How long ``seeds`` more trainings of every arm take: each as long as its arm's took on average."""
    each = mean_by_arm(records, lambda x: sum(x.seconds.values()))
    if not each:
        return 0.0
    # Trials are whole: at least as many rounds as they fill.
    return max(sum(each) * seeds / max_concurrent, math.ceil(len(each) * seeds / max_concurrent) * min(each))


def mean_by_arm(records: Iterable[Record], value: Callable[[Record], float]) -> list[float]:
    """The mean of a value over each arm's records."""
    by_arm: dict[str, list[float]] = {}
    for record in records:
        by_arm.setdefault(record.arm, []).append(value(record))
    return [sum(x) / len(x) for x in by_arm.values()]
