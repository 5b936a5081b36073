"""The results of a search: its trials as a table and as commands, and Optuna's plots of the study."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import optuna
from matplotlib import pyplot
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from ablations.display import say
from ablations.search.optuna_search import Search, TrialNames, quiet_optuna
from ablations.search.search_space import OBJECTIVES, VARIANT, SearchSpace, assignments, objectives, settings_of
from ablations.search.study_place import StudyUnreachableError, in_store
from ablations.search.study_storage import AWAY, reason
from analysis.plots.style import save
from lgd.config.component_arms import COMPONENTS
from lgd.config.experiment import split_assignment
from lgd.config.method import DEFAULT, title_of
from lgd.config.pays_grid import PAYS
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.results.sweep_spec import SEARCHED, SweepSpec
from lgd.storage.outputs import is_url, shown

SHOWN = 20
"""Rows of the table."""

NEW_SEEDS = 3
"""With which a best trial is to be trained again."""


def show_search(spec: SweepSpec, search: Search, console: Console) -> list[Path]:
    """Print the trials, best first, and the best ones' commands; draw Optuna's plots. Returns the files written.

    Of a study that does not answer or cannot be read, only that.
    """
    try:
        study = _copy(search)
    except InputError as error:
        say(console, f"{error}: the trials of the search are not shown")
        return []
    ended = search.ended()
    names = TrialNames(study)
    best = _best(search, study, names, ended)
    if not best:
        say(console, "no trial of the search was complete")
        return []
    console.print(_trials_table(study, names, ended, best, search.space))
    say(console, "best trial:" if len(search.objectives) == 1 else "Pareto front:")
    for trial in best:
        name = names.of(trial.params)
        say(console, f"  {name}: {command(spec, trial.params, search.base.seed, f'{shown(search.output)}-{name}')}")
    if len(ended) > 1:
        say(
            console,
            f"the AP of the best of {len(ended)} trials is overstated: one seed chose it. These commands train it with"
            f" {NEW_SEEDS} other seeds{'' if ':' in search.base.method.name else ', beside the baseline'}",
        )
    file = search.study_place
    dashboard = f"optuna-dashboard {'' if search.place else 'sqlite:///'}"
    say(console, f"study: {'' if in_store(file) or (is_url(file) and not search.place) else dashboard}{file}")
    return draw(study, search.objectives, search.output)


def _copy(search: Search) -> optuna.Study:
    """The study as it is now, in memory: what is shown of it is asked of no database, which may be lost meanwhile.

    Raises InputError, one line, where it does not answer or cannot be read.
    """
    with quiet_optuna():
        try:
            study = search.study()
            trials, directions = study.get_trials(deepcopy=False), study.directions
        except AWAY as error:
            raise StudyUnreachableError(f"study {search.study_place}: {reason(error)}") from None
        there, copy = (optuna.create_study(directions=directions) for _ in range(2))
        there.add_trials(trials)
        names, records = TrialNames(there), {x.arm: x for x in search.ended()}
        for trial in trials:
            record = records.get(names.of(trial.params)) if trial.state == TrialState.COMPLETE else None
            copy.add_trial(_as_recorded(trial, record, search.objectives) if record else trial)
    return copy


def _as_recorded(trial: FrozenTrial, record: Record, names: Sequence[str]) -> FrozenTrial:
    """A complete trial as its record has it. To an earlier version one that was ended early was complete, and hours
    were those of all phases."""
    values = objectives(record)
    if record.status != "stopped" and not {*names} <= values.keys():
        return trial
    ended_early = record.status == "stopped"
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if ended_early else TrialState.COMPLETE,
        values=None if ended_early else [values[x] for x in names],
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
    )


def best_trials(search: Search, study: optuna.Study) -> list[FrozenTrial]:
    """The best trial of one objective, the Pareto front of two, best AP first; of those trained to their end."""
    return _best(search, study, TrialNames(study), search.ended())


def _best(search: Search, study: optuna.Study, names: TrialNames, ended: Sequence[Record]) -> list[FrozenTrial]:
    finished = {x.arm for x in ended if x.status == "finished"}
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    whole = [t for t in complete if names.of(t.params) in finished]
    if len(search.objectives) > 1 or not whole:
        return sorted(_front(whole, study.directions), key=lambda t: -t.values[0])
    return [max(whole, key=lambda t: t.values[0])]


def _front(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """Those that no other one of ``trials`` is better than: not the study's, which has other drivers' trials too."""
    with quiet_optuna():
        among = optuna.create_study(directions=directions)
        among.add_trials(trials)
    return [trials[t.number] for t in among.best_trials]


def _trials_table(
    study: optuna.Study, names: TrialNames, ended: Sequence[Record], best: Sequence[FrozenTrial], space: SearchSpace
) -> Table:
    """A row a trial of the search, best AP first, with its device-hours; its last step, where any was ended early."""
    trials = study.get_trials(deepcopy=False)
    parameters = {names.of(t.params): t.params for t in trials if t.state != TrialState.WAITING}
    starred = {names.of(t.params) for t in best}
    records = sorted(ended, key=_rank)
    early = any(record.status == "stopped" for record in records)
    # Additions of ours are the sweep's settings, which every trial has.
    ours = "".join(f" ({x})" for x in dict.fromkeys(record.ours for record in records) if x)
    title = f"trials of the search, best first{ours}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    columns = _columns(space)
    for head in ("trial", "AP", "hours", *(["ended"] if early else []), *(head for head, _ in columns)):
        table.add_column(head, justify="right" if head in ("AP", "hours") else "left", no_wrap=head != "variant")
    for record in records[:SHOWN]:
        name = record.arm.removeprefix(SEARCHED) + (" *" if record.arm in starred else "")
        end = [f"at {record.steps}" if record.status == "stopped" else record.status] if early else []
        table.add_row(name, *_figures(record), *end, *_changes(columns, parameters.get(record.arm, {})))
    if len(records) > SHOWN:
        table.caption = f"and {len(records) - SHOWN} more"
    return table


def _rank(record: Record) -> float:
    return -record.student.AP if record.student and record.student.AP is not None else 1.0


def _figures(record: Record) -> tuple[str, ...]:
    """AP, and the hours that are an objective."""
    found = objectives(record)
    return tuple(format(found[x], form) if x in found else "n/a" for x, form in (("AP", ".1f"), ("gpu_hours", ".3g")))


HEADS = {"method.distill_weight": "distill", "method.instructive_weight": "instr.", "method.lr_factor": "lr"}
"""Short names of settings, at the heads of their columns."""

OFF = "off"
"""Head of the column of components that are off."""


def _columns(space: SearchSpace) -> list[tuple[str, str]]:
    """Head and setting of the columns of the trials; of OFF no setting."""
    components = [(OFF, ""), ("variant", VARIANT)] if space.components else []
    return [*((HEADS.get(x, x.removeprefix("method.")), x) for x in space.ranges), *components]


def _changes(columns: Sequence[tuple[str, str]], parameters: Mapping[str, Any]) -> list[str]:
    settings = settings_of(parameters)
    off = ", ".join(x for x in ("encoder", "adapter", "mapper") if settings.get(f"method.{x}") is False)
    return [off if head == OFF else str(settings.get(x, "")).replace("_", " ") for head, x in columns]


def command(spec: SweepSpec, parameters: Mapping[str, Any], seed: int, output: str) -> str:
    """The command that trains one trial of a search again: the arm that it is a variant of.

    With NEW_SEEDS seeds that neither the search, whose first one is ``seed``, nor the arm beside it had, and with the
    baseline; a method ``package.module:Class``, which no grid has an arm of, alone (docs/own-method.md).
    """
    method = spec.search.method if spec.search else DEFAULT
    given = [x for x in spec.overrides if split_assignment(x)[0] != "seed"]
    sets = [*given, *assignments(parameters), f"seed={seed + spec.seeds}"]
    if ":" in method:
        name, arms, sets = COMPONENTS.name, ["LGD"], [f"method.name={method}", *sets]
    else:
        name, arms = (COMPONENTS.name if method == DEFAULT else PAYS), ["baseline", title_of(method)]
    argv = ["python", "ablations/run.py", "--grid", name, "--preset", spec.preset, "--arms", ",".join(arms)]
    argv += ["--seeds", str(NEW_SEEDS), "--output", output]
    return shlex.join([*argv, *(x for s in sets for x in ("--set", s))])


def draw(study: optuna.Study, objectives: Sequence[str], directory: Path) -> list[Path]:
    """Optuna's own plots: history, importances of the parameters for each objective, and the Pareto front of two.

    Those that need more trials than there are, are left out. Returns what was written.
    """
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    written: list[Path] = []
    if not complete:
        return written
    for name, plot in _plots(study, objectives, importances=complete > 2).items():
        with quiet_optuna(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lgd"}):
            try:
                figure = plot().figure
            except (ValueError, RuntimeError):
                # Importances of parameters that never varied.
                continue
            figure.set_layout_engine("constrained")
            written += save(figure, directory / name)
            pyplot.close(figure)
    return written


def _plots(study: optuna.Study, objectives: Sequence[str], *, importances: bool) -> dict[str, Callable[[], Any]]:
    from optuna.visualization import matplotlib as plots

    found: dict[str, Callable[[], Any]] = {}
    for i, name in enumerate(objectives):
        found[f"history_{name}"] = partial(
            plots.plot_optimization_history, study, target=objective(i), target_name=name
        )
        if importances:
            found[f"importances_{name}"] = partial(
                plots.plot_param_importances, study, target=goal(i, name), target_name=name
            )
    if len(objectives) == 2:
        # Not "pareto", which is the figure of the sweep's arms and trials.
        found["search_pareto"] = partial(plots.plot_pareto_front, study, target_names=list(objectives))
    return found


def objective(i: int) -> Callable[[FrozenTrial], float]:
    """The value of a trial's objective ``i``."""
    return lambda trial: float(trial.values[i])


def goal(i: int, name: str) -> Callable[[FrozenTrial], float]:
    """The same where lower is better, as Optuna's importances (PED-ANOVA) take every target."""
    sign = -1.0 if OBJECTIVES[name] == "max" else 1.0
    return lambda trial: sign * float(trial.values[i])
