"""The LGD paper's trainings by name, such as ``retinanet_r50_2x_ms``, and what the paper reports for each.

A name says detector, backbone, schedule, scale and, other than MS-COCO, the data (``retinanet_r50_18k_ms_voc``);
:func:`define` turns these into settings by the paper's rules, and ``python -m lgd.train --show NAME`` prints the
outcome whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from lgd.config.data_source import COCO_2017
from lgd.config.experiment import Backbone, Data, Detector, Experiment, Schedule
from lgd.config.method import make
from lgd.config.paper import BACKBONES as TITLES
from lgd.config.paper import DATA as DATA_TITLES
from lgd.config.paper import DETECTORS, BackboneName, DataName, DetectorName, MetricName, ScaleName, ScheduleName, paper
from lgd.errors import InputError

DATA: dict[DataName, str] = {"coco": COCO_2017, "voc": "voc0712", "crowdhuman": "crowdhuman:datasets/crowdhuman"}
"""Where the paper's data sets are looked for."""

_MSRA = "detectron2://ImageNetPretrained/MSRA/"
_R101 = Backbone(name="resnet101", weights=f"{_MSRA}R-101.pkl")
_X101 = Backbone(name="resnext101_32x8d", weights="detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl")
BACKBONES: dict[BackboneName, Backbone] = {
    "r50": Backbone(name="resnet50", weights=f"{_MSRA}R-50.pkl"),
    "r101": _R101,
    "r101_dcnv2": _R101.model_copy(update={"deformable": True}),
    "x101": _X101,
    "x101_dcnv2": _X101.model_copy(update={"deformable": True}),
    "swin_t": Backbone(name="swin_t", weights="torchvision://swin_t"),
}

SCHEDULES: dict[ScheduleName, tuple[int, int, int]] = {
    "1x": (90_000, 60_000, 80_000),
    "2x": (180_000, 120_000, 160_000),
    "3x": (270_000, 210_000, 250_000),
    "18k": (18_000, 12_000, 16_000),
    "30k": (30_000, 20_000, 26_700),
}
"""Steps of 16 images, and the two after which the learning rate falls to a tenth.

What we know of the paper names no schedule for Pascal VOC and CrowdHuman: 18k has the steps of detectron2's own for
VOC 07+12 (docs/method.md), 30k is about as many epochs of CrowdHuman (32) as 3x of MS-COCO, with the falls of
1x.
"""

OWN_SCHEDULES: dict[ScheduleName, DataName] = {"18k": "voc", "30k": "crowdhuman"}
"""The schedules of one data set, which is in the training's name; the others are MS-COCO's."""

TABLES: dict[DataName, str] = {"voc": "table8", "crowdhuman": "table9"}
"""Where the paper's numbers on the other data sets are."""

SCALES: dict[ScaleName, tuple[int, ...]] = {"ss": (800,), "ms": (640, 672, 704, 736, 768, 800)}
"""Shorter sides in training, pixels: single-scale and multi-scale."""


_PAPER: dict[str, tuple[bool, bool, float]] = {
    # context object, detached appearance, learning rate
    "retinanet": (True, False, 0.01),
    "fcos": (True, False, 0.01),
    "faster_rcnn": (False, True, 0.02),
    "mask_rcnn": (False, True, 0.02),
    "atss": (True, False, 0.01),
    "poto": (True, False, 0.01),
}


def paper_defaults(detector: str, backbone: str) -> dict[str, Any]:
    """The LGD paper's settings that depend on the detector, as dotted settings of an Experiment.

    ``method.context``: the context object, on for RetinaNet and FCOS but off for FCOS with R-50, off for R-CNN.
    ``method.detach_appearance``: on for R-CNN. ``schedule.lr``: for 16 images a batch. For ATSS and POTO the released
    configs say nothing on the first two: theirs are RetinaNet's here, the rate is that of their own papers.

    detector, backbone: names as in Detector and Backbone. Raises InputError for an unknown detector.
    """
    if detector not in _PAPER:
        raise InputError(f"no detector {detector!r}: choose one of {', '.join(_PAPER)}")
    context, detached, rate = _PAPER[detector]
    if (detector, backbone) == ("fcos", "resnet50"):
        context = False
    return {"method.context": context, "method.detach_appearance": detached, "schedule.lr": rate}


def define(
    detector: DetectorName,
    backbone: BackboneName,
    schedule: ScheduleName,
    scale: ScaleName,
    data: DataName = "coco",
) -> Experiment:
    """The paper's training of a detector, with LGD; ``method.name=baseline`` makes it the plain one.

    The backbone gets no update in the first ninth of the steps (20k of 180k) and distillation reaches the student
    after the first sixth (30k). With X-101-DCNv2, and for FCOS with R-101-DCNv2, distillation ends at 130k of 180k. See
    paper_defaults for what depends on the detector.
    """
    bottom_up = BACKBONES[backbone]
    steps, first, second = SCHEDULES[schedule]
    rules = paper_defaults(detector, bottom_up.name)
    ends_early = backbone == "x101_dcnv2" or (detector, backbone) == ("fcos", "r101_dcnv2")
    return Experiment(
        detector=Detector(name=detector, backbone=bottom_up),
        data=Data(source=DATA[data], min_sizes=SCALES[scale], max_size=1333, test_size=800, workers=8),
        schedule=Schedule(
            steps=steps,
            batch=16,
            lr_per_16=rules["schedule.lr"],
            decay_norms=True,
            milestones=(first / steps, second / steps),
            frozen=20 / 180,
            distill_from=30 / 180,
            distill_until=130 / 180 if ends_early else 1.0,
        ),
        method=make(
            "lgd",
            context=rules["method.context"],
            detach_appearance=rules["method.detach_appearance"],
            init="reference",
        ),
    )


