"""What to run next, as a command, and how long it takes here by what the trainings so far took. Loads no torch."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from analysis.commands import command_of
from analysis.grid_runs import as_shown, shown_names
from analysis.load import arm_of, by_arm
from analysis.stats.differences import FEW_SEEDS
from analysis.stats.sequential import LAST_LOOK, STEP
from analysis.verdicts.verdict import Verdict
from lgd.config.experiment import split_assignment
from lgd.config.extra_arms import questioned
from lgd.config.grids import grid, plan
from lgd.config.presets import preset
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.results.sweep_spec import SweepSpec

MOST_SEEDS = 100
"""More are not suggested; the verdict says how many it would take."""

ON_YOUR_DATA = "lgd pays --data coco-json:DIR"

ANOTHER_LOOK = "a second look, which the 95% of an interval do not cover"
"""Said of more seeds where the first did not decide, and no looks can be planned."""


class Step(NamedTuple):
    """What to do next."""

    command: str = ""
    """The command to run; "" where nothing is left to do."""
    seconds: float | None = None
    """It takes about so long here; None where that is not known."""
    caveat: str = ""
    """What its result will not say."""

    @property
    def takes(self) -> str:
        """``about 12 minutes here``, and the caveat; or ""."""
        return "; ".join(filter(None, (self._time, self.caveat)))

    @property
    def _time(self) -> str:
        if not self.seconds:
            return ""
        minutes = max(round(self.seconds / 60), 1)
        if minutes < 90:
            return f"about {minutes} minute{'s' * (minutes != 1)} here"
        hours = self.seconds / 3600
        return f"about {hours:,.{0 if hours >= 10 else 1}f} hours here"


class SoFar(NamedTuple):
    """The sweep so far."""

    spec: SweepSpec
    place: str
    """Its directory, as a shell reads it."""
    records: list[Record]
    """Of trainings that finished and whose device-seconds are known."""
    ended: Counter[str]
    """How many trainings of each arm finished or diverged: ``--resume`` runs none of these again."""
    arms: set[str]
    """The sweep's, by the names that records show."""
    questioned: set[str]
    """Those to which ``--equal-cost`` can add an arm."""

    def seconds(self, device_seconds: Iterable[float]) -> float | None:
        """How long trainings of so many device-seconds take; None where none was measured."""
        return sum(device_seconds) / _side_by_side(self.records) if self.records else None


def next_step(found: Sequence[Verdict], directory: Path, records: Sequence[Record]) -> Step:
    """What brings the answer nearer; nothing without a sweep.json that tells of what. records: all of ``directory``."""
    try:
        spec = SweepSpec.read(directory)
        if spec.search or not found:
            return Step()
        measured = [x for x in records if x.status == "finished" and x.device_seconds and x.steps]
        ended = Counter(arm_of(x) for x in records if x.status in ("finished", "diverged"))
        possible = {arm.name for arm in questioned(as_shown(spec.whole_grid, records))}
        arms = set(shown_names(spec.arms, records))
        sweep = SoFar(spec, shlex.quote(str(directory)), measured, ended, arms, possible)
        return next(filter(None, (step(found, sweep) for step in _STEPS)), Step())
    except InputError:
        return Step()


def _resume(found: Sequence[Verdict], sweep: SoFar) -> Step | None:
    """The seeds that the sweep is to train already, where an answer waits for one of them, or every one failed.

    Of fewer than FEW_SEEDS no answer waits: the command for more runs these, too.
    """
    spec = sweep.spec
    waiting = set[str]()
    for x in (x for x in found if not x.decided or x.lost):
        waiting |= {x.question.arm, x.question.reference}
        # Of an arm without a result nobody knows for how long its longer reference is to train.
        waiting |= {x.question.equal_cost} if x.gain is not None else set()
    if spec.seeds < FEW_SEEDS or all(sweep.ended[name] >= spec.seeds for name in waiting & sweep.arms):
        return None
    return Step(f"python ablations/run.py --resume {sweep.place}", sweep.seconds(_missing(spec, spec.seeds, sweep)))


def _seeds_for_a_spread(found: Sequence[Verdict], sweep: SoFar) -> Step | None:
    """More seeds, before anything else, where an answer is missing for lack of them."""
    few = any(not x.decided and x.decisive is not None and x.decisive.n < FEW_SEEDS for x in found)
    return _more_seeds(found, sweep) if few else None


def _other_grid(found: Sequence[Verdict], sweep: SoFar) -> Step | None:
    """Where the arms stand at other rates, or at other lengths, tells which of them holds an arm back."""
    spec = sweep.spec
    for verdict in found:
        name = "learning-rate" if any("rate" in x for x in verdict.obstacles) else "schedule-length"
        if not verdict.obstacles or verdict.gain is None or name == spec.grid:
            continue
        other = spec.model_copy(
            update={"grid": name, "arms": tuple(_usual(name, spec.preset)), "seeds": max(spec.seeds, FEW_SEEDS),
                    "looks": (), "steps": {}, "extra": type(spec.extra)()}
        )  # fmt: skip
        return Step(command_of(other, shlex.quote(f"results/{other.label}")), sweep.seconds(_planned(other, sweep)))
    return None


