"""Pretrained weights: finding the file, reading its names, and what they ask of the images.

A source is one of
- ``none``;
- ``detectron2://...`` (also ``catalog://...``, ``https://...``), kept where detectron2 keeps it: ``$FVCORE_CACHE``, or
  ``~/.torch/iopath_cache``;
- ``torchvision://resnet50`` (its IMAGENET1K_V1 weights, the ones torchvision's own detectors start from) or
  ``torchvision://ResNet50_Weights.IMAGENET1K_V2``, kept in torch hub's ``checkpoints``;
- ``torchvision://FILE.pth``, a local file of torchvision's weights;
- a local file: ``.pkl`` with Caffe2's names (the MSRA and FAIR models) or detectron2's, ``.pth`` with detectron2's
  names (a whole detector, such as an exported student), torchvision's, or those of Swin's original repository.

Detectors here read BGR images of 0 to 255, as detectron2's do. torchvision's and Swin's weights were trained on RGB:
the input channels of their first convolution are turned round when they are loaded.
"""

from __future__ import annotations

import logging
import pickle
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
import torchvision
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.layers import FrozenBatchNorm2d
from iopath.common.file_io import get_cache_dir
from torch import Tensor, nn

from lgd.config.experiment import Backbone
from lgd.errors import InputError

Triple = tuple[float, float, float]

PIXEL_MEAN: Triple = (103.530, 116.280, 123.675)
"""ImageNet's mean, BGR, 0 to 255."""
UNIT_STD: Triple = (1.0, 1.0, 1.0)
"""For weights whose first layer has the deviation in it already: Caffe2's."""
IMAGENET_STD: Triple = (57.375, 57.120, 58.395)
"""ImageNet's deviation, BGR, 0 to 255."""

TIMEOUT = 30.0
"""Seconds that a connection may be silent before a download counts as failed."""

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_TORCHVISION = "torchvision://"
_SHOWN = 3

