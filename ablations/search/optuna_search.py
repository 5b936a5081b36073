"""Optuna's study of a search, as Ray Tune asks it for trials."""

from __future__ import annotations

import contextlib
import logging
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from ablations.damaged import read
from ablations.plan import search_base
from ablations.search.local_study import LocalStudy, errors_of
from ablations.search.search_space import OBJECTIVES, SearchSpace, objectives, space_of, suggest
from ablations.search.study_file import check_file, check_journal
from ablations.search.study_storage import (
    LOCK_TIMEOUT,
    OWNER,
    SETTINGS,
    SharedStudy,
    check_settings,
    cut_off_half_line,
    find_study,
    heartbeats,
    one_line,
    patiently,
    storage_of,
)  # fmt: skip
from ablations.search.tell import Curve, curve_of, curve_so_far, tell
from ablations.trial_config import STOP_FILE, TrialConfig
from lgd.config.data_source import portable_source
from lgd.config.experiment import Experiment, without_neutral_settings
from lgd.files import write_text
from lgd.results.record import FILE, Record
from lgd.results.sweep_spec import SEARCHED, STUDY, SweepSpec, goal
from lgd.storage.outputs import shown, store_of

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

STUDY_FILE = "study.db"
"""SQLite, in the results directory: ``optuna-dashboard sqlite:///DIR/study.db`` opens it."""

JOURNAL_FILE = "study.journal"
"""Optuna's journal, in its place where the results directory is a URL."""

OWNER_FILE = "study.owner"
"""In the results directory: what a study that lies elsewhere knows it by."""


