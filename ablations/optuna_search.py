"""What Optuna searches over, and what it found: LGD's weights and components around a grid's base experiment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
import optuna
from matplotlib import pyplot
from optuna.trial import FrozenTrial, TrialState

from lgd.config.components import AdapterVariant, component_conflict
from lgd.config.experiment import Experiment, parse
from lgd.results.record import FILE, Record, load

STUDY = "lgd"
STUDY_FILE = "study.db"
"""SQLite, in the results directory: ``optuna-dashboard sqlite:///DIR/study.db`` opens it."""

OBJECTIVES = {"AP": "max", "gpu_hours": "min"}
"""What a search may optimise: the student's AP in percent, and the device-hours of its training."""

VARIANTS: tuple[AdapterVariant, ...] = get_args(AdapterVariant)
WITHOUT_ADAPTER = " (adapter off)"
"""Ends the name of a parameter that has other choices there: to Optuna another parameter."""


@dataclass(frozen=True)
class Search:
    """A search around ``base``, an LGD experiment; its study and trials lie in ``output``.

    objectives: names of OBJECTIVES; with two, the outcome is a Pareto front. early_stop: end trials that fall behind
    in AP (ASHA, Li et al., MLSys 2020). seed: of Optuna's sampler.
    """

    base: Experiment
    output: Path
    objectives: tuple[str, ...] = ("AP",)
    early_stop: bool = False
    seed: int = 0

    @contextlib.contextmanager
    def opened(self, samples: int, base: dict[str, Any]) -> Iterator[tuple[Any, Any, int]]:
        """Tune's searcher and scheduler (None without), and how many of ``samples`` are still to be run.

        What an interrupted search left half done is proposed again first, and goes on from its checkpoint. base: the
        base experiment as it travels to a worker.
        """
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        study = self.study()
        again = self._settle(study)
        left = max(0, samples - len(self.ended()))

        class Asked(OptunaSearch):
            def suggest(self, trial_id: str) -> Any:
                # Once the sweep's time is over nothing more is proposed.
                return OptunaSearch.FINISHED if Path(base["stop"]).exists() else super().suggest(trial_id)

        with quiet():
            algorithm = Asked(
                partial(suggest, base=base),
                metric=list(self.objectives),
                mode=[OBJECTIVES[x] for x in self.objectives],
                points_to_evaluate=again or None,
                # The sampler of a resumed search has all earlier trials to learn from, and must not draw theirs again.
                sampler=optuna.samplers.TPESampler(seed=self.seed + len(study.trials)),
                study_name=STUDY,
                storage=self._storage(),
            )
            scheduler = None
            if self.early_stop:
                steps = self.base.schedule.steps
                scheduler = ASHAScheduler(
                    time_attr="step",
                    metric="AP",
                    mode="max",
                    # It would cut off the last evaluation of a trial that arrives there.
                    max_t=steps + 1,
                    grace_period=max(1, steps // 4),
                    reduction_factor=2,
                )
            yield algorithm, scheduler, left
        self._settle(study, last=True)

    def ended(self) -> list[Record]:
        """The records of the trials that ended, but for those that failed."""
        records = [load(path) for path in sorted(self.output.glob(f"trials/search-*/{FILE}"))]
        return [x for x in records if x.status != "failed"]

    def best(self, study: optuna.Study) -> list[FrozenTrial]:
        """The best trial of one objective, the Pareto front of two; of those that were trained to their end."""
        finished = {x.arm for x in self.ended() if x.status == "finished"}
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        whole = [t for t in complete if _name(changed(t.params)) in finished]
        if len(self.objectives) > 1 or not whole:
            return [t for t in study.best_trials if t in whole] if whole else []
        return [max(whole, key=lambda t: t.values[0])]

    def study(self) -> optuna.Study:
        """The study, made if need be."""
        with quiet():
            return optuna.create_study(
                study_name=STUDY,
                storage=self._storage(),
                directions=["maximize" if OBJECTIVES[x] == "max" else "minimize" for x in self.objectives],
                load_if_exists=True,
            )

    def _settle(self, study: optuna.Study, *, last: bool = False) -> list[dict[str, Any]]:
        """Tell the study how trials ended that nobody is working on any more; the parameters of those that did not.

        last: those stay as they are, for a later call to go on with.
        """
        unfinished = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            path = self.output / "trials" / _name(changed(trial.params)) / FILE
            found = objectives(load(path)) if path.exists() else {}
            if found:
                study.tell(trial.number, [found[x] for x in self.objectives])
                continue
            if last and not path.exists():
                continue
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params and not path.exists():
                unfinished.append(dict(trial.params))
        return unfinished

    def _storage(self) -> optuna.storages.BaseStorage:
        self.output.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(f"sqlite:///{(self.output / STUDY_FILE).resolve()}")

    @staticmethod
    def trial(config: Mapping[str, Any]) -> dict[str, Any]:
        """A trial from what the searcher proposed, as plain values; equal proposals are one trial."""
        base = config["base"]
        changes = changed({k: v for k, v in config.items() if k != "base"})
        experiment = parse(base["experiment"]).override(changes)
        name = _name(changes)
        return {
            **base,
            "name": name,
            "experiment": experiment.model_dump(mode="json"),
            "directory": str(Path(base["directory"]) / "trials" / name),
            "names": {
                **base["names"],
                "arm": name,
                "overrides": [*base["names"]["overrides"], *(f"{k}={_yaml(v)}" for k, v in changes.items())],
            },
        }


def objectives(record: Record) -> dict[str, float]:
    """What a search looks at in a trial that ended; empty without an AP."""
    ap = record.student.AP if record.student else None
    spent = sum(record.device_seconds.values())
    return {} if ap is None else {"AP": ap, "gpu_hours": spent / 3600}


def _name(changes: Mapping[str, Any]) -> str:
    """Of a proposed trial, and its directory: by what it changes."""
    return f"search-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:10]}"


def suggest(trial: Any, base: dict[str, Any]) -> dict[str, Any]:
    """Ask an Optuna trial for every parameter that has a choice, given those before it.

    A component is asked about only where it may be off, the adapter's variant only among those that work with the
    components that are on. Returns the constants that the trial's configuration holds besides.
    """
    method = parse(base["experiment"]).method
    context = method.context
    mapper = trial.suggest_categorical("method.mapper", [True, False]) if context else True
    encoder = trial.suggest_categorical("method.encoder", [True, False])
    adapter = trial.suggest_categorical("method.adapter", [True, False]) if mapper or encoder else True
    possible = [
        v
        for v in VARIANTS
        if not component_conflict(encoder=encoder, adapter=adapter, mapper=mapper, variant=v, context=context)
    ]
    if len(possible) > 1:
        trial.suggest_categorical(f"method.variant{'' if adapter else WITHOUT_ADAPTER}", possible)
    trial.suggest_float("method.distill_weight", 0.1, 10, log=True)
    trial.suggest_float("method.instructive_weight", 0.1, 10, log=True)
    trial.suggest_float("method.lr_factor", 0.3, 3, log=True)
    return {"base": base}


def changed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys from a trial's parameters."""
    return {name.removesuffix(WITHOUT_ADAPTER): value for name, value in sorted(parameters.items())}


def command(preset: str, overrides: Sequence[str], parameters: Mapping[str, Any], seed: int) -> str:
    """The command that trains one trial of a search again: the arm of the components grid that it is a variant of."""
    sets = [
        *overrides,
        *(f"{k}={_yaml(v)}" for k, v in changed(parameters).items()),
        *([f"seed={seed}"] if seed else []),
    ]
    words = ["python", "ablations/run.py", "--grid", "components", "--preset", preset, "--arms", "LGD"]
    words += [x for s in sets for x in ("--set", s)]
    return shlex.join(words)


def draw(study: optuna.Study, objectives: Sequence[str], directory: Path) -> list[Path]:
    """Optuna's own plots: history, importances of the parameters for each objective, and the Pareto front of two.

    Those that need more trials than there are, are left out. Returns what was written.
    """
    from optuna.visualization import matplotlib as plots

    from analysis.figures import save

    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    wanted: dict[str, Any] = {}
    for i, name in enumerate(objectives):

        def target(trial: FrozenTrial, i: int = i) -> float:
            return float(trial.values[i])

        wanted[f"history_{name}"] = partial(plots.plot_optimization_history, study, target=target, target_name=name)
        if complete > 2:
            wanted[f"importances_{name}"] = partial(
                plots.plot_param_importances, study, target=target, target_name=name
            )
    if len(objectives) == 2:
        wanted["pareto"] = partial(plots.plot_pareto_front, study, target_names=list(objectives))
    written: list[Path] = []
    if not complete:
        return written
    for name, plot in wanted.items():
        with quiet(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lgd"}):
            try:
                figure = plot().figure
            except (ValueError, RuntimeError):
                # Importances of parameters that never varied.
                continue
            figure.set_layout_engine("constrained")
            written += save(figure, directory / name)
            pyplot.close(figure)
    return written


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's running commentary."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tune_log = logging.getLogger("ray.tune.search.optuna.optuna_search")
    before = tune_log.level
    tune_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
        tune_log.setLevel(before)


def _yaml(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, int, float)) else str(value)
