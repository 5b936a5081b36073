"""Searches: what Optuna may propose, and a real one end to end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from ablations.run import main
from ablations.search.optuna_search import STUDY_FILE, Search, search_of, trial_name
from ablations.search.search_results import best_trials, command, draw
from ablations.search.search_space import WITHOUT_ADAPTER, proposed_trial, settings_of, suggest
from ablations.trial_config import TEACHERS, RecordLabels, TrialConfig, trial_config
from lgd.config.components import component_conflict
from lgd.config.experiment import parse
from lgd.config.grids import Trial
from lgd.config.presets import NANO
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.methods.label_guided import LGD
from lgd.results.record import FILE, load
from lgd.results.sweep_spec import STUDY, SearchSpec, SweepSpec
from lgd.training.run import failed_record
from tests.helpers import unsaved, wait_until
from tests.integration.commands import ONE_BY_ONE, OVERRIDES, QUICK, run

ROOT = Path(__file__).parents[2]


def _base(tmp_path: Path, **method: Any) -> TrialConfig:
    experiment = NANO.override({f"method.{k}": v for k, v in method.items()})
    labels = RecordLabels("components", "nano")
    return trial_config(Trial("", experiment, tmp_path), labels, tmp_path, Resources(1, 0, 1))


def _proposed(base: TrialConfig, name: str, **parameters: Any) -> TrialConfig:
    return proposed_trial({**{f"method.{k}": v for k, v in parameters.items()}, "base": base, "name": name})


def _save(proposed: TrialConfig, status: str) -> None:
    record = failed_record(parse(proposed["experiment"]), "", **proposed["labels"])
    record.model_copy(update={"status": status}).save(Path(proposed["directory"]))


@pytest.mark.slow
@pytest.mark.parametrize("context", [True, False])
def test_everything_that_is_proposed_can_be_trained(context: bool, tmp_path: Path) -> None:
    base = _base(tmp_path, context=context)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(300):
        trial = study.ask()
        suggest(trial, base)
        method = proposed_trial({**trial.params, "base": base, "name": "x"})["experiment"]["method"]
        parts = {k: method[k] for k in ("encoder", "adapter", "mapper", "variant", "context")}
        assert not component_conflict(**parts)
        seen.add(tuple(parts.values()))
        # A parameter is asked about only where it has a choice.
        variants = [name for name in trial.params if name.startswith("method.variant")]
        if not method["encoder"]:
            assert variants == []
        else:
            assert variants == [f"method.variant{'' if method['adapter'] else WITHOUT_ADAPTER}"]
        assert ("method.mapper" in trial.params) == context
        assert ("method.adapter" in trial.params) == (method["mapper"] or method["encoder"])
    # Every combination that works is reached.
    wanted = {
        (e, a, m, v, context)
        for e in (True, False)
        for a in (True, False)
        for m in (True, False)
        for v in ("appearance_queries", "label_queries", "appearance_only", "label_only")
        if not component_conflict(encoder=e, adapter=a, mapper=m, variant=v, context=context)
    }
    assert seen == wanted


def test_equal_proposals_are_one_trial(tmp_path: Path) -> None:
    """Named by the number of the first; what is trained with is rounded to three digits."""
    base, study = _base(tmp_path), Search(NANO, tmp_path).study()
    for _ in range(2):
        suggest(study.ask(), base)
    study.enqueue_trial(study.trials[0].params)
    suggest(study.ask(), base)
    assert [trial_name(study, t.params) for t in study.trials] == ["search-000", "search-001", "search-000"]
    proposed = _proposed(base, "search-007", encoder=True, distill_weight=0.123456)
    assert proposed["directory"] == str(tmp_path / "trials" / "search-007")
    assert proposed["labels"]["overrides"] == ["method.distill_weight=0.123", "method.encoder=true"]
    assert proposed["experiment"]["method"]["distill_weight"] == 0.123


def test_the_command_of_a_trial_trains_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {"method.encoder": False, "method.distill_weight": 0.123456789, "method.adapter": True}
    spec = SweepSpec(
        grid="components", preset="nano", overrides=("schedule.steps=6", "data.source=coco-json:/a b"), arms=(), seeds=1
    )
    line = command(spec, parameters, 3, str(tmp_path))
    _, script, *arguments = shlex.split(line)
    assert script == "ablations/run.py"
    assert arguments.count("--set") == 6
    assert "data.source=coco-json:/a b" in arguments
    sets = [x for x in arguments if "=" in x and not x.startswith("data.")]
    experiment = NANO.override([*sets, "schedule.warmup_steps=2"])
    assert isinstance(experiment.method, LGD)
    assert experiment.method.distill_weight == 0.123
    assert not experiment.method.encoder
    assert experiment.seed == 4
    assert settings_of({f"method.variant{WITHOUT_ADAPTER}": "label_queries"}) == {"method.variant": "label_queries"}


@pytest.mark.slow
def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--grid", "components", *QUICK, "--output", str(tmp_path / "out")]
    for arguments, words in (
        (["--search", "optuna", "--samples", "0"], "--samples 0"),
        (["--search", "optuna", "--objectives", "gpu_hours"], "--objectives gpu_hours"),
        (["--search", "optuna", "--objectives", "AP,mAP"], "--objectives AP,mAP"),
        (["--search", "optuna", "--objectives", "AP,AP"], "--objectives AP,AP"),
        (["--search", "optuna", "--early-stop", "--objectives", "AP,gpu_hours"], "--early-stop with --objectives"),
        (["--samples", "3"], "need --search optuna"),
        (["--early-stop"], "need --search optuna"),
        (["--max-time", "soon"], "--max-time soon"),
        (["--max-gpu-hours", "0"], "--max-gpu-hours 0"),
        (["--workers", "0"], "--workers 0"),
        (["--workers", "3"], "does not split over 3 workers"),
        (["--workers", "2", "--cpus", "4000"], "can never run here"),
    ):
        assert main([*common, *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    # In a process of its own, for tests of this one share a Ray that is open already.
    script = [sys.executable, str(ROOT / "ablations" / "run.py"), *common, "--address", "127.0.0.1:1"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "no Ray cluster" in done.stderr


def test_any_grid_can_be_searched_around(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the paper's tables have no arm that all are compared to: the search runs alone."""
    arguments = [*QUICK, "--search", "optuna", "--samples", "3", "--output", str(tmp_path), "--dry-run"]
    assert main(["--grid", "teacher-based", *arguments]) == 0
    said = capsys.readouterr().out
    assert "0 of 0 trials to run" in said
    assert "and 3 samples of a search" in said


