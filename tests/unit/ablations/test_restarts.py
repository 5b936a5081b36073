"""What is told of a trial whose worker is gone, and that goes on with another one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from ablations.display import SweepDisplay
from ablations.sweep_display import NoDisplay
from ablations.trial_config import RecordLabels
from ablations.tune.ray_sweep import Outcome, SweepCallback
from lgd.config.grids import Trial
from lgd.files import DiskFullError
from lgd.results.record import FILE, Record, load
from lgd.storage import outputs
from lgd.storage.store import StorageError
from tests.helpers import quick_experiment


def _ended_early(tmp_path: Path, name: str) -> tuple[SweepCallback, Outcome, Path]:
    """A trial has just been told by the scheduler to end."""
    trial = Trial("LGD", quick_experiment(), tmp_path / "trials" / name)
    (trial.directory / "checkpoints").mkdir(parents=True)
    (trial.directory / "checkpoints" / "step-00000005.pth").touch()
    outcome = Outcome()
    callback = SweepCallback(RecordLabels("components", "nano"), tmp_path, NoDisplay(), lambda _: "", outcome)
    callback.expect([trial])
    return callback, outcome, trial.directory


def _end_early(callback: SweepCallback, directory: Path) -> None:
    of_tune = SimpleNamespace(
        config={"trial": json.dumps({"name": directory.name})}, last_result={"step": 5, "spent": 2.0}
    )
    callback.on_trial_complete(1, [of_tune], of_tune)


def test_a_trial_that_is_ended_early_has_its_record_before_its_checkpoints_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, outcome, directory = _ended_early(tmp_path, "search-000")
    there: list[bool] = []
    save = Record.save

    def saving(record: Record, place: Path) -> Path:
        # Whoever is killed now leaves them.
        there.append((directory / "checkpoints").exists())
        return save(record, place)

    monkeypatch.setattr(Record, "save", saving)
    _end_early(callback, directory)
    assert there == [True]
    record = load(directory / FILE)
    assert (record.status, record.steps, record.device_seconds) == ("stopped", 5, {"training": 2.0})
    assert outcome.ended == {"search-000"}
    assert not (directory / "checkpoints").exists()


def test_a_trial_that_is_ended_early_without_space_for_its_record_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback, outcome, directory = _ended_early(tmp_path, "search-000")

    def full(*_: object) -> None:
        raise DiskFullError(28, "No space left on device", str(directory / FILE))

    monkeypatch.setattr(Record, "save", full)
    _end_early(callback, directory)
    assert outcome.ended == {"search-000"}
    assert [x.name for x in directory.rglob("*.pth")] == ["step-00000005.pth"]


def test_checkpoints_that_cannot_be_removed_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a store that does not answer."""
    callback, _, directory = _ended_early(tmp_path, "search-000")

    def away(_: Path) -> None:
        raise StorageError("s3://x: no answer")

    monkeypatch.setattr(outputs, "remove_tree", away)
    _end_early(callback, directory)
    assert load(directory / FILE).status == "stopped"


@pytest.mark.parametrize(
    ("error", "checkpoint", "told"),
    [
        ("killed", True, "its worker died; it goes on from its checkpoint after step 5"),
        ("killed", False, "its worker died; it begins again"),
        (
            "Task was killed due to the node running low on memory.",
            True,
            "Ray ended its worker since memory ran low; it goes on from its checkpoint after step 5",
        ),
    ],
)
def test_a_restart_is_told_in_a_line(
    error: str, checkpoint: bool, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial("LGD", quick_experiment(), tmp_path / "trials" / "lgd-seed0")
    (trial.directory / "checkpoints").mkdir(parents=True)
    if checkpoint:
        (trial.directory / "checkpoints" / "step-00000005.pth").touch()
    display = SweepDisplay([trial], total=1, finished=0, max_concurrent=1, console=Console(width=400))
    callback = SweepCallback(RecordLabels("components", "nano"), tmp_path, display, lambda _: "", Outcome())
    callback.expect([trial])
    tries = SimpleNamespace(num_failures=1)
    described = {"trial": json.dumps({"name": trial.name})}
    # As Tune writes it.
    errors = tmp_path / "error.txt"
    errors.write_text(f"Failure # 1 (occurred at noon)\n{error}\n")
    of_tune = SimpleNamespace(config=described, error_file=str(errors), run_metadata=tries)
    callback.on_trial_recover(1, [of_tune], of_tune)
    assert capsys.readouterr().out == f"  LGD, seed 0: {told} (see {tmp_path / 'ray.log'})\n"
    # It has its tries anew where it got on, and only there.
    assert tries.num_failures == (0 if checkpoint else 1)
    tries.num_failures = 2
    callback.on_trial_recover(1, [of_tune], of_tune)
    assert tries.num_failures == 2
    assert "its worker" in capsys.readouterr().out
    # It has recorded its own error, and the next worker only reports that.
    (trial.directory / FILE).touch()
    callback.on_trial_recover(1, [of_tune], of_tune)
    assert capsys.readouterr().out == ""
