"""A function that a thread calls while a block runs."""

from __future__ import annotations

import threading

import pytest

from lgd.background import called_every


def test_it_is_called_while_the_block_runs_and_never_after_it() -> None:
    calls, thrice = list[str](), threading.Event()

    def action() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            thrice.set()

    with called_every(0.001, action, "a name"):
        assert thrice.wait(30)
    assert set(calls) == {"a name"}
    assert "a name" not in {x.name for x in threading.enumerate()}, "it would go on"


def test_a_call_that_runs_is_waited_for_when_the_block_fails() -> None:
    begun, done = threading.Event(), threading.Event()

    def action() -> None:
        begun.set()
        # Long enough for the block to end meanwhile.
        done.wait(0.05)
        done.set()

    with pytest.raises(ValueError, match="of the block"), called_every(0.001, action):
        assert begun.wait(30)
        raise ValueError("of the block")
    assert done.is_set()


def test_nothing_is_called_in_a_short_block() -> None:
    with called_every(600, lambda: pytest.fail("called")):
        pass
