"""The LGD paper's trainings by name, such as ``retinanet_r50_2x_ms``, and what the paper reports for each.

A name says detector, backbone, schedule and scale; :func:`define` turns these into settings by the paper's rules, and
``python -m lgd.train --show NAME`` prints the outcome whole.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, NamedTuple

from lgd.detectors import paper_defaults
from lgd.errors import InputError
from lgd.experiment import Backbone, Data, Detector, Experiment, Method, Schedule

COCO = "coco-json:datasets/coco"
"""Where MS-COCO is looked for: a directory with train2017, val2017 and annotations."""

DETECTORS = {
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "atss": "ATSS",
    "poto": "POTO",
}
"""Names as in Detector, and as in the paper."""

_MSRA = "detectron2://ImageNetPretrained/MSRA/"
_R101 = Backbone(name="resnet101", weights=f"{_MSRA}R-101.pkl")
_X101 = Backbone(name="resnext101_32x8d", weights="detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl")
BACKBONES = {
    "r50": ("R-50", Backbone(name="resnet50", weights=f"{_MSRA}R-50.pkl")),
    "r101": ("R-101", _R101),
    "r101_dcnv2": ("R-101-DCNv2", _R101.model_copy(update={"deformable": True})),
    "x101": ("X-101", _X101),
    "x101_dcnv2": ("X-101-DCNv2", _X101.model_copy(update={"deformable": True})),
    "swin_t": ("Swin-T", Backbone(name="swin_t", weights="torchvision://swin_t")),
}
"""By its part of an experiment's name: how the paper calls it, and its settings."""

SCHEDULES = {"1x": (90_000, 60_000, 80_000), "2x": (180_000, 120_000, 160_000), "3x": (270_000, 210_000, 250_000)}
"""Steps of 16 images, and the two after which the learning rate falls to a tenth."""

SCALES = {"ss": (800,), "ms": (640, 672, 704, 736, 768, 800)}
"""Shorter sides in training, pixels: single-scale and multi-scale."""


def define(detector: str, backbone: str, schedule: str, scale: str) -> Experiment:
    """The paper's training of a detector, with LGD; ``method.name=baseline`` makes it the plain one.

    Arguments are keys of DETECTORS, BACKBONES, SCHEDULES and SCALES. The backbone gets no update in the first ninth of
    the steps (20k of 180k) and distillation reaches the student after the first sixth (30k). With X-101-DCNv2, and for
    FCOS with R-101-DCNv2, distillation ends at 130k of 180k. See paper_defaults for what depends on the detector.
    """
    bottom_up = BACKBONES[backbone][1]
    steps, first, second = SCHEDULES[schedule]
    rules = paper_defaults(detector, bottom_up.name)
    ends_early = backbone == "x101_dcnv2" or (detector, backbone) == ("fcos", "r101_dcnv2")
    return Experiment(
        detector=Detector.model_validate({"name": detector, "backbone": bottom_up}),
        data=Data(source=COCO, min_sizes=SCALES[scale], max_size=1333, test_size=800, workers=8),
        schedule=Schedule(
            steps=steps,
            batch=16,
            lr_per_16=rules["schedule.lr"],
            milestones=(first / steps, second / steps),
            frozen=20 / 180,
            distill_from=30 / 180,
            distill_until=130 / 180 if ends_early else 1.0,
        ),
        method=Method(context=rules["method.context"], detach_appearance=rules["method.detach_appearance"]),
    )


class Reported(NamedTuple):
    """COCO AP in percent that the paper, or its authors' code, reports. None: not reported.

    metric: what was measured, boxes or masks. where: the place in the paper, or "code's README" for the authors' own
    re-run with the code they published.
    """

    detector: str
    backbone: str
    schedule: str
    scale: str
    metric: Literal["box", "mask"]
    baseline: float | None
    lgd: float | None
    where: str

    def __str__(self) -> str:
        pairs = (("baseline", self.baseline), ("LGD", self.lgd))
        known = ", ".join(f"{name} {value:.1f}" for name, value in pairs if value is not None)
        return f"{self.metric} AP {known} ({self.where})"


_TABLE_10 = "Table 10, 1x ms assumed"
_FREE, _BASED = "comparison to teacher-free methods", "comparison to teacher-based methods"
_README = "code's README"

