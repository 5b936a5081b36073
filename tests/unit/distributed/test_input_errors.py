"""What one worker of Ray Train cannot read ends the training at once. Without Ray's processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ControllerError, FailureConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

from lgd.data.mapper import ReadError, StoreReadError
from lgd.distributed import ray_train
from lgd.distributed.input_errors import EndOnInputError, input_error
from lgd.distributed.messages import Messages
from lgd.distributed.workers import Workers
from lgd.storage.lease import LeaseLostError

BROKEN = ReadError("1.jpg: cannot be decoded")
AWAY = StoreReadError("s3://bucket/1.jpg: no answer for 300 s")
LOST = RuntimeError("Connection closed by peer")


def _seen(*errors: Exception | None) -> WorkerGroupPollStatus:
    """What Ray Train's controller sees of its workers, by rank."""
    wrapped = [None if x is None else UserExceptionWithTraceback(x, "") for x in errors]
    return WorkerGroupPollStatus({i: WorkerStatus(running=x is None, error=x) for i, x in enumerate(wrapped)})


def test_it_ends_the_training_whichever_worker_it_was_and_uses_up_no_restart() -> None:
    context: Any = None
    handler = UserCallbackHandler([EndOnInputError()], context)
    policy = create_failure_policy(FailureConfig(max_failures=3))
    for errors in ((BROKEN, None), (None, BROKEN), (LOST, BROKEN), (AWAY, BROKEN)):
        with pytest.raises(ReadError) as raised:
            handler.after_worker_group_poll_status(_seen(*errors))
        # Ray Train's controller wraps what a callback raises.
        ended = ControllerError(raised.value)
        assert policy.make_decision(ended) == FailureDecision.RAISE
        found = input_error(pickle.loads(pickle.dumps(ended)))
        assert isinstance(found, ReadError)
        assert str(found) == str(BROKEN)
    handler.after_worker_group_poll_status(_seen(None, LOST))
    assert policy.make_decision(WorkerGroupError("", {1: LOST})) == FailureDecision.RETRY


def test_a_training_that_another_command_took_over_is_not_started_again() -> None:
    context: Any = None
    handler = UserCallbackHandler([EndOnInputError()], context)
    with pytest.raises(LeaseLostError, match="taken over"):
        handler.after_worker_group_poll_status(_seen(LOST, LeaseLostError("s3://b/x: another command has taken over")))


def test_a_store_that_is_away_uses_up_a_restart_and_after_the_last_one_is_what_ended_it() -> None:
    context: Any = None
    handler = UserCallbackHandler([EndOnInputError()], context)
    policy = create_failure_policy(FailureConfig(max_failures=1))
    seen = _seen(LOST, AWAY)
    handler.after_worker_group_poll_status(seen)
    ended = seen.get_worker_group_error()
    assert policy.make_decision(ended) == FailureDecision.RETRY
    assert policy.make_decision(ended) == FailureDecision.RAISE
    found = input_error(pickle.loads(pickle.dumps(ended)))
    assert isinstance(found, StoreReadError)
    assert str(found) == str(AWAY)
    assert input_error(WorkerGroupError("", {0: LOST})) is None


def test_a_worker_raises_it_and_the_launcher_returns_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loops: list[dict[str, Any]] = []

    def fit(trainer: Any) -> Any:
        loops.append(trainer.train_loop_config)
        try:
            return SimpleNamespace(return_value=trainer.train_loop_per_worker(trainer.train_loop_config))
        except ReadError as error:
            if error is BROKEN:
                raise ControllerError(error) from None
            raise WorkerGroupError("a traceback", {0: LOST, 1: error}) from None
        except Exception as error:
            raise WorkerGroupError("a traceback", {1: error}) from None

    monkeypatch.setattr(TorchTrainer, "__init__", _keep)
    monkeypatch.setattr(TorchTrainer, "fit", fit)
    monkeypatch.setattr(ray_train, "_run", lambda work, config, gpu, messages: work(config, gpu))
    monkeypatch.setattr(Messages, "remove", lambda _: None)
    (tmp_path / "ray").mkdir()

    def launch(result: Any) -> Any:
        return ray_train.launch(lambda *_: result, None, tmp_path, Workers(2))

    assert launch(BROKEN) is BROKEN
    assert launch(AWAY) is AWAY
    assert not (tmp_path / "ray").exists()
    stopped = KeyError("what is returned and no such error is the result")
    assert launch(stopped) is stopped

    def fail(*_: Any) -> None:
        raise LOST

    with pytest.raises(RuntimeError, match="^Connection closed by peer$"):
        ray_train.launch(fail, None, tmp_path, Workers(2))


def _keep(trainer: Any, loop: Any, *, train_loop_config: Any, **_: Any) -> None:
    trainer.train_loop_per_worker, trainer.train_loop_config = loop, train_loop_config
