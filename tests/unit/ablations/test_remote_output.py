"""A sweep in object storage, as its driver and its trials' workers see it, without Ray: each on a disk of its own."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ablations import command, sweep
from ablations.limits import Budget
from ablations.plan import describe
from ablations.remote_output import Place, at_work
from ablations.search.optuna_search import Search
from ablations.sweep_display import NoDisplay
from ablations.trial_config import RecordLabels, trial_config
from ablations.tune.ray_sweep import Outcome, SweepCallback
from ablations.tune.ray_trial import run_trial
from lgd.config.experiment import Experiment
from lgd.config.grids import Trial
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.results.record import FILE, Record
from lgd.signals import on_signal
from lgd.storage import outputs
from lgd.storage.store import PATIENCE_VARIABLE, StorageError, Store
from lgd.training.hooks import SaveAndStop
from lgd.training.progress import Stopped
from tests.helpers import quick_experiment, wait_until
from tests.helpers_storage import BUCKET, Faults
from tests.integration.commands import OVERRIDES, without_figures

ARMS = ("baseline", "LGD")


class Cluster:
    """What a sweep in the bucket needs: its driver's directory, and workers each of which has a node of its own."""

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
        self._tmp_path, self._patch = tmp_path, patch
        self.url = f"s3://{BUCKET}/{tmp_path.name}"
        self.store = Store(self.url, 10)
        self.reports: list[dict[str, Any]] = []
        self.on_node("driver")
        patch.setattr("ray.tune.report", self.reports.append)
        patch.setattr("lgd.storage.mirror.INTERVAL", 0.1)

    def on_node(self, name: str) -> None:
        """From here on, this process is on another machine's disk."""
        self._patch.setenv("LGD_CACHE", str(self._tmp_path / name))

    def trial(self, arm: str, **changes: Any) -> Trial:
        experiment = quick_experiment(**{"method__name": arm.lower(), **changes})
        return Trial(arm, experiment, outputs.output_path(self.url) / "trials" / f"{arm.lower()}-seed0")

    def train(self, trial: Trial, node: str, workers: int = 1) -> dict[str, Any]:
        """Train on this node; the last report."""
        self.on_node("driver")
        labels = RecordLabels("components", "nano", tuple(OVERRIDES))
        config = trial_config(
            trial, labels, outputs.output_path(self.url), Resources(cpus=1, gpus=0.0, max_concurrent=1, workers=workers)
        )
        self.on_node(node)
        run_trial({"trial": json.dumps(config)})
        self.on_node("driver")
        return self.reports[-1]


@pytest.fixture
def cluster(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def _command(*arguments: str, status: int = 0) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), without_figures():
        assert command.main(arguments) == status, out.getvalue() + err.getvalue()
    return out.getvalue() + err.getvalue()


@pytest.mark.slow
def test_a_trial_stopped_on_one_node_goes_on_on_another_and_its_commands_read_the_bucket(cluster: Cluster) -> None:
    spec = describe("components", "nano", overrides=OVERRIDES, data=None, arms=",".join(ARMS), seeds=1, search=None)
    spec.write(outputs.output_path(cluster.url))
    outputs.publish_own(outputs.output_path(cluster.url))
    baseline = cluster.trial("baseline", checkpoint__every=2)
    # A step takes as long as it takes the worker to see the stop file.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lgd.training.hooks.SaveAndStop.after_step", _stopping(cluster.store))
        stopped = cluster.train(baseline, "node 1")
    assert 0 < stopped["stopped"] < 6
    kept = f"trials/baseline-seed0/checkpoints/step-{stopped['stopped']:08}.pth"
    assert kept in cluster.store.entries()
    cluster.store.remove("stop")
    status = _command("sweep", "status", cluster.url)
    assert f"begun, no record: baseline, seed 0 (checkpoint after step {stopped['stopped']})" in status
    assert "0 of 2 trials finished" in status

    record = Record.model_validate_json(cluster.train(baseline, "node 2")["record"])
    assert (record.status, record.attempts, record.steps) == ("finished", 2, 6)
    there = {x.removeprefix("trials/baseline-seed0/") for x in cluster.store.entries("trials")}
    assert {FILE, "student.pth"} <= there
    assert [x for x in there if "checkpoints" in x or x in ("lock", "meter.json")] == []
    cluster.train(cluster.trial("LGD"), "node 1")

    assert "2 of 2 trials finished" in _command("sweep", "status", cluster.url)
    assert f"wrote {cluster.url}/records.csv" in _command("report", cluster.url)
    assert b"baseline" in (cluster.store.read("table.md") or b"")
    assert "baseline" in _command("table", cluster.url, "--table", "components")
    refused = _command("report", f"s3://{BUCKET}/nothing", status=2)
    assert refused == f"error: s3://{BUCKET}/nothing: nothing is there\n"


