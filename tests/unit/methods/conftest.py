"""Fixtures that the tests of methods share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from detectron2.utils.events import EventStorage

from tests.helpers import one_thread


@pytest.fixture
def storage() -> Iterator[EventStorage]:
    """detectron2's EventStorage at iteration 0, on one thread."""
    with one_thread(), EventStorage(0) as opened:
        yield opened
