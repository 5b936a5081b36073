"""What a training goes on from is removed once it has its result, whenever its process was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.finished_trials import remove_finished_resume_files
from lgd.config.experiment import Experiment
from lgd.config.presets import named_experiment
from lgd.results.cost_meter import HEARTBEAT_FILE
from lgd.results.record import FILE, Record
from lgd.storage import outputs
from lgd.storage.store import Store
from lgd.training import __main__ as command
from lgd.training import checkpoint, worker
from lgd.training import run as training
from lgd.training.progress import Stopped
from lgd.training.teacher import train_teacher
from tests.helpers import quick_experiment
from tests.helpers_storage import BUCKET, Faults

EXPERIMENT = quick_experiment(method__name="baseline")
LEFT = (f"{checkpoint.DIRECTORY}/step-00000004.pth", HEARTBEAT_FILE)


def _leave(directory: Path, status: str = "finished", experiment: Experiment = EXPERIMENT) -> Record:
    """What a process leaves that is killed after it has saved its record, and before it removes the rest."""
    record = Record.model_validate(
        {"status": status, "reason": "" if status == "finished" else "why", "experiment": experiment, "finished": "now"}
    )
    record.save(directory)
    for name in LEFT:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")
    return record


def _files(directory: Path) -> set[str]:
    return {x.relative_to(directory).as_posix() for x in directory.rglob("*") if x.is_file()}


def test_a_sweeps_next_command_removes_them(tmp_path: Path) -> None:
    for place in ("trials/finished", "teachers/finished"):
        _leave(tmp_path / place)
    for status in ("failed", "diverged", "stopped"):
        _leave(tmp_path / "trials" / status, status)
    for place, text in (("begun", None), ("damaged", "{")):
        _leave(tmp_path / "trials" / place)
        (tmp_path / "trials" / place / FILE).unlink()
        if text:
            (tmp_path / "trials" / place / FILE).write_text(text)
    remove_finished_resume_files(tmp_path)
    for place in ("trials/finished", "teachers/finished", "trials/diverged", "trials/stopped"):
        assert _files(tmp_path / place) == {FILE}
        assert not (tmp_path / place / checkpoint.DIRECTORY).exists()
    # They go on from them.
    assert _files(tmp_path / "trials/failed") == _files(tmp_path / "trials/damaged") == {FILE, *LEFT}
    assert _files(tmp_path / "trials/begun") == set(LEFT)


def test_of_a_sweep_in_a_bucket_also_there(faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "one"))
    for status in ("finished", "failed"):
        _leave(outputs.output_path(url) / "trials" / status, status)
        mirror = outputs.mirror_of(outputs.output_path(url) / "trials" / status)
        assert mirror is not None
        mirror.publish()
    # The next command is another machine's, which has fetched the records.
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "two"))
    output = outputs.output_path(url)
    outputs.fetch_records(output)
    remove_finished_resume_files(output)
    assert set(Store(url).entries("trials")) == {
        f"trials/finished/{FILE}", *(f"trials/failed/{x}" for x in (FILE, *LEFT))
    }  # fmt: skip


def test_the_next_command_of_a_single_training_removes_them(tmp_path: Path) -> None:
    train = ["retinanet_r50_2x_ms", "--method", "baseline", "--data", "shapes", "--yes", "--output", str(tmp_path)]
    options = command.parser().parse_args(train)
    experiment = command._changed(named_experiment(train[0]).experiment, options)
    _leave(tmp_path, experiment=experiment)
    assert command.main(train) == 0
    assert _files(tmp_path) == {FILE}


def test_the_next_user_of_a_teacher_and_the_next_worker_remove_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _leave(tmp_path / "teacher")
    assert train_teacher(EXPERIMENT, tmp_path / "teacher") == record
    assert _files(tmp_path / "teacher") - {"lock"} == {FILE}
    record = _leave(tmp_path / "run")
    assert worker._finished(tmp_path / "run", EXPERIMENT) == record
    assert _files(tmp_path / "run") == {FILE}


def test_a_checkpoint_that_was_being_written_at_a_kill_is_removed(tmp_path: Path) -> None:
    partial = tmp_path / checkpoint.DIRECTORY / ".step-00000002.lgd-tmp-a1b2c3d4.pth"
    partial.parent.mkdir()
    partial.write_bytes(b"a part of it")
    with pytest.raises(Stopped):
        training.run(EXPERIMENT, tmp_path, should_stop=lambda: True)
    assert [x.name for x in partial.parent.iterdir()] == ["step-00000001.pth"]
