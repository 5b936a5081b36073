"""Files up to a number of bytes, of which the least recently used go."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from filelock import FileLock

from lgd.errors import InputError
from lgd.storage import file_cache
from lgd.storage.file_cache import BLOCK, SIZE_VARIABLE, FileCache, image_cache


def _key(number: int) -> str:
    return f"{number:02x}{number:062x}"


def _used(cache: FileCache) -> int:
    return sum(x.bytes for x in cache._files())


def _there(cache: FileCache, numbers: range) -> list[int]:
    return [x for x in numbers if (cache.directory / _key(x)[:2] / _key(x)).exists()]


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 10 * BLOCK)
    for number in range(10):
        cache.put(_key(number), bytes([number]) * BLOCK)
        path = tmp_path / _key(number)[:2] / _key(number)
        os.utime(path, (number, number))
    assert _there(cache, range(10)) == list(range(10))
    # Read, so no longer the oldest.
    assert cache.get(_key(0), BLOCK) == bytes(BLOCK)
    cache.put(_key(10), b"x")
    assert _there(cache, range(11)) == [0, 3, 4, 5, 6, 7, 8, 9, 10]
    assert cache.get(_key(1), BLOCK) is None
    # More than fits at all is not kept, and nothing goes for it.
    cache.put(_key(11), b"x" * 11 * BLOCK)
    assert _there(cache, range(12)) == [0, 3, 4, 5, 6, 7, 8, 9, 10]


def test_what_was_cut_off_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 10 * BLOCK)
    cache.put(_key(1), b"whole")
    path = tmp_path / _key(1)[:2] / _key(1)
    path.write_bytes(b"wh")
    assert cache.get(_key(1), 5) is None
    assert not path.exists()


def test_the_free_disk_is_the_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FileCache(tmp_path, 10**12)
    room = 4 * BLOCK
    monkeypatch.setattr(file_cache, "free_space", lambda _: file_cache.KEPT_FREE + room - _used(cache))
    for number in range(3):
        cache.put(_key(number), b"x")
        os.utime(tmp_path / _key(number)[:2] / _key(number), (number, number))
    # Another program has filled the disk.
    room = 2 * BLOCK
    cache.put(_key(3), b"x")
    assert _there(cache, range(4)) == [3]
    room = 0
    cache.put(_key(4), b"x")
    assert _there(cache, range(5)) == [3]


def _fill(directory: Path, first: int) -> None:
    cache = FileCache(directory, 20 * BLOCK)
    for number in range(first, first + 40):
        cache.put(_key(number), bytes([number]) * 100)
        for other in range(number % 8, 160, 8):
            assert cache.get(_key(other), 100) in (None, bytes([other]) * 100)
        with FileLock(directory / "lock"):
            assert _used(cache) <= 20 * BLOCK


def test_several_processes_stay_within_the_limit_and_read_whole_files(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_fill, args=(tmp_path, 40 * i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [x.exitcode for x in processes] == [0] * 4
    cache = FileCache(tmp_path, 20 * BLOCK)
    assert int((tmp_path / "used").read_text()) == _used(cache) >= 10 * BLOCK
    assert {x.name for x in tmp_path.iterdir() if len(x.name) > 2} == {"used", "lock"}


def test_what_a_killed_process_left_is_removed_and_counted_anew(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 10 * BLOCK)
    cache.put(_key(1), b"x")
    (tmp_path / "new").write_bytes(b"half")
    # Killed while it wrote the number, or after it had counted what it did not write.
    for noted in ("", str(10 * BLOCK)):
        (tmp_path / "used").write_text(noted)
        cache.put(_key(2), b"x")
        assert int((tmp_path / "used").read_text()) <= 3 * BLOCK
    assert _there(cache, range(3)) == [1, 2]
    assert not (tmp_path / "new").exists()


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FileCache(tmp_path / "file", 10 * BLOCK)
    cache.put(_key(1), b"x")
    assert cache.get(_key(1), 1) is None


def test_its_size_is_a_setting(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_cache() == FileCache(cache / "images", 50 * 10**9)
    monkeypatch.setenv(SIZE_VARIABLE, "0.5")
    assert image_cache().most == 500_000_000
    for text in ("big", "-1", "nan", "inf"):
        monkeypatch.setenv(SIZE_VARIABLE, text)
        with pytest.raises(InputError, match=rf"^{SIZE_VARIABLE}={text}: a number of gigabytes from 0$"):
            image_cache()
