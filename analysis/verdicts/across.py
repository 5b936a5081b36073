"""A method over several tasks, data sets or detectors: how much it gains on the whole, and how often.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021, arXiv
2108.13264) and its library rliable: interquartile mean, probability of improvement, performance profile, each with a
bootstrap stratified by task. A score here is a gain, points of AP over the task's baseline of the same seed, for APs of
different data have no scale in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.grid_runs import reference_of
from analysis.load import arm_of, identity, score, seed_of
from analysis.stats.differences import CONFIDENCE, MANY_SEEDS
from lgd.config.experiment import Experiment, difference
from lgd.results.record import Record

Floats = NDArray[np.float64]

RESAMPLES = 2000

PROFILE = np.linspace(-10, 10, 81)
"""Gains, points of AP, at which a performance profile is read."""


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval: None where every task has one seed, of which nothing can be drawn anew."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Task:
    """One data set and detector: AP of a method and of its baseline, (S,) each, by common seed."""

    name: str
    arm: Floats
    baseline: Floats


@dataclass(frozen=True)
class Method:
    """A method, and the tasks that it was trained on beside its baseline."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def runs(self) -> int:
        return sum(len(task.arm) for task in self.tasks)

    @property
    def has_intervals(self) -> bool:
        return any(len(task.arm) > 1 for task in self.tasks)


def methods(records: Iterable[Record]) -> list[Method]:
    """Those with two tasks or more, in the order of their first records; not arms that :func:`mixed` names.

    A task is a baseline with its preset, data and other settings, which the method shares. What an arm is called after
    its baseline's prefix ("RetinaNet LGD" beside "RetinaNet baseline") names its method.
    """
    aps: dict[tuple[str, Experiment, str], dict[int, float]] = {}
    arms: dict[tuple[str, Experiment, str], str] = {}
    trained: dict[tuple[str, Experiment, str], list[Experiment]] = {}
    for record in records:
        ap = score("AP")(record)
        if record.status != "finished" or ap is None:
            continue
        experiment = identity(record.experiment)
        setting = experiment.model_copy(update={"method": Experiment().method})
        key = (record.preset, setting, arm_of(record))
        trained.setdefault(key, []).append(experiment)
        aps.setdefault(key, {})[seed_of(record)] = ap
        arms[key] = reference_of(record)
    found: dict[str, list[Task]] = {}
    for (preset, setting, arm), of_arm in aps.items():
        reference = arms[preset, setting, arm]
        base = aps.get((preset, setting, reference), {}) if arm != reference else {}
        seeds = sorted(of_arm.keys() & base.keys())
        if seeds and len(set(trained[preset, setting, arm])) == 1:
            task = Task(
                f"{reference} on {setting.data.source}",
                np.array([of_arm[x] for x in seeds]),
                np.array([base[x] for x in seeds]),
            )
            found.setdefault(short_name(arm, reference), []).append(task)
    return [Method(name, tuple(tasks)) for name, tasks in found.items() if len(tasks) > 1]


def mixed(records: Iterable[Record]) -> str:
    """A line on the first arm that was trained with two settings of its method beside one baseline; "" without one.

    Which of the two to compare would be a guess.
    """
    trained: dict[tuple[str, Experiment, str], Experiment] = {}
    for record in records:
        experiment, arm = identity(record.experiment), arm_of(record)
        key = (record.preset, experiment.model_copy(update={"method": Experiment().method}), arm)
        if record.status == "finished" and trained.setdefault(key, experiment) != experiment:
            return (
                f"{arm!r} on {experiment.data.source} are different trainings: {difference(trained[key], experiment)}"
            )
    return ""


def short_name(arm: str, reference: str) -> str:
    """``LGD`` for ``RetinaNet LGD`` beside ``RetinaNet baseline``."""
    prefix = " ".join(reference.split()[:-1])
    return arm.removeprefix(f"{prefix} ") if prefix else arm


def interquartile_mean(scores: Floats) -> Floats:
    """Mean (B,) of the middle half of each row of ``scores`` (B, N): without the lowest and the highest quarter."""
    ordered = np.sort(scores, axis=1)
    cut = ordered.shape[1] // 4
    mean: Floats = ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)
    return mean


def improvement(arm: Floats, baseline: Floats) -> Floats:
    """Probability (B,) that a run of the arm, from a row (B, S), beats one of the baseline's; a tie counts half."""
    ahead, behind = arm[:, :, None], baseline[:, None, :]
    chance: Floats = ((ahead > behind) + 0.5 * (ahead == behind)).mean(axis=(1, 2))
    return chance


def gains(method: Method) -> Interval:
    """Interquartile mean of the gains of all tasks' runs, points of AP."""
    return _interval(method, lambda tasks: interquartile_mean(np.concatenate([a - b for a, b in tasks], axis=1)))


def probability(method: Method) -> Interval:
    """Probability of improvement, mean over the tasks."""
    return _interval(method, lambda tasks: np.mean([improvement(a, b) for a, b in tasks], axis=0))


def profile(method: Method) -> tuple[Floats, Floats, Floats]:
    """The part of the runs that gain more than each of PROFILE (P,), with the ends of its interval, (P,) each.

    The ends are NaN where every task has one seed.
    """
    drawn = np.concatenate([a - b for a, b in _resampled(method)], axis=1)
    parts = np.stack([(drawn > at).mean(axis=1) for at in PROFILE], axis=1)
    own = np.concatenate([task.arm - task.baseline for task in method.tasks])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(parts, [tail, 1 - tail], axis=0)
    if not method.has_intervals:
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    return np.array([(own > at).mean() for at in PROFILE]), low, high


def _interval(method: Method, statistic: Callable[[Sequence[tuple[Floats, Floats]]], Floats]) -> Interval:
    own = statistic([(task.arm[None], task.baseline[None]) for task in method.tasks])
    if not method.has_intervals:
        return Interval(float(own[0]), None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(_resampled(method)), [tail, 1 - tail])
    return Interval(float(own[0]), float(low), float(high))


def _resampled(method: Method) -> list[tuple[Floats, Floats]]:
    """AP of arm and baseline, (RESAMPLES, S) each, a pair a task: seeds drawn anew within each task, pairs kept."""
    generator = np.random.default_rng(0)
    found = []
    for task in method.tasks:
        drawn = generator.integers(len(task.arm), size=(RESAMPLES, len(task.arm)))
        found.append((task.arm[drawn], task.baseline[drawn]))
    return found


def lines(records: Iterable[Record], names: Iterable[str]) -> list[str]:
    """A line for each method among ``names`` that was trained on several tasks."""
    wanted = set(names)
    return [
        f"{x.name} over {len(x.tasks)} tasks ({x.runs} runs): interquartile mean of the gains"
        f" {_shown(gains(x), '+.1f')} AP, probability of improvement {_shown(probability(x), '.2f')}{_caveat(x)}."
        for x in methods(records)
        if x.name in wanted
    ]


def _shown(found: Interval, form: str) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:{form}}"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def _caveat(method: Method) -> str:
    if not method.has_intervals:
        return ", of one seed a task"
    fewest = min(len(task.arm) for task in method.tasks)
    return f"; bootstrap intervals, too narrow for {fewest} seeds a task" if fewest < MANY_SEEDS else ""
