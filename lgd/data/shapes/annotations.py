"""COCO annotations of a generated image: boxes and polygons that cover the visible masks exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lgd.data.shapes.spec import Mask, SyntheticImage

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def _boundary_loops(mask: Mask) -> list[tuple[list[int], int]]:
    """Boundaries of a mask along pixel edges: ([x, y, x, y, ...] corners, signed area), holes negative."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    # Edges keep the inside on their right; a step's direction is its index in _STEPS.
    sides = (
        (inner & ~padded[:-2, 1:-1], 0, 0),
        (inner & ~padded[1:-1, 2:], 1, 0),
        (inner & ~padded[2:, 1:-1], 1, 1),
        (inner & ~padded[1:-1, :-2], 0, 1),
    )
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (edge, add_x, add_y) in enumerate(sides):
        ys, xs = np.nonzero(edge)
        for vertex in zip((xs + add_x).tolist(), (ys + add_y).tolist(), strict=True):
            leaving.setdefault(vertex, []).append(direction)
    loops = []
    while leaving:
        start = (x, y) = next(iter(leaving))
        direction = -1
        corners: list[int] = []
        area = 0
        while (x, y) in leaving:
            options = leaving[x, y]
            # Where two pixels meet at a corner, turning right keeps to the same pixel.
            turned = options[0] if len(options) == 1 or direction < 0 else (direction + 1) % 4
            options.remove(turned)
            if not options:
                del leaving[x, y]
            if turned != direction:
                corners += (x, y)
                direction = turned
            step_x, step_y = _STEPS[direction]
            area += x * step_y - y * step_x
            x, y = x + step_x, y + step_y
            if (x, y) == start and (start not in leaving or (direction + 1) % 4 not in leaving[start]):
                break
        loops.append((corners, area // 2))
    return loops


def mask_to_polygons(mask: Mask) -> list[list[int]]:
    """COCO polygons whose union is exactly the mask: no holes, because COCO polygons cannot have any."""
    ys, xs = np.nonzero(mask)
    top, left = int(ys.min()), int(xs.min())
    crop = mask[top : int(ys.max()) + 1, left : int(xs.max()) + 1]
    loops = _boundary_loops(crop)
    holes = [corners for corners, area in loops if area < 0]
    if holes:
        columns = holes[0][::2]
        cut = (min(columns) + max(columns)) // 2 + left
        halves = mask.copy(), mask.copy()
        halves[0][:, cut:] = False
        halves[1][:, :cut] = False
        return [polygon for half in halves for polygon in mask_to_polygons(half)]
    return [[value + (top if i % 2 else left) for i, value in enumerate(corners)] for corners, _ in loops]


def coco_annotations(image: SyntheticImage, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    for number, (label, mask) in enumerate(zip(image.labels, image.masks, strict=True)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        yield {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
            "area": int(mask.sum()),
            "segmentation": mask_to_polygons(mask),
            "iscrowd": 0,
        }
