"""The default data: photograph-like pictures of simple objects, made on first use.

Seven classes are told apart by outline, not by colour, and two of them (``ball`` and ``plate``) share the
outline of a disc: the scene, and a ``cross`` that lies next to most plates, say which one it is. A detector
therefore gains from the context of an image and from the relations between its objects.

The directory is in COCO layout (``train/``, ``val/``, ``annotations/instances_{train,val}.json``) and every
image is a pure function of (seed, split, index, size), so a longer set begins with the shorter one.
"""

from __future__ import annotations

import colorsys
import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from lgd.errors import InputError

__all__ = ["CATEGORIES", "GENERATOR_VERSION", "SCENES", "Picture", "ShapesSpec", "cache_root", "draw", "make"]

# Part of the directory's name: raise it whenever a pixel or an annotation changes.
GENERATOR_VERSION = "1"

_log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

CATEGORIES: tuple[tuple[str, str], ...] = (
    ("ball", "round"),
    ("plate", "round"),
    ("ring", "round"),
    ("box", "angular"),
    ("tent", "angular"),
    ("star", "pointed"),
    ("cross", "pointed"),
)
_NAMES = tuple(name for name, _ in CATEGORIES)
SCENES = ("meadow", "water", "table", "wall")

# P(class | scene), rows normalised below. The companions add crosses on top of these.
_PRIOR = np.array(
    # ball  plate ring  box   tent  star  cross
    [
        [0.30, 0.01, 0.08, 0.17, 0.34, 0.06, 0.04],  # meadow
        [0.28, 0.01, 0.20, 0.14, 0.13, 0.22, 0.02],  # water
        [0.02, 0.12, 0.14, 0.49, 0.10, 0.05, 0.08],  # table
        [0.07, 0.06, 0.14, 0.45, 0.12, 0.10, 0.06],  # wall
    ]
)
_PRIOR /= _PRIOR.sum(1, keepdims=True)
_SCENE_P = np.array([0.34, 0.24, 0.20, 0.22])
# Objects an image, 1 to 8, for images that have any.
_COUNT_P = np.array([0.13, 0.19, 0.21, 0.17, 0.13, 0.08, 0.05, 0.04])
_EMPTY_P = 0.04
_COMPANION_P = 0.75
_EXTENT = (0.13, 0.5)
# Pixels: four cells of stride 8. What covers fewer can hardly be located from a feature map, by a teacher neither.
_SMALLEST = 32
_MIN_VISIBLE = 0.25
_SPLITS = ("train", "val")
_SIZES = (64, 1024)
# JPEG, as photographs are: a third of a PNG's bytes here and nearly twice as fast to decode.
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class ShapesSpec:
    """What to generate: image counts of the splits, the square image's side in pixels, the seed.

    Raises InputError for counts below 1, a side outside 64..1024 or a negative seed.
    """

    train: int = 1000
    val: int = 200
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1:
            raise InputError(f"shapes: train and val need at least 1 image each, got {self.train} and {self.val}")
        if not _SIZES[0] <= self.size <= _SIZES[1]:
            raise InputError(f"shapes: size must lie in {_SIZES[0]}..{_SIZES[1]} pixels, got {self.size}")
        if self.seed < 0:
            raise InputError(f"shapes: seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Picture:
    """One generated image.

    pixels: (size, size, 3) uint8, RGB. scene: one of SCENES. labels: indices into CATEGORIES, one an object.
    masks: (objects, size, size) bool, the visible regions, disjoint. visible: (objects,) float, the visible
    part of each object's whole outline, in [0.25, 1].
    """

    pixels: npt.NDArray[np.uint8]
    scene: str
    labels: tuple[int, ...]
    masks: Mask
    visible: npt.NDArray[np.float64]


# --------------------------------------------------------------------------------------------- noise, colour


@functools.lru_cache(maxsize=128)
def _between(size: int, cells: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """(size,) the lattice value before each pixel of a row, and (size,) how far it is on the way to the next."""
    at = (np.arange(size) + 0.5) / size * cells
    before = np.floor(at).astype(np.intp)
    part = at - before
    return before, (part * part * (3 - 2 * part)).astype(np.float32)


def _noise(rng: np.random.Generator, size: int, cells_yx: tuple[int, int], octaves: int, gain: float = 0.55) -> Floats:
    """(size, size) value noise, roughly zero mean and unit range, finer and weaker with each octave."""
    total = np.zeros((size, size), np.float32)
    cells_y, cells_x = cells_yx
    weight = 1.0
    for _ in range(octaves):
        lattice = np.float32(weight) * (rng.random((cells_y + 1, cells_x + 1), dtype=np.float32) - 0.5)
        # Not a matrix product: a threaded BLAS waits for busy cores, and its sums may vary with their number.
        row, part_y = _between(size, cells_y)
        rows = lattice[row] + part_y[:, None] * (lattice[row + 1] - lattice[row])
        column, part_x = _between(size, cells_x)
        left = rows[:, column]
        total += left + part_x * (rows[:, column + 1] - left)
        cells_y, cells_x, weight = min(cells_y * 2, size), min(cells_x * 2, size), weight * gain
    return total


def _colour(rng: np.random.Generator, hue: float, hue_spread: float, saturation: float, value: float) -> Floats:
    """(3,) RGB in [0, 1] around a hue, saturation and value in [0, 1]."""
    h = (hue + hue_spread * rng.uniform(-1, 1)) % 1.0
    s = float(np.clip(saturation + rng.uniform(-0.18, 0.18), 0, 1))
    v = float(np.clip(value + rng.uniform(-0.18, 0.18), 0.08, 1))
    return np.asarray(colorsys.hsv_to_rgb(h, s, v), np.float32)


# ---------------------------------------------------------------------------------------------------- scenes


def _mix(low: Floats, high: Floats, amount: Floats) -> Floats:
    """(size, size, 3): from one colour to another by an amount in [0, 1]."""
    return low + np.clip(amount, 0, 1)[..., None] * (high - low)


def _meadow(rng: np.random.Generator, size: int) -> Floats:
    soil, grass = _colour(rng, 0.14, 0.06, 0.4, 0.45), _colour(rng, 0.27, 0.09, 0.5, 0.55)
    picture = _mix(soil, grass, 0.55 + 0.9 * _noise(rng, size, (3, 3), 3))
    blades = _noise(rng, size, (size // 8, size // 3), 2)
    return picture * (1 + 0.5 * blades)[..., None]


def _water(rng: np.random.Generator, size: int) -> Floats:
    far, near = _colour(rng, 0.53, 0.07, 0.3, 0.75), _colour(rng, 0.57, 0.09, 0.55, 0.45)
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    picture = _mix(far, near, down + 0.5 * _noise(rng, size, (2, 2), 2))
    waves = _noise(rng, size, (size // 8, 3), 3, gain=0.8)
    return picture + (0.22 * waves + 0.25 * np.maximum(waves - 0.35, 0))[..., None]


def _table(rng: np.random.Generator, size: int) -> Floats:
    dark, light = _colour(rng, 0.07, 0.05, 0.5, 0.35), _colour(rng, 0.09, 0.05, 0.4, 0.68)
    veins = _noise(rng, size, (5, 1), 4, gain=0.6)
    grain = 0.5 + 0.5 * np.sin(rng.uniform(9, 16) * veins + rng.uniform(0, 6.3)).astype(np.float32)
    grain = 0.7 * grain + 0.3 + 0.25 * _noise(rng, size, (size // 3, 4), 1)
    planks = rng.integers(2, 5)
    tone = rng.uniform(-0.12, 0.12, planks + 1).astype(np.float32)
    row = (np.arange(size) / size * planks + rng.uniform(0, 1)).astype(np.float32)
    gap = (np.abs(row - np.round(row)) * size / planks < max(0.7, size / 180)).astype(np.float32)
    picture = _mix(dark, light, grain) * (1 + tone[row.astype(int)] - 0.45 * gap)[:, None, None]
    return picture.swapaxes(0, 1) if rng.random() < 0.5 else picture


def _wall(rng: np.random.Generator, size: int) -> Floats:
    brick, mortar = _colour(rng, rng.choice([0.03, 0.1, 0.6]), 0.03, 0.35, 0.55), _colour(rng, 0.1, 0.1, 0.15, 0.68)
    rows = rng.uniform(5, 10)
    pos = np.arange(size, dtype=np.float32) / size
    y = (pos * rows + rng.uniform(0, 1)).astype(np.float32)
    x = (pos * rows * rng.uniform(0.4, 0.6) + rng.uniform(0, 1)).astype(np.float32)
    shifted = x[None, :] + 0.5 * (y.astype(int) % 2)[:, None].astype(np.float32)
    tones = rng.uniform(0.78, 1.2, (12, 12)).astype(np.float32)
    tone = tones[y.astype(int)[:, None] % 12, shifted.astype(int) % 12]
    joint = max(0.06, rows / size)
    is_joint = ((y % 1) < joint)[:, None] | ((shifted % 1) < joint * 0.55)
    picture = np.where(is_joint[..., None], mortar, brick * tone[..., None])
    rough = _noise(rng, size, (4, 4), 3) * 0.3 + _noise(rng, size, (size // 3, size // 3), 1) * 0.25
    return picture * (1 + rough)[..., None]


_PAINT_SCENE = {"meadow": _meadow, "water": _water, "table": _table, "wall": _wall}


# --------------------------------------------------------------------------------------------------- objects


def _outline(name: str, u: Floats, v: Floats) -> npt.NDArray[np.floating[Any]]:
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
class _Layer:
    """One painted thing: where its window lies and the signed distance (pixels) inside it.

    label: index into CATEGORIES, or None for clutter. y, x: the window's corner in the image, may be negative.
    """

    label: int | None
    y: int
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


def _grid(cy: float, cx: float, half: float) -> tuple[int, int, Floats, Floats]:
    """A square window around a centre (pixels): its corner and the offsets of its pixels' centres."""
    top, left = math.floor(cy - half), math.floor(cx - half)
    side = math.ceil(2 * half) + 1
    steps = np.arange(side, dtype=np.float32) + 0.5
    return top, left, (top + steps - cy)[:, None].astype(np.float32), (left + steps - cx)[None, :].astype(np.float32)


def _object(rng: np.random.Generator, label: int, cy: float, cx: float, radius: float, depth: float) -> _Layer:
    """An object's geometry: rotated, squeezed, sheared and seen a little from the side; lengths in pixels."""
    name = _NAMES[label]
    # Tents stand; everything else may lie any way round.
    turn = rng.uniform(-0.35, 0.35) if name == "tent" else rng.uniform(-math.pi, math.pi)
    squeeze, shear = rng.uniform(0.72, 1.0), rng.uniform(-0.2, 0.2)
    # Python floats: numpy's float64 scalars would turn every array below into float64, at twice the cost.
    tilt_u, tilt_v = rng.uniform(-0.17, 0.17, 2).tolist()
    top, left, dy, dx = _grid(cy, cx, radius * 1.5 + 3)
    a = (math.cos(turn) * dx + math.sin(turn) * dy) / radius
    b = (-math.sin(turn) * dx + math.cos(turn) * dy) / (radius * squeeze)
    depth_of = 1 + tilt_u * a + tilt_v * b
    u, v = (a + shear * b) / depth_of, b / depth_of
    distance = _outline(name, u, v) * np.float32(radius * math.sqrt(squeeze))
    return _Layer(label, top, left, depth, radius, distance.astype(np.float32), u, v)


def _clutter(rng: np.random.Generator, size: int) -> _Layer:
    """Something that is no object: a bent stroke or a lumpy blob."""
    cy, cx = rng.uniform(0, size, 2).tolist()
    depth = rng.uniform(0, 1)
    turn = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.6:
        radius = size * rng.uniform(0.08, 0.3)
        top, left, dy, dx = _grid(cy, cx, radius + 3)
        a, b = math.cos(turn) * dx + math.sin(turn) * dy, -math.sin(turn) * dx + math.cos(turn) * dy
        bent = b - rng.uniform(-0.6, 0.6) * a * a / radius
        beyond = np.maximum(np.abs(a) - radius * 0.85, 0)
        distance = np.hypot(bent, beyond) - max(0.7, size * rng.uniform(0.004, 0.016))
    else:
        radius = size * rng.uniform(0.03, 0.14)
        top, left, dy, dx = _grid(cy, cx, radius * 1.6 + 3)
        angle = np.arctan2(dy, dx) + turn
        lumps = sum(rng.uniform(0.1, 0.24) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 7))
        distance = np.hypot(dy, dx) - radius * (0.85 + lumps)
        a, b = dx + 0 * dy, dy + 0 * dx
    u, v = (np.asarray(a / radius, np.float32), np.asarray(b / radius, np.float32))
    return _Layer(None, top, left, depth, radius, distance.astype(np.float32), u, v)


def _compose(rng: np.random.Generator, scene: int, size: int) -> list[_Layer]:
    """Objects and clutter of a picture, in no order; depth 0 is far, 1 and more is near."""
    layers: list[_Layer] = []
    wanted = 0 if rng.random() < _EMPTY_P else 1 + int(rng.choice(8, p=_COUNT_P))

    def add(label: int, cy: float, cx: float, radius: float) -> None:
        depth = 0.6 * cy / size + 0.4 * rng.random()
        layers.append(_object(rng, label, cy, cx, radius, depth))

    while len(layers) < wanted:
        label = int(rng.choice(len(_NAMES), p=_PRIOR[scene]))
        # Centres keep a margin that is small next to large objects, so that some are cut by the border.
        cy, cx = (rng.uniform(0.06, 0.94, 2) * size).tolist()
        # The larger the nearer: things at the bottom of a photograph are close to the camera.
        lean = (cy / size - 0.5) * 0.5
        low, high = (math.log(e) for e in _extent(size))
        extent = math.exp(float(np.clip(rng.uniform(low, high) + lean, low, high)))
        radius = size * extent / 2
        add(label, cy, cx, radius)
        if _NAMES[label] == "plate" and len(layers) < 8 and rng.random() < _COMPANION_P:
            other = radius * rng.uniform(0.6, 0.95)
            side = rng.uniform(0, 2 * math.pi)
            reach = (radius + other) * rng.uniform(0.85, 1.15)
            low_pixel, high_pixel = 0.06 * size, 0.94 * size
            add(
                _NAMES.index("cross"),
                float(np.clip(cy + reach * math.sin(side), low_pixel, high_pixel)),
                float(np.clip(cx + reach * math.cos(side), low_pixel, high_pixel)),
                max(other, size * _extent(size)[0] / 2),
            )
    layers.extend(_clutter(rng, size) for _ in range(int(rng.integers(1, 7))))
    return layers


def _extent(size: int) -> tuple[float, float]:
    """Smallest and largest extent of an object, as parts of the image's side in pixels."""
    return max(_EXTENT[0], _SMALLEST / size), _EXTENT[1]


def _visible(layers: list[_Layer], size: int) -> tuple[list[_Layer], dict[int, Mask], dict[int, float]]:
    """From near to far: the layers that stay, and by id(layer) each object's visible mask and its share.

    An object of which less than a quarter shows is left out of the picture, not only of the annotations:
    otherwise training would punish detections of what can be seen.
    """
    taken = np.zeros((size, size), bool)
    kept: list[_Layer] = []
    masks: dict[int, Mask] = {}
    shares: dict[int, float] = {}
    for layer in sorted(layers, key=lambda item: -item.depth):
        solid = layer.distance < 0
        image, window = layer.inside(size)
        if layer.label is not None:
            mask = np.zeros((size, size), bool)
            mask[image] = solid[window] & ~taken[image]
            share = mask.sum() / max(solid.sum(), 1)
            if share < _MIN_VISIBLE or mask.any(0).sum() < 3 or mask.any(1).sum() < 3:
                continue
            masks[id(layer)], shares[id(layer)] = mask, float(share)
        taken[image] |= solid[window]
        kept.append(layer)
    return kept[::-1], masks, shares


def _texture(rng: np.random.Generator, layer: _Layer, backdrop: Floats, light: tuple[float, float]) -> Floats:
    """(h, w, 3) colours of an object's window, drawn alike for all classes but for the weak cue of balls."""
    u, v = layer.u, layer.v
    for _ in range(5):
        first = _colour(rng, rng.random(), 0.0, 0.55, 0.6)
        # Too close to what lies behind, even a person could not see the outline.
        if float(np.abs(first - backdrop).sum()) > 0.55:
            break
    second = np.clip(first * rng.uniform(0.55, 1.35) + rng.uniform(-0.14, 0.14, 3), 0, 1).astype(np.float32)
    kind = rng.integers(4)
    frequency, phase, turn = rng.uniform(4, 11), rng.uniform(0, 6.3), rng.uniform(0, 3.2)
    along = (math.cos(turn) * u + math.sin(turn) * v) * frequency + phase
    if kind == 0:
        amount = 0.5 + 0.5 * np.tanh(3 * np.sin(along))
    elif kind == 1:
        across = (-math.sin(turn) * u + math.cos(turn) * v) * frequency
        amount = 0.5 + 0.5 * np.tanh(4 * np.sin(along) * np.sin(across))
    elif kind == 2:
        amount = 0.5 + 0.5 * np.clip(math.cos(turn) * u + math.sin(turn) * v, -1, 1)
    else:
        side = u.shape[0]
        amount = 0.5 + 0.9 * _noise(rng, side, (3, 3), 3)
    colours = first + (np.float32(rng.uniform(0.3, 0.9)) * amount)[..., None] * (second - first)
    domed = rng.random() < (0.55 if layer.label == 0 else 0.25)
    if domed:
        shade = 0.62 + 0.5 * np.sqrt(np.clip(1.05 - (u - 0.3 * light[1]) ** 2 - (v - 0.3 * light[0]) ** 2, 0, 1))
    else:
        shade = 1 + 0.22 * np.clip(light[1] * u + light[0] * v, -1.2, 1.2)
    if rng.random() < 0.5:
        rim = np.clip(1 + layer.distance / max(1.2, 0.12 * layer.radius), 0, 1)
        shade = shade * (1 - rng.uniform(0.15, 0.45) * rim)
    return (colours * shade[..., None]).astype(np.float32)


def _paint(
    rng: np.random.Generator, canvas: Floats, layer: _Layer, light: tuple[float, float], softness: float
) -> None:
    """Paint a layer and its soft shadow over a (size, size, 3) canvas, in place."""
    size = canvas.shape[0]
    strength = rng.uniform(0.2, 0.55)
    throw = min(0.16 * layer.radius, 0.05 * size) + 0.5
    image, window = layer.inside(size)
    if layer.label is not None:
        shift_y, shift_x = round(-light[0] * throw), round(-light[1] * throw)
        shadow = _Layer(None, layer.y + shift_y, layer.x + shift_x, 0, 0, layer.distance, layer.u, layer.v)
        image_s, window_s = shadow.inside(size)
        dark = np.clip(0.5 - layer.distance[window_s] / (2 * softness), 0, 1)
        canvas[image_s] *= (1 - np.float32(strength) * dark)[..., None]
    region = canvas[image]
    if region.size == 0:
        return
    alpha = np.clip(0.5 - layer.distance[window], 0, 1)[..., None]
    backdrop = region.mean((0, 1))
    if layer.label is None:
        # Clutter resembles the scene rather than the objects.
        tint = backdrop * rng.uniform(0.45, 1.5) + rng.uniform(-0.1, 0.1, 3)
        colours = np.clip(tint, 0, 1).astype(np.float32) * (1 + 0.15 * layer.u[window])[..., None]
    else:
        colours = _texture(rng, layer, backdrop, light)[window]
    canvas[image] = region + alpha * (colours - region)


def draw(spec: ShapesSpec, split: str, index: int) -> Picture:
    """Draw one picture, a pure function of (spec.seed, split, index, spec.size)."""
    size = spec.size
    rng = np.random.Generator(np.random.PCG64([spec.seed, _SPLITS.index(split), index]))
    scene = int(rng.choice(len(SCENES), p=_SCENE_P))
    canvas = np.ascontiguousarray(_PAINT_SCENE[SCENES[scene]](rng, size), np.float32)
    turn = rng.uniform(0, 2 * math.pi)
    light = (math.sin(turn), math.cos(turn))
    layers, masks, shares = _visible(_compose(rng, scene, size), size)
    softness = size * rng.uniform(0.012, 0.04)
    for layer in layers:
        _paint(rng, canvas, layer, light, softness)

    across = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(0.0, 0.3)
    lit = 1 + slope * (light[0] * across[:, None] + light[1] * across[None, :])
    lit = lit * (1 - rng.uniform(0, 0.16) * (across[:, None] ** 2 + across[None, :] ** 2))
    canvas *= (rng.uniform(0.8, 1.15) * lit)[..., None].astype(np.float32)
    blur = rng.uniform(0.25, 0.85) * math.sqrt(size / 128)
    for axis in (0, 1):
        canvas = ndimage.gaussian_filter1d(canvas, blur, axis=axis, mode="nearest", truncate=3.0)
    grain = rng.uniform(0.008, 0.035)
    canvas += np.float32(grain) * rng.standard_normal(canvas.shape, dtype=np.float32)
    pixels = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)

    seen = [layer for layer in layers if layer.label is not None]
    return Picture(
        pixels=pixels,
        scene=SCENES[scene],
        labels=tuple(layer.label for layer in seen if layer.label is not None),
        masks=np.stack([masks[id(layer)] for layer in seen]) if seen else np.zeros((0, size, size), bool),
        visible=np.array([shares[id(layer)] for layer in seen]),
    )


# ----------------------------------------------------------------------------------------------- annotations

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def _loops(mask: Mask) -> list[tuple[list[int], int]]:
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


def _polygons(mask: Mask) -> list[list[int]]:
    """COCO polygons whose union is exactly the mask: no holes, because COCO polygons cannot have any."""
    ys, xs = np.nonzero(mask)
    top, left = int(ys.min()), int(xs.min())
    crop = mask[top : int(ys.max()) + 1, left : int(xs.max()) + 1]
    loops = _loops(crop)
    holes = [corners for corners, area in loops if area < 0]
    if holes:
        columns = holes[0][::2]
        cut = (min(columns) + max(columns)) // 2 + left
        halves = mask.copy(), mask.copy()
        halves[0][:, cut:] = False
        halves[1][:, :cut] = False
        return [polygon for half in halves for polygon in _polygons(half)]
    return [[value + (top if i % 2 else left) for i, value in enumerate(corners)] for corners, _ in loops]


def _annotations(picture: Picture, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    for number, (label, mask) in enumerate(zip(picture.labels, picture.masks, strict=True)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        yield {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
            "area": int(mask.sum()),
            "segmentation": _polygons(mask),
            "iscrowd": 0,
        }


def _write_split(spec: ShapesSpec, split: str, directory: Path) -> None:
    (directory / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(getattr(spec, split)):
        picture = draw(spec, split, index)
        name = f"{index:06d}.jpg"
        Image.fromarray(picture.pixels).save(directory / split / name, quality=_JPEG_QUALITY, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "width": spec.size, "height": spec.size})
        annotations.extend(_annotations(picture, index + 1, len(annotations) + 1))
    contents = {
        "info": {
            "description": "LGD shapes: generated pictures of simple objects",
            "version": GENERATOR_VERSION,
            "split": split,
            "spec": asdict(spec),
        },
        "licenses": [],
        "categories": [
            {"id": number + 1, "name": name, "supercategory": group} for number, (name, group) in enumerate(CATEGORIES)
        ],
        "images": images,
        "annotations": annotations,
    }
    path = directory / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(contents, separators=(",", ":")), encoding="utf-8")


# ------------------------------------------------------------------------------------------------- directory


def cache_root() -> Path:
    """Where generated files go: $LGD_CACHE, else $XDG_CACHE_HOME/lgd, else ~/.cache/lgd; absolute."""
    own = os.environ.get("LGD_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser().absolute() if base else Path.home() / ".cache") / "lgd"


def _check_complete(spec: ShapesSpec, directory: Path) -> None:
    for split in _SPLITS:
        with contextlib.suppress(FileNotFoundError):
            count = sum(entry.name.endswith(".jpg") for entry in os.scandir(directory / split))
            if count == getattr(spec, split) and (directory / f"annotations/instances_{split}.json").is_file():
                continue
        raise InputError(f"generated data is damaged in {directory / split}: delete {directory} to make it again")


def _generate(spec: ShapesSpec, target: Path) -> None:
    """Make the set beside its place and move it there; leaves nothing behind when interrupted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        aside.chmod(0o755)
        (aside / "annotations").mkdir()
        for split in _SPLITS:
            _write_split(spec, split, aside)
        try:
            aside.rename(target)
        except OSError:
            # Another process was first; its set is equal. Any other failure is a real one.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make(spec: ShapesSpec, root: Path | None = None) -> Path:
    """The directory of a generated set, made now if it is not there yet.

    root: cache directory, cache_root() when None; the set is root/data/shapes-<hash of spec and version>.
    The set is made aside and renamed at the end, so a directory of that name is always whole, also when the
    making is interrupted or two processes make it at once.

    Raises InputError when the cache cannot be written or somebody has removed files from the set.
    """
    identity = json.dumps({"version": GENERATOR_VERSION, **asdict(spec)}, sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    parent = (root.absolute() if root is not None else cache_root()) / "data"
    target = parent / f"shapes-{digest}"
    if not target.is_dir():
        _log.info("generating %d images of %d pixels in %s", spec.train + spec.val, spec.size, target)
        try:
            _generate(spec, target)
        except OSError as error:
            raise InputError(f"cannot write the cache {parent} ({error.strerror}): set LGD_CACHE") from error
    _check_complete(spec, target)
    return target
