"""Checks before a sweep runs: that every arm can be built, and that records are of this data and code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from ablations.code_version import check_code
from ablations.damaged import damage
from ablations.disk_and_memory import check_disk, check_memory
from ablations.display import say
from ablations.plan import Sweep
from ablations.trial_config import TEACHERS
from lgd.config.experiment_warnings import warnings_of
from lgd.config.grids import Trial
from lgd.errors import InputError
from lgd.signals import exit_on_interrupt
from lgd.storage.outputs import store_of
from lgd.training import log_services
from lgd.training.resume import existing_record

if TYPE_CHECKING:
    from ablations.search.optuna_search import Search
    from lgd.distributed.resources import Resources
    from lgd.training.build import DryBuilt

T = TypeVar("T")

MOST_IMAGES = 1_000_000
"""Synthetic images of a data set: more are taken for a slip."""


class Problems:
    """Collects what is wrong; or raises the first, where nobody wants to know more (``all_of_them`` False)."""

    def __init__(self, all_of_them: bool) -> None:
        self._all_of_them = all_of_them
        self._found: dict[str, list[str]] = {}
        self._refused = False

    @contextmanager
    def noted(self, arm: str = "") -> Iterator[None]:
        """An InputError raised inside, of this ``arm``, is one of the problems."""
        try:
            yield
        except InputError as error:
            if self._refused:
                # Noted inside already.
                raise
            self._found.setdefault(str(error), []).append(arm)
            if not self._all_of_them:
                self._refused = True
                self.refuse()

    def refuse(self) -> None:
        """Raise InputError where there was a problem: one line, or a list where there are several."""
        lines = [_of_arms(arms, text) for text, arms in self._found.items()]
        if len(lines) == 1:
            raise InputError(lines[0])
        if lines:
            raise InputError("\n  ".join([f"not ready, {len(lines)} things are in the way:", *lines]))


@dataclass
class Checked:
    """The result of the checks before a sweep runs."""

    missing: list[Trial]
    """The trials without a record."""
    search: Search | None
    problems: Problems
    """What is in the way."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """By arm, of what it trains."""
    downloads: list[str] = field(default_factory=list)
    """A line for every file of weights that is not on this machine yet."""
    memory: str = ""
    """A note on what steps take."""
    detectors: list[str] = field(default_factory=list)
    """Lines on every detector from elsewhere: what was found by looking at it."""

    @property
    def planned(self) -> list[Trial]:
        """The trials to come; for those of a search, what they vary, once."""
        return [*self.missing, *([Trial("", self.search.base, self.search.output)] if self.search else [])]

    @property
    def to_train(self) -> list[Trial]:
        """The same with what a search varies as often as it is to be trained."""
        samples = self.search.left() if self.search else 0
        return [*self.missing, *self.planned[len(self.missing) :] * samples]


def _of_arms(arms: Sequence[str], text: str) -> str:
    named = [repr(arm) for arm in dict.fromkeys(arms) if arm]
    if len(named) > 3:
        named = [*named[:2], f"{len(named) - 2} more"]
    return f"arm{'s' * (len(named) > 1)} {', '.join(named)}: {text}" if named else text


def prepare(sweep: Sweep, console: Console, *, all_problems: bool = False, retrain_damaged: bool = False) -> Checked:
    """The trials that the sweep lacks, and its search. Warns of what may be a mistake.

    retrain_damaged: a record that cannot be read counts as none.
    Raises InputError on the first problem or, for ``all_problems``, keeps them for :func:`check`.
    """
    spec, arms = sweep.spec, len(sweep.spec.arms)
    say(console, f"{spec.grid} grid, preset {spec.preset}: checking {arms} arm{'s' * (arms != 1)} ...")
    _warn(sweep.one_seed())
    search = None
    if sweep.spec.search:
        # Here, not at the top: it loads Optuna.
        from ablations.search.optuna_search import search_of

        search = search_of(sweep.spec, sweep.directory)
    checked = Checked(missing_trials(sweep.trials, damaged=retrain_damaged), search, Problems(all_problems))
    for trial in checked.planned:
        _check_synthetic_images(trial)
        with checked.problems.noted():
            # Before torch, Ray and detectron2 are loaded and anything is built.
            log_services.check(trial.experiment)
    return checked


def _warn(trials: Sequence[Trial]) -> None:
    """Print what may be a mistake, with the arms that it is of where others have it not."""
    found: dict[str, list[str]] = {}
    for trial in trials:
        for line in warnings_of(trial.experiment):
            found.setdefault(line, []).append(trial.arm)
    for line, arms in found.items():
        print(f"warning: {_of_arms(arms, line) if len(arms) < len(trials) else line}", file=sys.stderr)


def _check_synthetic_images(trial: Trial) -> None:
    """They are made as soon as an arm is built."""
    data = trial.experiment.data
    if data.source == "shapes" and data.shapes_train + data.shapes_val > MOST_IMAGES:
        raise InputError(
            f"arm {trial.arm!r}: {data.shapes_train + data.shapes_val:,} synthetic images (data.shapes_train,"
            f" data.shapes_val); at most {MOST_IMAGES:,} are made"
        )


def check(
    sweep: Sweep,
    checked: Checked,
    console: Console,
    *,
    accept_other_code: bool = False,
    retrain_damaged: bool = False,
    resources: Resources | None = None,
) -> None:
    """Refuse what cannot run; note what it would train, and print what has to be downloaded for it.

    resources: of this machine, where the trials run on it. Raises InputError: one line on the first problem, or a line
    for each where :func:`prepare` was asked for all.
    """
    for arm in sweep.grid.arms:
        if arm.skipped:
            say(console, f"skipped: {arm.name}: {arm.skipped}")
    problems = checked.problems
    with problems.noted():
        checked.downloads = _downloads(checked.planned)
    for line in checked.downloads:
        say(console, line)
    if not accept_other_code:
        with problems.noted():
            check_code(sweep.directory)
    built = build_arms(sweep, checked.planned, problems)
    checked.fingerprints = {arm: x.fingerprint for arm, x in built.items() if arm}
    checked.detectors = list(dict.fromkeys(line for x in built.values() for line in x.detector.splitlines()))
    with problems.noted():
        check_records([x for x in sweep.one_seed() if x not in checked.missing], checked.fingerprints)
    if not retrain_damaged:
        searched = checked.planned[len(checked.missing) :] if checked.search and checked.search.left() else []
        check_teachers(sweep.directory, [*checked.missing, *searched], problems)
    known = [(trial, built[trial.arm]) for trial in checked.to_train if trial.arm in built]
    if resources or store_of(sweep.directory) is None:
        # Else the disks that hold what is then published are other machines'.
        with problems.noted():
            check_disk(sweep.directory, known, resources.max_concurrent if resources else 1)
    if resources:
        with problems.noted():
            checked.memory = check_memory([x for _, x in known], resources)
    problems.refuse()


def missing_trials(trials: Sequence[Trial], *, damaged: bool = False) -> list[Trial]:
    """The trials without a record, or with the record of a failed training. damaged: or with an unreadable one."""
    return [
        t for t in trials if (damaged and damage(t.directory)) or existing_record(t.directory, t.experiment) is None
    ]


def build_arms(sweep: Sweep, missing: Sequence[Trial], problems: Problems) -> dict[str, DryBuilt]:
    """Build every arm once, and return what that shows, by arm; "" is what a search varies.

    Networks that several arms have are built once. What cannot be built is refused now, and so are two arms that are
    the same. An arm that has trials ``missing`` must find all that training needs; one that has none may do without.
    """
    with exit_on_interrupt():
        # Here, not at the top: it loads torch and detectron2.
        from lgd.training.build import inspect_training
        from lgd.training.shared_work import BuildCache

    found: dict[str, DryBuilt] = {}
    names: dict[str, str] = {}
    to_train = {trial.arm for trial in missing}
    searched = [trial for trial in missing if not trial.arm]
    shared = BuildCache()
    for trial in [*sweep.one_seed(), *searched]:
        noted = partial(problems.noted, trial.arm)
        with noted():
            inspect = partial(
                inspect_training, trial.experiment, to_train=trial.arm in to_train, noted=noted, shared=shared
            )
            built = _built(inspect)
            if built is None:
                continue
            if trial.arm and built.fingerprint in names:
                same = names[built.fingerprint]
                raise InputError(f"would train the same thing as arm {same!r} ({built.fingerprint})")
            if trial.arm:
                names[built.fingerprint] = trial.arm
            found[trial.arm] = built
    return found


def _built(build: Callable[[], T]) -> T:
    try:
        return build()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error).lower():
            raise InputError(f"does not fit into this machine's memory ({str(error).splitlines()[0]})") from None
        raise


def _downloads(trials: Iterable[Trial]) -> list[str]:
    from lgd.detectors.weight_sources import required_weights

    return [str(x) for x in required_weights(*(trial.experiment for trial in trials)) if not x.is_cached]


def check_records(trials: Iterable[Trial], fingerprints: dict[str, str]) -> None:
    """Refuse to put new trials beside records, of ``trials``, of what the code or the data no longer build."""
    for trial in trials:
        record = existing_record(trial.directory, trial.experiment)
        if record is None or trial.arm not in fingerprints:
            continue
        same = record.same_build(fingerprints[trial.arm])
        if same is None:
            raise InputError(
                f"{trial.directory}: its record is of an earlier version of this suite, which named what it built in"
                " another way: it can be reported and compared, but not added to: choose another --output"
            )
        if not same:
            raise InputError(
                f"{trial.directory}: its record was made from other data or code (fingerprint {record.fingerprint},"
                f" now {fingerprints[trial.arm]}; commit {record.git_commit[:12]}): choose another --output"
            )


def check_teachers(directory: Path, missing: Iterable[Trial], problems: Problems) -> None:
    """Note students whose teacher has a record that cannot be read."""
    teachers = {x.experiment.teacher.model_dump_json(): x.experiment.teacher for x in missing if x.experiment.teacher}
    if not teachers:
        return
    # Here, not at the top: it loads torch.
    from lgd.training.teacher import teacher_directory

    for teacher in teachers.values():
        damaged = damage(teacher_directory(teacher, directory / TEACHERS))
        if damaged:
            with problems.noted():
                raise InputError(f"{damaged}: --retrain-damaged trains this teacher again")
