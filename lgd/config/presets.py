"""Three sizes of the same experiment: ``tiny`` for a laptop's CPU, ``small`` for one GPU, ``paper`` to the letter."""

from __future__ import annotations

from typing import Any, Literal, get_args

from lgd.config import paper_recipes
from lgd.config.experiment import Backbone, Data, Detector, Experiment, Imitation, Method, Schedule, settings
from lgd.config.paper import BackboneName, DataName, ScaleName, ScheduleName, Training
from lgd.errors import InputError

Preset = Literal["tiny", "small", "paper"]

TINY = Experiment(
    detector=Detector(
        backbone=Backbone(name="resnet18", width=16, norm="BN", weights="none", freeze_at=0),
        channels=32,
        head_convs=2,
        head_norm="GN",
        anchor_scale=4.0,
        coarse_levels=False,
    ),
    data=Data(min_sizes=(128,), max_size=128, test_size=128),
    schedule=Schedule(
        steps=500,
        batch=8,
        lr_per_16=0.1,
        warmup_steps=50,
        milestones=(0.7, 0.9),
        # From scratch there is nothing in a frozen backbone worth waiting for.
        frozen=0.0,
        distill_from=1 / 6,
    ),
    method=Method(
        fgfi=Imitation(
            backbone=Backbone(name="resnet34", width=16, norm="BN", weights="none", freeze_at=0), from_step=20
        )
    ),
    device="cpu",
)

SMALL = Experiment(
    detector=Detector(
        backbone=Backbone(name="resnet50", norm="BN", weights="none", freeze_at=0),
    ),
    data=Data(
        shapes_train=4000,
        shapes_val=500,
        shapes_side=320,
        min_sizes=(256, 288, 320, 352, 384),
        max_size=384,
        test_size=320,
        workers=8,
    ),
    schedule=Schedule(
        steps=2000, batch=16, lr_per_16=0.01, warmup_steps=200, milestones=(0.7, 0.9), frozen=0.0, distill_from=1 / 6
    ),
    method=Method(
        fgfi=Imitation(backbone=Backbone(name="resnet101", norm="BN", weights="none", freeze_at=0), from_step=200)
    ),
    precision="bf16",
)

PAPER = paper_recipes.define("retinanet", "r50", "2x", "ms")

_PRESETS: dict[Preset, Experiment] = {"tiny": TINY, "small": SMALL, "paper": PAPER}


def preset(name: str) -> Experiment:
    """The base experiment of a preset. Raises InputError for an unknown one."""
    if name not in get_args(Preset):
        raise InputError(f"no preset {name!r}: choose one of {', '.join(get_args(Preset))}")
    return _PRESETS[name]  # type: ignore[index]


def _narrow(name: str, width: int, deformable: bool = False) -> Backbone:
    norm = "auto" if name == "swin_t" else "BN"
    return Backbone.model_validate({"name": name, "width": width, "norm": norm, "deformable": deformable})


def _scratch(backbone: Backbone) -> Backbone:
    return _narrow(backbone.name, backbone.resolved_width, backbone.deformable)


_STAND_INS: dict[Preset, dict[BackboneName, Backbone]] = {
    "tiny": {
        "r50": _narrow("resnet18", 16),
        "r101": _narrow("resnet34", 16),
        "r101_dcnv2": _narrow("resnet50", 8, deformable=True),
        "x101": _narrow("resnext101_32x8d", 8),
        # A grouped deformable convolution takes seconds a step on a CPU.
        "x101_dcnv2": _narrow("resnet50", 16, deformable=True),
        "swin_t": _narrow("swin_t", 16),
    },
    "small": {name: _scratch(backbone) for name, backbone in paper_recipes.BACKBONES.items()},
}
"""The backbone that takes a paper's backbone's place: narrow and shallower, or the same from scratch."""

_LENGTHS: dict[ScheduleName, float] = {"1x": 0.5, "2x": 1.0, "3x": 1.5, "18k": 1.0, "30k": 1.0}
"""Steps, of the preset's own."""

_SCALES: dict[Preset, dict[ScaleName, tuple[int, ...]]] = {
    "tiny": {"ss": TINY.data.min_sizes, "ms": (96, 112, 128)},
    "small": {"ss": (320,), "ms": SMALL.data.min_sizes},
}

_PICTURES: dict[DataName, int] = {"coco": 0, "voc": 1, "crowdhuman": 2}
"""Seed of the synthetic images that take a data set's place."""

_TINY_RCNN: dict[str, Any] = {
    "detector.fc_dim": 64,
    "detector.regions": 64,
    "detector.proposals": 200,
    "schedule.batch": 4,
    "schedule.lr_per_16": 0.08,
}
"""R-CNN's 512 regions an image are most of a step on a CPU, and at TINY's rate it diverges."""


def sized(name: str, training: Training) -> Experiment:
    """A training of the paper at a preset's size: the same detector and method, the rest as the preset has it.

    ``paper`` is the paper's setting to the letter. In the others, a stand-in from scratch takes each backbone's place
    and synthetic images each data set's; 1x, 2x and 3x are half, all and one and a half of the preset's steps. The
    method's settings and the end of distillation are always the paper's. Raises InputError for an unknown preset, and
    for a method that the suite does not have.
    """
    base = preset(name)
    wanted = paper_recipes.define(
        training.detector, training.backbone, training.schedule, training.scale, training.data
    )
    teacher = training.teacher or "r101"
    if name == "paper":
        imitated = settings(paper_recipes.BACKBONES[teacher], "method.fgfi.backbone.")
        return wanted.override({"method.name": training.method, **imitated})
    size: Preset = "tiny" if name == "tiny" else "small"
    rcnn = training.detector in ("faster_rcnn", "mask_rcnn")
    return base.override(
        {
            "detector.name": training.detector,
            **settings(_STAND_INS[size][training.backbone], "detector.backbone."),
            "data.min_sizes": _SCALES[size][training.scale],
            "data.shapes_seed": _PICTURES[training.data],
            "schedule.steps": round(base.schedule.steps * _LENGTHS[training.schedule]),
            "schedule.lr_per_16": (wanted if size == "small" else base).schedule.lr_per_16,
            "schedule.distill_until": wanted.schedule.distill_until,
            "method.name": training.method,
            "method.context": wanted.method.context,
            "method.detach_appearance": wanted.method.detach_appearance,
            **settings(_STAND_INS[size][teacher], "method.fgfi.backbone."),
            **(_TINY_RCNN if rcnn and size == "tiny" else {}),
        }
    )
