"""What a built detector looks like: its levels, bottom-up network, pixel statistics, and whether it predicts masks.

All of it is read from the model, which may be detectron2's, torchvision's, or a module of one's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import MViT, RegNet, ResNet, SwinTransformer, ViT
from torch import Tensor, nn
from torch.func import functional_call

from lgd.config.experiment import Detector
from lgd.errors import InputError

ColorOrder = Literal["BGR", "RGB"]

PROBE_SIDE = 256
"""Side in pixels of the image with which levels are found; at least one cell of a level of stride 128."""

PYRAMIDS = ("bottom_up", "net", "body", "features")
"""Where detectron2's FPN and SimpleFeaturePyramid, torchvision's BackboneWithFPN and SSD keep the network below."""

WHOLE_BACKBONES = (ResNet, ViT, MViT, SwinTransformer, RegNet)
"""Backbones of detectron2 without a pyramid: bottom-up networks themselves."""

SINGLE_LEVEL = "0"
"""Name of the only level of a backbone that returns a tensor, as in torchvision."""


@dataclass(frozen=True)
class PixelStatistics:
    """Normalisation of an image: values 0 to 255, by channel in ``order``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: ColorOrder


def backbone_of(detector: nn.Module) -> nn.Module:
    return cast(nn.Module, detector.backbone)


def levels_of(detector: nn.Module) -> dict[str, ShapeSpec]:
    """Channels and stride of each level that the detector's backbone puts out, in its order.

    From its ``output_shape()``, or from a forward pass over an image without values. Raises InputError, one line, where
    its output is not a dict of feature maps or one map.
    """
    backbone = backbone_of(detector)
    if hasattr(backbone, "output_shape"):
        return dict(cast(Any, backbone).output_shape())
    if backbone not in _found:
        # torchvision's SSD is given images of one size, and fails on others.
        side = max(getattr(getattr(detector, "transform", None), "fixed_size", None) or (PROBE_SIDE,))
        _found[backbone] = _levels_by_forward_pass(detector, _features(backbone, side), side)
    return _found[backbone]


_found: WeakKeyDictionary[nn.Module, dict[str, ShapeSpec]] = WeakKeyDictionary()


def _levels_by_forward_pass(detector: nn.Module, features: Any, side: int) -> dict[str, ShapeSpec]:
    maps = {SINGLE_LEVEL: features} if isinstance(features, Tensor) else features
    if not isinstance(maps, Mapping) or not all(isinstance(x, Tensor) and x.ndim == 4 for x in maps.values()):
        raise InputError(
            f"the backbone of {type(detector).__name__} returns a {type(features).__name__}: a dict of feature maps"
            " (B, C, h, w) is needed"
        )
    return {str(name): ShapeSpec(channels=x.shape[1], stride=round(side / x.shape[2])) for name, x in maps.items()}


def _features(backbone: nn.Module, side: int) -> Any:
    state = {name: x.to("meta") for name, x in [*backbone.named_parameters(), *backbone.named_buffers()]}
    image = torch.empty(1, 3, side, side, device="meta")
    try:
        with torch.no_grad():
            return functional_call(backbone, state, (image,))
    except Exception:
        # Some operators have no shapes without values. In evaluation mode the pass leaves no trace in the module.
        return _real_features(backbone, side)


def _real_features(backbone: nn.Module, side: int) -> Any:
    device = next(backbone.parameters()).device
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        backbone.eval()
        with torch.no_grad():
            return backbone(torch.zeros(1, 3, side, side, device=device))
    except Exception as error:
        raise InputError(
            f"the backbone {type(backbone).__name__} fails on an image of {side} x {side} pixels"
            f" ({type(error).__name__}: {_line(error)})"
        ) from None
    finally:
        for module, mode in modes:
            module.training = mode


def common_channels(detector: nn.Module, why: str) -> int:
    """The number of channels of every level. Raises InputError, beginning with ``why``, where levels differ."""
    levels = levels_of(detector)
    channels = {x.channels for x in levels.values()}
    if len(channels) != 1:
        listed = ", ".join(f"{name} {x.channels}" for name, x in levels.items())
        raise InputError(f"{why} the same number of channels on every level, the backbone has {listed}")
    return cast(int, channels.pop())


def bottom_up_path(detector: nn.Module, settings: Detector) -> str | None:
    """The path of the network below the pyramid, which is the one with ImageNet's weights; None where it is not known.

    That is ``detector.bottom_up`` where set. Raises InputError, one line, where there is no such module.
    """
    if settings.bottom_up != "auto":
        found = dict(detector.named_modules()).get(settings.bottom_up)
        if found is None:
            raise InputError(f"detector.bottom_up {settings.bottom_up}: no such module; {_parts(detector)}")
        return settings.bottom_up
    backbone = backbone_of(detector)
    for name in PYRAMIDS:
        if isinstance(getattr(backbone, name, None), nn.Module):
            return f"backbone.{name}"
    return "backbone" if isinstance(backbone, WHOLE_BACKBONES) else None


