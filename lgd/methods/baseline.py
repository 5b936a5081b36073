"""The detector alone, which every method is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lgd.config.base_method import Method

if TYPE_CHECKING:
    from torch import nn

    from lgd.methods.parts import Parts


class Baseline(Method):
    """No distillation: the model that is trained is the student itself."""

    title: ClassVar[str] = "baseline"
    learns_from: ClassVar[str] = "the labels alone"
    has_distillation: ClassVar[bool] = False
    activations: ClassVar[float] = 2.2

    def build(self, parts: Parts) -> nn.Module:
        return parts.student
