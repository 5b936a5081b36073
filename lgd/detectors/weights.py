"""Pretrained weights into a detector, with a check that they are this detector's.

lgd/detectors/weight_sources.py says which sources there are, weight_files.py which formats, conventions.py what weights
ask of the images.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from lgd.detectors.conventions import TORCHVISION
from lgd.detectors.timm_weights import read_timm_weights
from lgd.detectors.weight_files import Format, NamedTensors, read_weights
from lgd.detectors.weight_sources import WeightSource, find_weights, local_path, probe
from lgd.errors import InputError

__all__ = ["LoadReport", "check_weights", "load_weights"]

_SHOWN = 3
"""Names that a message shows of many."""

_NO_WEIGHT = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Endings of what is no weight: a count that only a running average without momentum reads, tables of Swin's."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """Counts of the loaded, missing and unused weights of a file."""

    source: str
    format: Format = "none"
    """How the file names them."""
    path: Path | None = None
    detector: bool = False
    """Whether the file holds a whole detector's weights: FPN and head too."""
    loaded: int = 0
    """Tensors read into the model."""
    initial: tuple[str, ...] = ()
    """Bottom-up parameters that such a file does not have and that keep their initial values (the offsets of deformable
    convolutions, Swin's output norms)."""
    skipped: tuple[str, ...] = ()
    """FPN and head parameters that the file lacks or has in another shape."""
    unused: tuple[str, ...] = ()
    """Names in the file without a place in the model."""

    def __str__(self) -> str:
        if self.format == "none":
            return "no pretrained weights"
        what = "detector" if self.detector else "bottom-up network"
        notes = [
            f"{len(names)} {what}"
            for names, what in (
                (self.initial, "keep their initial values"),
                (self.skipped, "of the head left as they were"),
                (self.unused, "in the file unused"),
            )
            if names
        ]
        return "; ".join([f"{self.loaded} tensors of a {what} ({self.format} names) from {self.path}", *notes])


def load_weights(detector: nn.Module, source: str, *, whole: bool = False) -> LoadReport:
    """Read ``source`` into ``detector`` (its ``backbone.bottom_up``; all of it where the file has all of it).

    Every bottom-up parameter and statistic must be in the file, but for what classifiers never have. FPN and head stay
    as they are unless the file is a whole detector's; of such a one, what does not fit (another number of classes) is
    left out and reported. whole: demand a whole detector's file, and warn of the layers that do not fit. Raises
    InputError with one line when the file cannot be had, read or made to fit.
    """
    if source == "none":
        return LoadReport(source)
    path = local_path(source)
    tensors, report = _match(detector, source, path, whole)
    detector.load_state_dict(tensors, strict=False)
    log.info("%s", report)
    if whole and report.skipped:
        log.warning("weights %s: new initial values for %s that do not fit", source, _layers(report.skipped))
    return report


def check_weights(detector: nn.Module, source: str, *, whole: bool = False) -> WeightSource | None:
    """The source that :func:`load_weights` would read, checked without downloading or changing ``detector``; or None.

    A file on this machine is read and matched with the detector, whose tensors may be on the meta device; of any other
    the server is asked whether it has it. Raises InputError, one line, as :func:`load_weights` would.
    """
    if source == "none":
        return None
    weights = find_weights(source)
    if weights.is_cached:
        _match(detector, source, local_path(source), whole)
    return probe(weights)


def _match(detector: nn.Module, source: str, path: Path, whole: bool) -> tuple[dict[str, Tensor], LoadReport]:
    """The file's tensors by the detector's names, those alone that fit. Raises InputError where too few do."""
    named = _read(detector, path, source)
    prefix = "backbone.bottom_up." if hasattr(detector.backbone, "bottom_up") else "backbone."
    state = detector.state_dict()
    placed, unused = _place(named, state, prefix)
    is_detector = any(name.startswith("backbone.") and not name.startswith(prefix) for name in placed)
    if whole and not is_detector:
        raise InputError(f"weights {source} are not a detector's: set detector.backbone.weights to start from them")
    if not is_detector:
        placed = {name: x for name, x in placed.items() if name.startswith(prefix)}
    _fill_fused_norms(named, placed, detector, prefix)
    fitting = {name: x for name, x in placed.items() if x.shape == state[name].shape}

    bottom_up = [x for x in state if x.startswith(prefix) and not x.endswith(_NO_WEIGHT)]
    absent = [x for x in bottom_up if x not in placed]
    initial = [] if is_detector else [x for x in absent if _is_detection_only(x[len(prefix) :])]
    _check_complete(source, prefix, bottom_up, [x for x in absent if x not in initial], placed, state)
    _check_norms(named, state, source, prefix)
    _check_surplus(unused, state, source, prefix)
    _check_conventions(named, detector, source)

    head = [x for x in state if not x.startswith(prefix)] if is_detector else []
    report = LoadReport(
        source=source,
        format=named.format,
        path=path,
        detector=is_detector,
        loaded=len(fitting),
        initial=tuple(initial),
        skipped=tuple(x for x in head if x not in fitting and not x.endswith(_NO_WEIGHT)),
        unused=tuple(x for x in unused if not x.endswith(_NO_WEIGHT)),
    )
    return fitting, report


