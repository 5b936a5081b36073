"""The log messages of the libraries."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

LEVELS = {
    "detectron2": logging.WARNING,
    "fvcore": logging.WARNING,
    # It logs the traceback of every exception; whoever catches the exception reports it.
    "detectron2.engine.train_loop": logging.CRITICAL,
    # A deprecation warning on how detectron2 calls torch.
    "torch.fx._symbolic_trace": logging.ERROR,
}
"""Lowest level that each library's logger shows inside :func:`quiet_libraries`."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide what detectron2 and pycocotools log and print below the level of a warning."""
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
