"""The main command, end to end: real trainings under Ray, a few steps each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from filelock import FileLock

from ablations.checks import code_version
from ablations.limits import Budget, Placement
from ablations.run import main
from lgd.config.grids import COMPONENTS, NAMES, grid, plan
from lgd.config.presets import NANO
from lgd.data.shapes import CATEGORIES, ShapesSpec, make
from lgd.detectors import weight_sources
from lgd.results import provenance
from lgd.results.record import Record, load
from lgd.results.sweep_spec import SweepSpec
from lgd.training import run as training
from lgd.training.build import build, dry_build
from tests.helpers import wait_until
from tests.helpers_data import VOC_SPLITS, edit_json, write_coco, write_voc
from tests.integration.commands import OVERRIDES, QUICK, Called, run

ROOT = Path(__file__).parents[2]


class Finished(NamedTuple):
    """A sweep of three arms that was run twice: one trial failed at first."""

    output: Path
    first: Called
    second: Called
    kept: bool
    """The record of a trial that had finished at first was left alone."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Finished:
    output = tmp_path_factory.mktemp("sweep") / "with space"
    common = ["--grid", "components", *QUICK, "--output", str(output), "--arms", "baseline,LGD,label only"]
    # A directory where a trial writes its losses: that trial fails.
    (output / "trials" / "lgd-seed0" / "metrics.json").mkdir(parents=True)
    first = run(*common, status=1)
    assert load(output / "trials" / "lgd-seed0" / "record.json").status == "failed"
    (output / "trials" / "lgd-seed0" / "metrics.json").rmdir()
    baseline = output / "trials" / "baseline-seed0" / "record.json"
    before = baseline.stat().st_mtime_ns
    second = run(*common)
    return Finished(output, first, second, baseline.stat().st_mtime_ns == before)


@pytest.mark.slow
def test_a_grid_runs_to_its_table_and_resumes(finished: Finished) -> None:
    """One trial fails, the others go on; running again adds what is missing and nothing else."""
    output, first, second, kept = finished
    assert "[3/3]" in first.out
    failed = next(line for line in first.out.splitlines() if "LGD, seed 0: failed: IsADirectoryError" in line)
    assert failed.endswith(f"(see {output / 'trials' / 'lgd-seed0' / 'error.txt'})")
    # Ray's own account of it is in a file.
    assert "Traceback" not in first.out + first.err
    assert "IsADirectoryError" in (output / "ray.log").read_text()
    assert "starting Ray" in first.out
    assert "3 trials, 1 to run" in second.out
    assert kept

    frame = pd.read_csv(output / "records.csv")
    assert sorted(frame["arm"]) == ["LGD", "baseline", "label only"]
    assert set(frame["status"]) == {"finished"}
    assert frame["fingerprint"].nunique() == 3
    table = (output / "table.md").read_text()
    assert all(f"| {arm} " in table for arm in ("baseline", "LGD", "label only"))
    assert list(output.glob("arms.*"))
    record = load(output / "trials" / "lgd-seed0" / "record.json")
    assert record.steps == 6
    assert record.student is not None
    assert record.student.AP is not None
    assert set(record.student.per_class) == {name for name, _ in CATEGORIES}
    assert record.seconds["training"] > 0
    assert record.seconds["setup"] > 0
    assert record.losses["loss_distill"]
    assert (output / "trials" / "lgd-seed0" / "student.pth").exists()

    assert "3 of 3 trials finished" in run("--status", str(output)).out
    again = run("--resume", str(output))
    assert "0 to run" in again.out
    assert "\n\n" not in again.err


@pytest.mark.slow
def test_a_directory_of_other_code_is_refused(finished: Finished, tmp_path: Path) -> None:
    output = shutil.copytree(finished.output, tmp_path / "out")
    arguments = ["--grid", "components", *QUICK, "--arms", "baseline,LGD,label only", "--output", str(output)]
    path = output / "sweep.json"
    sweep = json.loads(path.read_text())
    sweep["code"]["versions"]["torch"] = "1.0"
    sweep["code"]["files"]["lgd/methods/label_guided/distance.py"] = "another"
    path.write_text(json.dumps(sweep))
    refused = run(*arguments, "--seeds", "2", status=2).err
    assert f"torch 1.0 there and {provenance.versions()['torch']} here" in refused
    assert "changed: lgd/methods/label_guided/distance.py" in refused
    assert refused.count("\n") == 1
    run(*arguments, "--seeds", "2", "--accept-other-code", "--dry-run")


