"""Grids: a table's rows as named arms, each a small difference from a preset's experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lgd.config.arms import Arm, Grid
from lgd.config.component_arms import (
    ANSWERING_ARMS,
    BASELINE,
    COMPONENTS,
    LGD,
    LGD_RESIDUAL,
    OURS_WITHOUT_IMITATION,
    PAPER_COMPONENTS,
    WITHOUT_IMITATION,
)
from lgd.config.data_source import absolute_source
from lgd.config.experiment import STEPS, Experiment, settings, split_assignment
from lgd.config.method import make
from lgd.config.methods_grid import (
    DISTILL_WEIGHT,
    METHODS,
    METHODS_BY_COST,
    distill_weight_grid,
    methods_by_cost,
    methods_grid,
)
from lgd.config.paper import DETECTORS, Training, paper
from lgd.config.pays_grid import PAYS, pays_grid
from lgd.config.presets import CPU_PRESETS, FGFI_STARTS, PAPER_TABLES_AT, at_preset, preset
from lgd.config.tuning_grids import learning_rate, schedule_length
from lgd.config.when_grids import GAIN_BY_DATA, TEACHER_NEEDS, gain_by_data_grid, teacher_needs_grid
from lgd.errors import InputError

DISTILL_WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
INSTRUCTIVE_WEIGHTS = (0.1, 1.0, 10.0)


def _loss_weight_arms() -> Iterable[Arm]:
    yield BASELINE
    for distill in DISTILL_WEIGHTS:
        for instructive in INSTRUCTIVE_WEIGHTS:
            yield Arm(
                f"distill {distill:g} instructive {instructive:g}",
                {"method.distill_weight": distill, "method.instructive_weight": instructive},
                "the paper's" if distill == instructive == 1 else "",
                answers=distill == instructive == 1,
            )


LOSS_WEIGHTS = Grid(
    name="loss-weights",
    title="Weights of LGD's two losses, on a log scale",
    arms=tuple(_loss_weight_arms()),
)

NOISE_FLOOR = Grid(
    name="noise-floor",
    title="One detector, many seeds: how far trainings differ",
    arms=(BASELINE,),
    seeds=10,
)

TABLES = (
    *("main", "abstract", "teacher-based", "teacher-free"),
    *("table7", "table8", "table9", "table10", "table11", "table12", "table13", "table14"),
)
"""Tables of the paper that are grids: names in lgd/config/paper.yaml."""

LEARNING_RATE = learning_rate(BASELINE, LGD)
SCHEDULE_LENGTH = schedule_length(BASELINE, LGD, LGD_RESIDUAL, OURS_WITHOUT_IMITATION, more=(WITHOUT_IMITATION,))

PRESET_FREE = {grid.name: grid for grid in (COMPONENTS, LOSS_WEIGHTS, LEARNING_RATE, SCHEDULE_LENGTH, NOISE_FLOOR)}
"""Grids of our own that have the same arms at every preset."""

EVIDENCE = "evidence"
"""Our grid with three detectors, each with its own settings at each preset."""

WHEN = {TEACHER_NEEDS: teacher_needs_grid, GAIN_BY_DATA: gain_by_data_grid}
"""Grids that ask when LGD pays."""

NAMES = (*TABLES, *PRESET_FREE, EVIDENCE, METHODS, METHODS_BY_COST, DISTILL_WEIGHT, *WHEN, PAYS)


def names_at(size: str) -> tuple[str, ...]:
    """The grids that are defined at a preset."""
    return NAMES if size in PAPER_TABLES_AT else (*PRESET_FREE, PAYS)


@cache
def grid(name: str, size: str = "tiny") -> Grid:
    """The grid of that name at a preset's size. Raises InputError for an unknown grid or preset."""
    base = preset(size)
    if name == COMPONENTS.name and size in CPU_PRESETS:
        return replace(
            COMPONENTS, arms=tuple(replace(x, on_request=x.name not in ANSWERING_ARMS) for x in COMPONENTS.arms)
        )
    if name in PRESET_FREE:
        return PRESET_FREE[name]
    if name == PAYS:
        return pays_grid()
    if name in NAMES and name not in names_at(size):
        raise InputError(
            f"grid {name} is not defined at preset {size}, only at {', '.join(PAPER_TABLES_AT)};"
            f" at {size} there are {', '.join(names_at(size))}"
        )
    if name == EVIDENCE:
        return _evidence(size)
    if name in (METHODS, METHODS_BY_COST):
        return methods_grid(base, size) if name == METHODS else methods_by_cost(base, size)
    if name in WHEN:
        return WHEN[name](base, size)
    if name == DISTILL_WEIGHT:
        return distill_weight_grid(base)
    if name not in TABLES:
        raise InputError(f"no grid {name!r}: known are {', '.join(NAMES)}")
    table = paper().tables[name]
    return Grid(name, table.title, tuple(_arm(x, size, base) for x in table.trainings), reference="")


