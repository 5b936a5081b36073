"""A worker that will have to go writes a checkpoint first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lgd.distributed import notice, ranks
from lgd.training import checkpoint, hooks
from lgd.training.hooks import SaveAndStop
from lgd.training.run import run
from tests.helpers import quick_experiment, wait_until


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The notices of a process are its own: none is left to the next test."""
    yield
    notice._sigterm.clear()
    notice._saved = float("-inf")


def _hook(calls: list[str], steps: int = 9, **options: Any) -> SaveAndStop:
    given: dict[str, Any] = {"every": 0, "should_stop": lambda: False, "period": 20, **options}
    hook = SaveAndStop(lambda step: calls.append(f"save {step}"), written=lambda: calls.append("written"), **given)
    hook.trainer = SimpleNamespace(iter=0, max_iter=steps)
    return hook


def _step(hook: SaveAndStop, iteration: int) -> None:
    hook.trainer.iter = iteration
    hook.after_step()


def test_on_a_node_that_is_taken_away_checkpoints_are_written_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the notice, and then every REPEAT_S: the training goes on until the node goes."""
    monkeypatch.setattr(notice, "POLL_INTERVAL_S", 0.01)
    clock, calls, drained = [100.0], list[str](), threading.Event()
    monkeypatch.setattr(notice, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    hook = _hook(calls)
    with notice.watching(drained.is_set):
        _step(hook, 0)
        assert calls == []
        drained.set()
        assert notice._draining.wait(10)
        _step(hook, 1)
        _step(hook, 2)
        assert calls == ["save 2"]
        clock[0] += notice.REPEAT_S
        _step(hook, 3)
        assert calls == ["save 2", "save 4"]
    assert notice.asked() == ""


def test_a_cluster_that_does_not_answer_is_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "POLL_INTERVAL_S", 0.01)
    asked = threading.Event()

    def broken() -> bool:
        asked.set()
        raise RuntimeError

    with notice.watching(broken):
        assert asked.wait(10)
        assert notice.asked() == ""


@pytest.mark.parametrize("leaves", [0, 1])
def test_any_workers_notice_is_everybodys_checkpoint(leaves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to leave does when the main process has written, and nobody else."""
    calls: list[str] = []
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 0)

    def gathered(own: Any) -> list[Any]:
        notices = ["leave" if i == leaves else "" for i in range(2)]
        return [(False, x, 1) for x in notices] if own is not None else [None, None]

    monkeypatch.setattr(ranks, "all_gather", gathered)
    with pytest.raises(notice.Leaving) if leaves == 0 else nullcontext():
        _step(_hook(calls), 0)
    assert calls == ["save 1", "written"]


def test_workers_with_long_steps_agree_after_every_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """About every two seconds: a notice leaves a node tens of seconds. With short steps every ``period``."""
    asked: list[int] = []
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "all_gather", lambda own: [own, own])
    clock, step = [0.0], [0]
    monkeypatch.setattr(hooks, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    for seconds, expected in ((1.0, [1, 3, 5, 7]), (0.01, [1])):
        asked.clear()
        hook = _hook([], should_stop=lambda: asked.append(step[0] + 1), steps=30)
        for step[0] in range(8):
            clock[0] += seconds
            _step(hook, step[0])
        assert asked == expected


def test_sigterm_to_a_worker_writes_a_checkpoint_and_ends_it(tmp_path: Path) -> None:
    def at_step(progress: dict[str, Any]) -> None:
        if not sent:
            sent.append(progress["step"])
            os.kill(os.getpid(), signal.SIGTERM)

    sent: list[int] = []
    ended: list[int] = []
    experiment = quick_experiment(**{"schedule.steps": 2000, "checkpoint.every": 0, "method.name": "baseline"})
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    try:
        with notice.listening(), pytest.raises(notice.Leaving):
            run(experiment, tmp_path, on_progress=at_step)
        assert ended == []
        step = checkpoint.last_step(tmp_path)
        # What the process did at SIGTERM before, it does now.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(notice, "EXIT_TIMEOUT_S", 0.0)
            patch.setattr(os, "_exit", ended.append)
            end: Callable[[], object] = notice.end_process
            end()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [1, 128 + signal.SIGTERM]
    assert step is not None
    assert sent[0] <= step < sent[0] + 5


def test_a_process_whose_main_thread_waits_listens_too() -> None:
    """As a worker of Ray, where the training runs in another thread."""
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
    try:
        notice.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: notice.asked() == "leave", 10)
        assert ended == []
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: bool(ended), 10)
    finally:
        signal.signal(signal.SIGTERM, before)
