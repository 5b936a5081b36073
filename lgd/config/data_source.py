"""The names of data sets, as ``--data`` and ``data.source`` take them."""

from __future__ import annotations

from pathlib import Path


def absolute_source(source: str) -> str:
    """A source with its directory made absolute, so that it means the same wherever a run goes on."""
    scheme, colon, path = source.partition(":")
    return f"{scheme}:{Path(path).expanduser().resolve()}" if colon and path else source


SCHEMES = ("shapes", "coco", "voc0712", "coco-json:DIR", "voc:DIR", "crowdhuman:DIR")
