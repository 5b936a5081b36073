"""Writing tensors: torch.save, with an error that says what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import torch

from lgd.files import atomic_write

BUFFER = 2**20
"""Bytes."""


def save_tensors(content: Any, path: Path) -> None:
    """torch.save to ``path``, atomically. Raises OSError (DiskFullError) where it cannot be written."""
    with atomic_write(path) as temporary, temporary.open("wb", buffering=BUFFER) as file:
        writer = _ErrorRecordingFile(file)
        try:
            torch.save(content, cast(IO[bytes], writer))
        except RuntimeError:
            # After a failed write torch closes its archive, and what is raised is only that the archive is incomplete.
            if writer.error is None:
                raise
            raise writer.error from None


class _ErrorRecordingFile:
    """A file that remembers the first error of writing to it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return int(self._file.write(data))
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()