def _arm(training: Training, size: str, base: Experiment) -> Arm:
    """A row of one of the paper's tables. Tables that repeat a training have the same arm."""
    arm = Arm(training.name, reference=training.baseline.name, training=training)
    refusal = make(training.method).refusal(base.detector.model_copy(update={"name": training.detector}), base.schedule)
    if refusal:
        return replace(arm, skipped=refusal)
    wanted, there = settings(at_preset(size, training)), settings(base)
    # Which teacher is what the arm is about; the other settings of its method may be changed.
    fixed = {k: v for k, v in wanted.items() if k.startswith(("method.name", "method.teacher.backbone."))}
    setting = {k: v for k, v in wanted.items() if k not in fixed and v != there.get(k, _default(training.method, k))}
    return replace(arm, changes=fixed, setting=setting)


def _default(method: str, key: str) -> Any:
    """The method whose setting this is; None for another setting."""
    return settings(make(method), "method.").get(key)


EVALUATIONS = 5
"""Evaluations of a training in the evidence grid, the last step's included."""

SMALL_STUDENT, SMALL_TEACHER = "resnet18", "resnet50"
"""Backbones of the students and of FGFI's teachers at preset ``small``: five seeds of every arm fit one GPU."""

LOW_INSTRUCTIVE_WEIGHT = 0.3
"""Weight of the instructive features' detection loss, which trains the head of the student too; the paper's is 1."""

_LOW_WEIGHT_ARMS = tuple(
    Arm(
        f"{name} at weight {LOW_INSTRUCTIVE_WEIGHT:g}",
        {**changes, "method.instructive_weight": LOW_INSTRUCTIVE_WEIGHT},
        "the teacher trains the shared head less",
    )
    for name, changes in (("LGD", {}), ("without adapter", {"method.adapter": False}))
)

EVERY_DETECTOR = (
    *("baseline", "LGD", "without adapter", WITHOUT_IMITATION.name),
    *(arm.name for arm in _LOW_WEIGHT_ARMS),
)
"""Arms of the evidence grid that every detector has. Without the adapter each object attends to its own label only,
which tells whether the exchange between objects holds LGD back."""


