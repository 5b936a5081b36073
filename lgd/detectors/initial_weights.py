"""The weights that a detector's training starts from, whether it is built-in or from elsewhere."""

from __future__ import annotations

from torch import nn

from lgd.config.experiment import Detector
from lgd.detectors.from_elsewhere import initial_weights
from lgd.detectors.own_weights import check_own_weights, load_own_weights
from lgd.detectors.weights import check_weights, load_weights

__all__ = ["check_initial_weights", "initial_weights", "load_initial_weights"]


def load_initial_weights(detector: nn.Module, settings: Detector) -> None:
    """Load them into the detector that ``settings`` describe. Raises InputError, one line, where that cannot be."""
    source = initial_weights(settings)
    if settings.is_built_in:
        load_weights(detector, source, whole=settings.is_pretrained)
    else:
        load_own_weights(detector, settings, source)


def check_initial_weights(detector: nn.Module, settings: Detector) -> None:
    """Raise InputError, one line, where they cannot be had or do not fit; nothing is downloaded or loaded."""
    source = initial_weights(settings)
    if settings.is_built_in:
        check_weights(detector, source, whole=settings.is_pretrained)
    else:
        check_own_weights(detector, settings, source)
