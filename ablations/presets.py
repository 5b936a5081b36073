"""Three sizes of the same experiment: ``tiny`` for a laptop's CPU, ``small`` for one GPU, ``paper`` to the letter."""

from __future__ import annotations

from typing import Literal, get_args

from lgd.errors import InputError
from lgd.experiment import Backbone, Data, Detector, Experiment, Imitation, Method, Schedule

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
        lr=0.05,
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
        steps=2000, batch=16, lr=0.01, warmup_steps=200, milestones=(0.7, 0.9), frozen=0.0, distill_from=1 / 6
    ),
    method=Method(
        fgfi=Imitation(backbone=Backbone(name="resnet101", norm="BN", weights="none", freeze_at=0), from_step=200)
    ),
    precision="bf16",
)

PAPER = Experiment(
    detector=Detector(backbone=Backbone(weights="detectron2://ImageNetPretrained/MSRA/R-50.pkl")),
    data=Data(
        source="coco-json:datasets/coco",
        min_sizes=(640, 672, 704, 736, 768, 800),
        max_size=1333,
        test_size=800,
        workers=8,
    ),
    schedule=Schedule(),
)

_PRESETS: dict[Preset, Experiment] = {"tiny": TINY, "small": SMALL, "paper": PAPER}


def preset(name: str) -> Experiment:
    """The base experiment of a preset. Raises InputError for an unknown one."""
    if name not in get_args(Preset):
        raise InputError(f"no preset {name!r}: choose one of {', '.join(get_args(Preset))}")
    return _PRESETS[name]  # type: ignore[index]
