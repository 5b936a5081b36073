"""What the commands of this directory have in common: which training to look at."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.step_timer import Images
from lgd.config.experiment import Backbone, Experiment
from lgd.config.paper import DETECTORS
from lgd.config.paper_recipes import BACKBONES, paper_defaults
from lgd.config.presets import preset
from lgd.data import load_dataset
from lgd.data.shapes import CATEGORIES
from lgd.errors import InputError
from lgd.results import provenance
from lgd.training.run import resolve_device

RESULTS = Path(__file__).parent / "results"

COCO_CLASSES = 80
COCO_OBJECTS = 7.3
"""Annotations an image of COCO's train2017 (860,001), of its images with any (117,266)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that :func:`experiment_of` and :func:`images_of` read."""
    add = parser.add_argument
    add("--preset", default="tiny", help="tiny (CPU), small or paper: the training to begin from (default: tiny)")
    add("--detector", metavar="NAME", help=f"one of {', '.join(DETECTORS)}")
    add("--backbone", metavar="NAME", help="of the student, such as resnet50 or swin_t")
    add("--teacher-backbone", metavar="NAME", help="of FGFI's teacher, such as resnet101")
    add("--batch", type=int, metavar="N", help="images a step, all devices together")
    add("--side", type=int, metavar="PIXELS", help="shorter side of the images (default: the largest of the training)")
    add("--objects", type=float, metavar="N", help="boxes an image, on average (default: as in the preset's data)")
    add("--precision", choices=("fp32", "bf16", "fp16"))
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change any setting, e.g. schedule.accumulate=4; may be given several times")  # fmt: skip


def experiment_of(options: argparse.Namespace) -> Experiment:
    """The training to look at, whatever its method. Raises InputError for what cannot be."""
    experiment = preset(options.preset)
    changes: dict[str, object] = {}
    if options.detector:
        changes["detector.name"] = options.detector
        if options.detector not in DETECTORS:
            raise InputError(f"no detector {options.detector!r}: choose one of {', '.join(DETECTORS)}")
        rules = paper_defaults(options.detector, experiment.detector.backbone.name)
        changes |= {key: value for key, value in rules.items() if key.startswith("method.")}
    for prefix, name, there in (
        ("detector.backbone", options.backbone, experiment.detector.backbone),
        ("method.fgfi.backbone", options.teacher_backbone, experiment.method.fgfi.backbone),
    ):
        if name:
            changes |= {f"{prefix}.{key}": value for key, value in _backbone(name, there).items()}
    if options.batch is not None:
        changes["schedule.batch"] = options.batch
    if options.precision:
        changes["precision"] = options.precision
    experiment = experiment.override(changes).override(options.overrides)
    if not experiment.threads and resolve_device(experiment).type == "cpu":
        # A device is a worker process with a core of its own, as in a sweep.
        return experiment.override({"threads": 1})
    return experiment


def images_of(options: argparse.Namespace, experiment: Experiment) -> Images:
    """Made images of that training's size and number of objects."""
    shapes = experiment.data.source == "shapes"
    side = options.side if options.side is not None else max(experiment.data.min_sizes)
    if side < 32:
        raise InputError(f"--side {side}: at least 32 pixels")
    objects = options.objects
    if objects is None:
        objects = load_dataset(experiment.data).counts.train.mean_objects if shapes else COCO_OBJECTS
    if not 1 <= objects <= 1000:
        raise InputError(f"--objects {objects:g}: from 1 to 1000")
    longest = max(experiment.data.max_size, side)
    return Images(side, longest, objects, len(CATEGORIES) if shapes else COCO_CLASSES)


def share_of(experiment: Experiment, devices: int) -> Experiment:
    """The training as one of so many devices sees it: its share of the batch."""
    if devices < 1:
        raise InputError(f"--devices {devices}: at least one")
    schedule = experiment.schedule
    if schedule.batch % (devices * schedule.accumulate):
        raise InputError(
            f"--devices {devices}: a batch of {schedule.batch} in {schedule.accumulate} parts does not divide by it"
        )
    return experiment.override({"schedule.batch": schedule.batch // devices})


def hardware_slug() -> str:
    """This machine as a part of a file's name: its GPU, or its cores."""
    hardware = provenance.hardware()
    name = hardware["gpu"].split(" x ", 1)[-1] if hardware["gpu"] != "none" else f"{hardware['cores']}cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def output_stem(what: str, options: argparse.Namespace, experiment: Experiment) -> Path:
    """``results/WHAT_PRESET-DETECTOR-PRECISION_HARDWARE_DATE``, without a suffix."""
    name = f"{options.preset}-{experiment.detector.name}-{experiment.precision}"
    return RESULTS / f"{what}_{name}_{hardware_slug()}_{datetime.now(UTC).date()}"


def command_line(prog: str, arguments: Sequence[str] | None) -> str:
    """What was typed, to be written down beside its outcome."""
    return shlex.join(["python", prog, *(sys.argv[1:] if arguments is None else arguments)])


def _backbone(name: str, there: Backbone) -> dict[str, object]:
    """Settings that put another network in a backbone's place, with weights of its own where that one has any."""
    if there.from_scratch:
        return {"name": name}
    standard = next((x for x in BACKBONES.values() if x.name == name and not x.deformable), None)
    return {"name": name} if standard is None else standard.model_dump(mode="json")
