"""Detectors that are not built-in: built from ``detector.source``, behind the interface of detectron2's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from lgd.config.detector import NO_WEIGHTS, OWN_WEIGHTS
from lgd.config.detector_source import kind_of
from lgd.config.experiment import Data, Detector, split_assignment
from lgd.detectors import config_files, torchvision_models
from lgd.detectors.model_layout import check_supported, color_order
from lgd.errors import InputError, own_code


def build(settings: Detector, num_classes: int, data: Data | None = None) -> nn.Module:
    """The detector of ``settings.source``, on the CPU, with initial weights. Batches of BGR images go in.

    data: the sizes that images come in, for a model that would resize them itself. Runs the code of a LazyConfig file
    or of a function. Raises InputError, one line, for what cannot be built, or trained here.
    """
    kind, source = kind_of(settings.source), settings.source
    if kind == "torchvision":
        weights = initial_weights(settings)
        detector = torchvision_models.build(source, settings.overrides, num_classes, weights=weights, data=data)
    elif kind == "function":
        detector = _called(source, settings.overrides, num_classes)
    else:
        detector = config_files.build(source, settings.overrides, num_classes)
    check_supported(detector, source)
    if color_order(detector) == "RGB" and not hasattr(detector, "prepare_batch"):
        detector.register_forward_pre_hook(_to_rgb)
    return detector


def is_turned_to_rgb(detector: nn.Module) -> bool:
    """Whether images, which are BGR here, are turned to RGB by a hook before the detector's forward."""
    return _to_rgb in detector._forward_pre_hooks.values()


def initial_weights(settings: Detector) -> str:
    """The weights that training starts from, "none" without: for a detector from elsewhere those that it names itself.

    Raises InputError, one line, where its config cannot be read.
    """
    if settings.is_built_in or settings.weights != OWN_WEIGHTS:
        return settings.initial_weights
    kind = kind_of(settings.source)
    if kind == "torchvision":
        return torchvision_models.weights_named_by(settings.source) or NO_WEIGHTS
    if kind == "function":
        # It returns the detector as it is to be.
        return NO_WEIGHTS
    return config_files.weights_named_by(settings.source, settings.overrides) or NO_WEIGHTS


def _called(source: str, overrides: tuple[str, ...], num_classes: int) -> nn.Module:
    """What the function ``package.module:function`` returns for the number of classes and ``overrides``.

    A detector of one of torchvision's classes, which needs one class more for the background, gets detectron2's
    interface.
    """
    module, _, name = source.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        # As for ``python -m``: a console script's path does not have it. Ray's workers get the path of their driver.
        sys.path.append(here)
    with own_code(f"detector {source}: cannot be imported"):
        function = getattr(importlib.import_module(module), name)
    with own_code(f"detector {source}"):
        detector = function(num_classes, **dict(split_assignment(x) for x in overrides))
    if not isinstance(detector, nn.Module):
        raise InputError(f"detector {source}: returns a {type(detector).__name__}, not a module")
    if isinstance(getattr(detector, "transform", None), GeneralizedRCNNTransform):
        return torchvision_models.adapt(detector)
    return detector


def _to_rgb(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same batch with RGB images, for a detector that was trained with them."""
    batch, *rest = inputs
    flipped = [{**x, "image": x["image"].flip(0)} if isinstance(x, Mapping) else x for x in batch]
    return (flipped, *rest)
