"""The Python code that a sweep's settings name: detectors from elsewhere, and methods. Loads neither torch nor Ray.

A results directory may come from somebody else, so what it names is run only where the command names it, too. Settings
have older names, and arms and a search have settings of their own: what counts is what would be trained.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pydantic import ValidationError

from ablations.plan import search_base
from lgd.config.detector_source import code_among
from lgd.config.experiment import Experiment, explain, split_assignment
from lgd.config.grids import experiment_of, grid
from lgd.config.method import code_of, current_key
from lgd.config.presets import preset
from lgd.errors import InputError
from lgd.results.sweep_spec import SweepSpec

DETECTORS = ("detector.source", "method.teacher.detector")
"""Settings that name a detector."""


def detector_sources(spec: SweepSpec) -> list[str]:
    """The detectors from elsewhere of a sweep, students' and teachers', once each; what its settings name comes first.

    Where a method is code, import it before: what it is taught by is known to its class alone. Raises InputError, one
    line, for settings that do not fit together.
    """
    found = (x for experiment in _experiments(spec) for x in _sources(experiment))
    return list(dict.fromkeys([*_named_detectors(spec), *found]))


def _named_detectors(spec: SweepSpec) -> list[str]:
    """Those that the sweep's own settings name."""
    named = sorted((key, str(value)) for key, value in _settings(spec) if key in DETECTORS)
    # A built-in detector is named by a word.
    return [value for _, value in named if ":" in value or "." in value]


def method_names(spec: SweepSpec) -> list[str]:
    """The methods of a sweep, once each. Raises InputError, one line, for settings that do not fit together."""
    named = [str(value) for key, value in _settings(spec) if key == "method.name"]
    return list(dict.fromkeys([*(x.method.name for x in _experiments(spec)), *named]))


def code_options(spec: SweepSpec) -> str:
    """The options that name the Python code of a sweep's settings again, as a command that goes on with it has to."""
    try:
        detectors = ",".join(code_among(detector_sources(spec)))
    except InputError:
        # A teacher's files have changed meanwhile, which that command will say.
        detectors = ",".join(code_among(_named_detectors(spec)))
    methods = [x for x in method_names(spec) if ":" in x][-1:]
    said = [("--detector", detectors)] if detectors else []
    return "".join(f" {name} {shlex.quote(value)}" for name, value in [*said, *(("--method", x) for x in methods)])


def detector_note(spec: SweepSpec, arms: str | None) -> str:
    """What the detector leaves out of a grid, in a line; "" where that is nothing."""
    chosen = grid(spec.grid, spec.preset)
    left_out = [x.name for x in chosen.arms if not x.skipped and not x.on_request and x.name not in spec.arms]
    if arms is not None or spec.search is not None or not left_out:
        return ""
    named = {key: str(value) for key, value in _settings(spec)}
    source = named.get("detector.source", "")
    if ":" not in source and "." not in source:
        name = named.get("detector.name")
        return f"note: left out, for they cannot be of {name}: {', '.join(left_out)}" if name else ""
    return (
        f"note: all arms train {source}, whatever detector their names say; {len(left_out)} arms of grid"
        f" {spec.grid} differ in nothing else and are left out"
    )


def _settings(spec: SweepSpec) -> Iterator[tuple[str, object]]:
    """What a sweep sets for all of its arms, by the keys of today."""
    return ((current_key(key), value) for key, value in map(split_assignment, spec.overrides))


def _experiments(spec: SweepSpec) -> Iterator[Experiment]:
    """What would be trained, with one seed: every arm, what the search varies, and all that is trained before."""
    base = preset(spec.preset)
    arms = [arm for arm in spec.whole_grid.arms if arm.name in spec.arms and not arm.skipped]
    found: list[Experiment | None] = [experiment_of(arm, base, spec.arm_overrides) for arm in arms]
    found += [search_base(spec)] if spec.search else []
    while found:
        if (experiment := found.pop(0)) is not None:
            yield experiment
            with code_of(experiment.method):
                found.append(experiment.teacher)


def _sources(experiment: Experiment) -> list[str]:
    """The detector from elsewhere that is trained, and the one that teaches it, also where that is given as a file."""
    try:
        with code_of(experiment.method):
            teacher = experiment.method.teacher_detector(experiment.detector)
    except InputError:
        raise
    except ValueError as error:
        said = explain(error) if isinstance(error, ValidationError) else error
        raise InputError(f"method.teacher of {experiment.method.name}: {said}") from None
    return [x.source for x in (experiment.detector, teacher) if x is not None and not x.is_built_in]