def test_a_dry_run_counts_the_samples_that_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = _base(tmp_path)
    for i, status in enumerate(("finished", "stopped", "failed")):
        _save(_proposed(base, f"search-00{i}", distill_weight=0.5 + i / 10), status)
    arguments = [*QUICK, "--search", "optuna", "--samples", "5", "--output", str(tmp_path), "--dry-run"]
    assert main(["--grid", "teacher-based", *arguments, "--accept-other-code"]) == 0
    assert "and 3 samples of a search" in capsys.readouterr().out


def test_only_a_search_has_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {"schema_version": 1, "grid": "components", "preset": "nano", "overrides": OVERRIDES}
    sweep |= {"arms": ["baseline"], "reference": "baseline", "seeds": 1}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert main(["--resume", str(tmp_path), "--samples", "7"]) == 2
    assert capsys.readouterr().err == f"error: --samples 7: {tmp_path} holds no search\n"


def test_a_study_keeps_its_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = {"samples": 3, "objectives": ["AP", "gpu_hours"], "early_stop": False}
    sweep = {"schema_version": 1, "grid": "components", "preset": "nano", "overrides": OVERRIDES}
    sweep |= {"arms": ["baseline"], "reference": "baseline", "seeds": 1, "search": described}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert main(["--grid", "components", *QUICK, "--search", "optuna", "--output", str(tmp_path)]) == 2
    assert "holds a search with objectives AP,gpu_hours, not objectives AP" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path), "--early-stop"]) == 2
    assert "leave out --early-stop" in capsys.readouterr().err


