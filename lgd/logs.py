"""What the libraries say while they work."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

LEVELS = {
    "detectron2": logging.WARNING,
    "fvcore": logging.WARNING,
    # It prints the traceback of every exception, which whoever catches that one reports again.
    "detectron2.engine.train_loop": logging.CRITICAL,
    # detectron2 asks torch in a way that torch means to change.
    "torch.fx._symbolic_trace": logging.ERROR,
}
"""From where on the loggers of the libraries are heard inside :func:`quiet`."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence detectron2's and pycocotools' running commentary; their warnings still show."""
    loggers = [logging.getLogger(name) for name in LEVELS]
    levels = [logger.level for logger in loggers]
    for logger, level in zip(loggers, LEVELS.values(), strict=True):
        logger.setLevel(level)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
