"""The command that trains a sweep, as its description tells it."""

from __future__ import annotations

import shlex
from pathlib import Path

from lgd.config.arms import Grid
from lgd.config.grids import grid
from lgd.config.method import DEFAULT
from lgd.errors import InputError
from lgd.results.sweep_spec import MIN_GAIN, SweepSpec


def training_command(directory: Path, place: str) -> str:
    """The command whose sweep this is, with ``place`` as its output; empty where there is no sweep.json that tells."""
    try:
        return command_of(SweepSpec.read(directory), place)
    except InputError:
        return ""


def command_of(spec: SweepSpec, place: str) -> str:
    """The command that trains ``spec`` into ``place``, which is as a shell reads it.

    A file's texts are quoted: whoever copies the command runs nothing else. Raises InputError for a grid that is not
    known here.
    """
    parts = [f"--grid {shlex.quote(spec.grid)} --preset {shlex.quote(spec.preset)}"]
    parts += _looks(spec) if spec.looks else [f"--seeds {spec.seeds}"]
    if spec.search:
        parts.append(f"--search optuna --samples {spec.search.samples} --objectives {','.join(spec.search.objectives)}")
        parts += [f"--method {shlex.quote(spec.search.method)}"] if spec.search.method != DEFAULT else []
        parts += ["--early-stop"] if spec.search.early_stop else []
        parts += [f"--search-space {shlex.quote(x)}" for x in spec.search.space]
    else:
        parts += _arms(spec, grid(spec.grid, spec.preset))
    parts += [f"--equal-cost {','.join(spec.extra.equal_cost)}"] if spec.extra.equal_cost else []
    parts += ["--a-a"] if spec.extra.again else []
    parts += [f"--min-gain {spec.min_gain:g}"] if spec.min_gain != MIN_GAIN else []
    parts += [f"--output {place}", *(f"--set {shlex.quote(x)}" for x in spec.overrides)]
    return f"python ablations/run.py {' '.join(parts)}"


def _arms(spec: SweepSpec, own: Grid) -> list[str]:
    """The option that chooses among the grid's own arms, unless it is those of itself; added ones follow from them."""
    usual = [arm.name for arm in own.arms if not arm.skipped and not arm.on_request]
    chosen = [arm.name for arm in own.arms if arm.name in spec.arms]
    return [] if chosen == usual else [f"--arms {shlex.quote(','.join(chosen))}"]


def _looks(spec: SweepSpec) -> list[str]:
    """With the first look's number of seeds, from which the others follow."""
    return [f"--until-decided --seeds {spec.looks[0]} --max-seeds {spec.looks[-1]}"]
