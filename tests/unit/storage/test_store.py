"""Objects in S3, in a directory and in memory; and S3 when it fails."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgd.errors import InputError
from lgd.storage import store as storage
from lgd.storage.store import PATIENCE_VARIABLE, StorageError, Store
from tests.helpers_emulators import Azurite
from tests.helpers_storage import BUCKET, Faults


def test_objects_are_written_read_listed_and_removed(store: Store, tmp_path: Path) -> None:
    assert store.read("a/x") is None
    assert store.entries() == {}
    store.write("a/x", b"one")
    first = store.entries()["a/x"]
    assert (store.read("a/x"), first.size, store.entry("a/x")) == (b"one", 3, first)
    store.write("a/x", b"two!")
    assert store.entries("a")["a/x"].version != first.version
    assert store.within("a").read("x") == b"two!"
    file = tmp_path / "file"
    file.write_bytes(b"content")
    store.upload(file, "b/file")
    assert store.download("b/file", tmp_path / "back" / "file", 7)
    assert (tmp_path / "back" / "file").read_bytes() == b"content"
    # It has grown since it was listed, as what a running training writes does.
    assert store.with_patience(1).download("b/file", tmp_path / "back" / "grown", 3)
    assert not store.download("b/none", tmp_path / "none", 7)
    assert not (tmp_path / "none").exists()
    store.remove("a/x", "never/there")
    assert (set(store.entries()), store.exists("a/x"), store.exists("b")) == ({"b/file"}, False, False)
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "none", "c")


def test_a_bucket_that_is_not_there_is_told(store: Store) -> None:
    scheme = store.url.partition("://")[0]
    if scheme in ("file", "memory"):
        pytest.skip("has no buckets")
    assert store.entries(must_exist=True) == {}
    with pytest.raises(StorageError, match=f"^{scheme}://none/x: .*"):
        Store(f"{scheme}://none/x", patience=1).entries(must_exist=True)


def test_of_several_that_create_an_object_one_succeeds(store: Store) -> None:
    created: list[int] = []

    def create(number: int) -> None:
        if store.create("x", b"%d" % number):
            created.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert store.read("x") == b"%d" % created[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An answer that takes longer than a try waits is asked for again."""
    monkeypatch.setattr(storage, "READ_TIMEOUT", 0.15)
    storage._filesystems.clear()
    yield
    storage._filesystems.clear()


@pytest.mark.parametrize("kind", ["503", "drop", "slow"])
@pytest.mark.usefixtures("impatient")
def test_what_passes_is_tried_again(faults: Faults, tmp_path: Path, kind: str) -> None:
    store = Store(f"s3://{BUCKET}/faults-{kind}", patience=20)
    file = tmp_path / "file"
    file.write_bytes(b"x" * 1000)
    for request in (
        lambda: store.upload(file, "x"),
        # Where the answer is lost, what it has written is there when it tries again.
        lambda: store.create("y", b"1") or kind == "slow",
        lambda: store.entries()["x"].size == 1000,
        lambda: store.read("y") == b"1",
        lambda: store.download("x", tmp_path / "back", 1000),
        lambda: store.remove("x"),
    ):
        faults.inject(kind, 3)
        assert request() in (True, None)
        # What was written before its answer was given up is found by the next try, which then asks no more.
        assert faults.left == 0 or (kind == "slow" and faults.left < 3)
    assert set(store.entries()) == {"y"}


def test_a_store_that_stays_away_is_one_line_with_its_url(faults: Faults) -> None:
    faults.inject("503", 10**6)
    with pytest.raises(StorageError, match=r"^s3://bucket/away/x: no answer for 2 s \(.*reduce your request rate.*\)$"):
        Store(f"s3://{BUCKET}/away", patience=2).write("x", b"1")
    assert len(faults.seen) > 2


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("s3://no-such-bucket/a", "s3://no-such-bucket/a/x: The specified bucket does not exist"),
        ("gs://bucket/a", r"gs://: needs gcsfs: pip install -e '.\[storage\]'"),
        ("nothing://bucket/a", "nothing://: no file system of fsspec's"),
    ],
)
def test_what_another_try_does_not_change_is_said_at_once(
    faults: Faults, url: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Installed or not.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=complaint) as error:
        Store(url, patience=60).write("x", b"1")
    assert "\n" not in str(error.value)


def _error(name: str, base: type[Exception] = Exception, **fields: object) -> Exception:
    """Of a class of that name, as a package raises it that is not among the tests'."""
    return type(name, (base,), fields)()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (_error("HttpError", code=503), True),
        (_error("HttpError", code="429"), True),
        (_error("HttpError", code=400), False),
        (_error("HttpResponseError", status_code=500), True),
        (_error("HttpResponseError", status_code=403), False),
        (_error("ClientAuthenticationError", type(_error("HttpResponseError")), status_code=401), False),
        (_error("ServiceRequestTimeoutError", type(_error("ServiceRequestError"))), True),
        (_error("ServiceResponseError"), True),
        (OSError("Forbidden: https://storage"), False),
        (OSError("[Errno 5] An error occurred (SlowDown)"), True),
        (RuntimeError("of the caller"), False),
    ],
)
def test_what_google_and_azure_answer_is_tried_again_where_it_may_pass(error: Exception, passes: bool) -> None:
    wrapped = RuntimeError("Failed to upload block")
    wrapped.__cause__ = error
    assert (storage._may_pass(error), storage._may_pass(wrapped)) == (passes, passes)


@pytest.mark.nightly
def test_azures_that_is_away_is_waited_for(az: Azurite, tmp_path: Path) -> None:
    store = Store(f"az://{BUCKET}/{tmp_path.name}", patience=120)
    store.write("x", b"1")
    az.stop()
    with pytest.raises(StorageError, match="no answer for 1 s"):
        store.with_patience(1).read("x")
    back = threading.Timer(20, az.start)
    back.start()
    begun = time.monotonic()
    assert store.read("x") == b"1"
    assert time.monotonic() - begun > 10
    back.join()


def test_a_forked_process_has_connections_of_its_own(faults: Faults) -> None:
    import multiprocessing

    store = Store(f"s3://{BUCKET}/forked", patience=5)
    store.write("x", b"parent")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(store.read, ("x",)).get(timeout=20) == b"parent"


@pytest.mark.parametrize("text", ["long", "-1", "nan", "inf"])
def test_a_patience_that_is_no_number_is_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, text)
    with pytest.raises(InputError, match=rf"^{PATIENCE_VARIABLE}={text}: a number of seconds from 0$"):
        Store(f"file://{tmp_path}").write("x", b"1")


def test_what_is_created_may_be_read_as_what_is_written(tmp_path: Path) -> None:
    """By whom a directory is shared with."""
    store = Store(f"file://{tmp_path}", patience=0)
    store.write("written", b"1")
    assert store.create("created", b"1")
    assert (tmp_path / "created").stat().st_mode == (tmp_path / "written").stat().st_mode


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_this_machines_disk_is_not_taken_for_the_store(
    number: int, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said at once, and a full one with its path. What handles a store's errors handles these, too."""
    store, begun = Store(f"s3://{BUCKET}/disk", patience=60), time.monotonic()
    store.write("x", b"1")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("lgd.files.tempfile.mkstemp", refuse)
    full = number != errno.EROFS
    with pytest.raises(StorageError, match=f"^{tmp_path / 'x' if full else store.url}.*{os.strerror(number)}"):
        store.download("x", tmp_path / "x", 1)
    assert time.monotonic() - begun < 10
