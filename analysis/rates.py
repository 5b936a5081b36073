"""AP against one number, an arm a curve: learning rates, lengths of training, weights of the distillation loss, images.

Curves follow from what was trained, not from names: finished runs that differ in that number, their seed, and what
changes no result, are points of one curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from analysis.costs import hardware_of
from analysis.load import arm_of, cost_seconds, identity, score, seed_of
from analysis.stats.differences import paired_difference, paired_ratio, verdict
from lgd.config.experiment import Experiment, Schedule
from lgd.config.method import make
from lgd.results.record import Record

WEIGHT = "method.distill_weight"

BySeed = dict[int, float]
"""AP, percent, by seed."""


@dataclass
class Curve:
    """An arm's AP at several values of a number, values rising."""

    name: str
    """The arm's, the shortest of its points'."""
    setting: Experiment
    """What its points have in common, the number at its default and no method: equal for curves to be compared."""
    method: str
    points: dict[float, BySeed] = field(default_factory=dict)
    arms: dict[float, str] = field(default_factory=dict)
    """The name of the arm at each value."""
    costs: dict[float, BySeed] = field(default_factory=dict)
    """Device-hours of the trainings at each value, a frozen teacher's included, of those that say."""
    machines: dict[float, dict[int, tuple[str, ...]]] = field(default_factory=dict)
    """The hardware of the trainings at each value, by seed."""
    on_gpu: bool = False
    diverged: dict[float, set[int]] = field(default_factory=dict)
    """The seeds whose training diverged, by the number's value."""

    @property
    def is_baseline(self) -> bool:
        return self.method == "baseline"

    def mean(self, at: float) -> float:
        return fmean(self.points[at].values())

    @property
    def best(self) -> float:
        """The value with the highest mean AP, over the seeds that all have; of equal ones the lowest.

        Not one at which a training diverged, where there are others: the seeds left there are not those of the others.
        """
        whole = {at: of for at, of in self.points.items() if not self.diverged.get(at)} or self.points
        common = set.intersection(*map(set, whole.values()))
        return max(whole, key=lambda at: fmean(whole[at][x] for x in common or whole[at]))

    @property
    def edge(self) -> str:
        """``lowest`` or ``highest`` where the best value is the first or last of those tried; "" where it is not."""
        tried = self.points.keys() | self.diverged.keys()
        return {min(tried): "lowest", max(tried): "highest"}.get(self.best, "")


def on_like_hardware(base: Curve, arm: Curve) -> tuple[Curve, Curve]:
    """Both, of the seeds alone whose trainings all ran on like hardware: other device-hours do not compare."""
    used: dict[int, set[tuple[str, ...]]] = {}
    for by_seed in (*base.machines.values(), *arm.machines.values()):
        for seed, machine in by_seed.items():
            used.setdefault(seed, set()).add(machine)
    seeds = {seed for seed, machines in used.items() if len(machines) == 1}

    def chosen(values: Mapping[float, BySeed]) -> dict[float, BySeed]:
        left = {at: {s: x for s, x in of.items() if s in seeds} for at, of in values.items()}
        return {at: of for at, of in left.items() if of}

    one, other = (replace(x, points=chosen(x.points), costs=chosen(x.costs)) for x in (base, arm))
    return one, other


def equal_cost_steps(base: Curve, arm: Curve) -> dict[float, float]:
    """The steps that the baseline trains for what the arm costs, by the arm's; both are curves over steps.

    The arm's device-hours over the baseline's at the same steps, of the seeds that trained both on like hardware, times
    these steps: a baseline's device-hours are proportional to its steps. Lengths without such a seed are left out.
    """
    found = {}
    for steps in arm.points.keys() & base.points.keys():
        ours, theirs = arm.machines.get(steps, {}), base.machines.get(steps, {})
        alike = {seed for seed, machine in ours.items() if machine == theirs.get(seed)}
        costs = [{s: x for s, x in of.costs.get(steps, {}).items() if s in alike} for of in (arm, base)]
        if ratio := paired_ratio(*costs):
            found[steps] = steps * ratio.value
    return dict(sorted(found.items()))


def _curves(
    records: Iterable[Record],
    number: Callable[[Experiment], float],
    without: Callable[[Experiment], Experiment],
    *,
    single: bool = False,
) -> list[Curve]:
    """Those with two points or more, baselines first, in the order of their first records.

    without: the experiment with that number at its default. single: also arms with one point, beside another arm in
    their setting with more.
    """
    found: dict[tuple[str, Experiment], Curve] = {}
    for record in records:
        ap = score("AP")(record) if record.status == "finished" else None
        if (ap is None and record.status != "diverged") or seed_of(record) != record.experiment.seed:
            continue
        whole = identity(record.experiment)
        rest = without(whole)
        name = arm_of(record)
        setting = rest.model_copy(update={"method": make("baseline")})
        curve = found.setdefault((record.preset, rest), Curve(name, setting, whole.method.name))
        curve.name = min(curve.name, name, key=lambda x: (len(x), x))
        if ap is None:
            curve.diverged.setdefault(number(whole), set()).add(record.experiment.seed)
            continue
        curve.points.setdefault(number(whole), {})[record.experiment.seed] = ap
        curve.arms.setdefault(number(whole), name)
        cost = cost_seconds(record)
        if cost:
            curve.costs.setdefault(number(whole), {})[record.experiment.seed] = cost / 3600
        curve.machines.setdefault(number(whole), {})[record.experiment.seed] = hardware_of(record)
        curve.on_gpu = record.hardware.get("gpu", "none") != "none"
    for curve in found.values():
        curve.points = dict(sorted(curve.points.items()))
    several = [x for x in found.values() if len(x.points) > 1]
    if single:
        settings_of_several = [x.setting for x in several]
        several = [x for x in found.values() if x.points and x.setting in settings_of_several]
    return sorted(several, key=lambda x: not x.is_baseline)


