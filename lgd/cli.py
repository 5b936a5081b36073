"""What the commands have in common: one line for what is wrong, and an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from lgd.errors import InputError

WRONG_INPUT, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the options, as with everything else."""

    def error(self, message: str) -> NoReturn:
        # argparse would print the usage in several lines first.
        raise InputError(message)


def answer(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """The exit status of a command: its own, 2 after a line on wrong input, 130 after the line ``interrupted``."""
    try:
        return command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
