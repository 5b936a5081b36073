"""What a search shows of what it found."""

from __future__ import annotations

import io
import itertools
import os
import shlex
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.importance import get_param_importances
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from rich.console import Console

from ablations.plan import describe, search_spec, trials_of
from ablations.run import parser
from ablations.search import search_results
from ablations.search.optuna_search import Search, quiet_optuna, search_of, trial_name
from ablations.search.search_results import SHOWN, best_trials, command, draw, goal, show_search
from ablations.search.search_space import OBJECTIVES, proposed_trial, suggest
from ablations.sweep_command import new_sweep
from ablations.trial_config import RecordLabels, trial_config
from lgd.config.experiment import parse
from lgd.config.grids import Trial
from lgd.config.presets import NANO
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.results.record import FILE, Scores, load
from lgd.results.sweep_spec import SearchSpec
from lgd.training.run import failed_record
from tests.helpers_search import driver, end


def _score(high: float, low: float) -> float:
    """Its best values are where ``high`` is large, its worst ones where ``low`` is small."""
    return (10 if high > 0.8 else 0) - (10 if low < 0.2 else 0)


@pytest.mark.parametrize("names", [["AP"], ["AP", "gpu_hours"]])
def test_importances_are_of_what_makes_an_objective_good(names: list[str]) -> None:
    """AP is to be high and gpu_hours are to be low, alone and together."""
    directions = [StudyDirection.MAXIMIZE if OBJECTIVES[x] == "max" else StudyDirection.MINIMIZE for x in names]
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
    with quiet_optuna():
        for _ in range(300):
            trial = study.ask()
            value = _score(trial.suggest_float("high", 0, 1), trial.suggest_float("low", 0, 1))
            study.tell(trial, [value] * len(names))
        found = {x: get_param_importances(study, target=goal(i, x)) for i, x in enumerate(names)}
    assert found["AP"]["high"] > 2 * found["AP"]["low"]
    if len(names) > 1:
        # The same values as hours: the fewest are where "low" is small.
        assert found["gpu_hours"]["low"] > 2 * found["gpu_hours"]["high"]


@pytest.mark.slow
def test_the_importances_that_are_drawn_are_of_the_goals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """High AP and few hours, whatever Optuna takes for the goal of a target."""
    search, study = _searched(tmp_path, ["AP", "gpu_hours"], 4)
    given: dict[str, list[float]] = {}
    drawn = optuna.visualization.matplotlib.plot_param_importances

    def spied(study: optuna.Study, **options: Any) -> Any:
        given[options["target_name"]] = [options["target"](trial) for trial in study.get_trials()]
        return drawn(study, **options)

    monkeypatch.setattr(optuna.visualization.matplotlib, "plot_param_importances", spied)
    draw(study, search.objectives, tmp_path)
    # Each trial's number is its AP and its hours; the lowest target is what Optuna takes for the best.
    assert given == {"AP": [0.0, -1.0, -2.0, -3.0], "gpu_hours": [0.0, 1.0, 2.0, 3.0]}


def _searched(tmp_path: Path, objectives: list[str], count: int) -> tuple[Search, optuna.Study]:
    """A search whose trial number i got AP i and took i hours."""
    search = Search(NANO, tmp_path, count, tuple(objectives))
    study = search.study()
    base = trial_config(Trial("", NANO, tmp_path), RecordLabels("components", "nano"), tmp_path, Resources(1, 0, 1))
    scores = {"AP50": 0.0, "AP75": 0.0, "APs": None, "APm": None, "APl": None}
    for i in range(count):
        trial = study.ask()
        suggest(trial, base)
        proposed = proposed_trial({**trial.params, "base": base, "name": trial_name(study, trial.params)})
        record = failed_record(parse(proposed["experiment"]), "", **proposed["labels"])
        found = {"status": "finished", "student": Scores.model_validate({"AP": float(i), **scores})}
        found["device_seconds"] = {"training": 3600.0 * i}
        record.model_copy(update=found).save(Path(proposed["directory"]))
        study.tell(trial, [float(i)] * len(objectives))
    return search, study


@pytest.mark.parametrize(
    ("given", "never"),
    [
        ({"method.own_label_start": True}, ("method.adapter", False)),
        ({"method.centred_labels": True}, ("method.encoder", False)),
        ({"method.context": False}, ("method.mapper", False)),
        ({}, ("method.context", False)),
    ],
)
def test_no_proposal_is_one_that_cannot_be_trained(
    given: dict[str, Any], never: tuple[str, Any], tmp_path: Path
) -> None:
    base = trial_config(
        Trial("", NANO.override(given), tmp_path), RecordLabels("components", "nano"), tmp_path, Resources(1, 0, 1)
    )
    study, seen = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)), set()
    for _ in range(40):
        trial = study.ask()
        suggest(trial, base)
        method = parse(proposed_trial({**trial.params, "base": base, "name": "x"})["experiment"]).method.model_dump()
        seen.add((method["mapper"], method["encoder"], method["adapter"], method["variant"]))
        assert method[never[0].removeprefix("method.")] != never[1]
        study.tell(trial, 0.0)
    assert len(seen) >= 5


def test_what_only_arms_that_a_search_does_not_train_set_is_no_contradiction() -> None:
    search = SearchSpec(samples=3, objectives=("AP",), early_stop=False)
    spec = describe("components", "nano", overrides=["method.residual=true"], search=search)
    assert spec.arms == ("baseline",)


def _with_records(search: Search, **changes: Any) -> None:
    """Change the records of the search's trials: by number, the fields."""
    for name, update in changes.items():
        directory = search.output / "trials" / f"search-{name[1:]:0>3}"
        load(directory / FILE).model_copy(update=update).save(directory)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [["AP"], ["AP", "gpu_hours"]])
def test_a_trial_that_was_ended_early_is_no_result(
    objectives: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the best, not on the front, nor in the importances, also where an earlier version called it complete."""
    search, _ = _searched(tmp_path, objectives, 4)
    _with_records(search, t3={"status": "stopped", "steps": 5})
    drawn: list[list[str]] = []
    out = io.StringIO()
    spec = describe("components", "nano", search=search_spec(4, objectives, False))

    def draw(study: optuna.Study, *_: Any) -> list[Path]:
        drawn.append([x.state.name for x in study.trials])
        return []

    monkeypatch.setattr(search_results, "draw", draw)
    show_search(spec, search, Console(file=out, width=300, color_system=None))
    assert drawn == [["COMPLETE"] * 3 + ["PRUNED"]]
    lines = out.getvalue().splitlines()
    stars = [line.split()[0] for line in lines if " * " in line]
    assert stars == (["002"] if objectives == ["AP"] else ["002", "001", "000"])
    assert [line for line in lines if line.split()[:1] == ["003"] and "at 5" in line]


def test_the_front_is_of_the_hours_that_records_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier version told the study those of all phases, lost work included."""
    search, _ = _searched(tmp_path, ["AP", "gpu_hours"], 2)
    # The study has an hour for it, and an AP above the other's at none.
    _with_records(search, t1={"device_seconds": {"training": 0.0, "lost": 3600.0}})
    out = io.StringIO()
    monkeypatch.setattr(search_results, "draw", lambda *_: [])
    spec = describe("components", "nano", search=search_spec(2, ["AP", "gpu_hours"], False))
    show_search(spec, search, Console(file=out, width=300, color_system=None))
    assert [line.split()[:4] for line in out.getvalue().splitlines() if " * " in line] == [["001", "*", "1.0", "0"]]


def test_the_best_is_trained_again_with_seeds_that_did_not_choose_it(tmp_path: Path) -> None:
    spec = describe("components", "nano", overrides=["seed=4", "method.encoder=false"], seeds=2, search=search_spec(
        3, ["AP"], False))  # fmt: skip
    _, script, *arguments = shlex.split(command(spec, {"method.lr_factor": 0.51234}, 4, "/results/best of all"))
    assert script == "ablations/run.py"
    options = parser().parse_args(arguments)
    again, directory = new_sweep(options)
    assert directory == Path("/results/best of all")
    # The search had seed 4, and its baseline 4 and 5.
    trials = trials_of(again, directory).trials
    assert [(x.arm, x.experiment.seed) for x in trials] == [
        (arm, 6 + i) for i in range(3) for arm in ("baseline", "LGD")
    ]
    method = trials[1].experiment.method.model_dump()
    assert (method["encoder"], method["lr_factor"]) == (False, 0.512)


def test_the_best_of_another_method_is_trained_again_beside_the_baseline(tmp_path: Path) -> None:
    spec = describe("components", "nano", seeds=1, search=search_spec(3, ["AP"], False, method="pkd"))
    _, _, *arguments = shlex.split(command(spec, {"method.distill_weight": 0.01234}, 0, str(tmp_path / "again")))
    again, directory = new_sweep(parser().parse_args(arguments))
    trials = trials_of(again, directory).trials
    assert [(x.arm, x.experiment.seed) for x in trials] == [(a, 1 + i) for i in range(3) for a in ("baseline", "PKD")]
    assert trials[1].experiment.method.distill_weight == 0.0123


def test_what_was_tried_of_another_method_has_its_settings_as_columns(tmp_path: Path) -> None:
    wanted = search_spec(3, ["AP"], False, method="pkd").model_copy(update={"space": ("method.weight=1.0:20.0",)})
    spec = describe("components", "nano", search=wanted)
    search = search_of(spec, tmp_path)
    assert search is not None
    with driver(search) as searcher:
        for i in range(2):
            proposed = searcher.suggest(str(i))
            searcher.on_trial_complete(str(i), end(search, proposed, curve={6: float(i)}))
    out = io.StringIO()
    show_search(spec, search, Console(file=out, width=160, color_system=None))
    lines = out.getvalue().splitlines()
    assert lines[1].split() == ["trial", "AP", "hours", "distill", "weight"]
    assert len(lines[2].split()) == 6  # with the star of the best
    assert "--grid pays --preset nano --arms baseline,PKD" in out.getvalue()


def test_the_front_is_of_a_searchs_own_trials(tmp_path: Path) -> None:
    """Another driver on the same study had one that is better than all of them."""
    search, study = _searched(tmp_path, ["AP", "gpu_hours"], 2)
    uniform = optuna.distributions.FloatDistribution(0, 1)
    study.add_trial(optuna.trial.create_trial(values=[9.0, 0.0], params={"x": 0.5}, distributions={"x": uniform}))
    assert [t.number for t in study.best_trials] == [2]
    assert [t.number for t in best_trials(search, study)] == [1, 0]


def test_what_was_tried_is_a_table_best_first(tmp_path: Path) -> None:
    search, _ = _searched(tmp_path, ["AP"], SHOWN + 2)
    out = io.StringIO()
    spec = describe("components", "nano", search=search_spec(3, ["AP"], False))
    written = show_search(spec, search, Console(file=out, width=80, color_system=None))
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == "trials of the search, best first"
    rows = [line.split() for line in lines[2 : 2 + SHOWN]]
    assert rows[0][:4] == ["021", "*", "21.0", "21"]
    assert [row[0] for row in rows] == [f"{i:03}" for i in range(SHOWN + 1, 1, -1)]
    assert "and 2 more" in lines[2 + SHOWN]
    assert "…" not in out.getvalue()
    # No number has more digits than it is worth, in the table or in the command.
    assert not [word for line in lines for word in line.replace("=", " ").split() if len(word.partition(".")[2]) > 4
                and word.replace(".", "").isdigit()]  # fmt: skip
    best = "python ablations/run.py --grid components --preset nano --arms baseline,LGD --seeds 3"
    assert f"  search-021: {best} --output {tmp_path}-search-021 --set" in out.getvalue()
    assert out.getvalue().count("the AP of the best of 22 trials is overstated: one seed chose it") == 1
    assert {path.name for path in written} >= {"history_AP.png", "importances_AP.png"}


def test_a_study_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """SQLite would wait, and could not be interrupted."""
    os.mkfifo(tmp_path / "study.db")
    with pytest.raises(InputError, match="study.db: not a study that can be read .not a regular file"):
        Search(NANO, tmp_path).check_study()


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_study_that_is_lost_while_it_is_shown(answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database answers so often, and then no more: one line, or all that was to be shown."""
    search, _ = _searched(tmp_path, ["AP"], 2)
    asked, get = itertools.count(), RDBStorage._get_trials

    def request(*arguments: Any, **options: Any) -> Any:
        if next(asked) >= answers:
            raise optuna.exceptions.StorageInternalError("the server\nclosed the connection")
        return get(*arguments, **options)

    monkeypatch.setattr(RDBStorage, "_get_trials", request)
    monkeypatch.setattr(search_results, "draw", lambda study, *_: study.trials)
    out = io.StringIO()
    spec = describe("components", "nano", search=search_spec(3, ["AP"], False))
    shown = show_search(spec, search, Console(file=out, width=300))
    if answers:
        assert len(shown) == 2
        assert "search-001: python ablations/run.py" in out.getvalue()
    else:
        gone = "the server closed the connection: the trials of the search are not shown"
        assert out.getvalue() == f"study {tmp_path}/study.db: {gone}\n"


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 6])
def test_plots_warn_of_nothing_and_leave_the_sweeps_own_alone(count: int, tmp_path: Path) -> None:
    search, study = _searched(tmp_path, ["AP", "gpu_hours"], count)
    (tmp_path / "pareto.png").write_bytes(b"the sweep's")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What an earlier test has left open may be collected meanwhile.
        warnings.simplefilter("ignore", ResourceWarning)
        written = {path.name for path in draw(study, search.objectives, tmp_path)}
    assert "search_pareto.png" in written
    assert (tmp_path / "pareto.png").read_bytes() == b"the sweep's"
