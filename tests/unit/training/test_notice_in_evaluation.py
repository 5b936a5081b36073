"""A notice or a stop that comes while a training evaluates loses no step, and every evaluation is made once."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd.config.experiment import Experiment, parse
from lgd.distributed import notice
from lgd.results.record import Record, load
from lgd.training import checkpoint, hooks
from lgd.training.evaluations import Evaluations
from lgd.training.progress import EVALUATIONS_FILE, Stopped
from lgd.training.run import run
from tests.helpers import quick_experiment, wait_until
from tests.helpers_processes import run_on

STEPS, EVERY, IMAGES = 6, 3, 6


def _experiment(**changes: Any) -> Experiment:
    """Without checkpoints of its own: what is saved is saved because of the notice."""
    described = {"schedule.steps": STEPS, "evaluation.every": EVERY, "evaluation.teacher": True, "checkpoint.every": 0}
    return quick_experiment(**{**described, "data.shapes_val": IMAGES, **changes})


class _Killed(BaseException):
    """In a test's stead of SIGKILL: nothing that the training does next is seen."""


class _InEvaluation:
    """Calls ``act`` after each image of the evaluation of ``step``. images, steps: what has been evaluated."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int, act: Callable[[int], object]) -> None:
        self.images, self.steps = 0, list[int]()
        evaluate = Evaluations.evaluate

        def evaluating(evaluations: Evaluations, now: int, after_image: Callable[[], None]) -> None:
            def after() -> None:
                if now == step:
                    self.images += 1
                    act(self.images)
                after_image()

            self.steps.append(now)
            evaluate(evaluations, now, after)

        patch.setattr(Evaluations, "evaluate", evaluating)


@pytest.fixture(autouse=True)
def no_notice() -> Iterator[None]:
    yield
    notice._sigterm.clear()
    notice._saved = float("-inf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """The undisturbed training and its directory."""
    root = tmp_path_factory.mktemp("whole")
    return run(_experiment(), root), root


def _trace(record: Record, directory: Path) -> dict[str, Any]:
    """What a training leaves that must not depend on its interruptions."""
    lines = [json.loads(x) for x in (directory / "metrics.json").read_text().splitlines()]
    points = [json.loads(x) for x in (directory / EVALUATIONS_FILE).read_text().splitlines()]
    return {
        "record": (record.status, record.steps, record.losses, record.evaluations, record.student, record.teacher),
        "log": [{k: v for k, v in x.items() if "loss" in k or k in ("iteration", "lr")} for x in lines],
        "evaluations": points,
        "checkpoints": checkpoint.last_step(directory),
    }


def _check_goes_on(directory: Path, step: int, whole: tuple[Record, Path], **changes: Any) -> None:
    """From the checkpoint of ``step``, whose evaluation comes first and once, to what the undisturbed training left."""
    assert checkpoint.last_step(directory) == step
    # It goes on in another process, which knows of no notice.
    notice._sigterm.clear()
    with pytest.MonkeyPatch.context() as patch:
        seen = _InEvaluation(patch, 0, lambda _: None)
        record = run(_experiment(**changes), directory)
    assert seen.steps == list(range(step, STEPS + 1, EVERY))
    assert _trace(record, directory) == _trace(*whole)
    weights = [torch.load(x / "student.pth", weights_only=True)["model"] for x in (directory, whole[1])]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], x) for k, x in weights[1].items())


@pytest.mark.parametrize("step", [EVERY, STEPS])
def test_sigterm_in_an_evaluation_ends_it(step: int, whole: tuple[Record, Path], tmp_path: Path) -> None:
    def sigterm(image: int) -> None:
        if image == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        seen = _InEvaluation(patch, step, sigterm)
        with notice.listening(), pytest.raises(notice.Leaving):
            run(_experiment(), tmp_path)
    # A signal's handler may run a few instructions later.
    assert 2 <= seen.images <= 3
    _check_goes_on(tmp_path, step, whole)


@pytest.mark.parametrize("step", [EVERY, STEPS])
def test_a_node_that_is_drained_in_an_evaluation_leaves_a_checkpoint(
    step: int, whole: tuple[Record, Path], tmp_path: Path
) -> None:
    """Written while the evaluation goes on; then the node is gone."""
    drained = threading.Event()

    def act(image: int) -> None:
        drained.set()
        assert notice._draining.wait(10)
        if image == IMAGES:
            wait_until(lambda: checkpoint.last_step(tmp_path) == step, 10)
            raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notice, "POLL_INTERVAL_S", 0.01)
        _InEvaluation(patch, step, act)
        with notice.watching(drained.is_set), pytest.raises(_Killed):
            run(_experiment(), tmp_path)
    _check_goes_on(tmp_path, step, whole)


def test_the_scores_of_an_evaluation_on_a_drained_node_are_saved_at_once(tmp_path: Path) -> None:
    """Over the checkpoint that was written in the evaluation."""

    def kill(progress: dict[str, Any]) -> None:
        if progress["step"] > EVERY:
            raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notice, "_draining", drained := threading.Event())
        # Progress is reported after every step.
        patch.setattr(hooks.ReportProgress.__init__, "__defaults__", (0.0,))
        _InEvaluation(patch, EVERY, lambda _: drained.set())
        with pytest.raises(_Killed):
            run(_experiment(), tmp_path, on_progress=kill)
    assert sorted(x.name for x in (tmp_path / checkpoint.DIRECTORY).iterdir()) == [f"step-{EVERY:08}.pth"]
    saved = torch.load(tmp_path / checkpoint.DIRECTORY / f"step-{EVERY:08}.pth", weights_only=True)
    assert [json.loads(x)["step"] for x in saved["state"]["evaluations"]] == [EVERY]


def test_a_stop_ends_an_evaluation(whole: tuple[Record, Path], tmp_path: Path) -> None:
    asked = iter(range(1, 100))
    with pytest.MonkeyPatch.context() as patch:
        seen = _InEvaluation(patch, EVERY, lambda _: None)
        # Asked after each step, and in the evaluation of the third one before that.
        with pytest.raises(Stopped) as stopped:
            run(_experiment(), tmp_path, should_stop=lambda: next(asked) == EVERY - 1 + 2)
    assert (stopped.value.step, seen.images) == (EVERY, 2)
    _check_goes_on(tmp_path, EVERY, whole)


@pytest.mark.parametrize(("changes", "repeat_s", "saves"), [
    ({"checkpoint.every": 50}, 0.0, True),
    ({"checkpoint.every": 50}, 600.0, False),
    ({}, 0.0, False),
])  # fmt: skip
def test_work_of_some_time_is_saved_before_an_evaluation(
    changes: dict[str, Any], repeat_s: float, saves: bool, whole: tuple[Record, Path], tmp_path: Path
) -> None:
    """Nobody asks for a notice while detections are scored. Not where checkpoints are off, but for notices."""

    def kill(_: int) -> None:
        raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notice, "REPEAT_S", repeat_s)
        _InEvaluation(patch, EVERY, kill)
        with pytest.raises(_Killed):
            run(_experiment(**changes), tmp_path)
    if saves:
        _check_goes_on(tmp_path, EVERY, whole, **changes)
    else:
        assert checkpoint.last_step(tmp_path) is None


def _two_workers(rank: int, described: dict[str, Any], root: str) -> None:
    """An undisturbed training; and one that is killed in its first evaluation, gone on with, and again in its last."""

    def kill(_: int) -> None:
        raise _Killed

    experiment = parse(described)
    run(experiment, Path(root) / "whole")
    for step in (EVERY, STEPS):
        with pytest.MonkeyPatch.context() as patch:
            seen = _InEvaluation(patch, step, kill)
            with pytest.raises(_Killed):
                run(experiment, Path(root) / "killed")
        if rank == 0:
            assert checkpoint.last_step(Path(root) / "killed") == step
        assert seen.steps == ([EVERY] if step == EVERY else [EVERY, STEPS])
    run(experiment, Path(root) / "killed")


@pytest.mark.slow
def test_several_workers_save_before_an_evaluation(tmp_path: Path) -> None:
    """They cannot agree in the middle of it."""
    experiment = _experiment(**{"checkpoint.every": 50, "evaluation.teacher": False, "method.name": "baseline"})
    run_on(2, _two_workers, experiment.model_dump(mode="json"), str(tmp_path))
    traces = [_trace(load(tmp_path / x / "record.json"), tmp_path / x) for x in ("whole", "killed")]
    assert traces[0] == traces[1]
    assert [x["step"] for x in traces[0]["evaluations"]] == [EVERY, STEPS]
