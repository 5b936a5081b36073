"""What the generated data set holds: classes, scenes, sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lgd.errors import InputError

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# In the annotations, and so in the data's fingerprint: raise it whenever a pixel or an annotation changes.
GENERATOR_VERSION = "1"

CATEGORIES: tuple[tuple[str, str], ...] = (
    ("ball", "round"),
    ("plate", "round"),
    ("ring", "round"),
    ("box", "angular"),
    ("tent", "angular"),
    ("star", "pointed"),
    ("cross", "pointed"),
)
CLASS_NAMES = tuple(name for name, _ in CATEGORIES)
SCENES = ("meadow", "water", "table", "wall")
SPLITS = ("train", "val")
_SIDES = (64, 1024)


@dataclass(frozen=True)
class ShapesSpec:
    """Settings of the generator: image counts of the splits, the square image's side in pixels, the seed.

    Raises InputError for counts below 1, a side outside 64..1024 or a negative seed.
    """

    train: int = 1000
    val: int = 200
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1:
            raise InputError(f"shapes: train and val need at least 1 image each, got {self.train} and {self.val}")
        if not _SIDES[0] <= self.size <= _SIDES[1]:
            raise InputError(f"shapes: size must lie in {_SIDES[0]}..{_SIDES[1]} pixels, got {self.size}")
        if self.seed < 0:
            raise InputError(f"shapes: seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class SyntheticImage:
    """One generated image."""

    pixels: npt.NDArray[np.uint8]
    """(size, size, 3) uint8, RGB."""
    scene: str
    """One of SCENES."""
    labels: tuple[int, ...]
    """Indices into CATEGORIES, one an object."""
    masks: Mask
    """(objects, size, size) bool, the visible regions, disjoint."""
    visible: npt.NDArray[np.float64]
    """(objects,) float, the visible part of each object's whole outline, in [0.25, 1]."""
