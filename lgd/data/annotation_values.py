"""Single values of an annotation: which can be used, and boxes and masks limited to their image."""

from __future__ import annotations

from typing import Any, TypeGuard

__all__ = ["clip_box", "decode_run_lengths", "is_id", "is_number", "usable_segmentation"]

_BOX_TOLERANCE = 1.0
"""Pixels that a box may reach out of its image, as rounding and counting from 0 or 1 make it, without being clipped."""

_LARGEST = 2**53
"""Whole numbers from here on are not the same in every reader of JSON."""


def is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _LARGEST


def is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # type: ignore[arg-type]


def clip_box(box: list[float], width: int, height: int) -> list[float] | None:
    """[x, y, width, height] inside the image; the same list where it is inside already, None where it is outside."""
    x, y, w, h = box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return None
    tolerance = _BOX_TOLERANCE
    if x >= -tolerance and y >= -tolerance and x + w <= width + tolerance and y + h <= height + tolerance:
        return box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, width) - left, min(y + h, height) - top]


def usable_segmentation(value: Any, width: int, height: int) -> Any:
    """The usable part of a segmentation: the same object, a list of fewer polygons, or None."""
    if isinstance(value, list):
        numeric = [x for x in value if isinstance(x, list) and all(map(is_number, x))]
        polygons = [x for x in numeric if len(x) >= 6 and len(x) % 2 == 0]
        if not polygons or len(numeric) < len(value):
            return None
        return value if len(polygons) == len(value) else polygons
    if not isinstance(value, dict) or value.get("size") != [height, width]:
        return None
    runs = value.get("counts")
    if isinstance(runs, str):
        runs = decode_run_lengths(runs)
    fits = isinstance(runs, list) and all(type(x) is int and x >= 0 for x in runs) and sum(runs) == width * height
    return value if fits else None


def decode_run_lengths(text: str) -> list[int] | None:
    """COCO's compressed run lengths, None where broken. Read here first: pycocotools would read beyond its memory.

    Numbers of five bits a character, lowest first; bit 32 means that more follow, bit 16 in the last one a negative
    number. From the fourth on each is the difference to the one two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
