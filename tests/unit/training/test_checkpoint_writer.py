"""Checkpoints that a thread writes: of the state at the end of the step, whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd.config.experiment import Experiment
from lgd.training import checkpoint
from lgd.training.checkpoint_writer import CheckpointWriter
from lgd.training.progress import Stopped
from lgd.training.tensor_file import save_tensors


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Files of tensors are written only once this is set."""
    go = threading.Event()

    def waiting(content: Any, path: Path) -> None:
        assert go.wait(30)
        save_tensors(content, path)

    monkeypatch.setattr("lgd.training.checkpoint.save_tensors", waiting)
    return go


def _save(writer: CheckpointWriter, directory: Path, step: int, state: dict[str, Any]) -> None:
    writer.save(directory, step, Experiment(), "fingerprint", "commit", state=state)


def test_the_training_goes_on_while_its_state_of_before_is_written(tmp_path: Path, held: threading.Event) -> None:
    weight, points = torch.zeros(3), [1]
    with CheckpointWriter() as writer:
        _save(writer, tmp_path, 1, {"model": {"weight": weight}, "points": points})
        # The next steps, and nobody has read the file yet.
        weight.add_(1)
        points.append(2)
        assert checkpoint.last_step(tmp_path) is None
        held.set()
    step, state = checkpoint.latest(tmp_path, Experiment(), "fingerprint") or (0, {})
    assert (step, state["points"]) == (1, [1])
    assert torch.equal(state["model"]["weight"], torch.zeros(3))


def test_an_error_of_writing_is_raised_where_the_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(content: Any, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("lgd.training.checkpoint.save_tensors", fails)
    writer = CheckpointWriter()
    _save(writer, tmp_path, 1, {})
    with pytest.raises(OSError, match="No space left"):
        _save(writer, tmp_path, 2, {})
    # Told once. A training that stops must not say that it goes on from a checkpoint which is not there.
    with pytest.raises(OSError, match="No space left"), writer:
        _save(writer, tmp_path, 3, {})
        raise Stopped(3)
    with pytest.raises(FloatingPointError), writer:
        _save(writer, tmp_path, 4, {})
        raise FloatingPointError
    assert checkpoint.last_step(tmp_path) is None


def test_a_state_dict_keeps_its_versions(tmp_path: Path) -> None:
    model = torch.nn.BatchNorm2d(2)
    with CheckpointWriter() as writer:
        _save(writer, tmp_path, 1, {"model": model.state_dict()})
    _, state = checkpoint.latest(tmp_path, Experiment(), "fingerprint") or (0, {})
    assert state["model"]._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
