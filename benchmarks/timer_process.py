"""Processes with one :class:`benchmarks.step_timer.StepTimer` each, so that several trainings can be timed in turn.

The parent needs no torch: only the processes load it.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
from collections.abc import Sequence
from typing import Any, Self

from lgd.errors import InputError

_context = multiprocessing.get_context("forkserver")
# torch and detectron2 take seconds to import: the server does so once, and every process starts with them. It never
# uses CUDA, so its children can.
_context.set_forkserver_preload(["benchmarks.step_timer"])


class TimerProcess:
    """A process with a StepTimer; a context manager that ends it.

    :meth:`request` is :meth:`send` and :meth:`receive`, which serve to have several processes at work at once. An error
    in the process is raised here as InputError, in one line that begins with the spec's name. gpu: index of the GPU to
    use, None for torch's choice.
    """

    def __init__(self, gpu: int | None = None) -> None:
        self._name = ""
        self._pipe, child = _context.Pipe()
        # Not a daemon: those may not start loader processes.
        self._process = _context.Process(target=_serve, args=(child, gpu))
        self._process.start()
        child.close()

    def send(self, method: str, *arguments: Any) -> None:
        """Request a method of StepTimer, or ``build`` with the TimerSpec to build one from."""
        if method == "build":
            self._name = arguments[0].name
        # If the process is gone, receive() says so.
        with contextlib.suppress(OSError):
            self._pipe.send((method, arguments))

    def receive(self) -> Any:
        """The result of the oldest request. Raises InputError for what failed there."""
        try:
            succeeded, result = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise InputError(f"{self._name}: the timing process died ({self._process.exitcode})") from None
        if not succeeded:
            raise InputError(f"{self._name}: {result}")
        return result

    def request(self, method: str, *arguments: Any) -> Any:
        self.send(method, *arguments)
        return self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def request_all(processes: Sequence[TimerProcess], method: str, *arguments: Any) -> list[Any]:
    """The results of all processes, which work at the same time."""
    for process in processes:
        process.send(method, *arguments)
    return [process.receive() for process in processes]


def _serve(pipe: Any, gpu: int | None) -> None:
    # A session of its own, as Ray's workers have: Linux shares a busy machine out by sessions, and an interrupt at the
    # terminal reaches only the parent.
    os.setsid()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:
        try:
            _answer_requests(pipe, gpu, stack)
        except EOFError:
            return
        except Exception as error:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            with contextlib.suppress(OSError):
                pipe.send((False, kind + " ".join(str(error).split())[:300]))


def _answer_requests(pipe: Any, gpu: int | None, stack: contextlib.ExitStack) -> None:
    """Until the parent closes the pipe (EOFError), or one fails."""
    # Lazy: torch and detectron2, which the parent does not need.
    import torch

    from benchmarks.step_timer import StepTimer
    from lgd.training.device import process_settings

    if gpu is not None:
        torch.cuda.set_device(gpu)
    timer: StepTimer | None = None
    while True:
        method, arguments = pipe.recv()
        if method == "build":
            # The previous network is freed first.
            timer = None
            stack.close()
            stack.enter_context(process_settings(arguments[0].experiment))
            timer = StepTimer(*arguments)
            pipe.send((True, None))
        else:
            pipe.send((True, getattr(timer, method)(*arguments)))
