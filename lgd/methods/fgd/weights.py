"""Weights of FGD's loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FGDWeights:
    """Factors of the parts of the loss, by default the authors' for RetinaNet, and the temperature of the attention."""

    alpha: float = 1e-3
    """Weight of the foreground's features."""
    beta: float = 5e-4
    """Weight of the background's features."""
    gamma: float = 5e-4
    """Weight of the attention maps."""
    lambda_: float = 5e-6
    """Weight of the relations between cells."""
    temperature: float = 0.5


AUTHORS = {
    "retinanet": FGDWeights(),
    "rcnn": FGDWeights(5e-5, 2.5e-5, 5e-5, 5e-7),
    "fcos": FGDWeights(1.6e-3, 8e-4, 8e-4, 8e-6, 0.8),
}
"""The authors' settings for RetinaNet, Faster R-CNN and FCOS."""
