"""Files of weights: reading them without running any code of theirs, and detectron2's names for their tensors.

``.pkl`` with Caffe2's names (the MSRA and FAIR models) or detectron2's; ``.pth`` with detectron2's names (a whole
detector, such as an exported student), those of the LGD authors' code (its student alone is read), torchvision's, or
those of Swin's original repository; ``.pth`` and ``.safetensors`` with timm's names, which
lgd/detectors/timm_weights.py reads.

Detectors here read BGR images of 0 to 255, as detectron2's do. torchvision's and Swin's weights were trained on RGB:
the input channels of their first convolution are flipped when they are read.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor

from lgd.detectors.conventions import TORCHVISION
from lgd.errors import InputError
from lgd.files import open_file

__all__ = ["Format", "NamedTensors", "load_tensors", "read_named", "read_weights", "reason"]

Format = Literal["none", "caffe2", "detectron2", "torchvision", "swin", "timm"]

_AUTHORS = {"student.raw_backbone.": "backbone.bottom_up.", "student.fpn.": "backbone.", "student.": ""}
"""Beginnings of the student's names in a checkpoint of the LGD authors' code, which takes the bottom-up network out of
the FPN and keeps the FPN under two names; detectron2's in their place."""


class NamedTensors(NamedTuple):
    """A file's tensors under detectron2's names."""

    format: Format
    """How the file names them."""
    tensors: dict[str, Tensor]
    partial_names: bool = False
    """The names may lack any part of their beginning (Detectron1's)."""


def read_weights(path: Path, source: str) -> NamedTensors:
    """source: what a message names. Raises InputError, one line, for a file that holds no weights."""
    named = _read(path, source, _with_detectron2_names)
    if source.startswith(TORCHVISION) and named.format not in ("torchvision", "swin"):
        raise InputError(f"weights {source}: {path} does not hold torchvision's weights, but {named.format}'s")
    return named


def read_named(path: Path, source: str) -> NamedTensors:
    """The same under the file's own names, with its input channels as they are."""
    return _read(path, source, _as_they_are)


def _as_they_are(tensors: dict[str, Tensor], author: str) -> NamedTensors:
    return NamedTensors("caffe2" if _is_caffe2(tensors, author) else "detectron2", tensors)


def _is_caffe2(tensors: Mapping[str, Tensor], author: str) -> bool:
    return "conv1_w" in tensors or author == "Caffe2"


def _read(path: Path, source: str, name: Callable[[dict[str, Tensor], str], NamedTensors]) -> NamedTensors:
    try:
        named = _named_tensors(_load(path), name)
    except Exception as error:  # the unpicklers, and whatever reads what they return, raise anything at a damaged file
        raise InputError(f"weights {source}: {path} is damaged or no checkpoint of weights ({reason(error)})") from None
    if not named.tensors:
        raise InputError(f"weights {source}: {path} holds no weights by name")
    return named


def reason(error: Exception) -> str:
    """Why a file of weights cannot be read, in a line."""
    said = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in said:
        # It goes on with the advice to load the file in the way that lets it run code.
        return "not a checkpoint of tensors and plain values alone"
    return said[:160]


def _named_tensors(content: Any, named: Callable[[dict[str, Tensor], str], NamedTensors]) -> NamedTensors:
    """Without tensors where the file holds none by name."""
    if not isinstance(content, Mapping):
        return NamedTensors("detectron2", {})
    model = next((content[x] for x in ("model", "state_dict", "blobs") if isinstance(content.get(x), Mapping)), content)
    tensors = {
        str(name).removeprefix("module."): torch.as_tensor(x)
        for name, x in model.items()
        if isinstance(x, (Tensor, np.ndarray)) and not str(name).endswith("_momentum")
    }
    return named(_without_teacher(tensors), str(content.get("__author__", "")))


def _without_teacher(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a checkpoint of the LGD authors' code the student alone, under detectron2's names; others as they are."""
    if not any(name.startswith("student.raw_backbone.") for name in tensors):
        return tensors
    found = {}
    for name, x in tensors.items():
        start = next((x for x in _AUTHORS if name.startswith(x)), None)
        if start is not None:
            found[_AUTHORS[start] + name.removeprefix(start)] = x
    return found


def _load(path: Path) -> Any:
    """Nothing but tensors, arrays and plain values: a checkpoint from elsewhere runs no code."""
    if path.suffix == ".pkl":
        with open_file(path) as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return load_tensors(path)


def load_tensors(path: Path) -> Any:
    """What :func:`torch.save` wrote, on the CPU: tensors and plain values alone, for other objects may run code.

    Raises anything at a damaged file; :func:`reason` says why in a line.
    """
    # torch warns of what it refuses.
    with open_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
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


def _with_detectron2_names(tensors: dict[str, Tensor], author: str) -> NamedTensors:
    if _is_caffe2(tensors, author):
        return NamedTensors("caffe2", convert_c2_detectron_names(tensors)[0], partial_names=True)
    if "layer1.0.conv1.weight" in tensors:
        renamed = {_torchvision_resnet(name): x for name, x in tensors.items()}
        return NamedTensors("torchvision", _to_bgr(renamed, "stem.conv1.weight"))
    if "features.0.0.weight" in tensors:
        renamed = {_torchvision_swin(name): x for name, x in tensors.items()}
        return NamedTensors("torchvision", _to_bgr(renamed, "patch_embed.proj.weight"))
    if "patch_embed.proj.weight" in tensors:
        return NamedTensors("swin", _to_bgr(tensors, "patch_embed.proj.weight"))
    if author == "torchvision":
        return NamedTensors("torchvision", _to_bgr(tensors, "stem.conv1.weight"))
    return NamedTensors("detectron2", tensors)


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
    """first: name of the convolution that reads the image."""
    return {name: x.flip(1) if name == first and x.ndim == 4 else x for name, x in tensors.items()}
