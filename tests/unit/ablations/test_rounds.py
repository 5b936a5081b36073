"""Rounds of seeds, and lgd pays: what a sweep runs after what it has run, without training anything."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from ablations.limits import Budget
from ablations.pays import arms_of, described, main, parser, plan_text
from ablations.plan import Sweep, describe, merge, trials_of
from ablations.rounds import after, looks, predicted_seconds
from ablations.run import main as run_main
from ablations.run import parser as run_parser
from ablations.sweep import RunOptions, _as_before, _resources
from ablations.sweep_command import new_sweep
from analysis.commands import command_of
from lgd.config.experiment import Experiment
from lgd.config.extra_arms import ExtraArms
from lgd.config.grids import Trial
from lgd.distributed.ray_train import Node
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.results.record import Record, Scores
from lgd.results.sweep_spec import SWEEP_FILE, SweepSpec

QUIET = Console(file=io.StringIO())


def two(trials: Sequence[Trial]) -> int:
    """On a machine of two cores."""
    return min(2, len(trials))


def _save(trial: Trial, ap: float, seconds: float) -> None:
    scores = Scores(AP=ap, AP50=None, AP75=None, APs=None, APm=None, APl=None)
    Record(
        status="finished", grid="components", preset="nano", arm=trial.arm, experiment=trial.experiment,
        student=scores, seconds={"training": seconds}, device_seconds={"training": seconds},
    ).save(trial.directory)  # fmt: skip


def _sweep(directory: Path, gains: tuple[float, ...], looks: tuple[int, ...] = (3, 5, 7)) -> SweepSpec:
    """A sweep whose trials of the first round, and their equal-cost baseline's, have ended."""
    extra = ExtraArms(equal_cost=("longer",))
    spec = describe("components", "nano", arms="baseline,LGD", extra=extra, looks=looks)
    spec.write(directory)
    for trial in trials_of(spec, directory).trials:
        gain = gains[trial.experiment.seed] if trial.arm == "LGD" else 0.0
        _save(trial, 30 + gain, 20.0 if trial.arm == "LGD" else 10.0)
    return spec


def _save_longer(sweep: Sweep, ap: float) -> None:
    """The records of the equal-cost baseline, all seeds of which have this AP."""
    for trial in sweep.trials:
        if trial.arm.startswith("baseline at"):
            _save(trial, ap, 20.0)


def test_what_follows_is_the_equal_cost_baseline_then_seeds_until_it_is_decided(tmp_path: Path) -> None:
    spec = _sweep(tmp_path, (0.5, 0.7, 0.9))
    first = trials_of(spec.model_copy(update={"steps": {}}), tmp_path)
    first.trials = [trial for trial in first.trials if not trial.arm.startswith("baseline at")]
    equal = after(first, Budget(), two, QUIET).sweep
    assert equal is not None
    longer = [trial for trial in equal.trials if trial.arm == "baseline at the cost of LGD"]
    # Twice the baseline's seconds, twice its steps.
    assert [trial.experiment.schedule.steps for trial in longer] == [1000] * 3
    for trial in longer:
        _save(trial, 30.2, 20.0)
    more = after(equal, Budget(), two, QUIET).sweep
    assert more is not None
    assert (more.spec.seeds, more.spec.steps) == (5, {"baseline at the cost of LGD": 1000})
    assert {trial.experiment.seed for trial in more.trials} == set(range(5))


def test_looks_that_cannot_decide_are_skipped_as_far_as_the_budget_goes(tmp_path: Path) -> None:
    """With ten times the spread of the sweep above five seeds tell nothing."""
    sweep = trials_of(_sweep(tmp_path, (5.7, -4.3, 0.7)), tmp_path)
    _save_longer(sweep, 30.2)
    out = io.StringIO()
    found = after(sweep, Budget(), two, Console(file=out, width=200)).sweep
    assert found is not None
    assert (found.spec.seeds, found.spec.looks) == (7, (3, 5, 7))
    assert "next look after 7 seeds: before, an answer has a chance below 5%" in out.getvalue()
    # Two more seeds take 50 seconds, four 100.
    found = after(sweep, Budget(max_time="90s", option="--budget"), two, QUIET).sweep
    assert found is not None
    assert found.spec.seeds == 5
    assert "the next 2 seeds of every arm" in after(sweep, Budget(max_time="40s", option="--budget"), two, QUIET).why


def test_a_sweep_that_is_decided_ends(tmp_path: Path) -> None:
    spec = _sweep(tmp_path, (-5.0, -5.1, -4.9))
    sweep = trials_of(spec, tmp_path)
    for trial in sweep.trials:
        if trial.arm.startswith("baseline at"):
            _save(trial, 31.0 + trial.experiment.seed / 10, 20.0)
    assert after(sweep, Budget(), two, QUIET) == (None, "")


