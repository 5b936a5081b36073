"""LabelEnc: features from a label encoder, which is trained before, with a detector of its own (docs/method.md,
"LabelEnc")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from lgd.config.base_method import DistillationMethod, TeacherTraining
from lgd.config.detector import NO_WEIGHTS, Backbone, Detector
from lgd.config.frozen_teacher import Inherit
from lgd.config.phases import Phases
from lgd.config.schedule import PAPER_BATCH, Schedule
from lgd.config.settings import AUTO_IS_NONE, Fraction, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from lgd.methods.distiller import Distiller
    from lgd.methods.parts import Parts

PAPER = "Hao et al., LabelEnc: A New Intermediate Supervision Method for Object Detection, ECCV 2020, arXiv 2007.03282"

LONGER = 4 / 3
"""Iterations of stage 1 over those of the student's training: 30k are added to the 90k of 1x."""

LONGEST = 120_000
"""Iterations of 16 images of stage 1 at most: 1x's 90k + 30k, as its authors train it for students of 2x too."""

STAGE1_START = 0.25
"""Part of stage 1 before the distance begins: the first 30k of 120k iterations."""

R50_WEIGHTS = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


class LabelEncStage1(DistillationMethod):
    """Stage 1: a detector and a label encoder trained together, through one head.

    ``distill_weight`` is the weight of the distance, once it begins.
    """

    start: Fraction = STAGE1_START
    """Part of the training before the distance begins; published: the first 30k of 120k iterations."""

    title: ClassVar[str] = "LabelEnc, stage 1"
    paper: ClassVar[str] = PAPER
    learns_from: ClassVar[str] = "features that an encoder makes of the labels"
    compares: ClassVar[str] = "squared difference of normalised maps"
    student_head_reads: ClassVar[str] = "the student's features and the encoder's"
    activations: ClassVar[float] = 3.5
    has_teacher_ap: ClassVar[bool] = True
    keeps_teacher: ClassVar[bool] = True

    def phases(self, schedule: Schedule) -> Phases:
        return Phases(distill_from=round(self.start * schedule.steps))

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.distiller import Distiller
        from lgd.methods.labelenc.distance import WholeMapDistance
        from lgd.methods.labelenc.encoder import LabelEncodingFunction, build_encoder

        encoder = LabelEncodingFunction(build_encoder(parts.student, parts.num_classes), parts.num_classes, dims=True)
        return Distiller(
            parts.student,
            encoder,
            WholeMapDistance(parts.channels),
            phases=self.phases(parts.experiment.schedule),
            distill_weight=self.distill_weight,
        )


class LabelEnc(DistillationMethod):
    """Stage 2: the student, with the frozen label encoder of stage 1 as the source of features."""

    until: Fraction = 8 / 9
    """Part of the training after which there is no distance; published: 80k of 90k iterations."""
    stage1_steps: Annotated[PositiveInt | None, AUTO_IS_NONE] = None
    """Steps of stage 1; None ("auto"): as published, 4/3 of the student's but at most 120,000 steps of 16 images."""
    stage1_seed: NonNegativeInt = 0
    """Seed of stage 1. It does not follow the student's, so that all seeds share one encoder."""
    inherit: Inherit = "fpn_and_head"
    """What of the student starts from stage 1: the FPN from the encoder's, the head from the detector's. Part of the
    published method."""

    authors_inherit: ClassVar[Inherit] = "fpn_and_head"
    title: ClassVar[str] = "LabelEnc"
    teacher_steps_key: ClassVar[str] = "method.stage1_steps"
    paper: ClassVar[str] = PAPER
    learns_from: ClassVar[str] = "features of a label encoder that is trained before"
    compares: ClassVar[str] = "squared difference of normalised maps"

    def phases(self, schedule: Schedule) -> Phases:
        return Phases(distill_until=round(self.until * schedule.steps))

    def teacher_training(self, student: Detector, schedule: Schedule) -> TeacherTraining:
        published = min(round(LONGER * schedule.steps), round(LONGEST * PAPER_BATCH / schedule.batch))
        return TeacherTraining(
            method={"name": "labelenc_stage1"},
            detector=stage1_detector(student),
            seed=self.stage1_seed,
            steps=self.stage1_steps or published,
            # The released code puts the warm-up before 1x and moves its drops by it: from 60k and 80k to 90k and 110k.
            milestones=tuple(STAGE1_START + (1 - STAGE1_START) * x for x in schedule.milestones),
        )

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.distiller import Distiller
        from lgd.methods.labelenc.distance import WholeMapDistance
        from lgd.methods.labelenc.encoder import FrozenLabelEncoder

        return Distiller(
            parts.student,
            FrozenLabelEncoder.of_stage1(parts, self.inherit),
            WholeMapDistance(parts.channels),
            phases=self.phases(parts.experiment.schedule),
            distill_weight=self.distill_weight,
        )


def stage1_detector(student: Detector) -> Detector:
    """The detector of stage 1: the student with an R-50, as published, where that has the student's channels.

    Otherwise the student itself, for the encoder's FPN must fit the student's backbone.
    """
    backbone = student.backbone
    if student.is_built_in and backbone.name in ("resnet101", "resnext101_32x8d"):
        described = backbone.model_dump() | {
            "name": "resnet50",
            "weights": NO_WEIGHTS if backbone.from_scratch else R50_WEIGHTS,
            "deformable": False,
        }
        backbone = Backbone.model_validate(described)
        return Detector.model_validate(student.model_dump() | {"backbone": backbone, "weights": NO_WEIGHTS})
    return student
