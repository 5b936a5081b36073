"""A search's study in object storage: several that write at once, what is refused, and a store that goes away."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from ablations.run import main
from ablations.search import study_journal, study_storage
from ablations.search.optuna_search import Search
from ablations.search.study_journal import StoreJournal
from lgd.errors import InputError
from lgd.storage.store import PATIENCE_VARIABLE, Store
from tests.helpers_search import LGD_NANO, driver
from tests.helpers_storage import BUCKET, Faults

ENTRY = b'{"op_code":0,"worker_id":"x","study_name":"lgd","directions":[2]}\n'


@pytest.fixture
def store(faults: Faults, tmp_path: Path) -> Store:
    return Store(f"s3://{BUCKET}/{tmp_path.name}", 5)


def test_what_several_write_at_once_is_there_once_and_in_one_order(
    store: Store, faults: Faults, tmp_path: Path
) -> None:
    """Also where the server refuses and drops requests."""

    def write(writer: int) -> list[dict[str, Any]]:
        journal = StoreJournal(store.url)
        for i in range(8):
            faults.inject("drop" if i % 2 else "503", 1)
            journal.append_logs([{"op_code": 1, "worker_id": f"{writer}", "i": i}])
        return journal.read_logs(0)

    with ThreadPoolExecutor(4) as threads:
        seen = list(threads.map(write, range(4)))
    whole = StoreJournal(store.url).read_logs(0)
    assert sorted((x["worker_id"], x["i"]) for x in whole) == [(str(w), i) for w in range(4) for i in range(8)]
    # Each has added its own in the order in which it made them, and has seen those of the others between them.
    for writer, logs in enumerate(seen):
        assert logs == whole[: len(logs)]
        assert [x["i"] for x in logs if x["worker_id"] == str(writer)] == list(range(8))
    assert StoreJournal(store.url).read_logs(30) == whole[30:]
    # One after the other its objects are the file of a journal.
    (tmp_path / "journal").write_bytes(b"".join(store.read(x) or b"" for x in sorted(store.entries())))
    assert list(JournalFileBackend(str(tmp_path / "journal")).read_logs(0)) == whole


def test_what_was_written_and_not_answered_is_not_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create, lost = Store.create, [True]

    def answer(self: Store, name: str, data: bytes) -> bool:
        return create(self, name, data) and not (lost and lost.pop())

    monkeypatch.setattr(Store, "create", answer)
    study = optuna.create_study(storage=JournalStorage(StoreJournal(store.url)), study_name="x")
    study.ask()
    again = optuna.load_study(storage=JournalStorage(StoreJournal(store.url)), study_name="x")
    assert (len(again.trials), lost) == (1, [])
    assert sorted(store.entries()) == [f"{i + 1:08}.log" for i in range(len(store.entries()))]


@pytest.mark.parametrize(
    ("objects", "complaint"),
    [
        ({"sweep.json": b"{}"}, "there is sweep.json there; a study needs a place of its own, such as {url}-study"),
        ({"": ENTRY}, "an object; a study needs a place of its own"),
        ({"00000001.log": ENTRY, "00000003.log": ENTRY}, "00000002.log is missing of what was written there"),
        ({"00000001.log": ENTRY, "00000002.log": b"[1]\n"}, "00000002.log is no entry of Optuna's journal"),
        ({"00000001.log": ENTRY[:9]}, "00000001.log is no entry of Optuna's journal"),
    ],
)
def test_what_is_no_study_is_one_line_before_anything_is_trained(
    objects: dict[str, bytes], complaint: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in objects.items():
        store.write(name, data)
    _refused(store.url, complaint.format(url=store.url), tmp_path, capsys)


def _refused(url: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--grid", "components", "--preset", "nano", "--search", "optuna", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--study", url]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: --study {url}")
    assert complaint in said[0]
    assert not (tmp_path / "out" / "sweep.json").exists()


def test_a_store_that_does_not_answer_is_one_line(
    store: Store, faults: Faults, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_journal, "PATIENCE", 0.3)
    _refused("s3://no-bucket/study", "The specified bucket does not exist", tmp_path, capsys)
    faults.inject("503", 10**6)
    _refused(store.url, "no answer for 0 s ([Errno 16] Please reduce your request rate.)", tmp_path, capsys)


def test_a_store_that_goes_away_is_waited_for_and_then_ends_the_search(
    store: Store, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=store.url)
    monkeypatch.setattr(study_journal, "PATIENCE", 0.1)
    monkeypatch.setattr(study_storage, "LONGEST_PAUSE", 0.05)
    with driver(search) as searcher:
        # Longer than one request is tried.
        faults.inject("503", 6)
        assert searcher.suggest("1")["name"] == "search-000"
        searcher.on_trial_complete("1", {"AP": 1.0, "status": "finished"})
    assert faults.left == 0
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    with pytest.raises(InputError, match=rf"^study {store.url}: no answer for \d s"), driver(search) as searcher:
        faults.inject("503", 10**6)
        assert searcher.suggest("1") == searcher.FINISHED
        assert searcher.suggest("2") == searcher.FINISHED
    faults.clear()
    # Another driver, on another machine, has the results.
    beside = replace(search, output=tmp_path / "b")
    assert beside.study().trials[0].values == [1.0]


def test_a_study_is_the_same_by_another_store(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/study"
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=url)
    search.study().ask()
    assert json.loads((tmp_path / "study" / "00000001.log").read_text())["op_code"] == 0
    assert len(optuna.load_study(storage=JournalStorage(StoreJournal(url)), study_name="lgd").trials) == 1
    assert main(["--status", str(tmp_path / "a")]) == 2