def _more_seeds(found: Sequence[Verdict], sweep: SoFar) -> Step | None:
    spec, still_open = sweep.spec, [x for x in found if not x.decided]
    if not still_open:
        return None
    if spec.looks:
        # Once all planned looks are taken, one more would not be paid for.
        return Step(f"python ablations/run.py --resume {sweep.place}") if spec.seeds < spec.looks[-1] else None
    seeds = max(spec.seeds + max(map(_wanted, still_open)), FEW_SEEDS)
    if seeds > MOST_SEEDS:
        return None
    takes = sweep.seconds(_missing(spec, seeds, sweep))
    if spec.seeds < FEW_SEEDS:
        # The first look is still to come.
        return Step(command_of(spec.model_copy(update={"seeds": seeds}), sweep.place), takes)
    if not _can_look(spec):
        return Step(command_of(spec.model_copy(update={"seeds": seeds}), sweep.place), takes, ANOTHER_LOOK)
    # From the seeds that there are on: looks that leave these out are refused.
    last = max(seeds + (spec.seeds - seeds) % STEP, LAST_LOOK, spec.seeds + STEP)
    looks = (spec.seeds, last)
    return Step(command_of(spec.model_copy(update={"seeds": spec.seeds, "looks": looks}), sweep.place), takes)


def _wanted(verdict: Verdict) -> int:
    """More seeds that a verdict needs, as far as that is known: where its spread is not, those that tell it."""
    few = FEW_SEEDS - verdict.decisive.n if verdict.decisive is not None else 0
    return verdict.more_seeds or max(few, 0)


def _can_look(spec: SweepSpec) -> bool:
    """Whether the sweep may go on with ``--until-decided``: an arm that its grid asks about is beside its reference."""
    whole = spec.whole_grid
    return any(arm.name in spec.arms and whole.references[arm.name] in spec.arms for arm in questioned(whole))


def _missing(spec: SweepSpec, seeds: int, sweep: SoFar) -> Iterator[float]:
    """Device-seconds of the trainings of ``seeds`` seeds that there are not yet. An arm that was not begun takes what
    it follows from, or what the others did."""
    took = {arm: [_device_seconds(x) for x in of] for arm, of in by_arm(sweep.records).items()}
    every = [x for of in took.values() for x in of]
    for arm in spec.whole_grid.arms:
        if arm.name in spec.arms and every:
            each = fmean(took.get(arm.name) or took.get(arm.time_budget_from) or every)
            yield max(seeds - len(took.get(arm.name, [])), 0) * each


def _equal_cost(found: Sequence[Verdict], sweep: SoFar) -> Step | None:
    """What the same cost buys otherwise, where an arm gains."""
    spec = sweep.spec
    arms = {x.question.arm for x in found if not x.question.equal_cost} & sweep.questioned
    if not any(x.answer == "gain" and not x.lengths_known and x.question.arm in arms for x in found):
        return None
    extra = spec.extra.model_copy(update={"equal_cost": tuple(dict.fromkeys((*spec.extra.equal_cost, "longer")))})
    command = command_of(spec.model_copy(update={"extra": extra}), sweep.place)
    # The longer baseline of an arm takes as long as the arm did.
    return Step(command, sweep.seconds(_device_seconds(x) for x in sweep.records if arm_of(x) in arms))


def _own_data(found: Sequence[Verdict], sweep: SoFar) -> Step | None:
    """The question anew on the reader's own data, once all is decided on a built-in data set."""
    sources = [split_assignment(x)[1] for x in sweep.spec.overrides if x.strip().startswith("data.source")]
    built_in = not any(":" in str(x) for x in sources)
    decided = all(x.decided for x in found) and any(x.gain for x in found)
    return Step(ON_YOUR_DATA) if built_in and decided else None


_STEPS: tuple[Callable[[Sequence[Verdict], SoFar], Step | None], ...] = (
    _resume, _seeds_for_a_spread, _other_grid, _more_seeds, _equal_cost, _own_data,
)  # fmt: skip
"""The first that has a command is the next."""


def _usual(name: str, size: str) -> list[str]:
    return [arm.name for arm in grid(name, size).arms if not arm.skipped and not arm.on_request]


def _planned(spec: SweepSpec, sweep: SoFar) -> list[float]:
    """Device-seconds of each training of another sweep: a step takes what those of the same method took here."""
    whole = spec.whole_grid
    chosen = replace(whole, arms=tuple(arm for arm in whole.arms if arm.name in spec.arms))
    trials = plan(chosen, preset(spec.preset), 1, spec.overrides, Path())
    of_method: dict[str, list[float]] = {}
    for record in sweep.records:
        of_method.setdefault(record.experiment.method.name, []).append(_device_seconds(record) / record.steps)
    every = [x for of in of_method.values() for x in of] or [0.0]
    each = [fmean(of_method.get(x.experiment.method.name, every)) * x.experiment.schedule.steps for x in trials]
    return [x * spec.seeds for x in each]


def _device_seconds(record: Record) -> float:
    """Of all phases."""
    return sum(record.device_seconds.values())


def _side_by_side(records: Sequence[Record]) -> float:
    """Device-seconds in a second: several trainings may run at once, on several devices each."""
    try:
        spans = sorted((datetime.fromisoformat(x.started), datetime.fromisoformat(x.finished)) for x in records)
        busy, until = 0.0, spans[0][0]
        for start, end in spans:
            busy += max((end - max(start, until)).total_seconds(), 0.0)
            until = max(until, end)
    except (ValueError, TypeError):
        # A record may hold anything as its times.
        return 1.0
    # Times are whole seconds: those of trainings that took less tell nothing.
    return max(sum(map(_device_seconds, records)) / busy, 1.0) if busy > len(records) else 1.0
