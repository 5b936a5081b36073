"""A local directory and what it stands for in a store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lgd.storage import outputs
from lgd.storage.mirror import Mirror
from lgd.storage.store import StorageError, Store
from tests.helpers_storage import Faults


def _write(directory: Path, **files: str) -> None:
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_what_one_publishes_another_fetches(store: Store, tmp_path: Path) -> None:
    here, there = (Mirror(tmp_path / x, store) for x in ("here", "there"))
    _write(here.directory, record_json="1", checkpoints__a="a", lock="", tune__x="x")
    (here.directory / ".half-written").write_text("half")
    here.publish()
    assert set(store.entries()) == {"record.json", "checkpoints/a"}
    there.fetch()
    assert (there.directory / "checkpoints" / "a").read_text() == "a"
    # Changed here, removed here: the other follows, and what it has besides stays.
    _write(here.directory, record_json="2")
    (here.directory / "checkpoints" / "a").unlink()
    _write(there.directory, own="mine")
    here.publish()
    there.fetch()
    found = {x.name for x in there.directory.iterdir() if x.is_file() and x.name[0] != "."}
    assert (found, (there.directory / "record.json").read_text()) == ({"record.json", "own"}, "2")
    assert not (there.directory / "checkpoints" / "a").exists()


def test_where_both_have_changed_what_was_published_counts(store: Store, tmp_path: Path) -> None:
    here, there = (Mirror(tmp_path / x, store) for x in ("here", "there"))
    _write(here.directory, record_json="1")
    here.publish()
    there.fetch()
    _write(here.directory, record_json="from here")
    _write(there.directory, record_json="from there", log="unpublished")
    here.publish()
    there.fetch()
    assert (there.directory / "record.json").read_text() == "from here"
    there.publish()
    assert (store.read("log"), store.read("record.json")) == (b"unpublished", b"from here")


def test_a_checkpoint_that_was_not_published_goes_where_the_training_went_on_elsewhere(
    store: Store, tmp_path: Path
) -> None:
    here, there = (Mirror(tmp_path / x, store) for x in ("here", "there"))
    _write(here.directory, meter_json="1", checkpoints__1="1")
    here.publish()
    _write(here.directory, meter_json="2", checkpoints__2="2")
    here.remove_unpublished("checkpoints/", unless_known="meter.json")
    assert (here.directory / "checkpoints" / "2").exists()
    there.fetch()
    _write(there.directory, meter_json="one more", checkpoints__3="3")
    there.publish()
    here.remove_unpublished("checkpoints/", unless_known="meter.json")
    here.fetch()
    assert sorted(x.name for x in (here.directory / "checkpoints").iterdir()) == ["1", "3"]


def _published(directory: Path, store: Store) -> Mirror:
    """A training with one checkpoint, all of it in the store."""
    mirror = Mirror(directory, store)
    _write(directory, meter_json="1", checkpoints__1="1")
    mirror.publish()
    return mirror


class _Killed(BaseException):
    """In a process's stead: nothing that it does next is seen."""