REPORTED = (
    Reported("retinanet", "r50", "1x", "ss", "box", 36.6, 38.3, _FREE),
    Reported("retinanet", "r50", "1x", "ms", "box", 37.4, 38.5, _FREE),
    Reported("retinanet", "r50", "2x", "ss", "box", 36.2, 39.0, "abstract"),
    Reported("retinanet", "r50", "2x", "ms", "box", 38.8, 40.3, _BASED),
    Reported("retinanet", "r50", "2x", "ms", "box", None, 40.4, _README),
    Reported("retinanet", "r50", "3x", "ms", "box", 38.7, 40.5, "Table 11"),
    Reported("retinanet", "r101", "2x", "ms", "box", 40.6, 42.1, _BASED),
    Reported("retinanet", "r101", "2x", "ms", "box", None, 42.1, _README),
    Reported("retinanet", "r101", "3x", "ms", "box", 40.4, 42.1, "Table 11"),
    Reported("retinanet", "r101_dcnv2", "2x", "ms", "box", 43.1, 44.4, _BASED),
    Reported("retinanet", "r101_dcnv2", "2x", "ms", "box", None, 44.5, _README),
    Reported("retinanet", "x101_dcnv2", "2x", "ms", "box", 43.8, 45.9, "Table 13"),
    Reported("retinanet", "x101_dcnv2", "2x", "ms", "box", None, 45.9, _README),
    Reported("retinanet", "swin_t", "3x", "ms", "box", 44.6, 46.0, "Table 14"),
    Reported("retinanet", "swin_t", "3x", "ms", "box", None, 45.9, _README),
    Reported("fcos", "r50", "2x", "ms", "box", None, 42.4, _README),
    Reported("fcos", "r101", "2x", "ms", "box", None, 44.0, _README),
    Reported("fcos", "r101_dcnv2", "2x", "ms", "box", None, 46.3, _README),
    Reported("fcos", "x101_dcnv2", "2x", "ms", "box", 46.1, 47.9, "abstract, Table 13"),
    Reported("fcos", "x101_dcnv2", "2x", "ms", "box", None, 47.9, _README),
    Reported("faster_rcnn", "r50", "1x", "ss", "box", 37.6, 38.3, _FREE),
    Reported("faster_rcnn", "r50", "1x", "ms", "box", 37.9, 38.6, _FREE),
    Reported("faster_rcnn", "r50", "2x", "ms", "box", None, 40.5, _README),
    Reported("faster_rcnn", "r50", "3x", "ms", "box", 40.2, 40.9, "Table 11"),
    Reported("faster_rcnn", "r101", "2x", "ms", "box", None, 42.2, _README),
    Reported("faster_rcnn", "r101", "3x", "ms", "box", 42.0, 42.7, "Table 11"),
    Reported("faster_rcnn", "r101_dcnv2", "2x", "ms", "box", None, 44.8, _README),
    Reported("faster_rcnn", "x101", "3x", "ms", "box", 43.0, 44.1, "Table 11"),
    Reported("faster_rcnn", "x101_dcnv2", "2x", "ms", "box", 45.1, 46.1, "Table 13"),
    Reported("faster_rcnn", "x101_dcnv2", "2x", "ms", "box", None, 46.2, _README),
    Reported("mask_rcnn", "r50", "1x", "ms", "box", 38.8, 39.8, _TABLE_10),
    Reported("mask_rcnn", "r50", "1x", "ms", "mask", 35.2, 36.2, _TABLE_10),
    Reported("mask_rcnn", "r101", "1x", "ms", "box", 41.2, 42.0, _TABLE_10),
    Reported("mask_rcnn", "r101", "1x", "ms", "mask", 37.2, 38.0, _TABLE_10),
    Reported("mask_rcnn", "swin_t", "3x", "ms", "box", 45.5, 46.4, "Table 14"),
    Reported("mask_rcnn", "swin_t", "3x", "ms", "mask", 41.8, 42.4, "Table 14"),
    Reported("mask_rcnn", "swin_t", "3x", "ms", "box", None, 46.4, _README),
    Reported("mask_rcnn", "swin_t", "3x", "ms", "mask", None, 42.5, _README),
    Reported("atss", "r50", "1x", "ss", "box", 39.3, 40.0, "Table 12"),
    Reported("atss", "r101_dcnv2", "2x", "ms", "box", 45.8, 46.8, "Table 12"),
    Reported("poto", "r50", "3x", "ms", "box", 39.0, 41.0, "Table 12"),
    Reported("poto", "r101", "3x", "ms", "box", 41.1, 42.7, "Table 12"),
)
"""Every figure on MS-COCO of the paper's tables and poster and of its code's README (arXiv 2109.11496).

Of two tables we know less than a name says. The comparison to teacher-free methods names no backbone; R-50 is taken.
Table 10 names neither schedule nor scale; 1x ms is taken, detectron2's own R-50 model of that schedule (38.6 and 35.2)
being the nearest to its baseline.
"""


@dataclass(frozen=True)
class Named:
    """A training of the paper by its name: its settings (those with LGD), and what is reported for it (may be none)."""

    name: str
    title: str
    experiment: Experiment
    reported: tuple[Reported, ...]

    @property
    def command(self) -> str:
        return f"python -m lgd.train {self.name} --method lgd"

    @property
    def head(self) -> list[str]:
        """The command that trains it and what the paper reports for it, a line each."""
        known = [f"the paper reports {x}" for x in self.reported] or ["the paper reports nothing for this combination"]
        return [self.title, f"{self.command}    # or --method baseline", *known]


_BY_NAME = {"_".join(x): x for x in itertools.product(DETECTORS, BACKBONES, SCHEDULES, SCALES)}

NAMES = tuple(dict.fromkeys("_".join(x[:4]) for x in REPORTED))
"""The experiments that a number is reported for. :func:`named` makes the other combinations just as well."""


def named(name: str) -> Named:
    """The experiment DETECTOR_BACKBONE_SCHEDULE_SCALE. Raises InputError for an unknown name, with the nearest one."""
    if name not in _BY_NAME:
        close = get_close_matches(name, [*NAMES, *_BY_NAME], n=1)
        hint = f"did you mean {close[0]!r}?" if close else "--list shows those of the paper"
        raise InputError(f"no experiment {name!r}; {hint}")
    detector, backbone, schedule, scale = _BY_NAME[name]
    return Named(
        name=name,
        title=f"{DETECTORS[detector]} {BACKBONES[backbone][0]} {schedule} {scale}",
        experiment=define(detector, backbone, schedule, scale),
        reported=tuple(x for x in REPORTED if x[:4] == (detector, backbone, schedule, scale)),
    )