def test_no_seeds_follow_where_every_one_diverged(tmp_path: Path) -> None:
    sweep = trials_of(_sweep(tmp_path, (1.0, -1.0, 0.5)), tmp_path)
    for trial in sweep.trials:
        if trial.arm == "baseline":
            Record(
                status="diverged", grid="components", preset="nano", arm=trial.arm, experiment=trial.experiment,
                seconds={"training": 10.0}, device_seconds={"training": 10.0}, reason="NaN",
            ).save(trial.directory)  # fmt: skip
    out = io.StringIO()
    assert after(sweep, Budget(), two, Console(file=out, width=200)) == (None, "")
    assert "after 3 seeds: LGD: no verdict, for all 3 seeds of baseline diverged." in out.getvalue()


def test_rounds_end_with_the_last_look_and_with_the_budget(tmp_path: Path) -> None:
    spec = _sweep(tmp_path, (1.0, -1.0, 0.5), looks=(3, 5))
    sweep = trials_of(spec, tmp_path)
    _save_longer(sweep, 30.0)
    # Two more seeds of 10, 20 and 20 seconds, two at once.
    budget = Budget(max_time="40s", option="--budget")
    none = after(sweep, budget, two, QUIET)
    assert none.sweep is None
    assert "the next 2 seeds of every arm take about 0:50" in none.why
    assert "is left of --budget 40s" in none.why
    assert after(sweep, Budget(max_time="2m"), two, QUIET).sweep is not None
    last = trials_of(spec.model_copy(update={"seeds": 5}), tmp_path)
    assert after(last, Budget(), two, QUIET) == (None, "")
    assert predicted_seconds([], 2, 2) == 0.0


def test_a_round_is_priced_at_what_runs_side_by_side_in_it(tmp_path: Path) -> None:
    """Not at what did in the round before, which may have had one trial left, or none."""
    sweep = trials_of(_sweep(tmp_path, (1.0, -1.0, 0.5), looks=(3, 5)), tmp_path)
    _save_longer(sweep, 30.0)
    asked = []

    def eight(trials: Sequence[Trial]) -> int:
        asked.append([trial.arm for trial in trials])
        return min(8, len(trials))

    # Two more seeds of 10, 20 and 20 seconds, all at once.
    assert after(sweep, Budget(max_time="30s", option="--budget"), eight, QUIET).sweep is not None
    assert ["baseline", "LGD", "baseline at the cost of LGD"] * 2 in asked


def test_looks_that_cannot_be() -> None:
    assert looks(None, None) == (3, 5, 7, 9, 11, 13, 15)
    assert looks(4, 8) == (4, 6, 8)
    with pytest.raises(InputError, match="--seeds 2 with --until-decided: 3 seeds at least"):
        looks(2, None)
    with pytest.raises(InputError, match="--max-seeds 2: fewer than the 3 seeds"):
        looks(None, 2)


def test_looks_are_fixed_beforehand(tmp_path: Path) -> None:
    describe("components", "nano", looks=(3, 5, 7)).write(tmp_path)
    with pytest.raises(InputError, match="looks at its result after 3, 5, 7 seeds, not after 3, 5"):
        merge(describe("components", "nano", looks=(3, 5)), tmp_path)
    assert merge(describe("components", "nano"), tmp_path).looks == (3, 5, 7)
    with pytest.raises(InputError, match="is looked at after 3, 5, 7 seeds, and 13 are none of these"):
        merge(describe("components", "nano", seeds=13), tmp_path)
    extra = ExtraArms(equal_cost=("longer",))
    assert merge(describe("components", "nano", extra=extra), tmp_path).extra == extra
    describe("components", "nano", min_gain=0.2).write(tmp_path)
    assert merge(describe("components", "nano"), tmp_path).min_gain == 0.2
    # Its name in older files.
    path = tmp_path / SWEEP_FILE
    path.write_text(path.read_text().replace('"min_gain"', '"detect"'))
    assert SweepSpec.read(tmp_path).min_gain == 0.2


def test_arms_bring_what_belongs_to_them() -> None:
    extra = ExtraArms(equal_cost=("longer", "bigger"), again=True)
    assert describe("components", "nano", arms="baseline", extra=extra).arms == (
        "baseline", "baseline again", "bigger baseline",
    )  # fmt: skip
    # What would be left out is said.
    with pytest.raises(InputError, match="a bigger baseline: no larger backbone is known"):
        describe("components", "finetune", extra=ExtraArms(equal_cost=("longer", "bigger")), data="shapes")
    own = ["detector.source=torchvision:fcos_resnet50_fpn"]
    with pytest.raises(InputError, match="which backbone of torchvision:fcos_resnet50_fpn is larger is not known"):
        describe("components", "tiny", extra=ExtraArms(equal_cost=("longer", "bigger")), overrides=own)
    with pytest.raises(InputError, match="--equal-cost and --a-a: --arms needs the baseline and the arm"):
        describe("components", "nano", arms="LGD", extra=extra)
    with pytest.raises(InputError, match="--equal-cost: grid noise-floor has no arm that it is for"):
        describe("noise-floor", "nano", extra=ExtraArms(equal_cost=("longer", "bigger")))
    with pytest.raises(InputError, match="--min-gain -1: points of AP, above 0"):
        describe("components", "nano", min_gain=-1.0)