class Reported(NamedTuple):
    """COCO AP in percent that the paper, or its authors' code, reports. None: not reported."""

    detector: DetectorName
    backbone: BackboneName
    schedule: ScheduleName
    scale: ScaleName
    metric: Literal["box", "mask"]
    """What was measured, boxes or masks."""
    baseline: float | None
    lgd: float | None
    location: str
    """The place in the paper with what we assumed there, or "code's README" for the authors' own re-run with the code
    they published."""

    def __str__(self) -> str:
        pairs = (("baseline", self.baseline), ("LGD", self.lgd))
        known = ", ".join(f"{name} {value:.1f}" for name, value in pairs if value is not None)
        return f"{self.metric} AP {known} ({self.location})"


class _Parts(NamedTuple):
    """What a name says, but for the data, which follows from the schedule."""

    detector: DetectorName
    backbone: BackboneName
    schedule: ScheduleName
    scale: ScaleName

    @property
    def data(self) -> DataName:
        return OWN_SCHEDULES.get(self.schedule, "coco")

    @property
    def name(self) -> str:
        return "_".join(self if self.data == "coco" else (*self, self.data))


_EVERY = [_Parts(*x) for x in itertools.product(DETECTORS, BACKBONES, SCHEDULES, SCALES)]
_BY_NAME = {x.name: x for x in _EVERY}


def _reported() -> Iterator[Reported]:
    """The box and mask AP on MS-COCO of every table; a pair that two tables hold comes once."""
    kinds: tuple[tuple[Literal["box", "mask"], MetricName], ...] = (("box", "box_AP"), ("mask", "mask_AP"))
    places: dict[Reported, list[str]] = {}
    for table in paper().tables.values():
        for x in (x for x in table.trainings if x.data == "coco" and x.method == "lgd"):
            assumed = table.assumptions(x)
            for kind, metric in kinds:
                pair = table.value(x.baseline, metric), table.value(x, metric)
                if pair != (None, None):
                    key = Reported(x.detector, x.backbone, x.schedule, x.scale, kind, *pair, location="")
                    places.setdefault(key, []).append(
                        f"{table.location}, {assumed} assumed" if assumed else table.location
                    )
    for reported, locations in places.items():
        yield reported._replace(location=", ".join(locations))


REPORTED = tuple(sorted(_reported(), key=lambda x: _EVERY.index(_Parts(*x[:4]))))
"""Every figure on MS-COCO of the paper's tables and poster and of its code's README (see lgd/config/paper.yaml)."""


@dataclass(frozen=True)
class Named:
    """A training of the paper by its name."""

    name: str
    title: str
    experiment: Experiment
    """Its settings (those with LGD)."""
    reported: tuple[Reported, ...]
    """What is reported for it on MS-COCO (may be none)."""
    table: str = ""
    """The table of the paper's numbers on other data; "" where there is none."""

    @property
    def command(self) -> str:
        return f"python -m lgd.train {self.name} --method lgd"

    @property
    def head(self) -> list[str]:
        """The command that trains it and what the paper reports for it, a line each."""
        elsewhere = f"what the paper reports: lgd sweep list {self.table}" if self.table else ""
        known = [f"the paper reports {x}" for x in self.reported]
        known = known or [elsewhere or "the paper reports nothing for this combination"]
        return [self.title, f"{self.command}    # or --method baseline", *known]


NAMES = tuple(dict.fromkeys("_".join(x[:4]) for x in REPORTED))
"""The experiments that a number on MS-COCO is reported for. :func:`named` makes the other combinations just as well."""


def named(name: str) -> Named:
    """The experiment DETECTOR_BACKBONE_SCHEDULE_SCALE, with _voc (schedule 18k) or _crowdhuman (30k) behind it.

    Raises InputError for an unknown name, with the nearest one, and for these schedules without their data.
    """
    if name not in _BY_NAME:
        of_other_data = next((x for x in _EVERY if "_".join(x) == name), None)
        if of_other_data is not None:
            data = DATA_TITLES[of_other_data.data]
            raise InputError(f"{name}: {of_other_data.schedule} is the schedule of {data}: say {of_other_data.name}")
        close = get_close_matches(name, [*NAMES, *_BY_NAME], n=1)
        hint = f"did you mean {close[0]!r}?" if close else "--list shows those of the paper"
        raise InputError(f"no experiment {name!r}; {hint}")
    parts = _BY_NAME[name]
    title = f"{DETECTORS[parts.detector]} {TITLES[parts.backbone]} {parts.schedule} {parts.scale}"
    reported = tuple(x for x in REPORTED if x[:4] == parts)
    # Not every combination is the paper's.
    table = TABLES.get(parts.data, "")
    trainings = paper().tables[table].trainings if table else []
    in_table = any((x.detector, x.backbone, x.schedule, x.scale) == parts for x in trainings)
    return Named(
        name=name,
        title=title if parts.data == "coco" else f"{title} {DATA_TITLES[parts.data]}",
        experiment=define(*parts, parts.data),
        reported=reported,
        table=table if in_table else "",
    )
