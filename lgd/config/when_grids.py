"""Grids that ask when LGD pays: what its teacher needs to be ahead, and how gains depend on images and features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lgd.config.arms import Arm, Grid
from lgd.config.component_arms import BASELINE, LGD, LGD_RESIDUAL, OURS
from lgd.config.experiment import STEPS, Experiment, settings
from lgd.config.methods_grid import CHOSEN_WEIGHTS
from lgd.config.paper_recipes import BACKBONES
from lgd.config.presets import CPU_PRESETS, PAPER, TINY, lite
from lgd.config.tuning_grids import at_each

TEACHER_NEEDS, GAIN_BY_DATA = "teacher-needs", "gain-by-data"

SEEDS = 3

SIDES_ON_CPU, SIDES = (1.0, 1.5, 2.0), (0.5, 1.0)
"""Sides of the images, as multiples of the preset's. Upsampled images show the same in more cells of a feature map."""

_SIDE_SETTINGS = ("data.min_sizes", "data.max_size", "data.test_size")

_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "own-label start (ours)": {"method.own_label_start": True},
    "centred labels (ours)": {"method.centred_labels": True},
    "released code's start": {"method.init": "reference"},
    "informed start": {"method.init": "informed"},
    "teacher at 0.3x rate": {"method.lr_factor": 0.3},
    "teacher at 3x rate": {"method.lr_factor": 3.0},
    "AdamW teacher": {"method.teacher_optimizer": "adamw"},
    "without adapter": {"method.adapter": False},
    "instructive weight 0.3": {"method.instructive_weight": 0.3},
    "without adapter at weight 0.3": {"method.adapter": False, "method.instructive_weight": 0.3},
}
"""What is changed of LGD, each alone but for the last, which helped at preset nano. The preset's own start is not one
of them."""

_VARIANTS_OF_OURS: Mapping[str, Mapping[str, Any]] = {
    "ours with teacher at 1x rate": {"method.lr_factor": 1.0},
    "ours with AdamW teacher": {"method.teacher_optimizer": "adamw"},
    "ours without adapter": {"method.adapter": False, "method.own_label_start": False},
    "ours at instructive weight 0.3": {"method.instructive_weight": 0.3},
}

NO_IMITATION = {"method.distill_weight": 0.0}


def teacher_needs_grid(base: Experiment, size: str) -> Grid:
    """LGD and *LGD residual* at several sizes of the images, and with one thing changed of their teacher.

    Each method's arm has another without imitation: what the second detection loss gains by itself.
    base: the experiment of the preset named ``size``.
    """
    sides = SIDES_ON_CPU if size in CPU_PRESETS else SIDES
    at_sides = at_each((BASELINE, LGD, LGD_RESIDUAL), "side", sides, _SIDE_SETTINGS)
    own_start = settings(base).get("method.init", "informed")
    variants = [
        *(Arm(name, x, "of LGD") for name, x in _VARIANTS.items() if x.get("method.init") != own_start),
        *(Arm(name, {**OURS, **x}, "of LGD residual") for name, x in _VARIANTS_OF_OURS.items()),
    ]
    arms = tuple(_with_imitation_off((*at_sides, *variants)))
    return Grid(TEACHER_NEEDS, "What LGD's teacher needs to be ahead of its student", arms, seeds=SEEDS)


def _with_imitation_off(arms: Iterable[Arm]) -> Iterator[Arm]:
    for arm in arms:
        asked = replace(arm, answers=False)
        yield asked
        if arm.changes.get("method.name") != "baseline":
            changes = {**arm.changes, **NO_IMITATION}
            yield replace(
                asked, name=f"{arm.name} without imitation", changes=changes, question="its second loss alone"
            )


TRAIN_FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 1.0)
"""Parts of the training images."""

MORE_SHAPES = 2
"""The grid has this many times the preset's synthetic images, so that its parts lie on both sides of the preset's."""

LONGER: Mapping[str, int] = {"tiny": 4}
"""By preset: its steps, as a multiple of the preset's. Tiny's own do not even pass once over all of the images, so that
their number could not matter."""


def gain_by_data_grid(base: Experiment, size: str) -> Grid:
    """The baseline, LGD and PKD on parts of the training images, with an ImageNet backbone and one from scratch."""
    chosen = CHOSEN_WEIGHTS.get(size, {})
    weight = {"method.distill_weight": chosen["pkd"]} if "pkd" in chosen else {}
    question = "learns from a frozen detector" + (f"; {chosen['pkd']:g} of its weight" if weight else "")
    methods = (BASELINE, LGD, Arm("PKD", {"method.name": "pkd"}, question, weight))
    found = [
        _of_data(arm, fraction, network, base, size)
        for network in (IMAGENET, RANDOM)
        for fraction in TRAIN_FRACTIONS
        for arm in methods
    ]
    title = "Gain against training images, with ImageNet features and without"
    return Grid(GAIN_BY_DATA, title, tuple(found), reference="", seeds=SEEDS)


def _of_data(arm: Arm, fraction: float, network: str, base: Experiment, size: str) -> Arm:
    """The arm with a part of the images and a backbone, compared with the baseline of the same."""
    suffix = f"{' from scratch' if network == RANDOM else ''} on {100 * fraction:g}% of images"
    changes = {**arm.changes, "data.train_fraction": fraction, **(_FROM_SCRATCH if network == RANDOM else {})}
    backbone = lite(0) if size in CPU_PRESETS else BACKBONES["r50"]
    setting = {
        **arm.setting,
        **settings(backbone, "detector.backbone."),
        **_schedule_of(size, network),
        **_longer(base, size),
        "data.shapes_train": MORE_SHAPES * base.data.shapes_train,
    }
    if arm.name == "PKD" and size in CPU_PRESETS:
        setting |= settings(lite(2), "method.teacher.backbone.")
    return Arm(f"{arm.name}{suffix}", changes, arm.question, setting, f"{BASELINE.name}{suffix}")


def _longer(base: Experiment, size: str) -> dict[str, Any]:
    """The steps, with as many evaluations as at the preset's length; nothing where these are the preset's own."""
    if size not in LONGER:
        return {}
    own = settings(base)
    return {key: LONGER[size] * own[key] for key in (STEPS, "evaluation.every")}


IMAGENET, RANDOM = "ImageNet", "random"
"""What the backbone's weights are at first."""

_FROM_SCRATCH = {
    "detector.backbone.weights": "none", "detector.backbone.norm": "BN", "detector.backbone.freeze_at": 0,
}  # fmt: skip


def _schedule_of(size: str, network: str) -> dict[str, Any]:
    """The frozen phase that suits a backbone, and one learning rate for both: PKD's teacher, whose backbone always has
    ImageNet weights, is trained at its student's."""
    of = TINY if size in CPU_PRESETS else PAPER
    # From scratch there is nothing worth freezing.
    frozen = 0.0 if network == RANDOM else of.schedule.frozen
    return {"schedule.frozen": frozen, "schedule.lr_per_16": of.schedule.lr_per_16}
