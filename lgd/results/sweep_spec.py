"""What a sweep is: its results directory's ``sweep.json``, as the command, the report and the status read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, PositiveInt, ValidationError, field_validator

from lgd.config.arms import Grid
from lgd.config.extra_arms import ExtraArms, with_extra_arms
from lgd.config.grids import grid
from lgd.config.method import DEFAULT
from lgd.config.presets import preset
from lgd.config.settings import Positive, Settings
from lgd.config.validation_error import explain
from lgd.errors import InputError
from lgd.files import read_file, write_text

SWEEP_FILE = "sweep.json"
SCHEMA: Literal[1] = 1

SEARCHED = "search-"
"""Begins the arm, and the directory, of every trial that a search proposed."""

STUDY = "lgd"
"""Name of a search's study, where none is given."""

RECOVERY = "the sweep's own command goes on with it"
"""What writes a sweep.json again that is damaged or missing."""

MIN_GAIN = 0.5
"""Points of AP: a smaller difference is not asked for unless ``--min-gain`` says so."""

MOST_SAMPLES = 10_000
"""Of a search."""

MOST_SEEDS_LOOKED_AT = 200
"""Of a sweep that looks at its result: the confidence of many more takes gigabytes to compute."""


class SearchSpec(Settings):
    """The search around a sweep's base experiment."""

    method: str = DEFAULT
    """The method whose settings are searched, as ``method.name``."""

    samples: Annotated[PositiveInt, Field(le=MOST_SAMPLES)]
    """Trials, all commands together."""
    objectives: tuple[Literal["AP"]] | tuple[Literal["AP"], Literal["gpu_hours"]]
    """``AP``, or ``AP`` and ``gpu_hours`` for the Pareto front of both."""
    early_stop: bool
    """Trials that fall behind in AP are ended (ASHA)."""
    study: str = ""
    """URL of the database, or path of the journal, that has Optuna's study; "" for the results directory."""
    study_name: str = STUDY
    """Its name there."""
    space: tuple[str, ...] = ()
    """``KEY=LOW:HIGH`` or ``KEY=A,B``: settings with other values to choose from than a search has by itself. Those
    that the sweep's ``overrides`` set are not searched."""

    @property
    def label(self) -> str:
        """Ends the name of its results directory, where none is given."""
        # Of code, the class.
        return "-search" if self.method == DEFAULT else f"-search-{self.method.rpartition(':')[2]}"

    @property
    def description(self) -> str:
        """What its study cannot change, in words."""
        place = f", in study {self.study_name!r} of {self.study}" if self.study else ""
        space = f", within {' '.join(self.space)}" if self.space else ""
        method = f" of method {self.method}" if self.method != DEFAULT else ""
        return f"{goal(self.objectives, self.early_stop)}{method}{space}{place}"


def goal(objectives: Sequence[str], early_stop: bool) -> str:
    """What a search is after, in words."""
    return f"objectives {','.join(objectives)}{' and early stopping' if early_stop else ''}"


def overrides_of_arms(overrides: Sequence[str], search: SearchSpec | None) -> tuple[str, ...]:
    """Those of a sweep's arms: without settings of a searched method that is code, which may not be imported."""
    if search is None or ":" not in search.method:
        return tuple(overrides)
    return tuple(x for x in overrides if not x.startswith("method."))


class CodeVersion(Settings):
    """What computes a sweep's numbers."""

    versions: dict[str, str]
    """By package."""
    files: dict[str, str]
    """Digest by file of the package ``lgd``, relative to the repository."""


class SweepEnd(Settings):
    """How the last command on a sweep ended."""

    why: str
    """Why it ended before all was run; "" if it did not."""
    not_run: tuple[str, ...]
    """What has no record, a line each."""


class SweepSpec(Settings):
    """A sweep: a grid's arms at a preset's size, with settings changed, for a number of seeds."""

    schema_version: Literal[1] = SCHEMA
    """Version of this schema."""
    grid: str
    """Name of the grid."""
    preset: str
    """Name of the preset, the size of its trainings."""
    overrides: tuple[str, ...]
    """``key=value``, of every arm."""
    arms: tuple[str, ...]
    """In the grid's order."""
    reference: str = ""
    """The arm that differences are taken to; "" where each arm of the grid names its own."""
    seeds: PositiveInt
    """Number of seeds that every arm is trained with; it rises from one of ``looks`` to the next."""
    steps: dict[str, PositiveInt] = Field(default_factory=dict)
    """Steps by arm, of those whose length follows from what other arms took (equal training time)."""
    extra: ExtraArms = ExtraArms()
    """Arms besides the grid's."""
    min_gain: Positive = Field(default=MIN_GAIN, validation_alias=AliasChoices("min_gain", "detect"))
    """The smallest difference that matters, points of AP; ``detect`` in older files."""
    looks: tuple[PositiveInt, ...] = ()
    """Numbers of seeds, rising, after which the sweep may look whether it is decided; () for one with a fixed number
    of seeds. Intervals are widened for all of them, taken or not (analysis/stats/sequential.py)."""
    search: SearchSpec | None = None
    """The search around its base experiment; None for a sweep without one."""
    code: CodeVersion | None = None
    """What computed the numbers, as the last command found it; None before the first run."""
    ended: SweepEnd | None = None
    """How the last command on it ended; None while one runs or before the first."""

    @field_validator("looks")
    @classmethod
    def _rise(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if list(looks) != sorted(set(looks)) or (looks and looks[-1] > MOST_SEEDS_LOOKED_AT):
            raise ValueError(f"numbers of seeds that rise, up to {MOST_SEEDS_LOOKED_AT}")
        return looks

    @property
    def label(self) -> str:
        """Name of its results directory, where none is given."""
        return f"{self.grid}-{self.preset}{self.search.label if self.search else ''}"

    @property
    def arm_overrides(self) -> tuple[str, ...]:
        """``overrides`` of the arms: see :func:`overrides_of_arms`."""
        return overrides_of_arms(self.overrides, self.search)

    @property
    def whole_grid(self) -> Grid:
        """The grid with the arms that were added to it. Raises InputError for one that is not known here."""
        return with_extra_arms(grid(self.grid, self.preset), self.extra, preset(self.preset))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The sweep in ``directory``. Raises InputError, one line that names the file and what is wrong with it."""
        path = directory / SWEEP_FILE
        try:
            text = read_file(path).decode("utf-8")
            raw = json.loads(text)
        except OSError as error:
            raise InputError(f"{path}: no sweep to read ({error.strerror}); where there was one, {RECOVERY}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a sweep's description ({error}): remove it, and {RECOVERY}") from None
        if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA:
            raise InputError(f"{path}: written by another version of this suite")
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise InputError(f"{path}: {explain(error)}") from None

    def write(self, directory: Path) -> None:
        """Replace the description in ``directory``, atomically. What is not known or not asked for is left out."""
        optional = ("steps", "search", "code", "ended", "extra", "min_gain", "looks")
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in optional}
        left_out: dict[str, Any] = {x: True for x, value in defaults.items() if getattr(self, x) == value}
        if self.search:
            unset = {
                *(() if self.search.study else ("study", "study_name")),
                *(() if self.search.space else ("space",)),
                *(() if self.search.method != DEFAULT else ("method",)),
            }
            left_out |= {"search": unset} if unset else {}
        write_text(directory / SWEEP_FILE, self.model_dump_json(indent=1, exclude=left_out) + "\n")
