"""What one of Ray Train's workers cannot read ends the training: another start would not read it either.

A store that does not answer is no such thing: it may answer the next start.
"""

from __future__ import annotations

from typing import Any

from ray.train import ControllerError, UserCallback, WorkerGroupError

from lgd.errors import InputError
from lgd.storage.lease import LeaseLostError
from lgd.storage.store import StorageError


class EndOnInputError(UserCallback):
    """Ends the training, without restarts, when any worker raises an InputError. Ray calls it in its controller.

    The other workers may be in a step, waiting for that one: Ray Train ends them, too. A StorageError is left to Ray
    Train, as other failures of workers are: it starts them again, as often as it may.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Those of the others are that they lost the connection.
        for error in worker_exceptions.values():
            away = isinstance(error, StorageError) and not isinstance(error, LeaseLostError)
            if isinstance(error, InputError) and not away:
                # An error in the controller is not tried again.
                raise error


def input_error(error: BaseException) -> InputError | None:
    """The InputError that ended the training, of what ``TorchTrainer.fit`` raised.

    A StorageError where the workers failed with one for the last time that they could be started again.
    """
    if isinstance(error, ControllerError):
        found = error.controller_failure
        return found if isinstance(found, InputError) else None
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next((x for x in failures if isinstance(x, StorageError)), None)
