"""What one of Ray Train's workers cannot read ends the training: another start would not read it either."""

from __future__ import annotations

from typing import Any

from ray.train import ControllerError, UserCallback

from lgd.errors import InputError


class EndOnInputError(UserCallback):
    """Ends the training, without restarts, when any worker raises an InputError. Ray calls it in its controller.

    The other workers may be in a step, waiting for that one: Ray Train ends them, too.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Those of the others are that they lost the connection.
        for error in worker_exceptions.values():
            if isinstance(error, InputError):
                # An error in the controller is not tried again.
                raise error


def input_error(error: BaseException) -> InputError | None:
    """The InputError that ended the training, of what ``TorchTrainer.fit`` raised."""
    found = error.controller_failure if isinstance(error, ControllerError) else None
    return found if isinstance(found, InputError) else None
