"""Writing checkpoints in a thread: the training waits only until its state is copied to the host's memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

from lgd.training import checkpoint
from lgd.training.progress import Stopped


class CheckpointWriter:
    """Writes one checkpoint at a time. Leaving the block waits for the last one; raises what writing it failed with.

    The process may be killed at any moment: a checkpoint is there whole or not at all (lgd/files.py), and the one
    before is removed only after the next is complete.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, *arguments: Any, state: Mapping[str, Any]) -> None:
        """:func:`lgd.training.checkpoint.save` of the state as it is now. Waits for the last one, raises its error."""
        self.wait()
        copied = copied_to_host(state)
        # No daemon: a process that ends in good order ends after it.
        self._thread = threading.Thread(target=self._write, args=(*arguments, copied), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written. Raises what writing the last checkpoint failed with, once."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _write(self, *arguments: Any) -> None:
        try:
            checkpoint.save(*arguments)
        except BaseException as error:  # raised where the training waits for it
            self._error = error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.join()
        # A training that stops says that it goes on from this checkpoint. Any other error comes first.
        if error is None or isinstance(error, Stopped):
            self.wait()


def copied_to_host(value: Any) -> Any:
    """A copy of dicts, lists and tuples in which every tensor is a copy on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
        copied = kind((key, copied_to_host(x)) for key, x in value.items())
        if hasattr(value, "_metadata"):
            # Modules read from it which version of them wrote a state_dict.
            copied._metadata = value._metadata
        return copied
    if isinstance(value, (list, tuple)):
        return type(value)(copied_to_host(x) for x in value)
    return value
