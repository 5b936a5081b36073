"""A search's study.db after a kill, and while another process has it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.search.optuna_search import STUDY_FILE, Search
from ablations.search.study_file import check_file, check_journal
from lgd.errors import InputError
from tests.helpers_search import LGD_NANO

KILLED = f"""
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
# It writes to the file before it commits.
connection.execute("pragma cache_size=1")
connection.execute("begin")
connection.execute("update studies set study_name = 'half'")
connection.executemany("insert into notes values (?)", [("x" * 500,)] * 1000)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""


def test_a_study_whose_driver_was_killed_in_a_commit_goes_on(tmp_path: Path) -> None:
    search = Search(LGD_NANO, tmp_path)
    search.study().ask()
    path = tmp_path / STUDY_FILE
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table notes (text)")
        connection.executemany("insert into notes values (?)", [("x" * 500,)] * 50)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / f"{STUDY_FILE}-journal").stat().st_size > 0
    search.check_study()
    assert [x.name for x in tmp_path.iterdir()] == [STUDY_FILE]
    assert len(search.study().trials) == 1


def test_a_study_that_another_process_has_is_not_to_be_removed(tmp_path: Path) -> None:
    Search(LGD_NANO, tmp_path).study()
    path = tmp_path / STUDY_FILE
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        with pytest.raises(InputError) as refused:
            check_file(path)
    assert str(refused.value) == f"{path}: the study cannot be read (database is locked)"


WHOLE = '{"op_code":0,"worker_id":"x","study_name":"lgd","directions":[2]}'

NO_ENTRIES = (
    '"op_code"',
    "[1]",
    '{"op_code": 99}',
    '{"op_code": 4}',
    '{"op_code": 4, "study_id": 0, "worker_id": "x", "datetime_start": "noon"}',
    '{"op_code": 0, "worker_id": "x", "study_name": "b", "directions": [7]}',
    '{"op_code": 0, "worker_id": "x", "study_name": "b", "directions": 2}',
    "half",
    "[" * 100_000,
)
"""Lines of a journal that are JSON, but for the last two, and no operation of Optuna's."""


@pytest.mark.parametrize("line", NO_ENTRIES, ids=lambda x: x[:30])
@pytest.mark.parametrize("place", ["results", "file", "store"])
def test_a_journal_that_cannot_be_replayed_is_named_with_its_line(place: str, line: str, tmp_path: Path) -> None:
    path, content = tmp_path / "study.journal", f"{WHOLE}\n{line}\n{WHOLE}\n"
    path.write_text(content)
    search = Search(LGD_NANO, tmp_path / "out", place=str(path) if place == "file" else f"file://{tmp_path}/study")
    with pytest.raises(InputError, match=r"[( ]line 2\b|00000002.log is no entry") as refused:
        if place == "results":
            check_journal(path)
        else:
            for i, each in enumerate(content.splitlines(keepends=True), 1):
                if place == "store":
                    (tmp_path / "study").mkdir(exist_ok=True)
                    (tmp_path / "study" / f"{i:08}.log").write_text(each)
            search.study()
    assert "\n" not in str(refused.value)
    # The last one may be half written.
    path.write_text(f"{WHOLE}\n" * 2 + line[:3])
    check_journal(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write all files")
def test_a_study_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    Search(LGD_NANO, tmp_path).study()
    (tmp_path / STUDY_FILE).chmod(0o444)
    check_file(tmp_path / STUDY_FILE)