def _read(detector: nn.Module, path: Path, source: str) -> NamedTensors:
    network: Any = getattr(detector.backbone, "bottom_up", None)
    # Only a detector on one of timm's networks needs timm imported.
    return read_timm_weights(network, path, source) if hasattr(network, "body") else read_weights(path, source)


def _place(named: NamedTensors, state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors by the detector's names, and the names that have no place there."""
    by_ending: dict[str, list[str]] = {}
    if named.partial_names:
        for name in state:
            parts = name.split(".")
            for i in range(len(parts)):
                by_ending.setdefault(".".join(parts[i:]), []).append(name)
    placed, unused = {}, []
    for name, tensor in named.tensors.items():
        candidates = [x for x in (name, prefix + name) if x in state] or by_ending.get(name, [])
        if len(candidates) == 1:
            placed[candidates[0]] = tensor
        else:
            unused.append(name)
    return placed, unused


def _is_detection_only(name: str) -> bool:
    """Whether a bottom-up parameter exists in detectors alone, and starts as if it were not there."""
    return ".conv2_offset." in name or re.match(r"norm\d\.", name) is not None


def _fill_fused_norms(named: NamedTensors, placed: dict[str, Tensor], detector: nn.Module, prefix: str) -> None:
    # Detectron1's files have their statistics multiplied into scale and shift, which is a norm with mean 0 and
    # variance 1. Only a frozen norm may take them: one that trained would measure others.
    if named.format != "caffe2" or any(x.endswith("running_mean") for x in named.tensors):
        return
    for name, module in detector.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.startswith(prefix) and f"{name}.weight" in placed:
            placed[f"{name}.running_mean"] = torch.zeros_like(module.running_mean)
            placed[f"{name}.running_var"] = torch.ones_like(module.running_var)


def _check_complete(
    source: str,
    prefix: str,
    bottom_up: list[str],
    missing: list[str],
    placed: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """bottom_up: all names that the file should have; missing: those that it lacks."""
    misshapen = [x for x in bottom_up if x in placed and placed[x].shape != state[x].shape]
    parts = []
    if missing:
        parts.append(
            f"{len(missing)} of {len(bottom_up)} tensors missing ({_first([x[len(prefix) :] for x in missing])})"
        )
    if misshapen:
        shapes = [f"{x[len(prefix) :]} {_shape(placed[x])} for {_shape(state[x])}" for x in misshapen]
        parts.append(f"{len(misshapen)} of another shape ({_first(shapes)})")
    if parts:
        raise InputError(f"weights {source} do not fit this backbone: {' and '.join(parts)}")


def _check_norms(named: NamedTensors, state: Mapping[str, Tensor], source: str, prefix: str) -> None:
    # A GroupNorm's scale and shift have a batch norm's names and shapes, and nothing else in common.
    statistic = "norm.running_mean"
    for name in named.tensors:
        at = name if name.startswith(prefix) else prefix + name
        if name.endswith(statistic) and at not in state and at.removesuffix("running_mean") + "weight" in state:
            raise InputError(
                f"weights {source} are a batch-norm network's: norm GN cannot take them, use FrozenBN or BN"
            )


def _check_surplus(unused: list[str], state: Mapping[str, Tensor], source: str, prefix: str) -> None:
    # A deeper network's weights, or a deformable one's, would fill every parameter and yet be another network's.
    stage = re.compile(r"(res\d|layers\.\d)\.(?!downsample)")
    built = {match[1] for x in state if (match := stage.match(x.removeprefix(prefix)))}
    names = [x.removeprefix(prefix) for x in unused if not x.endswith(_NO_WEIGHT)]
    surplus = [x for x in names if (match := stage.match(x)) and match[1] in built]
    if surplus:
        raise InputError(
            f"weights {source} are another network's: {len(surplus)} tensors have no place in this backbone"
            f" ({_first(surplus)})"
        )


def _check_conventions(named: NamedTensors, detector: nn.Module, source: str) -> None:
    if named.format not in ("torchvision", "swin"):
        return
    std = getattr(detector, "pixel_std", None)
    # A meta tensor has no values to look at.
    divides = not isinstance(std, Tensor) or std.is_meta or bool((std > 2).all())
    strided = getattr(getattr(detector.backbone, "bottom_up", None), "res3", None)
    block = strided[0] if isinstance(strided, nn.Sequential) else None
    misplaced = hasattr(block, "conv3") and block.conv1.stride != (1, 1)  # type: ignore[union-attr]
    if not divides or misplaced:
        what = "images divided by ImageNet's deviation" if not divides else "strides in the 3x3 convolutions"
        own = source.removeprefix(TORCHVISION)
        raise InputError(
            f"weights {source} are {named.format}'s and expect {what}, which this detector was not built with:"
            f" set weights to {TORCHVISION}{own} and pixel_std to auto"
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _layers(names: tuple[str, ...]) -> str:
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'} ({_first(layers)})"


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "scalar"