@dataclass(frozen=True)
class Search:
    """A search around ``base``, an experiment of its method; its study and trials lie in ``output``."""

    base: Experiment
    output: Path
    samples: int = 20
    """Trials, all commands together."""
    objectives: tuple[str, ...] = ("AP",)
    """Names of OBJECTIVES; with two, the outcome is a Pareto front."""
    early_stop: bool = False
    """End trials that fall behind in AP (ASHA, Li et al., MLSys 2020)."""
    seed: int = 0
    """Of Optuna's sampler."""
    place: str = ""
    """Of the study, where it lies elsewhere: other drivers, with results directories of their own, may be at work on
    it."""
    name: str = STUDY
    """Of the study."""
    space: SearchSpace = field(default_factory=SearchSpace)

    @contextlib.contextmanager
    def opened(
        self, base: TrialConfig, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Searcher, TrialScheduler | None, int]]:
        """Tune's searcher and scheduler (None without), and how many samples are still to be run.

        What an interrupted search left half done is proposed first, and goes on from its checkpoint. base: the
        base experiment as it travels to a worker. stopped: whether the sweep is to stop; then a study elsewhere that
        does not answer is waited for no longer. Raises StudyUnreachableError in the end where it did not answer, and
        DiskFullError where its disk was full.
        """
        from ablations.search.proposals import searcher_class

        study = self.study()
        with self._one_line():
            self._skip_used_names(study)
        names = TrialNames(study)
        trials = self._settle(study, names, base, stopped)
        with self._one_line():
            curves = {x.number: curve_so_far(self._directory(names, x)) for x in trials}
            scheduler = self._scheduler({names.of(x.params): curves[x.number] for x in trials})
        left = self.left()
        with quiet_optuna(), self._one_line():
            storage = self._storage()
        access: SharedStudy | LocalStudy = LocalStudy(self._file)
        if self.place:
            own = {x._trial_id for x in trials}
            access = SharedStudy(self.place, study, storage, self._owner(), stopped, unfinished=own)
        # Of drivers that begin at once each is to draw others.
        apart = zlib.crc32(self._owner().encode()) if self.place else 0
        with quiet_optuna(), heartbeats(storage, lambda: access.alive):
            with self._one_line():
                # A resumed search has all earlier trials to learn from, and must not draw theirs again.
                seed = (self.seed + len(study.get_trials(deepcopy=False)) + apart) % 2**32
                unfinished = [(x, curves[x.number]) for x in trials]
                searcher = searcher_class(names.of, self.output / STOP_FILE, access, unfinished)(
                    partial(suggest, base=base, space=self.space),
                    metric=list(self.objectives),
                    mode=[OBJECTIVES[x] for x in self.objectives],
                    sampler=optuna.samplers.TPESampler(seed=seed),
                    study_name=self.name,
                    storage=storage,
                )
            yield searcher, scheduler, left
        access.check()
        self._settle(study, names, base, stopped)

    def _scheduler(self, unfinished: Mapping[str, Curve]) -> TrialScheduler | None:
        """unfinished: the learning curves of trials that go on, by name."""
        if not self.early_stop:
            return None
        from ablations.search.early_stopping import ResumableASHA

        ended = [curve_of(x.evaluations) for x in self.records()]
        return ResumableASHA(self.base.schedule.steps, ended, unfinished)

    def records(self) -> list[Record]:
        """Records of the trials that ended, in the order of their names; without damaged ones."""
        return [x for x in self._read() if isinstance(x, Record)]

    def damaged(self) -> list[str]:
        """A line for every record that cannot be read."""
        return [x for x in self._read() if isinstance(x, str)]

    def _read(self) -> Iterator[Record | str]:
        """Every record, or why it cannot be read."""
        for path in sorted(self.output.glob(f"trials/{SEARCHED}*/{FILE}")):
            found = read(path.parent)
            if found is not None:
                yield found

    def ended(self) -> list[Record]:
        """The same, but for those that failed."""
        return [x for x in self.records() if x.status != "failed"]

    def left(self) -> int:
        """Samples that are still to be run."""
        return max(0, self.samples - len(self.ended()))

    @property
    def study_place(self) -> str:
        """The file of the study, or its URL."""
        return self.place or shown(self._file)

    @property
    def _file(self) -> Path:
        """Of the study in the results directory."""
        return self.output / (STUDY_FILE if store_of(self.output) is None else JOURNAL_FILE)

    def study(self) -> optuna.Study:
        """The study, made if need be. Raises InputError where it cannot be reached, or searches something else."""
        self.check_study()
        with quiet_optuna(), self._one_line():
            study = optuna.create_study(
                study_name=self.name,
                storage=self._storage(),
                directions=["maximize" if OBJECTIVES[x] == "max" else "minimize" for x in self.objectives],
                load_if_exists=True,
            )
            if self.place and SETTINGS not in study.user_attrs:
                study.set_user_attr(SETTINGS, self._settings())
            return study

    def _one_line(self) -> contextlib.AbstractContextManager[None]:
        """What the study raises inside is one line: an InputError, or DiskFullError."""
        return one_line(self.place) if self.place else errors_of(self._file)

    def check_study(self) -> None:
        """Raise InputError, one line, where the study is damaged, cannot be reached, or searches something else.

        Makes none.
        """
        if not self.place:
            (check_file if store_of(self.output) is None else check_journal)(self._file)
            return
        with quiet_optuna(), one_line(self.place):
            there = find_study(self.place, self.name)
            if there is not None:
                check_settings(self.place, there, self._settings())

    def _settings(self) -> dict[str, Any]:
        """What trials of one study have in common, wherever their data lies."""
        base = self.base.override({"data.source": portable_source(self.base.data.source)})
        space = {"fixed": [*self.space.fixed], "variants": [*self.space.variants], **self.space.ranges}
        default = self.space == SearchSpace()
        return {
            "goal": goal(self.objectives, self.early_stop),
            "experiment": without_neutral_settings(base).model_dump(mode="json"),
            # Left out, as studies have it that were made when there was one space.
            **({} if default else {"space": {key: [*value] for key, value in space.items()}}),
        }

    def _owner(self) -> str:
        """Of this results directory, which may move, among those of all machines."""
        path = self.output / OWNER_FILE
        if not path.exists():
            self.output.mkdir(parents=True, exist_ok=True)
            write_text(path, uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")

    def _skip_used_names(self, study: optuna.Study) -> None:
        """Let no new proposal have the name of an earlier trial that the study does not know, since it is a new one."""
        numbers = [path.name.removeprefix(SEARCHED) for path in self.output.glob(f"trials/{SEARCHED}*")]
        missing = max((int(x) + 1 for x in numbers if x.isdigit()), default=0) - len(study.get_trials(deepcopy=False))
        for _ in range(missing):
            study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
        if missing > 0:
            print(
                f"note: {self.study_place} does not know {missing} earlier trials of the search: their records"
                " count, but what is proposed does not follow from them"
            )

    def _settle(
        self, study: optuna.Study, names: TrialNames, base: TrialConfig, stopped: Callable[[], bool]
    ) -> list[FrozenTrial]:
        """Tell the study how trials ended that nobody is working on any more, and write the records that were lost.

        Those that did not end are returned, and stay as they are: this call or a later one goes on with them.
        """

        def settle() -> tuple[list[FrozenTrial], list[tuple[FrozenTrial, str]]]:
            return self._settle_once(study, names), self._ended_without_record(study, names)

        with self._one_line():
            unfinished, lost = patiently(self.place, settle, stopped) if self.place else settle()
        if lost:
            # Here, not at the top: it loads torch.
            from ablations.search.lost_records import write_lost_record

            for trial, name in lost:
                write_lost_record(trial, name, self._directory(names, trial), base)
        return unfinished

    def _ended_without_record(self, study: optuna.Study, names: TrialNames) -> list[tuple[FrozenTrial, str]]:
        """Trials of this directory, and their names, of which only the study knows that they ended."""
        trials = study.get_trials(deepcopy=False)
        # What waits may be one of those that failed, as what is at work may be.
        going_on = {names.of(x.params) for x in trials if x.state == TrialState.RUNNING and x.params}
        may_go_on = bool(self.place) or any(x.state == TrialState.WAITING for x in trials)
        found = []
        for trial in trials:
            ended = trial.state == TrialState.PRUNED or (trial.state == TrialState.FAIL and not may_go_on)
            if not ended or not trial.params or (self.place and trial.user_attrs.get(OWNER) != self._owner()):
                continue
            name = names.of(trial.params)
            if name not in going_on and read(self.output / "trials" / name) is None:
                found.append((trial, name))
        return found

    def _settle_once(self, study: optuna.Study, names: TrialNames) -> list[FrozenTrial]:
        unfinished = []
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.place and frozen.user_attrs.get(OWNER) != self._owner():
                continue
            record = read(self._directory(names, frozen)) if frozen.params else "it was never begun"
            if record is None:
                unfinished.append(frozen)
                continue
            trial = optuna.Trial(study, frozen._trial_id)
            if isinstance(record, Record):
                tell(trial, record.status, objectives(record), self.objectives, curve_of(record.evaluations))
            else:
                tell(trial, "failed", {}, self.objectives, {})
        return unfinished

    def _directory(self, names: TrialNames, trial: FrozenTrial) -> Path:
        return self.output / "trials" / names.of(trial.params)

    def _storage(self) -> optuna.storages.BaseStorage:
        if self.place:
            return storage_of(self.place)
        self.output.mkdir(parents=True, exist_ok=True)
        if store_of(self.output) is not None:
            # A part of a journal, which is only added to, is one as well, up to its last whole line: what is published
            # of it at any time can be gone on from.
            cut_off_half_line(self._file)
            return JournalStorage(JournalFileBackend(str(self._file)))
        options = {"connect_args": {"timeout": LOCK_TIMEOUT}}
        return optuna.storages.RDBStorage(f"sqlite:///{self._file.resolve()}", engine_kwargs=options)


def search_of(spec: SweepSpec, directory: Path) -> Search | None:
    """The sweep's search; None where it has none."""
    wanted = spec.search
    if wanted is None:
        return None
    base = search_base(spec)
    search = Search(
        base, directory.resolve(), wanted.samples, wanted.objectives, wanted.early_stop, base.seed,
        wanted.study, wanted.study_name, space_of(spec.overrides, wanted.space, base.method),
    )  # fmt: skip
    search.check_study()
    return search


class TrialNames:
    """Names of proposed trials, their directories and their arms: the number of the study's first trial with these
    parameters.

    What is proposed again is one trial with what was proposed before, and goes on from its checkpoint. Each trial of
    the study is looked at once, but for those that are at work: a search asks for a name at every proposal.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._first: dict[frozenset[tuple[str, Any]], int] = {}
        self._unread: list[int] = []
        self._seen = 0

    def of(self, parameters: Mapping[str, Any]) -> str:
        """Raises KeyError for parameters that no trial of the study has."""
        key = frozenset(parameters.items())
        if key not in self._first:
            self._read()
        return f"{SEARCHED}{self._first[key]:03}"

    def _read(self) -> None:
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        numbers, self._unread = [*self._unread, *range(self._seen, len(trials))], []
        self._seen = len(trials)
        for number in numbers:
            trial = trials[number]
            if not trial.state.is_finished():
                # It gets its parameters when it is proposed, and if that was interrupted, some of them later.
                self._unread.append(number)
            if trial.state != TrialState.WAITING:
                key = frozenset(trial.params.items())
                self._first[key] = min(number, self._first.get(key, number))


def trial_name(study: optuna.Study, parameters: Mapping[str, Any]) -> str:
    """The name of one trial; for several see :class:`TrialNames`."""
    return TrialNames(study).of(parameters)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's running commentary."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tune_log = logging.getLogger("ray.tune.search.optuna.optuna_search")
    before = tune_log.level
    tune_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # That it takes low values for the goal (search_results.goal sees to it), and that few trials say little.
            said = "PedAnovaImportanceEvaluator computes|Some regimes for parameter|Target and region quantiles"
            # Where the disk of study.db is slow.
            said += "|Define-by-run function passed"
            # ablations/search/study_storage.py sends it.
            said += "|Heartbeat of storage is supposed"
            warnings.filterwarnings("ignore", said)
            yield
    finally:
        optuna.logging.set_verbosity(level)
        tune_log.setLevel(before)
