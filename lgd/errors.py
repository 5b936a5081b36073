"""The project's own exceptions, and those of code that is not the project's."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 300
"""Characters of another exception's text that a message shows."""


class InputError(ValueError):
    """Something the user gave (a path, a key, a number, a file's content) is wrong; the message is one clear line."""


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Inside, code of the user's own runs: what it raises becomes an InputError, one line that begins with ``what``.

    It ends with the file and line that raised it. ``sys.exit`` counts: a command would end without a word.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        frames = [x for x in traceback.extract_tb(error.__traceback__) if _is_own(x.filename)]
        # A syntax error says itself where it is.
        place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        text = said if isinstance(error, SyntaxError) else f"{said}{place}"
        raise InputError(f"{what}: {'calls sys.exit: ' if isinstance(error, SystemExit) else ''}{text}") from None


def _is_own(file: str) -> bool:
    """Whether a file of a traceback is neither ours nor a library's."""
    return not (file.startswith(("<", str(Path(__file__).parent))) or "/lib/python" in file)