Format = Literal["none", "caffe2", "detectron2", "torchvision", "swin"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conventions:
    """What pretrained weights assume, beyond names and shapes.

    pixel_mean, pixel_std: BGR, as detectron2's meta-architectures take them. stride_in_1x1: a bottleneck with a stride
    has it in its first 1x1 convolution, as in MSRA's ResNets, and not in the 3x3 one.
    """

    pixel_mean: Triple
    pixel_std: Triple
    stride_in_1x1: bool


def conventions(settings: Backbone) -> Conventions:
    """What a backbone's weights assume, known from their name alone so that it holds without the file too.

    - torchvision's (``torchvision://``, a file under torch hub's name, detectron2's ``ImageNetPretrained/torchvision``)
      and Swin's: divided by the deviation, stride in the 3x3 convolution.
    - ResNeXt: the same (detectron2's X-101 configs), but the ``catalog://`` models, which have it in their first layer.
    - FAIR's GroupNorm ResNets (``R-50-GN``): mean only, stride in the 3x3 convolution.
    - every other ResNet is taken for MSRA's or a model-zoo detector: mean only, stride in the 1x1 convolution.
    - from scratch: divided by the deviation.

    ``settings.pixel_std`` overrules the deviation. Where a file turns out otherwise, load_weights says so.
    """
    source = settings.weights
    std, stride_in_1x1 = UNIT_STD, True
    if _torchvisions(source):
        std, stride_in_1x1 = IMAGENET_STD, False
    elif settings.name == "resnext101_32x8d":
        std, stride_in_1x1 = (UNIT_STD if source.startswith("catalog://") else IMAGENET_STD), False
    elif settings.name == "swin_t" or settings.from_scratch:
        std = IMAGENET_STD
    elif re.search(r"-GN(\.pkl)?$", source):
        stride_in_1x1 = False
    if settings.pixel_std != "auto":
        std = UNIT_STD if settings.pixel_std == "unit" else IMAGENET_STD
    return Conventions(PIXEL_MEAN, std, stride_in_1x1)


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights.

    format: how the file names them. path: the file. detector: whether it holds a whole detector's (FPN and head too).
    loaded: tensors read into the model. initial: bottom-up parameters that such a file does not have and that keep
    their initial values (the offsets of deformable convolutions, Swin's output norms). skipped: FPN and head
    parameters that the file lacks or has in another shape. unused: names in the file without a place in the model.
    """

    source: str
    format: Format = "none"
    path: Path | None = None
    detector: bool = False
    loaded: int = 0
    initial: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

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


def load_weights(detector: nn.Module, source: str) -> LoadReport:
    """Read ``source`` into ``detector`` (its ``backbone.bottom_up``; all of it where the file has all of it).

    Every bottom-up parameter and statistic must be in the file, but for what classifiers never have. FPN and head stay
    as they are unless the file is a whole detector's; of such a one, what does not fit (another number of classes) is
    left out and reported. Raises InputError with one line when the file cannot be had, read or made to fit.
    """
    if source == "none":
        return LoadReport(source)
    path = local_path(source)
    found = _read(path, source)
    prefix = "backbone.bottom_up." if hasattr(detector.backbone, "bottom_up") else "backbone."
    state = detector.state_dict()
    placed, unused = _place(found, state, prefix)
    whole = any(name.startswith("backbone.") and not name.startswith(prefix) for name in placed)
    if not whole:
        placed = {name: x for name, x in placed.items() if name.startswith(prefix)}
    _fill_fused_norms(found, placed, detector, prefix)
    fitting = {name: x for name, x in placed.items() if x.shape == state[name].shape}

    bottom_up = [x for x in state if x.startswith(prefix) and not x.endswith(_CONSTANT)]
    absent = [x for x in bottom_up if x not in placed]
    initial = [] if whole else [x for x in absent if _detection_only(x[len(prefix) :])]
    missing = [x for x in absent if x not in initial]
    misshapen = [x for x in bottom_up if x in placed and x not in fitting]
    if missing or misshapen:
        raise InputError(_misfit(source, prefix, len(bottom_up), missing, misshapen, placed, state))
    _check_norms(found, state, source, prefix)
    _check_surplus(unused, state, source, prefix)
    _check_conventions(found, detector, source)

    detector.load_state_dict(fitting, strict=False)
    head = [x for x in state if not x.startswith(prefix)] if whole else []
    report = LoadReport(
        source=source,
        format=found.format,
        path=path,
        detector=whole,
        loaded=len(fitting),
        initial=tuple(initial),
        skipped=tuple(x for x in head if x not in fitting and not x.endswith(_CONSTANT)),
        unused=tuple(x for x in unused if not x.endswith(_CONSTANT)),
    )
    log.info("%s", report)
    return report


def local_path(source: str) -> Path:
    """The file that ``source`` names, downloaded where it has to be.

    Raises InputError with one line: which file, where to get it, where to put it.
    """
    url, path = _locate(source)
    if path.is_file():
        return path
    if not url:
        raise InputError(f"weights {source}: there is no file {path}")
    log.info("downloading %s to %s", url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(TIMEOUT):
            # It writes a temporary file first: an interrupted download leaves nothing under the name.
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"weights {source} are not on this machine and cannot be downloaded ({reason}):"
            f" get {url} elsewhere and put it at {path}"
        ) from None
    return path


def check_source(source: str) -> None:
    """Raise InputError, one line, for a source that nothing can be loaded from. Downloads nothing."""
    if source == "none":
        return
    url, path = _locate(source)
    if not url and not path.is_file():
        raise InputError(f"weights {source}: there is no file {path}")


def _locate(source: str) -> tuple[str, Path]:
    """Where ``source`` comes from (empty for a local file) and where it is kept."""
    if source.startswith(_TORCHVISION):
        name = source.removeprefix(_TORCHVISION)
        if name.endswith((".pth", ".pt", ".pkl")):
            return "", Path(name).expanduser()
        url = _torchvision_url(name, source)
        return url, Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    url = source
    if source.startswith("detectron2://"):
        url = _DETECTRON2 + source.removeprefix("detectron2://")
    elif source.startswith("catalog://"):
        try:
            url = ModelCatalog.get(source.removeprefix("catalog://"))
        except (KeyError, RuntimeError):
            raise InputError(f"weights {source}: detectron2's catalog has no such model") from None
    if url.startswith(("https://", "http://")):
        # The layout of detectron2's own cache, so that either finds what the other has.
        return url, Path(get_cache_dir()) / urlparse(url).path.lstrip("/")
    if "://" in source:
        raise InputError(f"weights {source}: use none, a file, or one of detectron2://, torchvision://, https://")
    return "", Path(source).expanduser()


def _torchvision_url(name: str, source: str) -> str:
    try:
        if "." in name:
            weights: Any = torchvision.models.get_weight(name)
        else:
            weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        raise InputError(
            f"weights {source}: torchvision has no such weights; write torchvision://resnet50,"
            " torchvision://ResNet50_Weights.IMAGENET1K_V2 or torchvision://FILE.pth"
        ) from None
    return str(weights.url)


def _torchvisions(source: str) -> bool:
    return (
        source.startswith(_TORCHVISION)
        or "ImageNetPretrained/torchvision/" in source
        # resnet50-0676ba61.pth: how torch hub names its files.
        or re.fullmatch(r"(resne|swin)[a-z0-9_]*-[0-9a-f]{8}\.pth", source.rsplit("/", 1)[-1]) is not None
    )


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


class _Found(NamedTuple):
    """A file's tensors under detectron2's names. guess: they may lack any part of their beginning (Detectron1)."""

    format: Format
    tensors: dict[str, Tensor]
    guess: bool = False


def _read(path: Path, source: str) -> _Found:
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                content = _NumbersUnpickler(file, encoding="latin1").load()
        else:
            # Nothing but tensors and plain values: a checkpoint from elsewhere runs no code.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise InputError(f"weights {source}: {path} is damaged or no checkpoint of weights ({reason})") from None
    if not isinstance(content, Mapping):
        raise InputError(f"weights {source}: {path} holds no weights by name")
    model = next((content[x] for x in ("model", "state_dict", "blobs") if isinstance(content.get(x), Mapping)), content)
    tensors = {
        str(name).removeprefix("module."): torch.as_tensor(x)
        for name, x in model.items()
        if isinstance(x, (Tensor, np.ndarray)) and not str(name).endswith("_momentum")
    }
    if not tensors:
        raise InputError(f"weights {source}: {path} holds no weights by name")
    found = _renamed(tensors, author=str(content.get("__author__", "")))
    if source.startswith(_TORCHVISION) and found.format not in ("torchvision", "swin"):
        raise InputError(f"weights {source}: {path} does not hold torchvision's weights, but {found.format}'s")
    return found


def _renamed(tensors: dict[str, Tensor], author: str) -> _Found:
    if "conv1_w" in tensors or author == "Caffe2":
        return _Found("caffe2", convert_c2_detectron_names(tensors)[0], guess=True)
    if "layer1.0.conv1.weight" in tensors:
        renamed = {_torchvision_resnet(name): x for name, x in tensors.items()}
        return _Found("torchvision", _to_bgr(renamed, "stem.conv1.weight"))
    if "features.0.0.weight" in tensors:
        renamed = {_torchvision_swin(name): x for name, x in tensors.items()}
        return _Found("torchvision", _to_bgr(renamed, "patch_embed.proj.weight"))
    if "patch_embed.proj.weight" in tensors:
        return _Found("swin", _to_bgr(tensors, "patch_embed.proj.weight"))
    if author == "torchvision":
        return _Found("torchvision", _to_bgr(tensors, "stem.conv1.weight"))
    return _Found("detectron2", tensors)


def _torchvision_resnet(name: str) -> str:
    name = re.sub(r"^layer(\d)\.", lambda x: f"res{int(x[1]) + 1}.", name)
    name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


def _torchvision_swin(name: str) -> str:
    # features: 0 is the patch embedding, then blocks (odd) and the merging of patches after them (even) in turn.
    name = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", name)
    name = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", name)
    name = re.sub(r"^features\.(\d*[13579])\.", lambda x: f"layers.{int(x[1]) // 2}.blocks.", name)
    name = re.sub(r"^features\.(\d+)\.", lambda x: f"layers.{int(x[1]) // 2 - 1}.downsample.", name)
    return name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")


def _to_bgr(tensors: dict[str, Tensor], first: str) -> dict[str, Tensor]:
    return {name: x.flip(1) if name == first else x for name, x in tensors.items()}


def _place(found: _Found, state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors by the detector's names, and the names that have no place there."""
    by_ending: dict[str, list[str]] = {}
    if found.guess:
        for name in state:
            parts = name.split(".")
            for i in range(len(parts)):
                by_ending.setdefault(".".join(parts[i:]), []).append(name)
    placed, unused = {}, []
    for name, tensor in found.tensors.items():
        candidates = [x for x in (name, prefix + name) if x in state] or by_ending.get(name, [])
        if len(candidates) == 1:
            placed[candidates[0]] = tensor
        else:
            unused.append(name)
    return placed, unused


_CONSTANT = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Endings of what is no weight: a count that only a running average without momentum reads, tables of Swin's."""


def _detection_only(name: str) -> bool:
    """Whether a bottom-up parameter exists in detectors alone, and starts as if it were not there."""
    return ".conv2_offset." in name or re.match(r"norm\d\.", name) is not None


def _fill_fused_norms(found: _Found, placed: dict[str, Tensor], detector: nn.Module, prefix: str) -> None:
    # Detectron1's files have their statistics multiplied into scale and shift, which is a norm with mean 0 and
    # variance 1. Only a frozen norm may take them: one that trained would measure others.
    if found.format != "caffe2" or any(x.endswith("running_mean") for x in found.tensors):
        return
    for name, module in detector.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.startswith(prefix) and f"{name}.weight" in placed:
            placed[f"{name}.running_mean"] = torch.zeros_like(module.running_mean)
            placed[f"{name}.running_var"] = torch.ones_like(module.running_var)


def _check_norms(found: _Found, state: Mapping[str, Tensor], source: str, prefix: str) -> None:
    # A GroupNorm's scale and shift have a batch norm's names and shapes, and nothing else in common.
    statistic = "norm.running_mean"
    for name in found.tensors:
        at = name if name.startswith(prefix) else prefix + name
        if name.endswith(statistic) and at not in state and at.removesuffix("running_mean") + "weight" in state:
            raise InputError(
                f"weights {source} are a batch-norm network's: norm GN cannot take them, use FrozenBN or BN"
            )


def _check_surplus(unused: list[str], state: Mapping[str, Tensor], source: str, prefix: str) -> None:
    # A deeper network's weights, or a deformable one's, would fill every parameter and yet be another network's.
    stage = re.compile(r"(res\d|layers\.\d)\.(?!downsample)")
    built = {found[1] for x in state if (found := stage.match(x.removeprefix(prefix)))}
    names = [x.removeprefix(prefix) for x in unused if not x.endswith(_CONSTANT)]
    surplus = [x for x in names if (found := stage.match(x)) and found[1] in built]
    if surplus:
        raise InputError(
            f"weights {source} are another network's: {len(surplus)} tensors have no place in this backbone"
            f" ({_few(surplus)})"
        )


def _check_conventions(found: _Found, detector: nn.Module, source: str) -> None:
    if found.format not in ("torchvision", "swin"):
        return
    std = getattr(detector, "pixel_std", None)
    divides = not isinstance(std, Tensor) or bool((std > 2).all())
    strided = getattr(getattr(detector.backbone, "bottom_up", None), "res3", None)
    block = strided[0] if isinstance(strided, nn.Sequential) else None
    misplaced = hasattr(block, "conv3") and block.conv1.stride != (1, 1)  # type: ignore[union-attr]
    if not divides or misplaced:
        what = "images divided by ImageNet's deviation" if not divides else "strides in the 3x3 convolutions"
        own = source.removeprefix(_TORCHVISION)
        raise InputError(
            f"weights {source} are {found.format}'s and expect {what}, which this detector was not built with:"
            f" set weights to {_TORCHVISION}{own} and pixel_std to auto"
        )


def _misfit(
    source: str,
    prefix: str,
    total: int,
    missing: list[str],
    misshapen: list[str],
    placed: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {total} tensors missing ({_few([x[len(prefix) :] for x in missing])})")
    if misshapen:
        shapes = [f"{x[len(prefix) :]} {_shape(placed[x])} for {_shape(state[x])}" for x in misshapen]
        parts.append(f"{len(misshapen)} of another shape ({_few(shapes)})")
    return f"weights {source} do not fit this backbone: {' and '.join(parts)}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "scalar"


class _NumbersUnpickler(pickle.Unpickler):
    """Arrays and plain containers, and nothing that could run code."""

    _ALLOWED: ClassVar = {
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
    }

    def find_class(self, module: str, name: str) -> Any:
        # Files from before numpy 2 name its inner modules otherwise.
        module = re.sub(r"^numpy\.core\.", "numpy._core.", module)
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return super().find_class(module, name)
