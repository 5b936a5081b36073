"""The geometry of objects and clutter: outlines as signed distances in a window of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lgd.data.shapes.spec import CLASS_NAMES, Floats


def _signed_distance(name: str, u: Floats, v: Floats) -> npt.NDArray[np.floating[Any]]:
    """Signed distance (negative inside, exact near straight edges) of a shape within the unit circle."""
    if name in ("ball", "plate"):
        return np.hypot(u, v) - 0.9
    if name == "ring":
        return np.abs(np.hypot(u, v) - 0.7) - 0.24
    if name == "box":
        return np.maximum(np.abs(u), np.abs(v)) - 0.74
    if name == "tent":
        return np.maximum(v - 0.62, 0.87 * np.abs(u) - 0.5 * v - 0.5)
    if name == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 0.95, b - 0.27), np.maximum(b - 0.95, a - 0.27))
    if name == "star":
        sector = 2 * math.pi / 5
        angle = (np.arctan2(u, -v) + sector / 2) % sector - sector / 2
        radius = np.hypot(u, v)
        x, y = radius * np.cos(angle), radius * np.abs(np.sin(angle))
        # The edge from the tip (1, 0) to the notch at 36 degrees, 0.45 from the centre.
        nx, ny = 0.45 * math.sin(sector / 2), 1 - 0.45 * math.cos(sector / 2)
        length = math.hypot(nx, ny)
        return ((x - 1) * nx + y * ny) / length
    raise AssertionError(name)


@dataclass
class Layer:
    """One painted thing: where its window lies and the signed distance (pixels) inside it."""

    label: int | None
    """Index into CATEGORIES, or None for clutter."""
    y: int
    """``y``, ``x``: the window's corner in the image, may be negative."""
    x: int
    depth: float
    radius: float
    distance: Floats
    u: Floats
    v: Floats

    def inside(self, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The same region as slices of the image and of the window; empty when the window lies outside."""
        height, width = self.distance.shape
        top, bottom = max(self.y, 0), max(min(self.y + height, size), max(self.y, 0))
        left, right = max(self.x, 0), max(min(self.x + width, size), max(self.x, 0))
        window = slice(top - self.y, bottom - self.y), slice(left - self.x, right - self.x)
        return (slice(top, bottom), slice(left, right)), window


def _window_grid(cy: float, cx: float, half: float) -> tuple[int, int, Floats, Floats]:
    """A square window around a centre (pixels): its corner and the offsets of its pixels' centres."""
    top, left = math.floor(cy - half), math.floor(cx - half)
    side = math.ceil(2 * half) + 1
    steps = np.arange(side, dtype=np.float32) + 0.5
    return top, left, (top + steps - cy)[:, None].astype(np.float32), (left + steps - cx)[None, :].astype(np.float32)


def object_layer(rng: np.random.Generator, label: int, cy: float, cx: float, radius: float, depth: float) -> Layer:
    """An object's geometry: rotated, squeezed, sheared and seen a little from the side; lengths in pixels."""
    name = CLASS_NAMES[label]
    # Tents stand; everything else may lie any way round.
    turn = rng.uniform(-0.35, 0.35) if name == "tent" else rng.uniform(-math.pi, math.pi)
    squeeze, shear = rng.uniform(0.72, 1.0), rng.uniform(-0.2, 0.2)
    # Python floats: numpy's float64 scalars would turn every array below into float64, at twice the cost.
    tilt_u, tilt_v = rng.uniform(-0.17, 0.17, 2).tolist()
    top, left, dy, dx = _window_grid(cy, cx, radius * 1.5 + 3)
    a = (math.cos(turn) * dx + math.sin(turn) * dy) / radius
    b = (-math.sin(turn) * dx + math.cos(turn) * dy) / (radius * squeeze)
    depth_of = 1 + tilt_u * a + tilt_v * b
    u, v = (a + shear * b) / depth_of, b / depth_of
    distance = _signed_distance(name, u, v) * np.float32(radius * math.sqrt(squeeze))
    return Layer(label, top, left, depth, radius, distance.astype(np.float32), u, v)


def clutter_layer(rng: np.random.Generator, size: int) -> Layer:
    """Something that is no object: a bent stroke or a lumpy blob."""
    cy, cx = rng.uniform(0, size, 2).tolist()
    depth = rng.uniform(0, 1)
    turn = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.6:
        radius = size * rng.uniform(0.08, 0.3)
        top, left, dy, dx = _window_grid(cy, cx, radius + 3)
        a, b = math.cos(turn) * dx + math.sin(turn) * dy, -math.sin(turn) * dx + math.cos(turn) * dy
        bent = b - rng.uniform(-0.6, 0.6) * a * a / radius
        beyond = np.maximum(np.abs(a) - radius * 0.85, 0)
        distance = np.hypot(bent, beyond) - max(0.7, size * rng.uniform(0.004, 0.016))
    else:
        radius = size * rng.uniform(0.03, 0.14)
        top, left, dy, dx = _window_grid(cy, cx, radius * 1.6 + 3)
        angle = np.arctan2(dy, dx) + turn
        lumps = sum(rng.uniform(0.1, 0.24) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 7))
        distance = np.hypot(dy, dx) - radius * (0.85 + lumps)
        a, b = dx + 0 * dy, dy + 0 * dx
    u, v = (np.asarray(a / radius, np.float32), np.asarray(b / radius, np.float32))
    return Layer(None, top, left, depth, radius, distance.astype(np.float32), u, v)