def test_two_sweeps_do_not_share_a_directory(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"):
        refused = run("--grid", "components", *QUICK, "--arms", "baseline", "--output", str(tmp_path), status=2)
    assert "another sweep is at work there" in refused.err


@pytest.mark.slow
def test_ctrl_c_leaves_a_directory_that_resumes(tmp_path: Path) -> None:
    output = tmp_path / "out"
    long = ["--grid", "components", *QUICK, "--set", "schedule.steps=3000", "--arms", "baseline,LGD"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "ablations" / "run.py"), *long, "--output", str(output)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: bool(list(output.glob("trials/*/metrics.json"))) or process.poll() is not None)
        assert process.poll() is None, "it ended before it could be interrupted"
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert f"--resume {output}" in said
    assert "Traceback" not in said
    assert "0 of 2 trials finished" in run("--status", str(output)).out
    assert SweepSpec.read(output).arms == ("baseline", "LGD")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "colours"], "no grid 'colours'"),
        (["--grid", "components", "--preset", "huge"], "no preset 'huge'"),
        (["--grid", "components", "--seeds", "0"], "--seeds 0"),
        (["--grid", "components", "--set", "schedule.step=3"], "did you mean 'schedule.steps'"),
        (["--grid", "components", "--set", "method.context=false"], "arm 'without mapper'"),
        (["--grid", "components", "--arms", "LGD,nothing"], "no arm 'nothing'"),
        (["--grid", "table7", "--arms", "RetinaNet R-50 2x ms LabelEnc"], "LabelEnc's label-encoding network"),
        (["--grid", "components", "--data", "coco-json:/nowhere"], "/nowhere"),
        (["--grid", "components", "--data", "cifar:/x"], "cifar"),
        (["--grid", "components", "--cpus", "5000"], "5000 CPU and"),
        (["--grid", "components", "--gpus", "77"], "--gpus 77"),
        (["--grid", "components", "--set", "method.name=baseline"], "would train the same thing"),
        (["--grid", "components", "--cpus", "0"], "--cpus 0"),
        (["--grid", "components", "--gpus", "-1"], "--gpus -1"),
        (["--grid", "components", "--set", "precision=fp16", "--set", "device=auto", "--gpus", "0"], "needs a GPU"),
        (["--grid", "components", "--dry-run", "--price-per-gpu-hour", "-1"], "--price-per-gpu-hour -1"),
        (["--grid", "components", "--price-per-gpu-hour", "1"], "need --dry-run"),
        (
            ["--grid", "components", "--dry-run", "--set", "detector.backbone.weights=/no.pkl"],
            "there is no file /no.pkl",
        ),
        (["--grid", "components", "--dry-run", "--set", "log=[mlflow]"], "log mlflow: its package is not installed"),
        (["--resume", "/nowhere", "--seeds", "3"], "leave out --seeds"),
        (["--status", "/nowhere", "--set", "seed=1"], "leave out --set"),
        (["--status", "/nowhere"], "/nowhere"),
        (["--resume", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = [*QUICK, "--output", str(tmp_path / "out")] if "--grid" in arguments else []
    assert main([*arguments, *more]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "components", *QUICK, "--dry-run", "--seeds", "2", "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("label-queries-seed1 ") for line in lines)
    # The cost comes first, and the settings on request.
    assert lines[1].startswith("16 of 16 trials to run")
    assert "predict" in lines[2]
    assert not any("schedule.batch" in line for line in lines)
    assert lines[-1] == "ready"
    assert not (tmp_path / "out").exists()


def test_a_paper_sweep_offline_names_data_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What must be downloaded is printed although the data is missing, and what cannot be had is in the list."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(weight_sources, "urlopen", offline)
    weight_sources._content_length.cache_clear()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    arms = ["--arms", "baseline,LGD", "--output", str(tmp_path / "out")]
    assert main(["--grid", "components", "--preset", "paper", *arms, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "R-50.pkl: to be downloaded" in said.out
    first, *lines = said.err.splitlines()
    assert first == "error: not ready, 2 things are in the way:"
    assert any("datasets/coco does not exist" in line for line in lines)
    assert any("R-50.pkl are not on this machine and cannot be downloaded" in line for line in lines)


def test_a_rate_off_the_linear_rule_is_remarked_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--grid", "components", *QUICK, "--arms", "baseline", "--dry-run", "--output", str(tmp_path / "out")]
    assert main(common) == 0
    assert capsys.readouterr().err == ""
    assert main([*common, "--set", "schedule.lr=0.05"]) == 0
    assert capsys.readouterr().err == (
        "warning: schedule.lr 0.05 is not what the linear scaling rule gives for 2 images per step: 0.0125"
        " (0.1 for 16); schedule.lr=auto follows the rule\n"
    )


@pytest.mark.parametrize(
    ("option", "seconds"), [("2", 2), ("90s", 90), ("1.5m", 90), ("45m", 2700), ("8h", 28_800), ("2d", 172_800)]
)
def test_a_sweeps_time(option: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(max_time=option)
    assert budget.exceeded(1e9) == ""
    now[0] += seconds - 0.001
    assert budget.exceeded(0) == ""
    now[0] += 0.001
    assert budget.exceeded(0) == f"--max-time {option} is over"


def test_a_sweeps_gpu_hours() -> None:
    budget = Budget(max_gpu_hours=1.5)
    assert budget.exceeded(1.5 * 3600 - 1) == ""
    assert budget.exceeded(1.5 * 3600) == "--max-gpu-hours 1.5 are used"
    assert Budget().exceeded(1e12) == ""


def test_list_names_every_arm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for name in NAMES:
        assert name in said
    assert main(["--list", "--grid", "components"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in ("baseline", "without encoder", "label queries"):
        assert name in said
    assert main(["--list", "--grid", "table9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the paper: mMR 46.4 %" in said
    assert "without encoder" not in said


def test_a_directory_holds_one_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "schema_version": 1, "grid": "components", "preset": "small", "overrides": [],
                "arms": ["baseline"], "reference": "baseline", "seeds": 1,
            }
        )
    )  # fmt: skip
    assert main(["--grid", "components", "--output", str(tmp_path)]) == 2
    assert "preset 'small', not 'nano'" in capsys.readouterr().err


def test_a_directory_holds_several_grids_of_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a second table shares with the first is not trained again."""
    for trial in plan(grid("teacher-based", "nano"), NANO, 1, [*OVERRIDES, "method.fgfi.from_step=2"], tmp_path):
        if trial.arm in ("RetinaNet R-50 2x ms baseline", "RetinaNet R-50 2x ms LGD"):
            shown = build(trial.experiment, pretrained=False).fingerprint
            Record(status="finished", arm=trial.arm, experiment=trial.experiment, fingerprint=shown).save(
                trial.directory
            )
    more = [*QUICK, "--set", "method.fgfi.from_step=2", "--output", str(tmp_path), "--dry-run"]
    assert main(["--grid", "table7", *more]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 trials to run" in said
    assert "skipped: RetinaNet R-50 2x ms LabelEnc: needs LabelEnc's" in said
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "schema_version": 1, "grid": "teacher-based", "preset": "nano", "arms": ["RetinaNet R-50 2x ms LGD"],
                "overrides": [*OVERRIDES, "method.fgfi.from_step=2"], "reference": "", "seeds": 3,
            }
        )
    )  # fmt: skip
    assert main(["--grid", "table7", *more, "--accept-other-code"]) == 0
    assert "1 of 3 trials to run" in capsys.readouterr().out


def test_records_of_other_data_or_code_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = plan(COMPONENTS, NANO, 1, OVERRIDES, tmp_path)[0]
    Record(status="finished", arm=trial.arm, experiment=trial.experiment, fingerprint="0" * 16).save(trial.directory)
    assert main(["--grid", "components", "--arms", "baseline", *QUICK, "--output", str(tmp_path)]) == 2
    assert "made from other data or code" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--grid", "components", "--arms", "baseline", *QUICK, "--output", str(tmp_path / "file" / "out")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("split", "purpose"), [("train", "to train on"), ("val", "to evaluate on")])
def test_a_dry_run_looks_for_what_only_training_would_miss(
    split: str, purpose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An arm that has its records needs nothing any more."""
    path = write_coco(tmp_path / "data") / f"annotations/instances_{split}2017.json"
    edit_json(path, lambda c: c.update(annotations=[]))
    changed = ["--set", "detector.name=mask_rcnn", "--dry-run"]
    command = ["--grid", "components", "--arms", "baseline", *QUICK]
    assert main([*command, "--data", f"coco-json:{tmp_path / 'data'}", "--dry-run"]) == 2
    assert f"{path} has no object {purpose}" in capsys.readouterr().err
    assert main([*command, "--data", f"voc:{write_voc(tmp_path / 'boxes', VOC_SPLITS)}", *changed]) == 2
    assert "has no segmentation, which mask_rcnn is scored with" in capsys.readouterr().err
    overrides = [*OVERRIDES, "detector.backbone.weights=/no.pkl"]
    trial = plan(COMPONENTS, NANO, 1, overrides, tmp_path)[0]
    Record(status="finished", arm=trial.arm, experiment=trial.experiment, fingerprint=dry_build(trial.experiment)).save(
        trial.directory
    )
    again = [*command, "--set", overrides[-1], "--output", str(tmp_path), "--accept-other-code", "--dry-run"]
    assert main(again) == 0
    assert "0 of 1 trials to run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overrides": None}, "overrides"),
        ({"seeds": "x"}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"arms": 3}, "arms"),
        ({"code": {}}, "code.versions"),
        ({"search": {"samples": 3}}, "search.objectives"),
    ],
)
def test_a_damaged_sweep_is_one_line(
    changes: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"schema_version": 1, "grid": "components", "preset": "nano", "overrides": [], "arms": [], "seeds": 1}
    (tmp_path / "sweep.json").write_text(json.dumps(whole | changes))
    for option in ("--status", "--resume"):
        assert main([option, str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path / 'sweep.json'}: {words}")
        assert said.count("\n") == 1


def test_the_way_to_go_on_says_how_trials_are_placed() -> None:
    placement = Placement(gpus=0.5, workers=4, spread=True, address="auto")
    assert placement.options == " --gpus 0.5 --workers 4 --address auto --spread"
    assert Placement().options == ""


BASELINE, LGD, LONGER = "RetinaNet baseline", "RetinaNet LGD", "RetinaNet baseline in equal time"


@pytest.mark.slow
def test_what_a_sweep_took_says_how_long_others_train(tmp_path: Path, ray_session: None) -> None:
    """In one command, or when it goes on; the steps stay."""
    common = ["--grid", "evidence", *QUICK, "--seeds", "1", "--output", str(tmp_path)]
    said = run(*common, "--arms", f"{BASELINE},{LONGER}", "--dry-run").out
    assert f"later: {LONGER}: its steps follow from what {LGD} takes" in said
    assert "1 of 1 trials to run" in said
    # Without LGD there is nothing to go by.
    run(*common, "--arms", f"{BASELINE},{LONGER}", status=1)
    assert f"{LONGER}: its steps" in json.loads((tmp_path / "sweep.json").read_text())["ended"]["not_run"][0]
    done = run(*common, "--arms", LGD)
    assert "3 trials, 1 to run" in done.out
    records = {x.arm: x for x in (load(path) for path in tmp_path.glob("trials/*/record.json"))}
    ratio = records[LGD].device_seconds["training"] / records[BASELINE].device_seconds["training"]
    steps = max(7, round(6 * ratio))
    assert records[LONGER].experiment.schedule.steps == records[LONGER].steps == steps
    assert json.loads((tmp_path / "sweep.json").read_text())["steps"] == {LONGER: steps}
    assert "0 to run" in run("--resume", str(tmp_path)).out


def test_a_sweep_goes_on_where_its_data_lies_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has a record of the same data is not run again; other data is refused."""
    here, there, output = tmp_path / "here", tmp_path / "there", tmp_path / "out"
    spec = ShapesSpec(train=6, val=3, size=64)
    shutil.copytree(make(spec), here)
    overrides = [*OVERRIDES, f"data.source=coco-json:{here}"]
    first, second = plan(COMPONENTS, NANO, 1, overrides, output)[:2]
    training.run(first.experiment, first.directory, arm=first.arm)
    described = {
        "schema_version": 1, "grid": "components", "preset": "nano", "overrides": overrides, "seeds": 1,
        "arms": [first.arm, second.arm], "reference": "baseline", "code": code_version().model_dump(),
    }  # fmt: skip
    (output / "sweep.json").write_text(json.dumps(described))
    here.rename(there)
    resume = ["--resume", str(output), "--dry-run", "--verbose"]
    assert main([*resume, "--data", f"coco-json:{there}"]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 trials to run" in said
    assert f"data.source = 'coco-json:{there}'" in said
    other = shutil.copytree(make(replace(spec, seed=1)), tmp_path / "other")
    for source, words in (
        (f"coco-json:{other}", "data.source is"),
        ("voc:/data/bccd", "has no such data"),
        ("coco-json:/nowhere", "/nowhere"),
    ):
        assert main([*resume, "--data", source]) == 2
        assert words in capsys.readouterr().err
    assert main(["--status", str(output), "--data", f"coco-json:{there}"]) == 2
    assert "leave out --data" in capsys.readouterr().err
