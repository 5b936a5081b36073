"""One process at a time is at work on a part of a store."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import threading
import time
from typing import Any

import pytest

from lgd.storage.lease import Lease, LeaseHeldError
from lgd.storage.store import Store
from tests.helpers_storage import Faults


def _leave_one(store: Store) -> None:
    Lease(store).acquire()


def _of_elsewhere(store: Store, number: int) -> str:
    """Name of a lease that a process of another machine holds."""
    name = f"lease/{number:06}.json"
    store.write(name, json.dumps({"host": "elsewhere", "machine": "m", "pid": 1, "token": "t"}).encode())
    return name


def test_a_lease_is_held_by_one_and_given_back(store: Store) -> None:
    with Lease(store, lasts=0.8).acquire():
        told: list[str] = []
        with pytest.raises(LeaseHeldError, match=r"process \d+ on .* is at work there"):
            Lease(store, lasts=0.8).acquire(on_wait=told.append)
        assert len(told) == 1
    begun = time.monotonic()
    with Lease(store).acquire():
        assert time.monotonic() - begun < 5
        # Only the holder's is left, under a higher number.
        assert list(store.entries("lease")) == ["lease/000002.json"]


def test_of_many_at_once_one_gets_it(store: Store) -> None:
    leases, begun, lost = list[Lease](), threading.Barrier(6), list[LeaseHeldError]()

    def acquire() -> None:
        begun.wait()
        try:
            leases.append(Lease(store, lasts=2.0).acquire())
        except LeaseHeldError as error:
            lost.append(error)

    threads = [threading.Thread(target=acquire) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(leases), len(lost)) == (1, 5)
    leases[0].release()


def test_the_lease_of_a_process_of_this_machine_that_is_gone_is_taken_at_once(store: Store) -> None:
    if store.url.startswith("memory://"):
        pytest.skip("no other process sees it")
    process = multiprocessing.get_context("fork").Process(target=_leave_one, args=(store,))
    process.start()
    process.join(20)
    assert len(store.entries("lease")) == 1
    begun = time.monotonic()
    with Lease(store).acquire():
        assert time.monotonic() - begun < 10


def test_what_is_not_renewed_is_taken_over_and_its_holder_is_told(store: Store) -> None:
    _of_elsewhere(store, 7)
    begun = time.monotonic()
    told = threading.Event()
    first = Lease(store, lasts=0.8, on_lost=told.set).acquire()
    assert time.monotonic() - begun > 0.7
    # Another machine has taken this one for dead.
    _of_elsewhere(store, 9)
    assert told.wait(5)
    assert first.lost
    first.release()
    # Its own is not given back over that of the other.
    assert b"elsewhere" in (store.read("lease/000009.json") or b"")


def test_who_watches_a_lease_may_be_told_to_stop(store: Store) -> None:
    _of_elsewhere(store, 3)
    with pytest.raises(LeaseHeldError, match="may be at work there"):
        Lease(store, lasts=4.0).acquire(should_stop=lambda: True)
    assert set(store.entries("lease")) == {"lease/000003.json"}


def test_a_lost_answer_to_the_own_lease_is_no_refusal(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://bucket/lost-answer", patience=10)
    create = Store.create
    # The object was written, and the answer to that came from the second try.
    monkeypatch.setattr(Store, "create", lambda self, *x: create(self, *x) and create(self, *x))
    with Lease(store).acquire():
        pass
    assert len(store.entries("lease")) == 1


def test_a_store_that_is_away_for_a_moment_loses_no_lease(faults: Faults) -> None:
    store = Store("s3://bucket/away-lease", patience=10)
    with Lease(store, lasts=0.8).acquire() as lease:
        faults.inject("503", 8)
        until = time.monotonic() + 10
        while faults.left and time.monotonic() < until:
            time.sleep(0.05)
        assert (faults.left, lease.lost) == (0, False)


def test_while_the_store_is_away_nobody_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither watcher nor holder hears of it, and the holder renews its lease when it is there again."""
    store, looks, names = Store("memory://bucket/away-watch", patience=10), itertools.count(), list[str]()
    names.append(_of_elsewhere(store, 3))
    last = Lease._last

    def slow(self: Lease) -> Any:
        if next(looks) == 2:
            time.sleep(1.2)
            threading.Timer(0.2, lambda: store.write(names[0], b'{"host": "elsewhere", "renewed": 1}')).start()
        return last(self)

    monkeypatch.setattr(Lease, "_last", slow)
    with pytest.raises(LeaseHeldError, match="is at work there"):
        Lease(store, lasts=1.0).acquire()