@pytest.mark.parametrize("at", ["a checkpoint", "the answer"])
def test_checkpoints_stay_where_the_own_word_was_the_last(
    at: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was killed while the checkpoint was published, or the store went away before it had answered."""
    here = _published(tmp_path / "here", store)
    _write(here.directory, meter_json="2", checkpoints__2="2")

    def fail(*_: object) -> None:
        # Nor is anything noted any more.
        patch.setattr("lgd.storage.mirror._Known.save", fail)
        raise _Killed

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        # A checkpoint is uploaded after the meter was.
        patch.setattr(Store, "upload" if at == "a checkpoint" else "entry", fail)
        here.publish()
    assert store.read("meter.json") == b"2"
    # The next process on this machine.
    _write(here.directory, meter_json="3")
    Mirror(here.directory, store).remove_unpublished("checkpoints/", unless_known="meter.json")
    assert (here.directory / "checkpoints" / "2").exists()
    here.publish()
    assert (store.read("meter.json"), store.read("checkpoints/2")) == (b"3", b"2")


@pytest.mark.parametrize("arrived", [False, True])
def test_checkpoints_stay_after_an_outage(
    arrived: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store went away before a meter was written, or before it had answered; a later one was not written either."""
    here = _published(tmp_path / "here", store)
    write = Store.write

    def away(self: Store, name: str, data: bytes) -> None:
        if arrived and data == b"2":
            write(self, name, data)
        raise StorageError("no answer")

    # Tried anew every few seconds, with another meter each time.
    for content in ("2", "2", *map(str, range(3, 100)), "3"):
        _write(here.directory, meter_json=content, checkpoints__2="2")
        with monkeypatch.context() as patch, pytest.raises(StorageError):
            patch.setattr(Store, "write", away)
            here.publish()
    assert store.read("meter.json") == (b"2" if arrived else b"1")
    # The next process on this machine.
    here.remove_unpublished("checkpoints/", unless_known="meter.json")
    assert (here.directory / "checkpoints" / "2").exists()
    # What is newer here is not fetched over.
    here.fetch()
    assert (here.directory / "meter.json").read_text() == "3"
    here.publish()
    assert (store.read("meter.json"), store.read("checkpoints/2")) == (b"3", b"2")


@pytest.mark.parametrize("fetch", [outputs.fetch_notes, lambda x: outputs.fetch_training(x, checkpoints=False)])
def test_unpublished_checkpoints_go_also_where_another_process_of_the_machine_has_fetched_before(
    fetch: Callable[[Path], None], faults: Faults, tmp_path: Path
) -> None:
    """A launcher and the other workers fetch into the directory in which the main worker trains."""
    here = outputs.output_path(f"s3://bucket/{tmp_path.name}/run")
    there = Mirror(tmp_path / "there", Store(f"s3://bucket/{tmp_path.name}/run", 10))
    _write(here, meter_json="1", checkpoints__1="1")
    outputs.publish_files(here / "meter.json", here / "checkpoints" / "1")
    _write(here, meter_json="2", checkpoints__2="2")
    fetch(here)
    outputs.fetch_training(here)
    assert (here / "checkpoints" / "2").exists()
    there.fetch()
    _write(there.directory, meter_json="one more", checkpoints__3="3")
    there.publish()
    fetch(here)
    assert (here / "meter.json").read_text() == "one more"
    outputs.fetch_training(here)
    assert not (here / "checkpoints" / "2").exists()
    # What was only fetched is removed where it was removed there.
    fetch(here)
    there.store.remove("meter.json")
    fetch(here)
    assert not (here / "meter.json").exists()


def test_what_has_not_changed_is_neither_fetched_nor_published_again(faults: Faults, tmp_path: Path) -> None:
    here, there = (Mirror(tmp_path / x, Store("s3://bucket/once", 10)) for x in ("here", "there"))
    _write(here.directory, a="1", b="2")
    here.publish()
    there.fetch()
    faults.seen.clear()
    here.publish()
    there.fetch()
    assert [x for x in faults.seen if not x.startswith("GET /bucket")] == []
    assert len(faults.seen) == 1
    # A damaged note of the versions costs a fetch, and no more.
    (there.directory / ".published.json").write_text("{")
    there.fetch()
    assert (there.directory / "a").read_text() == "1"


def test_a_record_is_published_last(faults: Faults, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", Store("s3://bucket/order", 1))
    _write(mirror.directory, record_json="{}", a="1", student="weights")
    faults.inject("503", 10**6, only="/order/student")
    with pytest.raises(StorageError, match=r"s3://bucket/order/student: no answer"):
        mirror.publish()
    faults.clear()
    assert set(mirror.store.entries()) == {"a"}
    mirror.publish()
    assert [x for x in faults.seen if x.startswith("PUT")] == [
        "PUT /bucket/order/student",
        "PUT /bucket/order/record.json",
    ]


def test_a_checkpoint_is_published_after_the_logs_up_to_it(faults: Faults, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", Store("s3://bucket/logs", 1))
    _write(mirror.directory, record_json="{}", checkpoints__step="weights", metrics_json="losses")
    mirror.publish()
    assert [x.rpartition("/")[2] for x in faults.seen if x.startswith("PUT")] == ["metrics.json", "step", "record.json"]


def test_a_running_training_is_published_whatever_the_store_does(faults: Faults, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", Store("s3://bucket/running", 10))
    asked: list[bool] = []
    with pytest.raises(KeyError), mirror.published(every=lambda: asked.append(True), interval=0.05):
        _write(mirror.directory, checkpoints__1="1")
        # Published and noted: the note is written after the object.
        note = mirror.directory / ".published.json"
        while not note.exists() or "checkpoints/1" not in note.read_text():
            time.sleep(0.01)
        faults.inject("drop", 20)
        _write(mirror.directory, checkpoints__2="2")
        (mirror.directory / "checkpoints" / "1").unlink()
        raise KeyError("the training failed")
    assert set(mirror.store.entries()) == {"checkpoints/2"}
    assert asked


def test_what_could_not_be_published_is_published_by_the_next_try(faults: Faults, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", Store("s3://bucket/later", 0.5))
    with pytest.raises(StorageError, match=r"s3://bucket/later/.*; what was not published is in .*here"), \
            mirror.published(interval=0.05):  # fmt: skip
        faults.inject("503", 10**6)
        _write(mirror.directory, record_json="{}")
    faults.clear()
    mirror.fetch()
    mirror.publish()
    assert mirror.store.read("record.json") == b"{}"


def test_a_url_has_a_working_directory_and_one_to_read(faults: Faults, cache: Path) -> None:
    url = "s3://bucket/runs/main"
    work, read = outputs.output_path(url), outputs.input_path(f"{url}/")
    assert work != read
    assert (work.name, outputs.output_path(url), outputs.output_path("results/x")) == ("main", work, Path("results/x"))
    trial = work / "trials" / "a-seed0"
    assert (outputs.shown(trial), outputs.shown(Path("results/x"))) == (f"{url}/trials/a-seed0", "results/x")
    assert outputs.mirror_of(Path("results/x")) is None
    _write(trial, record_json="{}", student="weights", checkpoints__1="1")
    _write(work, sweep_json="{}", table="t")
    with outputs.working_in(trial), outputs.publishing_own(work):
        pass
    assert outputs.names_in(trial) == ["checkpoints/1", "record.json", "student"]
    outputs.fetch_records(read)
    found = {x.relative_to(read).as_posix() for x in read.rglob("*") if x.is_file() and x.name[0] != "."}
    assert found == {"sweep.json", "table", "trials/a-seed0/record.json"}
    assert (outputs.beside(trial).parent / "a-seed0" / "record.json").exists()
    outputs.remove(trial / "record.json")
    assert (outputs.names_in(trial), (trial / "record.json").exists()) == (["checkpoints/1", "student"], False)
    shutil.rmtree(cache)
    assert outputs.output_path(url) == work
    with outputs.working_in(trial):
        assert (trial / "checkpoints" / "1").read_text() == "1"


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///", "s3://key:secret@bucket/x", "s3://bucket/x?endpoint=y", "ftp://key:secret@bucket/x"]
)
def test_a_url_that_names_no_place_or_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"a bucket and a name in it|s3://...: without options|no object") as error:
        outputs.output_path(url)
    assert "secret" not in str(error.value)
