"""Networks of timm (https://github.com/huggingface/pytorch-image-models) as bottom-up networks."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import timm
import torch
from detectron2.modeling.backbone import Backbone as BottomUp
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lgd.detectors.fast_convolutions import fold_frozen_norms
from lgd.errors import InputError

PROBE_SIZE = (96, 160)
"""Height and width of the image that a network is tried with: multiples of 32, as padded images are, and of no more."""

STEM_STRIDE = 2
"""Stride of the feature map that ends the stem, where a network has one; else the stem ends before the next one."""

STRIDES = (4, 8, 16, 32)
"""Pixels of the image to a cell of the feature maps that detectors read: res2 to res5."""


@dataclass(frozen=True)
class Stage:
    """The part of a network that ends with its feature map at one stride."""

    index: int
    """Number of the feature map among all of the network (timm's ``out_indices``)."""
    module: str
    """The module that puts it out."""
    channels: int


@dataclass(frozen=True)
class TimmModel:
    """A model of timm's, as :func:`inspect_timm` finds it."""

    name: str
    mean: tuple[float, ...]
    """Mean and deviation of its training images: RGB, 0 to 1."""
    std: tuple[float, ...]
    classifier: str
    """Name of the layer that puts out classes."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments with which timm builds it for images of any size."""
    stages: Mapping[int, Stage] = field(default_factory=dict)
    """By stride; of several feature maps at a stride, the last."""
    has_batch_norm: bool = False

    def build(self, indices: tuple[int, ...] | None = None) -> Any:
        """The network without its classifier, which returns a list of feature maps; its weights random."""
        chosen: dict[str, Any] = {} if indices is None else {"out_indices": indices}
        return timm.create_model(self.name, features_only=True, **chosen, **self.arguments)


def stage_name(stride: int) -> str:
    """``res2`` for stride 4 to ``res5`` for stride 32: detectron2's names."""
    return f"res{stride.bit_length() - 1}"


@functools.cache
def inspect_timm(name: str) -> TimmModel:
    """Look at a model, built without memory for its tensors.

    Raises InputError, one line, for a name that timm does not have, and for a model that does not give feature maps at
    strides 8, 16 and 32 of images of any size.
    """
    config = metadata(name)
    model = TimmModel(name, tuple(config.mean), tuple(config.std), config.classifier or "")
    try:
        # Equal seeds give equal detectors whether the model was looked at before or not.
        with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
            network = model.build()
            if not set(STRIDES[1:]) <= set(network.feature_info.reduction()):
                raise InputError(
                    f"backbone timm:{name} has no feature maps at strides 8, 16 and 32, but at"
                    f" {_listed(network.feature_info.reduction())}"
                )
            if any(getattr(x, "strict_img_size", False) for x in network.modules()):
                # Transformers with windows take images of one size unless told otherwise.
                model = replace(model, arguments={"strict_img_size": False})
                network = model.build()
            maps = network.eval()(torch.zeros(1, 3, *PROBE_SIZE))
    except InputError:
        raise
    except Exception as error:  # networks that were made for one size fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"backbone timm:{name} cannot read images of any size, such as {PROBE_SIZE[0]} x {PROBE_SIZE[1]}"
            f" ({reason[:160]})"
        ) from None
    stages = {}
    for index, found, x in zip(network.feature_info.out_indices, network.feature_info.get_dicts(), maps, strict=True):
        stride = found["reduction"]
        cells = tuple(side // stride for side in PROBE_SIZE)
        if stride in (STEM_STRIDE, *STRIDES) and cells in (tuple(x.shape[2:]), tuple(x.shape[1:3])):
            stages[stride] = Stage(index, found["module"], found["num_chs"])
    norms = any(isinstance(x, _BatchNorm) for x in network.modules())
    return replace(model, stages=stages, has_batch_norm=norms)


def metadata(name: str) -> Any:
    """timm's configuration of a model's weights. Raises InputError, one line, for a name that timm does not have."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(
            f"backbone timm:{name}: timm {timm.__version__} has no such model"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise InputError(f"backbone timm:{name}: {error}") from None


class TimmNetwork(BottomUp):
    """A model of timm's that puts out feature maps under detectron2's names.

    Images (B, 3, H, W), BGR as detectors here read them, go in; H and W are multiples of 32. ``out_features`` (of
    ``res2`` to ``res5``, strides 4 to 32) come out.

    State dict: that of timm's own network (``timm.create_model(name, features_only=True)``) under ``body.``; a frozen
    batch norm lacks ``num_batches_tracked``.

    norm: "FrozenBN" freezes the statistics, scales and shifts of all batch norms, "SyncBN" synchronises them, "BN"
    leaves them. freeze_at: 1 freezes the stem, 2 all up to the feature map at stride 4, 3 up to stride 8, and so on;
    batch norms of a frozen part are FrozenBN. Raises InputError where the model does not have what is asked for.
    """

    def __init__(self, name: str, out_features: list[str], *, norm: str = "BN", freeze_at: int = 0) -> None:
        super().__init__()
        model = inspect_timm(name)
        self.name, self.classifier, self.has_batch_norm = name, model.classifier, model.has_batch_norm
        chosen = {stride: stage for stride, stage in model.stages.items() if stage_name(stride) in out_features}
        if len(chosen) < len(out_features):
            wanted = [x for x in STRIDES if stage_name(x) in out_features]
            raise InputError(
                f"backbone timm:{name} has feature maps at strides {_listed(model.stages)}, and this detector needs"
                f" {_listed(wanted)}"
            )
        body = model.build(tuple(stage.index for stage in chosen.values()))
        self._channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")
        if hasattr(body, model.classifier):
            # Some of timm's feature networks keep it.
            setattr(body, model.classifier, nn.Identity())
        frozen = _first_modules(body, model, freeze_at)
        self.body = _with_norm(body, norm, set(frozen))
        fold_frozen_norms(self.body)
        # A frozen batch norm is another module than the one it was made from.
        self._frozen = [self.body.get_submodule(x) for x in frozen]
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self._out_features = [stage_name(x) for x in chosen]
        self._out_feature_channels = {stage_name(x): stage.channels for x, stage in chosen.items()}
        self._out_feature_strides = {stage_name(x): x for x in chosen}

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Feature maps (B, C, H / stride, W / stride) by stage name, finest first."""
        maps = self.body(images_B3HW.flip(1))
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return dict(zip(self._out_features, maps, strict=True))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen:
            # A frozen part drops no paths. A module with others in it may hold some that are not frozen.
            if not any(module.children()):
                module.training = False
        return self

    @property
    def size_divisibility(self) -> int:
        return STRIDES[-1]


def flat_name(name: str) -> str:
    """A module's or tensor's name in the form that timm's networks with and without classifier have in common.

    timm wraps a model's parts for its feature maps: ``stages.0.blocks`` becomes ``stages_0.blocks``, or
    ``model.stages.0.blocks``.
    """
    return name.removeprefix("model.").replace(".", "_")


def _listed(strides: Iterable[int]) -> str:
    return ", ".join(map(str, strides)) or "other than 4, 8, 16 and 32"


def _first_modules(body: nn.Module, model: TimmModel, freeze_at: int) -> list[str]:
    """Names of the modules, in the order of the network, up to where ``freeze_at`` ends."""
    if freeze_at == 0:
        return []
    names = [name for name, _ in body.named_modules()]
    flat = [flat_name(x) for x in names]
    before = freeze_at == 1 and STEM_STRIDE not in model.stages
    stride = min(model.stages) if before else 2**freeze_at
    last = flat_name(model.stages[stride].module) if stride in model.stages else ""
    if last not in flat or not last:
        raise InputError(f"backbone timm:{model.name} has no part that ends at stride {stride}: set freeze_at to 0")
    first = flat.index(last)
    if before:
        return names[:first]
    return names[: 1 + max(i for i, x in enumerate(flat) if i == first or x.startswith(f"{last}_"))]


def _with_norm(body: nn.Module, norm: str, frozen: set[str]) -> nn.Module:
    """The network with its batch norms as ``norm`` says, FrozenBN in the modules named by ``frozen``."""
    if norm == "FrozenBN":
        return freeze_batch_norm_2d(body)
    for name in frozen:
        module = body.get_submodule(name)
        if isinstance(module, _BatchNorm):
            parent, _, own = name.rpartition(".")
            setattr(body.get_submodule(parent), own, freeze_batch_norm_2d(module))
    return convert_sync_batchnorm(body) if norm == "SyncBN" else body
