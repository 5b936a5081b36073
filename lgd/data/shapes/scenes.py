"""The backgrounds: one function a scene, (size, size, 3) RGB around [0, 1]."""

from __future__ import annotations

import numpy as np

from lgd.data.shapes.noise import random_colour, value_noise
from lgd.data.shapes.spec import Floats


def _mix(low: Floats, high: Floats, amount: Floats) -> Floats:
    """(size, size, 3): from one colour to another by an amount in [0, 1]."""
    return low + np.clip(amount, 0, 1)[..., None] * (high - low)


def _meadow(rng: np.random.Generator, size: int) -> Floats:
    soil, grass = random_colour(rng, 0.14, 0.06, 0.4, 0.45), random_colour(rng, 0.27, 0.09, 0.5, 0.55)
    image = _mix(soil, grass, 0.55 + 0.9 * value_noise(rng, size, (3, 3), 3))
    blades = value_noise(rng, size, (size // 8, size // 3), 2)
    return image * (1 + 0.5 * blades)[..., None]


def _water(rng: np.random.Generator, size: int) -> Floats:
    far, near = random_colour(rng, 0.53, 0.07, 0.3, 0.75), random_colour(rng, 0.57, 0.09, 0.55, 0.45)
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    image = _mix(far, near, down + 0.5 * value_noise(rng, size, (2, 2), 2))
    waves = value_noise(rng, size, (size // 8, 3), 3, gain=0.8)
    return image + (0.22 * waves + 0.25 * np.maximum(waves - 0.35, 0))[..., None]


def _table(rng: np.random.Generator, size: int) -> Floats:
    dark, light = random_colour(rng, 0.07, 0.05, 0.5, 0.35), random_colour(rng, 0.09, 0.05, 0.4, 0.68)
    veins = value_noise(rng, size, (5, 1), 4, gain=0.6)
    grain = 0.5 + 0.5 * np.sin(rng.uniform(9, 16) * veins + rng.uniform(0, 6.3)).astype(np.float32)
    grain = 0.7 * grain + 0.3 + 0.25 * value_noise(rng, size, (size // 3, 4), 1)
    planks = rng.integers(2, 5)
    tone = rng.uniform(-0.12, 0.12, planks + 1).astype(np.float32)
    row = (np.arange(size) / size * planks + rng.uniform(0, 1)).astype(np.float32)
    gap = (np.abs(row - np.round(row)) * size / planks < max(0.7, size / 180)).astype(np.float32)
    image = _mix(dark, light, grain) * (1 + tone[row.astype(int)] - 0.45 * gap)[:, None, None]
    return image.swapaxes(0, 1) if rng.random() < 0.5 else image


def _wall(rng: np.random.Generator, size: int) -> Floats:
    brick, mortar = (
        random_colour(rng, rng.choice([0.03, 0.1, 0.6]), 0.03, 0.35, 0.55),
        random_colour(rng, 0.1, 0.1, 0.15, 0.68),
    )
    rows = rng.uniform(5, 10)
    pos = np.arange(size, dtype=np.float32) / size
    y = (pos * rows + rng.uniform(0, 1)).astype(np.float32)
    x = (pos * rows * rng.uniform(0.4, 0.6) + rng.uniform(0, 1)).astype(np.float32)
    shifted = x[None, :] + 0.5 * (y.astype(int) % 2)[:, None].astype(np.float32)
    tones = rng.uniform(0.78, 1.2, (12, 12)).astype(np.float32)
    tone = tones[y.astype(int)[:, None] % 12, shifted.astype(int) % 12]
    joint = max(0.06, rows / size)
    is_joint = ((y % 1) < joint)[:, None] | ((shifted % 1) < joint * 0.55)
    image = np.where(is_joint[..., None], mortar, brick * tone[..., None])
    rough = value_noise(rng, size, (4, 4), 3) * 0.3 + value_noise(rng, size, (size // 3, size // 3), 1) * 0.25
    return image * (1 + rough)[..., None]


BACKGROUNDS = {"meadow": _meadow, "water": _water, "table": _table, "wall": _wall}
