"""A sweep: its description, and the trials that follow from it. Loads neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablations.damaged import read
from ablations.equal_time import steps_for_equal_time, with_steps
from ablations.plan_checks import (
    MOST_TRIALS,
    OF_DETECTOR,
    check_bigger,
    check_extra,
    check_number,
    check_numbers,
    check_question,
    check_used,
)  # fmt: skip
from ablations.search.study_place import check_kept, study_place
from lgd.config.arms import Arm, Grid
from lgd.config.data_source import absolute_source, followed
from lgd.config.experiment import Experiment, split_assignment
from lgd.config.extra_arms import ExtraArms, with_extra_arms
from lgd.config.grids import TABLES, Trial, check_overrides, experiment_of, grid, plan, with_method
from lgd.config.method import DEFAULT, import_named, title_of
from lgd.config.pays_grid import FIRST_STAGES
from lgd.config.presets import preset
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.results.sweep_spec import STUDY, SWEEP_FILE, SearchSpec, SweepSpec, overrides_of_arms

SOURCE = "data.source="
"""Begins the override that names the data."""


@dataclass
class Sweep:
    """A sweep, its results directory, and its trials."""

    spec: SweepSpec
    directory: Path
    trials: list[Trial]
    """Those of the arms whose steps are known by now."""
    damaged: list[str] = field(default_factory=list)
    """A line for every trial that is left out because its record cannot be read."""
    damaged_trials: list[Trial] = field(default_factory=list)
    """These trials."""

    @property
    def grid(self) -> Grid:
        return self.spec.whole_grid

    @property
    def deferred(self) -> list[str]:
        """The arms whose steps are still to be measured, a line each."""
        return [
            f"{arm.name}: its steps follow from what {arm.time_budget_from} takes"
            for arm in self.grid.arms
            if arm.time_budget_from and arm.name in self.spec.arms and arm.name not in self.spec.steps
        ]

    def one_of_each_arm(self) -> list[Trial]:
        """The first trial of each arm, some of which have seeds of their own."""
        first: dict[str, Trial] = {}
        for trial in self.trials:
            first.setdefault(trial.arm, trial)
        return list(first.values())

    def one_seed(self) -> list[Trial]:
        """One trial of each arm."""
        return [trial for trial in self.trials if trial.experiment.seed == self.trials[0].experiment.seed]


def describe(
    name: str,
    size: str,
    *,
    overrides: Sequence[str] = (),
    data: str | None = None,
    arms: str | None = None,
    seeds: int | None = None,
    search: SearchSpec | None = None,
    extra: ExtraArms | None = None,
    min_gain: float | None = None,
    looks: Sequence[int] = (),
) -> SweepSpec:
    """The sweep over the grid ``name`` at preset ``size``. arms: names, separated by commas (default: all).

    looks: as in :class:`SweepSpec`; then ``seeds`` says nothing. It is a command's: a method that it names is imported.
    Raises InputError for what there is not.
    """
    check_numbers(seeds, min_gain)
    import_named(overrides)
    extra, own = extra or ExtraArms(), grid(name, size)
    chosen = with_extra_arms(own, extra, preset(size))
    names = _arm_names(chosen, arms, own)
    check_extra(extra, chosen, own, names)
    check_question(looks, chosen, names)
    if search:
        # Beside the search's own trials only what they are compared to.
        names = [x for x in names if x == chosen.reference]
    options = {"data.source": (f"--data {data}", data)} if data else {}
    options |= {"method.name": (f"--method {search.method}", search.method)} if search else {}
    check_overrides(overrides, [arm for arm in chosen.arms if arm.name in names], options)
    base = with_method(preset(size), search.method, overrides) if search else preset(size)
    check_used(overrides, [] if search else [arm for arm in chosen.arms if arm.name in names], base)
    given = [*overrides, *([f"data.source={absolute_source(data)}"] if data else [])]
    base = base.override(base.applicable(given))
    check_bigger(extra, base)
    if base.schedule.epochs is not None:
        # Here, not at the top: it loads torch and detectron2.
        from lgd.data.epochs import epoch_overrides

        given += epoch_overrides(base)
    if arms is None:
        reduced = _trainable_arms if base.detector.is_built_in else _distinct_arms
        names = reduced(chosen, names, preset(size), overrides_of_arms(given, search))
    seeds = looks[0] if looks else seeds or chosen.seeds
    check_number(seeds, len(names))
    # Left out where the command leaves it out: a directory's own stays then.
    stated: dict[str, Any] = {} if min_gain is None else {"min_gain": min_gain}
    return SweepSpec(
        grid=chosen.name,
        preset=size,
        overrides=tuple(given),
        arms=tuple(names),
        reference=chosen.reference,
        seeds=seeds,
        extra=extra,
        looks=tuple(looks),
        search=search,
        **stated,
    )


def _arm_names(chosen: Grid, names: str | None, own: Grid) -> list[str]:
    """Those of ``names``, and the arms added to the grid's ``own`` that these bring."""
    skipped = {arm.name: arm.skipped for arm in chosen.arms if arm.skipped}
    known = [arm.name for arm in chosen.arms if arm.name not in skipped]
    if names is None:
        return [arm.name for arm in chosen.arms if not arm.skipped and not arm.on_request]
    wanted = _divided(names, {*known, *skipped})
    for name in wanted:
        if name in skipped:
            raise InputError(f"arm {name!r} {skipped[name]}")
        if name not in known:
            raise InputError(f"grid {chosen.name} has no arm {name!r}: it has {', '.join(known)}")
    needs = {
        arm.name: {arm.reference, arm.time_budget_from, arm.steps_from} - {""} for arm in chosen.arms[len(own.arms) :]
    }
    for name in known:
        # In the grid's order an arm comes after those it needs.
        if name in needs and needs[name] <= set(wanted):
            wanted.append(name)
    return [x for x in known if x in wanted]


