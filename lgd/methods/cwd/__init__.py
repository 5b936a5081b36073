"""CWD: the student's channels are active where a frozen detector's are (docs/method.md, "CWD")."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.settings import NonNegative, Positive

if TYPE_CHECKING:
    from lgd.methods.distiller import Distiller
    from lgd.methods.parts import Parts


class CWD(FrozenTeacherMethod):
    """The divergence between the channels' distributions over the cells."""

    weight: NonNegative = 10.0
    """Factor of the loss; 10 on FPN levels, as published."""
    temperature: Positive = 1.0
    """Features are divided by it before the softmax over the cells."""

    title: ClassVar[str] = "CWD"
    paper: ClassVar[str] = (
        "Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, arXiv 2011.13256"
    )
    learns_from: ClassVar[str] = "FPN features of a frozen detector"
    compares: ClassVar[str] = "KL divergence of each channel's softmax over the cells"

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.align import level_channels
        from lgd.methods.cwd.distance import ChannelWiseDistance
        from lgd.methods.frozen_teacher import distil_features

        return distil_features(
            parts,
            lambda teacher: ChannelWiseDistance(
                level_channels(parts.student, teacher), weight=self.weight, temperature=self.temperature
            ),
        )
