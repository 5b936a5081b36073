"""What the commands have in common: one line for what is wrong, an exit status, and how they show a time."""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from lgd.errors import InputError
from lgd.signals import interrupted_by_sigterm

WRONG_INPUT, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the options, as with everything else. Descriptions keep their lines."""

    def __init__(self, *arguments: object, **options: object) -> None:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, **options}
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        # argparse would print the usage in several lines first.
        raise InputError(message)


def typed(prog: str) -> str:
    """How the command is typed: ``python FILE`` where ``prog`` is a file of this repository."""
    return f"python {prog}" if prog.endswith(".py") else prog


def examples(prog: str, *arguments: str) -> str:
    """The end of a help text: the command with each of ``arguments``."""
    return "\n".join(["examples:", *(f"  {typed(prog)} {x}".rstrip() for x in arguments)])


def exit_status(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a command and return its exit status: its own, 2 after wrong input, 130 interrupted; each with one line.

    SIGTERM interrupts as Ctrl-C does, but where the command answers it itself. What takes long to import belongs into
    ``command``: an interrupt is one line there, and a traceback before it.
    """
    try:
        with interrupted_by_sigterm():
            return command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except BrokenPipeError:
        # Whoever read the output, such as ``head``, has seen enough; at its exit Python would flush once more.
        sys.stdout = None
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, ValueError) and "embedded null" in str(error):
            # Of a path that a file names: Python raises it at any use.
            print(f"error: a path with a NUL character in it ({error})", file=sys.stderr)
            return WRONG_INPUT
        # Raised while a C extension was imported, an interrupt comes out as another error, such as an ImportError.
        if not _was_interrupted(error):
            raise
        print(interrupted, file=sys.stderr)
        return INTERRUPTED


@contextmanager
def without_gc() -> Iterator[None]:
    """Without garbage collection, which takes a seventh of the time of a short command that imports pandas."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _was_interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def format_duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``; ``?`` for what is not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