def _divided(names: str, known: Collection[str]) -> list[str]:
    """``names`` at its commas, but those within a known name: of several ways the one with the longest first names."""
    parts, found = [x.strip() for x in names.split(",")], []
    while parts:
        # A name alone where none is known: what is wrong with it is said by who asked.
        length = next((n for n in range(len(parts), 0, -1) if ", ".join(parts[:n]) in known), 1)
        found.append(", ".join(parts[:length]))
        parts = parts[length:]
    return found


def merge(spec: SweepSpec, directory: Path) -> SweepSpec:
    """``spec`` with what its results directory holds already: more seeds and arms may be added to a sweep.

    The paper's tables share trainings, so several of them may lie in one directory, whose sweep.json is of the one that
    ran last. Raises InputError where the directory is another sweep's.
    """
    if not (directory / SWEEP_FILE).exists():
        return spec
    there = SweepSpec.read(directory)
    if _followed(there.overrides) == _followed(spec.overrides):
        spec = spec.model_copy(update={"overrides": there.overrides})
    for key in ("preset", "overrides"):
        theirs, ours = getattr(there, key), getattr(spec, key)
        if theirs != ours:
            raise InputError(
                f"{directory} holds a sweep with {key} {_shown(theirs)}, not {_shown(ours)}:"
                " choose another --output or remove it"
            )
    theirs, ours = (x.search.description if x.search else "no search" for x in (there, spec))
    if theirs != ours:
        kind = "a search with" if there.search else "a sweep with"
        raise InputError(f"{directory} holds {kind} {theirs}, not {ours}: choose another --output")
    if there.grid != spec.grid:
        if {there.grid, spec.grid} - set(TABLES):
            raise InputError(f"{directory} holds the sweep of grid {there.grid}: choose another --output")
        return spec.model_copy(update={"steps": there.steps})
    if there.looks and spec.looks and there.looks != spec.looks:
        raise InputError(
            f"{directory} holds a sweep that looks at its result after {_numbers(there.looks)} seeds, not after"
            f" {_numbers(spec.looks)}: go on with that, or choose another --output"
        )
    extra = ExtraArms(
        equal_cost=tuple(dict.fromkeys([*there.extra.equal_cost, *spec.extra.equal_cost])),
        again=there.extra.again or spec.extra.again,
    )
    merged = spec.model_copy(
        update={
            "steps": there.steps, "seeds": max(there.seeds, spec.seeds), "extra": extra,
            "looks": there.looks or spec.looks,
            "min_gain": (spec if "min_gain" in spec.model_fields_set else there).min_gain,
        }
    )  # fmt: skip
    if merged.looks and merged.seeds not in merged.looks:
        raise InputError(
            f"{directory}: its result is looked at after {_numbers(merged.looks)} seeds, and {merged.seeds} are none of"
            " these: intervals hold for looks that were planned; choose another --output"
        )
    order = [arm.name for arm in merged.whole_grid.arms]
    return merged.model_copy(update={"arms": tuple(x for x in order if x in there.arms or x in spec.arms)})


