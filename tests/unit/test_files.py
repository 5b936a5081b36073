"""Atomic writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.files import atomic_write, write_text


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
