"""A cache of work that several dry builds share: networks, and checks of files of weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from lgd.errors import InputError

T = TypeVar("T")

MOST_KEPT = 8
"""Results that are kept, the last used: networks of several hundred MB are among them."""


class BuildCache:
    """Results by what they follow from. The networks among them are to be looked at, not to be trained."""

    def __init__(self) -> None:
        self._results: dict[Hashable, Any] = {}
        self._errors: dict[Hashable, str] = {}

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """Return the result of ``work``, or raise its InputError; cached by ``key`` (least recently used go)."""
        if key in self._errors:
            raise InputError(self._errors[key])
        try:
            result = self._results.pop(key) if key in self._results else work()
        except InputError as error:
            self._errors[key] = str(error)
            raise
        self._results[key] = result
        while len(self._results) > MOST_KEPT:
            del self._results[next(iter(self._results))]
        return result


class NoCache(BuildCache):
    """Does everything anew: a training needs networks of its own."""

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        return work()