@pytest.mark.parametrize(
    "options",
    [
        ["--equal-cost", "--a-a", "--min-gain", "0.3"],
        ["--until-decided", "--max-seeds", "9", "--arms", "baseline,LGD", "--equal-cost", "longer,bigger"],
        ["--until-decided", "--seeds", "5"],
    ],
)
def test_the_command_of_a_sweep_tells_all_of_it(options: list[str], tmp_path: Path) -> None:
    given = ["--grid", "components", "--preset", "nano", *options, "--output", str(tmp_path / "out")]
    spec, directory = new_sweep(run_parser().parse_args(given))
    again, _ = new_sweep(run_parser().parse_args(command_of(spec, str(directory)).split()[2:]))
    assert again == spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-seeds", "5"], "--max-seeds needs --until-decided"),
        (["--equal-cost", "shorter"], "shorter: longer, bigger, or both with a comma between"),
        (["--search", "optuna", "--a-a"], "--equal-cost, --a-a and --until-decided are for a grid, not for a search"),
        (["--min-gain", "0"], "--min-gain 0: points of AP, above 0"),
    ],
)
def test_options_that_say_nothing_are_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(["--grid", "components", "--preset", "nano", *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_pays_is_a_sweep_of_baseline_method_and_equal_cost(tmp_path: Path) -> None:
    given = [
        "--data",
        "shapes",
        "--methods",
        "lgd, pkd",
        "--preset",
        "nano",
        "--min-gain",
        "1",
        "--output",
        str(tmp_path),
    ]
    spec, directory = described(parser().parse_args(given))
    assert directory == tmp_path
    assert spec.arms == ("baseline", "LGD", "PKD", "baseline at the cost of LGD", "baseline at the cost of PKD")
    assert (spec.seeds, spec.looks[0], spec.looks[-1], spec.min_gain) == (3, 3, 15, 1.0)
    assert "data.source=shapes" in spec.overrides
    spec.write(tmp_path)
    # The same command goes on with what is there.
    assert described(parser().parse_args(given)) == (spec, tmp_path)
    assert arms_of("fgfi") == ["FGFI"]
    assert plan_text(spec, "8h").startswith("preset nano: baseline, LGD, PKD, baseline at the cost of LGD, ")
    assert plan_text(spec, "8h").endswith(
        "; 3 seeds of each, then more, 15 at most, until a difference of 1 AP can be ruled in or out, or 8h are over"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say on which data: --data SOURCE"),
        (["--data", "shapes", "--methods", "lgdd"], "no method 'lgdd'"),
        (["--data", "shapes", "--methods", "baseline"], "--methods baseline: it is what methods are compared with"),
        (["--data", "shapes", "--budget", "much"], "--budget much: a time such as 90s, 45m or 8h"),
        (
            ["--data", "shapes", "--preset", "nano", "--set", "method.name=fgfi"],
            "--set method.name=fgfi: say --methods",
        ),
        (["--data", "shapes", "--preset", "nano", "--max-seeds", "1"], "--max-seeds 1: fewer than the 3 seeds"),
    ],
)
def test_pays_refuses_in_a_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_round_that_the_device_hours_do_not_pay_for_is_not_begun(tmp_path: Path) -> None:
    spec = _sweep(tmp_path, (1.0, -1.0, 0.5), looks=(3, 5))
    sweep = trials_of(spec, tmp_path)
    _save_longer(sweep, 30.0)
    # Two more seeds of 10, 20 and 20 device-seconds.
    budget = Budget(max_gpu_hours=0.05)
    assert after(sweep, budget, two, QUIET, spent=79.0).sweep is not None
    none = after(sweep, budget, two, QUIET, spent=81.0)
    assert none.sweep is None
    assert none.why == (
        "the next 2 seeds of every arm take about 0.0278 device-hours, and 0.0275 is left of --max-gpu-hours 0.05"
    )


def test_an_arm_with_seeds_of_its_own_runs_beside_the_others(tmp_path: Path) -> None:
    spec = describe("components", "nano", arms="baseline,LGD", extra=ExtraArms(again=True), looks=(3, 5))
    sweep = trials_of(spec, tmp_path)
    arms = {trial.arm for trial in sweep.trials}
    assert len(arms) == 3
    assert sorted(trial.arm for trial in sweep.one_of_each_arm()) == sorted(arms)
    assert {trial.experiment.seed for trial in sweep.one_of_each_arm() if trial.arm in ("baseline", "LGD")} == {0}


def test_a_later_round_does_not_train_on_nodes_without_the_gpus_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [Trial("LGD", Experiment(), Path())]
    monkeypatch.setattr("lgd.distributed.ray_train.nodes", lambda: [Node(8, 0)])
    assert _resources(trials, RunOptions()).gpus == 0
    with pytest.raises(InputError):
        _resources(trials, _as_before(RunOptions(), Resources(4, 1.0, 2)))
    assert _resources(trials, _as_before(RunOptions(), Resources(4, 0.0, 2))).gpus == 0
