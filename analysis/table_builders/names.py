"""Names of the tables that belong to no grid."""

from __future__ import annotations

GPU_HOURS, TIME_TO_TARGET, ACROSS = "gpu-hours", "time-to-target", "across"

WITHOUT_GRID = (GPU_HOURS, TIME_TO_TARGET, ACROSS)
"""Names of the tables that show any training."""
