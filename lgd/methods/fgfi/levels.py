"""On which levels FGFI's student imitates."""

from __future__ import annotations

from typing import Literal

LevelRule = Literal["best", "fpn", "all"]
"""On which levels an object marks cells to imitate, which the paper does not say.

``best`` (default): the one with the anchor of its largest IoU, so that each level uses only the boxes assigned to it
(the author's answer). ``fpn``: the one of FPN's equation 1 (k0 = 4 at 224 pixels), or the nearest. ``all``: every
level, each with its own threshold.
"""