def _evidence(size: str) -> Grid:
    """Does it help? Each detector against its own baseline, after equal steps and in equal time.

    At ``nano`` and ``tiny`` there is no FGFI, which would train a teacher for each detector, and only the baselines
    have an arm in equal time; at the other presets every arm has.
    """
    base = preset(size)
    arms: list[Arm] = []
    for detector in ("retinanet", "fcos", "faster_rcnn"):
        first = len(arms)
        title, baseline = DETECTORS[detector], f"{DETECTORS[detector]} baseline"
        of = Training(
            detector=detector, backbone="r50", schedule="2x", scale="ss" if size in CPU_PRESETS else "ms", method="lgd"
        )
        # RetinaNet is the preset's own, so that trainings of the other grids are trainings of this one.
        own = {} if detector == base.detector.name else _arm(of, size, base).setting
        setting = {**own, "evaluation.teacher": True}
        if size == "small":
            # Landscape images are resized to the preset's shorter sides too.
            setting |= {"detector.backbone.name": SMALL_STUDENT, "data.max_size": base.data.max_size * 4 // 3}
        curve = {**setting, "evaluation.every": base.schedule.steps // EVALUATIONS}
        for arm in (*PAPER_COMPONENTS, WITHOUT_IMITATION, *_LOW_WEIGHT_ARMS):
            if detector != base.detector.name and arm.name not in EVERY_DETECTOR:
                continue
            # Only these two are evaluated on the way, so that earlier sweeps of the grid can be resumed.
            evaluated = curve if arm.name in ("baseline", "LGD") else setting
            arms.append(replace(arm, name=f"{title} {arm.name}", setting=evaluated, reference=baseline))
        if size not in CPU_PRESETS:
            teacher = {"method.name": "fgfi"} | (
                {"method.teacher.backbone.name": SMALL_TEACHER} if size == "small" else {}
            )
            later = {**curve, "method.from_step": FGFI_STARTS[size]}  # type: ignore[index]
            arms.append(Arm(f"{title} FGFI", teacher, "imitates a heavier detector", later, baseline))
        lgd = f"{title} LGD"
        for arm in arms[first:]:
            if arm.name == baseline or (arm.name != lgd and size not in CPU_PRESETS):
                longer = replace(arm, name=f"{arm.name} in equal time", question="as long as LGD took")
                arms.append(replace(longer, time_budget_from=lgd, steps_from=arm.name, reference=baseline))
    return Grid(EVIDENCE, "Does it help? Each detector against its own baseline", tuple(arms), reference="", seeds=5)


@dataclass(frozen=True)
class Trial:
    """One training of a sweep: an arm with a seed."""

    arm: str
    experiment: Experiment
    directory: Path
    """Absolute, since workers run in another working directory."""

    @property
    def name(self) -> str:
        return self.directory.name


def experiment_of(arm: Arm, base: Experiment, overrides: Iterable[str]) -> Experiment:
    """The experiment of an arm: ``base`` with its setting, then ``overrides`` (``key=value``), then its changes.

    What it multiplies comes last. Raises InputError, naming the arm, where these do not fit together.
    """
    try:
        # The detector first: a method may refuse the preset's.
        experiment = base.override({k: v for k, v in arm.setting.items() if not k.startswith("method.")})
        if "method.name" in arm.changes:
            experiment = with_method(experiment, str(arm.changes["method.name"]), overrides)
        # Settings of one method are none of another's.
        own = {k: v for k, v in arm.setting.items() if not k.startswith("method.") or experiment.has_setting(k)}
        experiment = experiment.override(own)
        experiment = experiment.override(experiment.applicable(overrides))
        pinned = _same_teacher(experiment) if arm.pays_for_teacher and STEPS in arm.changes else {}
        source = absolute_source(experiment.data.source)
        experiment = experiment.override({"data.source": source, **arm.changes, **pinned})
        return experiment.override(_multiplied(experiment, arm.factors)) if arm.factors else experiment
    except InputError as error:
        raise InputError(f"arm {arm.name!r}: {error}") from None


def _same_teacher(experiment: Experiment) -> dict[str, int]:
    """The setting that keeps the teacher's steps as they are when the student's change."""
    key, teacher = experiment.method.teacher_steps_key, experiment.teacher
    return {key: teacher.schedule.steps} if key and teacher else {}


def with_method(base: Experiment, name: str, overrides: Iterable[str]) -> Experiment:
    """``base`` with the method ``name``, which may refuse its detector, but not the one that ``overrides`` say.

    Raises InputError, one line, where it refuses that too.
    """
    try:
        return base.override({"method.name": name})
    except InputError:
        others = [x for x in overrides if not split_assignment(x)[0].startswith("method.")]
        return base.override([*others, f"method.name={name}"])


def _multiplied(experiment: Experiment, factors: Mapping[str, float]) -> dict[str, Any]:
    """The settings named by ``factors``, multiplied; those that are no number ("auto", None) are left as they are."""
    values = settings(experiment)
    return {
        key: tuple(_times(x, factor) for x in value) if isinstance(value, tuple) else _times(value, factor)
        for key, factor in factors.items()
        if isinstance(value := values[key], (int, float, tuple))
    }


def _times(value: float, factor: float) -> float:
    """A whole number stays one."""
    return round(value * factor) if isinstance(value, int) else float(f"{value * factor:.10g}")


def check_overrides(
    overrides: Iterable[str], arms: Iterable[Arm] = (), options: Mapping[str, tuple[str, Any]] | None = None
) -> None:
    """Refuse ``--set`` assignments (``key=value``) that would have no effect.

    That is where an arm's changes or another option set the same key to another value. options: by key, an option as it
    was given and the value that it sets, such as ``{"method.name": ("--method lgd", "lgd")}``. Raises InputError, one
    line, for the first one.
    """
    arms = list(arms)
    for assignment in overrides:
        key, value = split_assignment(assignment)
        if options and key in options and not _same(options[key][1], value):
            raise InputError(f"--set {assignment} contradicts {options[key][0]}: leave one of them out")
        overruling = [arm for arm in arms if key in arm.changes and not _same(arm.changes[key], value)]
        if overruling:
            first = overruling[0]
            more = f" (and {len(overruling) - 1} more arms)" if len(overruling) > 1 else ""
            raise InputError(
                f"--set {assignment} has no effect on arm {first.name!r}{more}, which sets {key} to"
                f" {first.changes[key]!r}: leave it out, or choose other arms with --arms"
            )


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are equal, a tuple and a list of the same entries included."""
    return (list(one) if isinstance(one, tuple) else one) == (list(other) if isinstance(other, tuple) else other)


def plan(grid: Grid, base: Experiment, seeds: int, overrides: Iterable[str], output: Path) -> list[Trial]:
    """The trials of a sweep, ordered by seed, so that an interrupted sweep has complete comparisons.

    Skipped arms have none, nor have those whose steps are not known yet. Raises InputError as :func:`experiment_of`.
    """
    overrides = list(overrides)
    known = [arm for arm in grid.arms if not arm.skipped and (not arm.time_budget_from or STEPS in arm.changes)]
    found = [(arm, experiment_of(arm, base, overrides)) for arm in known]
    trials, directory = [], output.resolve() / "trials"
    for seed in range(seeds):
        for arm, first in found:
            # Checked once for all seeds, of which there may be thousands.
            experiment = first.model_copy(update={"seed": first.seed + seed + arm.seed_offset})
            trials.append(Trial(arm.name, experiment, directory / f"{arm.slug}-seed{experiment.seed}"))
    return trials
