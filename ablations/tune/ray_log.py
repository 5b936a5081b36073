"""Where what Ray says goes while a sweep runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

RAY_LOG = "ray.log"
"""In the results directory: what Ray says."""


@contextlib.contextmanager
def ray_log(path: Path) -> Iterator[None]:
    """Inside, what Ray says goes to the file ``path`` instead of the terminal: a failed trial is told in a line.

    Ray says it through its loggers, and prints what workers died of on stderr.
    """
    logger = logging.getLogger("ray")
    handlers, propagate = logger.handlers[:], logger.propagate
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        logger.handlers, logger.propagate = [logging.StreamHandler(file)], False
        try:
            yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate
