"""SHA-256 of files of weights: whether a file is the one that its source names, and the one that was read before.

Of a downloaded file the digest is written beside it at its first use, in ``FILE.sha256`` as ``sha256sum`` writes it,
and compared with at every later one: where nothing was published, a file that changes is seen all the same.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from lgd.detectors.conventions import TORCHVISION
from lgd.errors import InputError
from lgd.files import open_file, read_file, write_text

__all__ = ["SUFFIX", "check_digest", "expected", "pinned"]

SUFFIX = ".sha256"
"""Added to a file's name."""

_PINNED = re.compile(r"#sha256=([0-9a-fA-F]{64})$")

_WHOLE = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


def pinned(source: str) -> str:
    """The digest that ``source`` itself demands, ``#sha256=HEX`` at its end; "" without."""
    found = _PINNED.search(source)
    return found[1].lower() if found else ""


def expected(source: str, path: Path) -> str:
    """The digest, or its beginning, that is known of a downloaded file beforehand; "" where none is."""
    return pinned(source) or _published(source, path)


def _published(source: str, path: Path) -> str:
    """What the name of the file says: torchvision's have the beginning, those in the Hugging Face hub's cache all."""
    if source.startswith(TORCHVISION):
        found = re.search(r"-([0-9a-f]{8,})\.", path.name)
        return found[1] if found else ""
    kept = path.resolve()
    return kept.name if kept.parent.name == "blobs" and _WHOLE.fullmatch(kept.name) else ""


def check_digest(source: str, path: Path, *, downloaded: bool) -> str:
    """The SHA-256 of ``path``. Raises InputError, one line, where it is not the file that ``source`` is to be.

    downloaded: the source is a URL; the user's own files may change.
    """
    try:
        with open_file(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"weights {source}: {path} cannot be read ({error.strerror})") from None
    published = _published(source, path) if downloaded else ""
    if not digest.startswith(pinned(source) or published):
        raise InputError(f"weights {source}: {path} is another file, its SHA-256 is {digest}")
    # A whole published digest is better than that of the first file.
    if downloaded and len(published) < len(digest):
        _compare_with_first(source, path, digest)
    return digest


def _compare_with_first(source: str, path: Path, digest: str) -> None:
    """Raise InputError where the file has changed since its first use; write its digest down where that is known."""
    beside = path.with_name(path.name + SUFFIX)
    first = _read(source, beside)
    if first == digest:
        return
    if first and not pinned(source):
        raise InputError(
            f"weights {source}: {path} has changed since its first use here (SHA-256 {first} then, {digest} now):"
            f" remove it to download it again, and {beside} too if its publisher has changed it"
        )
    try:
        write_text(beside, f"{digest}  {path.name}\n")
    except OSError as error:  # of a cache that others keep
        log.warning("%s cannot be written (%s): a later change of %s is not seen", beside, error.strerror, path.name)


def _read(source: str, beside: Path) -> str:
    """The digest that is written there; "" where there is no such file."""
    try:
        digest = read_file(beside).decode(errors="replace").partition(" ")[0].strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"weights {source}: {beside} cannot be read ({error.strerror})") from None
    if not _WHOLE.fullmatch(digest):
        raise InputError(f"weights {source}: {beside} holds no SHA-256: remove it if you trust the file beside it")
    return digest
