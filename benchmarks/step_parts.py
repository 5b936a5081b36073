"""The parts of a training step that step_profiler.py tells apart. No torch."""

from __future__ import annotations

REST = "rest"
PARTS = (
    "backbone", "head", "label assignment", "encoder", "adapter", "mapper", "second head pass", "teacher's backbone",
    "distance", "optimiser", REST,
)  # fmt: skip
"""In the order in which tables show them.

head: the detector from features to losses, without the label assignment of both passes; R-CNN's includes its proposals.
second head pass: the same on the instructive features. distance: its adapter, and FGFI's masks. rest: loading, copies
to the device, the objects' regions, sums of losses, logging.
"""

DIRECTIONS = ("forward", "backward", "update")
"""update: neither forward nor backward pass."""
