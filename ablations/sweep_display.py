"""What a sweep tells while it runs."""

from __future__ import annotations

from typing import Any, Protocol

from lgd.config.grids import Trial
from lgd.results.record import Record


class Display(Protocol):
    """Receives the progress of a sweep. Trials are named by :attr:`Trial.name`."""

    def add(self, trial: Trial) -> None: ...

    def progress(self, name: str, progress: dict[str, Any]) -> None: ...

    def restarted(self, name: str, cause: str) -> None: ...

    def ended(self, name: str, record: Record) -> None: ...


class NoDisplay:
    """Shows nothing."""

    def add(self, trial: Trial) -> None: ...

    def progress(self, name: str, progress: dict[str, Any]) -> None: ...

    def restarted(self, name: str, cause: str) -> None: ...

    def ended(self, name: str, record: Record) -> None: ...