def _stopping(store: Store) -> Callable[[Any], None]:
    """The hook's method, with the sweep's stop file made after two steps, and seen before the next."""
    after_step = SaveAndStop.after_step

    def slow(hook: Any) -> None:
        if hook.trainer.iter >= 1:
            store.write("stop", b"")
            while not hook._should_stop():
                pass
        after_step(hook)

    return slow


@pytest.mark.slow
def test_a_trial_that_cannot_be_published_ends_the_sweep_and_is_published_by_the_next(
    cluster: Cluster, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    trial = cluster.trial("baseline")
    faults.inject("503", 10**6, only="PUT")
    report = cluster.train(trial, "node 1")
    assert "record" not in report
    assert report["unpublished"].startswith(f"{cluster.url}/trials/baseline-seed0/")
    outcome, output = Outcome(), outputs.output_path(cluster.url)
    callback = SweepCallback(RecordLabels("components", "nano"), output, NoDisplay(), lambda _: "", outcome)
    of_tune = type("T", (), {"config": {"trial": json.dumps({"name": trial.name})}})()
    callback.expect([trial])
    callback.on_trial_result(1, [of_tune], of_tune, report)
    assert (outcome.why, outcome.ended, (output / "stop").exists()) == (report["unpublished"], set(), True)
    # What was trained is not trained again.
    faults.clear()
    assert cluster.store.entries() == {}
    monkeypatch.setattr("ablations.tune.ray_trial._train", lambda *_: pytest.fail("trained again"))
    assert Record.model_validate_json(cluster.train(trial, "node 1")["record"]).status == "finished"
    assert {"trials/baseline-seed0/record.json", "trials/baseline-seed0/student.pth"} <= cluster.store.entries().keys()


def test_a_training_that_was_finished_is_not_failed_by_what_comes_after(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = cluster.trial("baseline")

    def train(experiment: Experiment, config: Any, place: Place, _: Any) -> Record:
        (place.directory / "student.pth").write_bytes(b"weights")
        Record(status="finished", experiment=experiment, finished="now").save(place.directory)
        raise RuntimeError("a worker failed")

    monkeypatch.setattr("ablations.tune.ray_trial._train", train)
    report = cluster.train(trial, "node 1", workers=2)
    assert Record.model_validate_json(report["record"]).status == "finished"
    assert cluster.store.entries("trials").keys() == {f"trials/baseline-seed0/{x}" for x in (FILE, "student.pth")}
    # One that could not be published is published by the trial that finds it.
    cluster.store.remove(*cluster.store.entries("trials"))
    cluster.on_node("node 2")
    there = outputs.output_path(f"{cluster.url}/trials/baseline-seed0")
    Record.model_validate_json(report["record"]).save(there)
    (there / "student.pth").write_bytes(b"weights")
    cluster.train(trial, "node 2", workers=2)
    assert cluster.store.entries("trials").keys() == {f"trials/baseline-seed0/{x}" for x in (FILE, "student.pth")}


def test_a_worker_that_finds_its_record_removes_what_it_was_trained_from(cluster: Cluster) -> None:
    """The one before died after it had saved the record, and before that, and what it had removed, was published."""
    trial = cluster.trial("baseline")
    cluster.on_node("node 1")
    there = outputs.output_path(f"{cluster.url}/trials/baseline-seed0")
    (there / "checkpoints").mkdir(parents=True)
    for name in ("checkpoints/step-00000004.pth", "meter.json"):
        (there / name).write_text("{}")
    mirror = outputs.mirror_of(there)
    assert mirror is not None
    mirror.publish()
    Record(status="finished", experiment=trial.experiment, finished="now").save(there)
    for name in ("checkpoints/step-00000004.pth", "meter.json"):
        (there / name).unlink()
    assert Record.model_validate_json(cluster.train(trial, "node 1")["record"]).status == "finished"
    assert cluster.store.entries("trials").keys() == {f"trials/baseline-seed0/{FILE}"}


def test_a_store_that_is_away_at_the_end_leaves_a_sweep_to_go_on_with(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever cannot be published, a sweep's log included; slurm.sbatch submits again upon this exit status."""
    spec, output = describe("components", "nano"), outputs.output_path(cluster.url)

    def run(*_: object) -> int:
        raise StorageError(f"{cluster.url}/ray.log: no answer for 300 s")

    monkeypatch.setattr(sweep, "_run", run)
    arguments = (spec, output, sweep.RunOptions(), Budget(), Console(width=300))
    with pytest.raises(StorageError):
        sweep.run(*arguments)
    spec.write(output)
    assert sweep.run(*arguments) == 3
    assert capsys.readouterr().out == (
        f"{cluster.url}/ray.log: no answer for 300 s; go on with: python ablations/run.py --resume {cluster.url}\n"
    )


def test_a_record_that_the_driver_makes_is_published(cluster: Cluster, tmp_path: Path) -> None:
    trial, output = cluster.trial("baseline"), outputs.output_path(cluster.url)
    callback = SweepCallback(RecordLabels("components", "nano"), output, NoDisplay(), lambda _: "", Outcome())
    callback.expect([trial])
    errors = tmp_path / "error.txt"
    errors.write_text("Failure # 1 (occurred at noon)\nkilled\n")
    of_tune = SimpleNamespace(config={"trial": json.dumps({"name": trial.name})}, error_file=str(errors))
    callback.on_trial_error(1, [of_tune], of_tune)
    record = Record.model_validate_json(cluster.store.read("trials/baseline-seed0/record.json") or b"")
    assert (record.status, record.reason) == ("failed", "the worker died: killed")
    assert cluster.store.read("trials/baseline-seed0/error.txt") == b"killed\n"


def test_one_sweep_at_a_time_is_at_work_in_a_bucket(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lgd.storage.lease.LASTS", 1.0)
    output = outputs.output_path(cluster.url)
    with at_work(output, Console(width=200)):
        (output / "ray.log").write_text("begun")
        cluster.on_node("another driver")
        refused = rf"^{cluster.url}: process \d+ on .* is at work there; wait for it, or choose another --output$"
        with pytest.raises(InputError, match=refused), at_work(outputs.output_path(cluster.url), Console(width=200)):
            pass
        cluster.on_node("driver")
    assert "looking whether process" in capsys.readouterr().out
    assert cluster.store.read("ray.log") == b"begun"


def test_a_trial_whose_sweep_was_taken_over_is_stopped_and_publishes_nothing_more(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver may be dead, or cut off from it: what the other command's trial has published must stay."""
    monkeypatch.setattr(outputs, "LEASE_CHECK_S", 0.0)
    # The driver itself does not see it meanwhile.
    monkeypatch.setattr("lgd.storage.lease.LASTS", 600.0)
    there = "trials/baseline-seed0"

    def train(experiment: Experiment, config: Any, place: Place, _: Any) -> Record:
        (place.directory / "metrics.json").write_text("ours")
        wait_until(lambda: cluster.store.exists(f"{there}/metrics.json"), 20)
        assert not place.stopped()
        cluster.store.write("lease/000002.json", b"{}")
        cluster.store.write(f"{there}/metrics.json", b"theirs")
        wait_until(place.stopped, 20)
        (place.directory / "metrics.json").write_text("ours, later")
        raise Stopped(3)

    monkeypatch.setattr("ablations.tune.ray_trial._train", train)
    with at_work(outputs.output_path(cluster.url), Console(width=200)):
        report = cluster.train(cluster.trial("baseline"), "node 1")
    assert report["unpublished"].startswith(f"{cluster.url}: another command has taken over; what was not published is")
    assert cluster.store.read(f"{there}/metrics.json") == b"theirs"


def test_a_sweep_that_was_taken_over_publishes_nothing_more(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the wish to stop, which would end the other command's trials."""
    monkeypatch.setattr("lgd.storage.lease.LASTS", 0.4)
    output, told = outputs.output_path(cluster.url), threading.Event()

    def work() -> None:
        with on_signal(told.set, signal.SIGTERM), at_work(output, Console(width=200)):
            cluster.store.write("lease/000002.json", b"{}")
            wait_until(told.is_set, 20)
            (output / "stop").touch()

    with pytest.raises(StorageError, match=f"^{cluster.url}: another command has taken over; what was not published"):
        work()
    assert "stop" not in cluster.store.entries()


def test_a_searchs_study_is_in_the_bucket(cluster: Cluster) -> None:
    search = Search(quick_experiment(method__name="lgd"), outputs.output_path(cluster.url))
    asked = search.study().ask()
    asked.suggest_float("method.lr_factor", 0.3, 3)
    search.study().tell(asked, 7.0)
    outputs.publish_own(outputs.output_path(cluster.url))
    assert search.study_place == f"{cluster.url}/study.journal"
    assert set(cluster.store.entries()) == {"study.journal"}
    cluster.on_node("another driver")
    there = outputs.output_path(cluster.url)
    outputs.fetch_records(there)
    assert [x.params for x in Search(search.base, there).study().trials] == [asked.params]
    # What was published while a line was being written is read up to that line.
    with (there / "study.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert len(Search(search.base, there).study().trials) == 1
    # And gone on from.
    Search(search.base, there).study().ask()
    assert len(Search(search.base, there).study().trials) == 2
    with (there / "study.journal").open("r+b") as file:
        file.write(b"\xff" * 9)
    damaged = rf"^{cluster.url}/study.journal: not a study that can be read \(line 1 is no entry .*remove it"
    with pytest.raises(InputError, match=damaged):
        Search(search.base, there).check_study()