def test_a_new_study_takes_no_names_of_earlier_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """study.db was lost: an earlier trial's record is not taken for that of what is proposed now."""
    base = _base(tmp_path)
    _save(_proposed(base, "search-001", distill_weight=0.5), "finished")
    search = Search(NANO, tmp_path, samples=3)
    with search.opened(base) as (searcher, _, left):
        assert left == 2
        proposed = searcher.suggest("first")
        assert proposed is not None
        assert proposed["name"] == "search-002"
        searcher.on_trial_complete("first", error=True)
    assert "does not know 2 earlier trials" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_a_damaged_study_is_named(damage: str, tmp_path: Path) -> None:
    Search(NANO, tmp_path).study()
    path = tmp_path / STUDY_FILE
    content = bytearray(path.read_bytes())
    content = content[: len(content) // 2] if damage == "cut off" else bytearray(b"\xff" * 200) + content[200:]
    path.write_bytes(content)
    wanted = SearchSpec(samples=3, objectives=("AP",), early_stop=False)
    spec = SweepSpec(grid="components", preset="nano", overrides=(), arms=(), seeds=1, search=wanted)
    with pytest.raises(InputError, match="remove it, and the search goes on without") as refused:
        search_of(spec, tmp_path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_the_front_is_of_trials_that_were_trained_to_their_end(tmp_path: Path) -> None:
    """Optuna's plots of both objectives, and the Pareto front without a trial that was cut off."""
    search = Search(NANO, tmp_path, 20, ("AP", "gpu_hours"))
    study = search.study()
    base = _base(tmp_path)
    for ap, hours, status in (
        (10.0, 1.0, "finished"),
        (12.0, 2.0, "finished"),
        (9.0, 3.0, "finished"),
        (8.0, 0.1, "stopped"),
    ):
        trial = study.ask()
        suggest(trial, base)
        name = trial_name(study, trial.params)
        _save(proposed_trial({**trial.params, "base": base, "name": name}), status)
        study.tell(trial, [ap, hours])
    assert [t.values for t in best_trials(search, study)] == [[12.0, 2.0], [10.0, 1.0]]
    written = {path.name for path in draw(study, search.objectives, tmp_path)}
    for name in ("history_AP", "history_gpu_hours", "importances_AP", "importances_gpu_hours", "search_pareto"):
        assert {f"{name}.png", f"{name}.svg"} <= written
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


STEPS = 80

SEARCH = [
    "--grid", "components", *QUICK, "--set", f"schedule.steps={STEPS}", "--set", f"evaluation.every={STEPS // 4}",
    "--set", f"checkpoint.every={STEPS // 10}", "--set", "threads=1",
    "--search", "optuna", "--samples", "3", "--early-stop", "--cpus", "2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session", "no_leftover_processes")
def test_a_search_goes_on_after_its_driver_was_killed_and_its_time_was_over(tmp_path: Path) -> None:
    """One trial after the other: when the driver is killed some are finished, and one has a checkpoint."""
    interrupted = None
    for _ in range(3):
        _kill_at_work(tmp_path)
        interrupted = _interrupted(tmp_path)
        # A trial may write a checkpoint after its driver was killed and before it ends, and then has lost nothing.
        if interrupted is not None:
            break
    assert interrupted is not None
    kept = {path: path.read_bytes() for path in tmp_path.glob(f"trials/*/{FILE}")}
    assert {"baseline-seed0", "search-000"} <= {path.parent.name for path in kept}
    ended_early = run("--resume", str(tmp_path), "--cpus", "2", "--max-gpu-hours", "1e-5", status=3)
    assert "1 trials and 3 samples of a search, 0 to run" in ended_early.out
    assert "samples of the search" in ended_early.out
    done = run("--resume", str(tmp_path), "--cpus", "2")
    records = {path: load(path) for path in tmp_path.glob(f"trials/*/{FILE}")}
    assert all(path.read_bytes() == content for path, content in kept.items())
    record = records[interrupted / FILE]
    # It went on; the scheduler, which knows the trials from before the kill, may have ended it for its AP.
    assert record.status in ("finished", "stopped")
    assert record.attempts >= 2
    searched = [r for r in records.values() if r.arm.startswith("search-")]
    assert len(searched) == 3
    assert {r.status for r in searched} <= {"finished", "stopped"}
    assert [r.arm for r in records.values() if not r.arm.startswith("search-")] == ["baseline"]
    assert len({tuple(r.overrides) for r in searched}) == 3
    for record in searched:
        assert record.evaluations
        assert (record.steps < STEPS) == (record.status == "stopped")
    _check_study(tmp_path)
    assert "best trial:" in done.out
    assert "python ablations/run.py --grid components --preset nano --arms baseline,LGD --seeds 3" in done.out
    assert {"history_AP.png", "history_AP.svg"} <= {x.name for x in tmp_path.iterdir()}
    assert json.loads((tmp_path / "sweep.json").read_text())["ended"] == {"why": "", "not_run": []}

    run("--resume", str(tmp_path))
    assert len(list(tmp_path.glob(f"trials/search-*/{FILE}"))) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session", "no_leftover_processes")
def test_the_trials_of_a_search_share_their_teacher(tmp_path: Path) -> None:
    arguments = ["--grid", "components", *QUICK, *ONE_BY_ONE, "--search", "optuna", "--method", "pkd", "--samples", "2"]
    done = run(*arguments, "--set", "method.teacher.gate=false", "--output", str(tmp_path))
    records = [load(path) for path in sorted(tmp_path.glob(f"trials/search-*/{FILE}"))]
    (teacher,) = (load(path) for path in tmp_path.glob(f"{TEACHERS}/*/{FILE}"))
    assert [x.status for x in (*records, teacher)] == ["finished"] * 3
    assert {x.pretraining.fingerprint for x in records if x.pretraining} == {teacher.fingerprint}
    assert len({x.experiment.method.distill_weight for x in records}) == 2
    assert "--grid pays --preset nano --arms baseline,PKD --seeds 3" in done.out


def _kill_at_work(output: Path) -> None:
    """Start the search, or go on with it, and kill its driver once that would cost some work."""
    script = [sys.executable, str(ROOT / "ablations" / "run.py")]
    process = subprocess.Popen(
        [*script, *SEARCH, "--output", str(output)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _interrupted(output) is not None or process.poll() is not None)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.kill()
        process.wait()


def _interrupted(output: Path) -> Path | None:
    """A trial of the search that a kill would cost some of its work, once another one has ended."""
    trials = sorted(output.glob("trials/search-*"))
    at_work = [x for x in trials if not (x / FILE).exists() and unsaved(x) > 0]
    return at_work[0] if at_work and len(at_work) < len(trials) else None


def _check_study(output: Path) -> None:
    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{output / STUDY_FILE}")
    states = [t.state for t in study.trials]
    assert optuna.trial.TrialState.RUNNING not in states
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    records = {x.parent.name: load(x) for x in output.glob(f"trials/search-*/{FILE}")}
    assert len(complete) == sum(x.status == "finished" for x in records.values())
    assert all(0 <= t.values[0] <= 100 for t in complete)
    for trial in study.trials:
        if trial.state != optuna.trial.TrialState.FAIL:
            # Across the kills: of the trial that went on, too.
            points = records[trial_name(study, trial.params)].evaluations
            assert trial.intermediate_values == pytest.approx({x.step: x.student.AP for x in points})
