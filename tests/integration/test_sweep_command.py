"""The main command, end to end: real trainings under Ray, a few steps each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from filelock import FileLock

from ablations.code_version import code_version
from ablations.run import main
from lgd.config.component_arms import COMPONENTS
from lgd.config.grids import plan
from lgd.config.presets import NANO
from lgd.data.shapes import CATEGORIES, ShapesSpec, make
from lgd.results import provenance
from lgd.results.record import load
from lgd.results.sweep_spec import SweepSpec
from lgd.training import run as training
from tests.conftest import once_per_run
from tests.helpers import wait_until
from tests.integration.commands import ONE_BY_ONE, OVERRIDES, QUICK, Called, run

ROOT = Path(__file__).parents[2]


class Finished(NamedTuple):
    """A sweep of three arms that was run twice: one trial failed at first."""

    output: Path
    first: Called
    second: Called
    kept: bool
    """The record of a trial that had finished at first was left alone."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Finished:
    def make(directory: Path) -> Finished:
        request.getfixturevalue("ray_session")
        return _run_twice(directory / "with space")

    return once_per_run(tmp_path_factory, "finished", make)


def _run_twice(output: Path) -> Finished:
    common = ["--grid", "components", *QUICK, *ONE_BY_ONE, "--output", str(output), "--arms", "baseline,LGD,label only"]
    # A directory where a trial writes its losses: that trial fails.
    (output / "trials" / "lgd-seed0" / "metrics.json").mkdir(parents=True)
    first = run(*common, status=1)
    assert load(output / "trials" / "lgd-seed0" / "record.json").status == "failed"
    (output / "trials" / "lgd-seed0" / "metrics.json").rmdir()
    baseline = output / "trials" / "baseline-seed0" / "record.json"
    before = baseline.stat().st_mtime_ns
    second = run(*common, figures=True)
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
    # As a command leaves it whose Ray ended.
    (output / "stop").touch()
    again = run("--resume", str(output))
    assert "0 to run" in again.out
    assert not (output / "stop").exists()
    assert "\n\n" not in again.err


@pytest.mark.slow
def test_a_directory_of_other_code_is_refused(finished: Finished, tmp_path: Path) -> None:
    output = shutil.copytree(finished.output, tmp_path / "out")
    arguments = ["--grid", "components", *QUICK, *ONE_BY_ONE, "--arms", "baseline,LGD,label only"]
    arguments += ["--output", str(output)]
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["corrupted", "truncated"])
def test_a_damaged_sweep_file_is_named_and_the_sweep_goes_on_without_it(
    kind: str, finished: Finished, ray_session: None, tmp_path: Path
) -> None:
    output = shutil.copytree(finished.output, tmp_path / "out")
    path = output / "sweep.json"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] if kind == "truncated" else content[:half] + b"\xff" * 64 + content[half + 64 :])
    refused = run("--resume", str(output), status=2).err
    assert refused.startswith(f"error: {path}: ")
    assert "the sweep's own command" in refused
    path.unlink()
    arguments = ["--grid", "components", *QUICK, *ONE_BY_ONE, "--arms", "baseline,LGD,label only"]
    assert "3 trials, 0 to run" in run(*arguments, "--output", str(output), "--accept-other-code").out
    assert SweepSpec.read(output).arms == ("baseline", "LGD", "label only")


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


BASELINE, LGD, LONGER = "RetinaNet baseline", "RetinaNet LGD", "RetinaNet baseline in equal time"


@pytest.mark.slow
def test_what_a_sweep_took_says_how_long_others_train(tmp_path: Path, ray_session: None) -> None:
    """In one command, or when it goes on; the steps stay."""
    common = ["--grid", "evidence", *QUICK, *ONE_BY_ONE, "--seeds", "1", "--output", str(tmp_path)]
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


@pytest.mark.slow
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
        "arms": [first.arm, second.arm], "reference": "baseline",
    }  # fmt: skip
    described["code"] = code_version(SweepSpec.model_validate(described)).model_dump()
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