def rate_curves(records: Iterable[Record]) -> list[Curve]:
    """AP against the learning rate of a step's whole batch."""
    return _curves(
        records,
        lambda experiment: experiment.schedule.resolved_lr,
        lambda experiment: _with_schedule(experiment, lr=None, lr_per_16=Schedule().lr_per_16),
    )


def length_curves(records: Iterable[Record]) -> list[Curve]:
    """AP against the steps of the whole training, each length with its own decay."""
    return _curves(
        records,
        lambda experiment: experiment.schedule.steps,
        lambda experiment: _with_schedule(experiment, steps=Schedule().steps),
        single=True,
    )


def data_curves(records: Iterable[Record]) -> list[Curve]:
    """AP against the part of the training images that are trained on."""
    return _curves(
        records,
        lambda experiment: experiment.data.train_fraction,
        lambda experiment: experiment.override({"data.train_fraction": 1.0}),
        single=True,
    )


def weight_curves(records: Iterable[Record]) -> list[Curve]:
    """AP against the factor of the distillation loss, of methods that have one."""
    return _curves(
        (x for x in records if _weight(x.experiment) is not None),
        lambda experiment: _weight(experiment) or 0.0,
        lambda experiment: experiment.override({WEIGHT: 1.0}),
    )


def _weight(experiment: Experiment) -> float | None:
    """A method that is not loaded here has its settings as the record says them, whatever they are."""
    found = experiment.method.model_dump().get("distill_weight")
    return found if type(found) in (int, float) else None


def baseline_of(curve: Curve, records: Iterable[Record]) -> BySeed:
    """AP of the plain student in a curve's setting, by seed."""
    found: BySeed = {}
    for record in records:
        ap = score("AP")(record)
        if record.status == "finished" and ap is not None and identity(record.experiment) == curve.setting:
            found.setdefault(record.experiment.seed, ap)
    return found


def _with_schedule(experiment: Experiment, **changes: Any) -> Experiment:
    return experiment.model_copy(update={"schedule": experiment.schedule.model_copy(update=changes)})


def pairs(curves: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """Each curve with its baseline's, (baseline, arm)."""
    return [
        (base, arm)
        for base in curves
        if base.is_baseline
        for arm in curves
        if not arm.is_baseline and arm.setting == base.setting
    ]


def differ_beyond_noise(base: Curve, arm: Curve) -> bool:
    """Whether either has more AP at its best value than at the other's, with a t interval that excludes zero."""
    return any(
        other.best in curve.points
        and (found := paired_difference(curve.points[curve.best], curve.points[other.best]))
        and verdict(found.low, found.high) == "more"
        for curve, other in ((base, arm), (arm, base))
    )


def batch_of(curve: Curve) -> str:
    """``batch of 8``: what a curve's learning rates are for."""
    return f"batch of {curve.setting.schedule.batch}"


def rate_notes(records: Iterable[Record]) -> list[str]:
    """Where arms have their best at different rates, or at the edge of those tried: a line each."""
    curves = rate_curves(records)
    lines = []
    for base, arm in pairs(curves):
        if base.best != arm.best:
            noise = "" if differ_beyond_noise(base, arm) else ", within noise"
            lines.append(
                f"Best learning rates differ{noise} ({batch_of(base)}): {base.name} {base.best:g}"
                f" (AP {base.mean(base.best):.1f}),"
                f" {arm.name} {arm.best:g} (AP {arm.mean(arm.best):.1f})."
            )
    edges = [x for x in curves if x.edge]
    # The batch is said once.
    batches = [f" ({batch_of(x)})" if not lines else "" for x in edges]
    return lines + [
        f"{x.name} is best at {x.best:g}{batch}, the {x.edge} learning rate tried: its best may lie beyond."
        for x, batch in zip(edges, batches, strict=True)
    ]


def weight_notes(records: Sequence[Record]) -> list[str]:
    """Where methods have their best at another weight of the distillation loss than their own, a line each.

    Nothing where one method alone was tried at several.
    """
    curves = weight_curves(records)
    if len({x.method for x in curves}) < 2:
        return []
    lines = []
    for curve in curves:
        edge = f" (the {curve.edge} tried: its best may lie beyond)" if curve.edge and curve.best != 1 else ""
        own = f" (at its own: {curve.mean(1.0):.1f})" if 1.0 in curve.points and curve.best != 1 else ""
        base = baseline_of(curve, records)
        than = f"; the baseline has {fmean(base.values()):.1f}" if base else ""
        lines.append(
            f"{curve.name} is best at {curve.best:g} of its weight{edge}: AP {curve.mean(curve.best):.1f}{own}{than}."
        )
    return lines
