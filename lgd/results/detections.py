"""Detections that an evaluation keeps beside a record (``evaluation.keep_detections``)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgd.errors import InputError
from lgd.files import atomic_write, read_file

STUDENTS, TEACHERS = "detections.json.gz", "detections-teacher.json.gz"
"""Their files in a run's directory."""

LARGEST = 1e15
"""Of a box's numbers; also keeps out NaN."""

Detections = Sequence[Mapping[str, Any]]
"""COCO's results: each with image_id, category_id, bbox, score and, of masks, segmentation."""


def save_detections(detections: Detections, path: Path) -> None:
    """Write ``detections`` as gzipped JSON, atomically: equal detections are equal files."""
    # Without the time that gzip would write into it.
    packed = gzip.compress(json.dumps(detections, separators=(",", ":")).encode(), mtime=0)
    with atomic_write(path) as temporary:
        temporary.write_bytes(packed)


def load_detections(path: Path) -> list[dict[str, Any]]:
    """What :func:`save_detections` wrote. Raises InputError, one line, where it is no such file."""
    try:
        found = json.loads(gzip.decompress(read_file(path)))
        if not isinstance(found, list) or not all(map(is_detection, found)):
            raise ValueError("a list of image_id, category_id, bbox and score is needed")
        return found
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise InputError(f"{path}: holds no detections ({' '.join(str(error).split())})") from None


def is_detection(value: Any) -> bool:
    """Whether a JSON value is one of :data:`Detections`."""
    if not isinstance(value, dict):
        return False
    box = value.get("bbox")
    ids = all(type(value.get(x)) is int for x in ("image_id", "category_id"))
    return ids and isinstance(box, list) and len(box) == 4 and all(map(_is_number, [*box, value.get("score")]))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST
