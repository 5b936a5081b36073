"""Single trainings, and frozen teachers, in object storage: what one machine has trained another finds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgd.config.experiment import Experiment
from lgd.distributed import ray_train
from lgd.distributed.workers import Node, Workers
from lgd.results.record import FILE, Record
from lgd.storage import outputs
from lgd.storage.lease import LeaseLostError
from lgd.storage.store import StorageError, Store
from lgd.training import __main__ as command
from lgd.training import worker
from lgd.training.progress import Stopped
from lgd.training.teacher import train_teacher
from tests.helpers import quick_experiment, wait_until
from tests.helpers_storage import BUCKET, Faults

TRAIN = ["retinanet_r50_2x_ms", "--method", "baseline", "--data", "shapes", "--yes"]


def test_a_training_is_published_and_found_on_another_machine(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}/run"

    def train(experiment: Experiment, directory: Path, *_: Any) -> Record:
        (directory / "student.pth").write_bytes(b"weights")
        record = Record(status="finished", experiment=experiment, finished="now")
        record.save(directory)
        return record

    monkeypatch.setattr(command, "_train", train)
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "one"))
    assert command.main([*TRAIN, "--output", url]) == 0
    said = capsys.readouterr().out
    assert f"images, to {url}\n" in said
    assert f"record: {url}/record.json\nstudent: {url}/student.pth\n" in said
    assert Store(url).read("student.pth") == b"weights"
    assert set(Store(url).entries()) == {FILE, "student.pth", "lease/000001.json"}
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "two"))
    assert command.main([*TRAIN, "--output", url]) == 0
    assert "trained already, on now" in capsys.readouterr().out
    # Also by a command whose workers would train it.
    assert command.main([*TRAIN, "--output", url, "--workers", "2"]) == 0
    assert "trained already, on now" in capsys.readouterr().out


def _take_over(url: str) -> None:
    """As a process that saw the lease not renewed for long."""
    Store(url, 10).write("lease/000002.json", b"{}")


def test_a_training_whose_lease_was_taken_over_is_stopped(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}/run"
    monkeypatch.setattr("lgd.storage.lease.LASTS", 0.2)
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "one"))

    def train(*_: Any, should_stop: Callable[[], bool], **__: Any) -> Record:
        _take_over(url)
        wait_until(should_stop, 10)
        raise Stopped(3)

    monkeypatch.setattr("lgd.training.teacher.train_with_teacher", train)
    assert command.main([*TRAIN, "--output", url]) == 130
    assert f"{url}: another command has taken over, since this one did not answer\n" in capsys.readouterr().err


def test_workers_whose_commands_lease_was_taken_over_stop(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the command, cut off, cannot tell them."""
    url = f"s3://{BUCKET}/{tmp_path.name}/run"
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "one"))
    monkeypatch.setattr(outputs, "LEASE_CHECK_S", 0.0)
    monkeypatch.setattr(ray_train, "cluster", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(ray_train, "nodes", lambda: [Node(2.0, 0.0)])
    monkeypatch.setattr(worker, "check_shared", lambda *_: None)
    seen: list[bool] = []

    def launch(_: Any, job: worker.Job, *__: Any, **___: Any) -> Record:
        signal = outputs.Signal(job.stop, job.lease)
        signal.refresh()
        seen.append(signal.is_there())
        _take_over(url)
        with pytest.raises(LeaseLostError):
            signal.refresh()
        seen.append(signal.is_there())
        return Record(status="finished", experiment=job.experiment, finished="now")

    monkeypatch.setattr(ray_train, "launch", launch)
    directory = outputs.output_path(url)
    with outputs.held(directory):
        worker.train_on_workers(quick_experiment(), directory, Workers(2))
    assert seen == [False, True]
    # A directory of this machine has no lease.
    monkeypatch.setattr(ray_train, "launch", lambda _, job, *__, **___: seen.append(bool(job.stop or job.lease)))
    monkeypatch.setattr(worker, "_record", lambda _: None)
    worker.train_on_workers(quick_experiment(), tmp_path / "here", Workers(2))
    assert seen[2:] == [False]


def test_a_teachers_training_whose_lease_was_taken_over_is_stopped(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, experiment = f"s3://{BUCKET}/{tmp_path.name}/teachers", quick_experiment()
    monkeypatch.setattr("lgd.storage.lease.LASTS", 0.2)
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "one"))

    def run(*_: Any, should_stop: Callable[[], bool], **__: Any) -> Record:
        assert not should_stop()
        _take_over(f"{url}/key")
        wait_until(should_stop, 10)
        raise Stopped(3)

    monkeypatch.setattr("lgd.training.teacher.run", run)
    with pytest.raises(Stopped):
        train_teacher(experiment, outputs.output_path(url) / "key", should_stop=lambda: False)


def test_what_workers_could_not_publish_the_next_command_publishes(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it finds the finished training on this machine, it starts no workers, which would publish it."""
    url = f"s3://{BUCKET}/{tmp_path.name}/run"
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "one"))

    def train(experiment: Experiment, directory: Path, *_: Any) -> Record:
        (directory / "student.pth").write_bytes(b"weights")
        record = Record(status="finished", experiment=experiment, finished="now")
        record.save(directory)
        raise StorageError(f"{url}: no answer")

    monkeypatch.setattr(command, "_train", train)
    assert command.main([*TRAIN, "--output", url, "--workers", "2"]) == 3
    assert FILE not in Store(url).entries()
    assert command.main([*TRAIN, "--output", url, "--workers", "2"]) == 0
    assert {FILE, "student.pth"} <= Store(url).entries().keys()


@pytest.mark.slow
def test_a_teacher_is_trained_once_for_all_machines(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, experiment = f"s3://{BUCKET}/{tmp_path.name}/teachers", quick_experiment()
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "one"))
    first = train_teacher(experiment, outputs.output_path(url) / "key", arm="teacher")
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "two"))
    monkeypatch.setattr("lgd.training.teacher.run", lambda *_, **__: pytest.fail("trained again"))
    place = outputs.output_path(url) / "key"
    assert train_teacher(experiment, place, arm="teacher") == first
    assert (place / "student.pth").stat().st_size == Store(url).entries()["key/student.pth"].size > 0
