"""Value noise and random colours, of which scenes and textures are made."""

from __future__ import annotations

import colorsys
import functools

import numpy as np
import numpy.typing as npt

from lgd.data.shapes.spec import Floats


@functools.lru_cache(maxsize=128)
def _interpolation(size: int, cells: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """(size,) the lattice value before each pixel of a row, and (size,) how far it is on the way to the next."""
    at = (np.arange(size) + 0.5) / size * cells
    before = np.floor(at).astype(np.intp)
    part = at - before
    return before, (part * part * (3 - 2 * part)).astype(np.float32)


def value_noise(
    rng: np.random.Generator, size: int, cells_yx: tuple[int, int], octaves: int, gain: float = 0.55
) -> Floats:
    """(size, size) value noise, roughly zero mean and unit range, finer and weaker with each octave."""
    total = np.zeros((size, size), np.float32)
    cells_y, cells_x = cells_yx
    weight = 1.0
    for _ in range(octaves):
        lattice = np.float32(weight) * (rng.random((cells_y + 1, cells_x + 1), dtype=np.float32) - 0.5)
        # Not a matrix product: a threaded BLAS waits for busy cores, and its sums may vary with their number.
        row, part_y = _interpolation(size, cells_y)
        rows = lattice[row] + part_y[:, None] * (lattice[row + 1] - lattice[row])
        column, part_x = _interpolation(size, cells_x)
        left = rows[:, column]
        total += left + part_x * (rows[:, column + 1] - left)
        cells_y, cells_x, weight = min(cells_y * 2, size), min(cells_x * 2, size), weight * gain
    return total


def random_colour(rng: np.random.Generator, hue: float, hue_spread: float, saturation: float, value: float) -> Floats:
    """(3,) RGB in [0, 1] around a hue, saturation and value in [0, 1]."""
    h = (hue + hue_spread * rng.uniform(-1, 1)) % 1.0
    s = float(np.clip(saturation + rng.uniform(-0.18, 0.18), 0, 1))
    v = float(np.clip(value + rng.uniform(-0.18, 0.18), 0.08, 1))
    return np.asarray(colorsys.hsv_to_rgb(h, s, v), np.float32)
