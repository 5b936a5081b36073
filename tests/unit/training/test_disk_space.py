"""Space on the disk: asked for before a training, and missing while it runs."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lgd.errors import InputError
from lgd.files import DiskFullError
from lgd.results.record import Record
from lgd.training import checkpoint
from lgd.training.build import build, dry_build
from lgd.training.disk_space import LOGS, files_size
from lgd.training.progress import Stopped
from lgd.training.run import run
from lgd.training.tensor_file import save_tensors
from tests.helpers import quick_experiment


def _free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("lgd.files.shutil.disk_usage", lambda _: SimpleNamespace(free=free))


def test_what_a_training_writes_is_known_before(tmp_path: Path) -> None:
    experiment = quick_experiment(**{"checkpoint.every": 1, "checkpoint.keep": 2})
    built = build(experiment)
    files = files_size(experiment, built.model, built.optimizer)
    needed = files.total
    # One before the evaluation in the middle, and the last one.
    rare = experiment.override({"checkpoint.every": 50, "evaluation.every": 3})
    assert files_size(rare, built.model, built.optimizer).checkpoints * 3 == files.checkpoints * 2
    with pytest.raises(Stopped):
        run(experiment, tmp_path, should_stop=iter([False, False, True]).__next__)
    written = checkpoint.size(tmp_path)
    assert 3 / 2 * 0.9 * written < needed - LOGS < 3 / 2 * 1.3 * written


def test_a_training_without_room_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = quick_experiment()
    _free(monkeypatch, 3 * 2**20)
    words = "out: 3 MiB free, and checkpoints, exported student and logs need about [0-9]+ MiB"
    with pytest.raises(InputError, match=words) as caught:
        dry_build(experiment, to_train=True, directory=tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=words):
        run(experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    _free(monkeypatch, 2**30)
    dry_build(experiment, to_train=True, directory=tmp_path / "out")


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Files cannot grow beyond ``size`` bytes: writing fails as on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_of_tensors_that_does_not_fit_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_tensors({"a": torch.zeros(10)}, path)
    with _largest_file(100_000), pytest.raises(DiskFullError) as caught:
        save_tensors({"a": torch.zeros(1_000_000)}, path)
    assert str(caught.value).startswith(f"{path} cannot be written: File too large (")
    assert "MiB free" in str(caught.value)
    assert "enforce fail" not in str(caught.value)
    # The old content, and nothing beside it.
    assert torch.load(path, weights_only=True)["a"].shape == (10,)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_full_disk_ends_a_training_in_one_line_that_says_what_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = quick_experiment(**{"checkpoint.every": 2})
    written: list[Path] = []

    def second_does_not_fit(content: Any, path: Path) -> None:
        written.append(path)
        if len(written) < 2:
            save_tensors(content, path)
            return
        with _largest_file(50_000):
            save_tensors(content, path)

    monkeypatch.setattr("lgd.training.checkpoint.save_tensors", second_does_not_fit)
    with pytest.raises(DiskFullError) as caught:
        run(experiment, tmp_path)
    line = str(caught.value)
    assert "\n" not in line
    assert f"{tmp_path / 'checkpoints' / 'step-00000004.pth'} cannot be written: File too large (" in line
    assert line.endswith("the checkpoint after step 2 is complete, and the same command goes on from it")
    monkeypatch.undo()
    record = run(experiment, tmp_path)
    assert (record.status, record.attempts) == ("finished", 2)


@pytest.mark.slow
def test_a_record_that_does_not_fit_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = quick_experiment(**{"checkpoint.every": 3})

    def full(record: Record, directory: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(directory / "record.json"))

    monkeypatch.setattr(Record, "save", full)
    with pytest.raises(DiskFullError, match="record.json cannot be written: No space left .*after step 3 is complete"):
        run(experiment, tmp_path)
    monkeypatch.undo()
    assert run(experiment, tmp_path).status == "finished"
