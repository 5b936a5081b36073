"""Capturing the features of a detector's backbone, and injecting others in their place.

detectron2's detectors get their features from one call, ``self.backbone(images.tensor)``. Hooking that call and
replacing its result is all that distillation needs, so no detector has to be subclassed or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lgd.detectors.model_layout import SINGLE_LEVEL

Features = dict[str, Tensor]
"""Feature maps by level name (``p3``, ``p4``, ...), each (B, C, h, w), finest first."""


class FeatureCapture:
    """Inputs and outputs of a detector's backbone in one forward pass."""

    def __init__(self) -> None:
        self._images: Tensor | None = None
        self._features: Features | None = None

    def _fill(self, images: Tensor, features: Mapping[str, Tensor] | Tensor) -> None:
        if self._features is not None:
            raise RuntimeError("the detector ran its backbone more than once in one pass")
        self._images = images
        self._features = {SINGLE_LEVEL: features} if isinstance(features, Tensor) else dict(features)

    def replaced(self, features: Features) -> FeatureCapture:
        """The same pass with other features."""
        other = FeatureCapture()
        other._fill(self.images, features)
        return other

    @property
    def images(self) -> Tensor:
        """The padded, normalised batch, (B, 3, H, W)."""
        if self._images is None:
            raise RuntimeError("the detector did not call its backbone in this forward pass")
        return self._images

    @property
    def features(self) -> Features:
        """The features of every level, in the backbone's order."""
        if self._features is None:
            raise RuntimeError("the detector did not call its backbone in this forward pass")
        return self._features

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the padded batch image in pixels."""
        height, width = self.images.shape[-2:]
        return int(height), int(width)


@contextmanager
def capture_features(backbone: nn.Module) -> Iterator[FeatureCapture]:
    """Capture the backbone's inputs and outputs inside the block, without changing them."""
    capture = FeatureCapture()

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Mapping[str, Tensor] | Tensor) -> None:
        capture._fill(inputs[0], output)

    handle = backbone.register_forward_hook(keep)
    try:
        yield capture
    finally:
        handle.remove()


@contextmanager
def inject_features(backbone: nn.Module, features: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block ``backbone`` returns ``features``, without running."""
    # A backbone with one level may return it without a name, and then its head reads it so.
    injected: Any = features[SINGLE_LEVEL] if set(features) == {SINGLE_LEVEL} else dict(features)
    with patched_method(backbone, "forward", lambda *_args, **_kwargs: injected):
        yield


@contextmanager
def patched_method(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Inside the block ``method`` replaces ``owner.name``, of this one object."""
    # It may already be an instance attribute (a compiled forward), which has to come back.
    previous = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if previous is None:
            delattr(owner, name)
        else:
            setattr(owner, name, previous)


def running_state(detector: nn.Module) -> dict[str, Any]:
    """The numbers outside parameters and buffers, by module and name; those that change belong into a checkpoint.

    detectron2's dense detectors keep the running mean of their positives there (``loss_normalizer``), others may keep
    it in a module of theirs (``head.loss_normalizer``).
    """
    return {
        f"{path}.{name}" if path else name: value.clone() if isinstance(value, Tensor) else value
        for path, module in detector.named_modules()
        for name, value in vars(module).items()
        if _is_number(value)
    }


def set_running_state(detector: nn.Module, values: Mapping[str, Any]) -> None:
    """Set numbers of :func:`running_state`."""
    modules = dict(detector.named_modules())
    for place, value in values.items():
        path, _, name = place.rpartition(".")
        module = modules.get(path) or detector.get_submodule(path)
        # Most never change, and setting one goes through all that a module does for its parameters.
        if vars(module).get(name) is not value:
            setattr(module, name, value)


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not isinstance(value, nn.Parameter) and value.dtype != torch.bool
    return isinstance(value, (int, float)) and not isinstance(value, bool)