def _followed(overrides: Iterable[str]) -> list[str]:
    """The overrides with their data's links followed, which is one data set whichever name it was given."""
    return [f"{SOURCE}{followed(x.removeprefix(SOURCE))}" if x.startswith(SOURCE) else x for x in overrides]


def _numbers(looks: Sequence[int]) -> str:
    return ", ".join(map(str, looks))


def _shown(value: str | tuple[str, ...]) -> str:
    return repr(value) if isinstance(value, str) else " ".join(value) or "none"


def read_sweep(directory: Path) -> SweepSpec:
    """The sweep in ``directory``. Raises InputError, one line that names the file, also for what cannot be planned."""
    spec = SweepSpec.read(directory)
    try:
        check_number(spec.seeds, len(spec.arms))
        if spec.search and spec.search.study:
            check_kept(spec.search.study)
        base = preset(spec.preset)
        if spec.search:
            base = with_method(base, spec.search.method, spec.overrides)
        # A sweep may set what only some of its arms' methods have.
        base.override(base.applicable(spec.overrides))
        spec.whole_grid  # noqa: B018  building it validates it
    except InputError as error:
        raise InputError(f"{directory / SWEEP_FILE}: {error}") from None
    return spec


def with_data_at(spec: SweepSpec, data: str) -> SweepSpec:
    """A sweep whose data lies elsewhere now; that it is the same data is seen from each record."""
    source, key = absolute_source(data), SOURCE
    scheme = f"{key}{source.partition(':')[0]}"
    if not any(x.startswith(key) and x.partition(":")[0] == scheme for x in spec.overrides):
        raise InputError(f"--data {data} with --resume says where the sweep's own data lies now; it has no such data")
    moved = tuple(f"{key}{source}" if x.startswith(key) else x for x in spec.overrides)
    return spec.model_copy(update={"overrides": moved})


def with_samples(spec: SweepSpec, samples: int, directory: Path) -> SweepSpec:
    """A search's sweep with another number of trials."""
    if spec.search is None:
        raise InputError(f"--samples {samples}: {directory} holds no search")
    wanted = search_spec(samples, spec.search.objectives, spec.search.early_stop)
    return spec.model_copy(update={"search": spec.search.model_copy(update={"samples": wanted.samples})})


def search_spec(
    samples: int,
    objectives: Sequence[str],
    early_stop: bool,
    study: str | None = None,
    study_name: str | None = None,
    method: str = DEFAULT,
) -> SearchSpec:
    """The search that the options ask for. Raises InputError for what cannot be searched for."""
    if samples < 1:
        raise InputError(f"--samples {samples}: at least one")
    if samples > MOST_TRIALS:
        raise InputError(f"--samples {samples}: a search has at most {MOST_TRIALS:,}")
    if list(objectives) not in (["AP"], ["AP", "gpu_hours"]):
        raise InputError(f"--objectives {','.join(objectives)}: AP, or AP,gpu_hours")
    if early_stop and len(objectives) > 1:
        raise InputError("--early-stop with --objectives AP,gpu_hours: what is ended early has no cost to compare")
    if study is None and study_name is not None:
        raise InputError("--study-name needs --study")
    if method == "baseline" or method in FIRST_STAGES:
        raise InputError(f"--method {method}: it is what methods are compared with, or prepares one")
    described = {"samples": samples, "objectives": objectives, "early_stop": early_stop, "method": method}
    if study is not None:
        described |= {"study": study_place(study), "study_name": study_name or STUDY}
    return SearchSpec.model_validate(described)