def bottom_up_of(detector: nn.Module, settings: Detector) -> nn.Module:
    """The network below the pyramid. Raises InputError, one line that says what to set, where it is not known."""
    path = bottom_up_path(detector, settings)
    if path is None:
        raise InputError(
            f"detector {settings.label}: its bottom-up network, which schedule.frozen freezes at first, is not known:"
            f" set detector.bottom_up to its path, or schedule.frozen=0; {_parts(detector)}"
        )
    return detector.get_submodule(path)


def _parts(detector: nn.Module) -> str:
    names = ["backbone", *(f"backbone.{name}" for name, _ in backbone_of(detector).named_children())]
    shown = names[:8] + (["..."] if len(names) > 8 else [])
    return f"there are {', '.join(shown)}"


def pixel_statistics(detector: nn.Module) -> PixelStatistics | None:
    """From detectron2's ``pixel_mean`` and ``pixel_std``, or torchvision's transform; None where there are none."""
    transform = getattr(detector, "transform", None)
    if hasattr(transform, "image_mean"):
        found: Any = transform
        values = [tuple(255 * float(x) for x in each) for each in (found.image_mean, found.image_std)]
        return PixelStatistics(values[0], values[1], order="RGB")
    mean, std = getattr(detector, "pixel_mean", None), getattr(detector, "pixel_std", None)
    if not isinstance(mean, Tensor) or not isinstance(std, Tensor):
        return None
    first, last = (tuple(x.flatten().tolist()) for x in (mean, std))
    # Not every meta-architecture keeps its input_format. Of ImageNet's means red's is the largest.
    return PixelStatistics(first, last, order=_given_order(detector) or ("RGB" if first[0] > first[-1] else "BGR"))


def color_order(detector: nn.Module) -> ColorOrder:
    """The order of the channels that it reads: its ``input_format``, or else its mean's; BGR where it has neither."""
    statistics = pixel_statistics(detector)
    return statistics.order if statistics else _given_order(detector) or "BGR"


def _given_order(detector: nn.Module) -> ColorOrder | None:
    given = getattr(detector, "input_format", None)
    return cast(ColorOrder, given) if given in ("BGR", "RGB") else None


def predicts_masks(detector: nn.Module) -> bool:
    """Whether it predicts masks, and so needs them in the data."""
    heads: Any = getattr(detector, "roi_heads", None)
    has_mask = getattr(heads, "has_mask", None)
    # torchvision's heads have a method, detectron2's an attribute.
    return bool(has_mask() if callable(has_mask) else getattr(heads, "mask_on", False))


def check_supported(detector: nn.Module, source: str) -> None:
    """Raise InputError, one line, for a detector that boxes with classes (and masks) alone cannot train."""
    if not isinstance(getattr(detector, "backbone", None), nn.Module):
        raise InputError(
            f"detector {source}: {type(detector).__name__} has no module named backbone, whose features LGD reads"
        )
    heads: Any = getattr(detector, "roi_heads", None)
    has_keypoint = getattr(heads, "has_keypoint", None)
    needs = ""
    if heads is not None and getattr(detector, "proposal_generator", heads) is None:
        needs = "proposals that were computed before"
    elif bool(has_keypoint() if callable(has_keypoint) else getattr(heads, "keypoint_on", False)):
        needs = "keypoints"
    elif getattr(detector, "sem_seg_head", None) is not None:
        needs = "semantic segmentation"
    if needs:
        raise InputError(f"detector {source} trains on {needs}, which no data set here has")
    if type(detector).__name__ == "ProposalNetwork":
        raise InputError(f"detector {source} proposes regions without classes, which are not scored here")


def description(detector: nn.Module, settings: Detector, weights: str) -> str:
    """What was found, in one line, for a plan."""
    levels, statistics = levels_of(detector), pixel_statistics(detector)
    channels = {x.channels for x in levels.values()}
    each = "" if len(channels) == 1 else " with {} channels"
    listed = ", ".join(f"{name} (stride {x.stride}{each.format(x.channels)})" for name, x in levels.items())
    same = f", {channels.pop()} channels each" if len(channels) == 1 else ""
    order = color_order(detector)
    prepares = callable(getattr(detector, "prepare_batch", None))
    turned = " (its prepare_batch gets BGR)" if prepares else " (turned from BGR before its forward)"
    images = f"images {order}{turned if order == 'RGB' else ''}"
    if statistics is not None:
        mean, std = (" ".join(f"{x:.4g}" for x in values) for values in (statistics.mean, statistics.std))
        images = f"{images}, mean {mean}, deviation {std}"
    else:
        images = f"{images}, statistics not known"
    what = "boxes and masks" if predicts_masks(detector) else "boxes"
    bottom_up = bottom_up_path(detector, settings) or "not known (detector.bottom_up)"
    return (
        f"detector {settings.label}: {type(detector).__name__}, predicts {what}; levels {listed}{same};"
        f" bottom-up network {bottom_up}; {images}; weights {weights}{_frozen(detector, weights)}"
    )


def _frozen(detector: nn.Module, weights: str) -> str:
    """What is never trained, where there is any: all the more to be seen where it has random values."""
    parameters = list(detector.parameters())
    count = sum(not p.requires_grad for p in parameters)
    if not count:
        return ""
    return f"; {count} of {len(parameters)} parameters never trained" + (", random values" if weights == "none" else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
