"""Atomic writing, and reading without waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lgd.files import atomic_write, read_file, remove_temporary_files, write_text


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.md"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert [x.name for x in path.parent.iterdir()] == ["table.md"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_the_temporary_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "figure.svg") as temporary:
        assert temporary.suffix == ".svg"
        temporary.write_text("x")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = ["record.json", ".hidden", ".gitignore", "a-b1c2d3e4.json", ".my-configuration.yaml"]
    # Names as the standard library's temporary files have them.
    kept += [".my-settings.json", ".npm-packages", ".meter-a1b2c3d4.json"]
    for name in kept:
        (tmp_path / name).touch()
    written = [atomic_write(tmp_path / x) for x in ("meter.json", "lock", "odd\nname.a b", f"{'long' * 60}.pth")]
    # Never left, as by a process that is killed.
    left = [x.__enter__() for x in written]
    assert all(x.exists() for x in left)
    remove_temporary_files(tmp_path)
    assert not any(x.exists() for x in left)
    assert sorted(x.name for x in tmp_path.iterdir()) == sorted(kept)


def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    """A pipe stands for the devices: as root, an output named /dev/null would take its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for act in (read_file, lambda x: write_text(x, "text")):
        with pytest.raises(OSError, match="not a regular file"):
            act(pipe)
    assert pipe.is_fifo()
    assert [x.name for x in tmp_path.iterdir()] == ["pipe"]
    with pytest.raises(OSError, match="not a regular file"):
        read_file(Path("/dev/zero"))