def search_base(spec: SweepSpec) -> Experiment:
    """The experiment that a search varies, of its method. Raises InputError for a method that is not known."""
    method = spec.search.method if spec.search else DEFAULT
    base = experiment_of(_searched_arm(method), preset(spec.preset), spec.overrides)
    if spec.search and spec.search.early_stop and not base.evaluation.every:
        base = base.override({"evaluation.every": max(1, base.schedule.steps // 8)})
    return base


def _searched_arm(method: str) -> Arm:
    """What a search varies, as an arm."""
    return Arm(f"{title_of(method)} (search)", {"method.name": method})


def trials_of(spec: SweepSpec, directory: Path, records: dict[str, Record] | None = None) -> Sweep:
    """The trials of a sweep, but for those whose steps are still to be measured and those whose record is damaged.

    The description gets the steps that can be told by now. records: gets those that there are, by their trial's name.
    """
    whole, base, given = spec.whole_grid, preset(spec.preset), spec.arm_overrides
    # Those of arms that nobody asked for are not looked for.
    asked = tuple(arm for arm in whole.arms if arm.name in spec.arms or not arm.time_budget_from)
    steps = steps_for_equal_time(replace(whole, arms=asked), base, spec.seeds, given, directory, spec.steps)
    chosen = tuple(with_steps(arm, steps) for arm in whole.arms if arm.name in spec.arms)
    trials = plan(replace(whole, arms=chosen), base, spec.seeds, given, directory)
    readable, damages, damaged = list[Trial](), list[str](), list[Trial]()
    for trial in trials:
        found = read(trial.directory)
        if isinstance(found, str):
            damages.append(found)
            damaged.append(trial)
            continue
        readable.append(trial)
        if records is not None and found is not None:
            records[trial.name] = found
    return Sweep(spec.model_copy(update={"steps": steps}), directory, readable, damages, damaged)


def _trainable_arms(chosen: Grid, names: Sequence[str], base: Experiment, overrides: Sequence[str]) -> list[str]:
    """``names`` without arms that cannot be of the detector that ``overrides`` name, though of the preset's own.

    Nor those that need such an arm.
    """
    if not any(split_assignment(x)[0] == "detector.name" for x in overrides):
        return list(names)
    others = [x for x in overrides if split_assignment(x)[0] not in ("detector.name", *OF_DETECTOR)]
    refused: set[str] = set()
    for arm in (x for x in chosen.arms if x.name in names):
        try:
            experiment_of(arm, base, overrides)
        except InputError:
            # Another reason is the user's to know, from the checks.
            with suppress(InputError):
                experiment_of(arm, base, others)
                refused.add(arm.name)
        if refused & {arm.time_budget_from, arm.steps_from}:
            refused.add(arm.name)
    return [x for x in names if x not in refused]


def _distinct_arms(chosen: Grid, names: Sequence[str], base: Experiment, overrides: Sequence[str]) -> list[str]:
    """``names`` without arms that differ from an earlier one only in the detector, which is the same for all now.

    Nor those whose reference is such an arm.
    """
    first: dict[tuple[str, ...], str] = {}
    same: dict[str, str] = {}
    for arm in chosen.arms:
        if arm.name in names:
            described = experiment_of(arm, base, overrides).model_dump_json()
            key = (described, same.get(arm.time_budget_from, ""), same.get(arm.steps_from, ""))
            same[arm.name] = first.setdefault(key, arm.name)
    references = chosen.references
    return [x for x in names if same[x] == x and same.get(references[x], references[x]) == references[x]]


def search_note(spec: SweepSpec, arms: str | None) -> str:
    """A line that names what a search ignores of its grid, or "". arms: the option ``--arms``."""
    chosen = grid(spec.grid, spec.preset)
    if spec.search is None or len(spec.arms) == len(chosen.arms):
        return ""
    others = f"of grid {spec.grid}" if arms is None else f"of --arms {arms}"
    if spec.arms:
        return f"note: the search trains arm {spec.arms[0]!r} {others}, to compare its own trials to, and no other"
    if arms is not None and chosen.reference:
        return f"note: the search trains its own trials only; to compare them, add arm {chosen.reference!r} to --arms"
    return f"note: the search trains its own trials and no arm {others}, which names none to compare all to"
