"""Two commands do not train to one directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.errors import InputError
from lgd.training.__main__ import main
from lgd.training.directory_lock import LOCK, training_lock


def test_a_second_command_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "not" / "yet" / "here"
    with training_lock(directory):
        assert main(["retinanet_r50_1x_ss", "--method", "baseline", "--output", str(directory)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"error: {directory}: another training is at work there; wait for it")
        assert [x.name for x in directory.iterdir()] == [LOCK]
    assert [*tmp_path.iterdir()] == []


def test_what_was_written_stays_and_the_next_command_may_work(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with training_lock(tmp_path):
            (tmp_path / name).touch()
    assert {"first", "second"} == {x.name for x in tmp_path.iterdir()}


def test_an_empty_directory_stays_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mine"), training_lock(tmp_path):
        raise InputError("mine")
    assert [*tmp_path.iterdir()] == []


def test_a_place_that_cannot_be_written_to_is_left_to_who_trains_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with training_lock(tmp_path / "file"):
        pass
    assert (tmp_path / "file").is_file()
