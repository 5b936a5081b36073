"""A figure that a method's authors report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lgd.config.settings import Settings


class Published(Settings):
    """Results of another method, by its authors: box AP on MS-COCO, percent. Never a cell of one of LGD's tables."""

    method: Annotated[str, Field(min_length=1)]
    """The method, as ``method.name``."""
    detector: str
    """The student's detector, with its backbone."""
    schedule: str = ""
    """As the source says it; "" where it does not."""
    teacher: str = ""
    """The frozen detector, with backbone and schedule as far as said; "" for a method without one."""
    inherits: bool
    """Whether the student's FPN and head start from the teacher's weights in that training."""
    baseline: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    AP: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    source: str
    """The paper and, where the figure is of a repetition, its code."""

    @property
    def gain(self) -> float:
        """AP over the baseline's, percentage points."""
        return self.AP - self.baseline

    def __str__(self) -> str:
        said = [self.detector, self.schedule, f"from {self.teacher}" if self.teacher else ""]
        inherits = "; FPN and head inherited" if self.inherits else ""
        return f"{self.baseline:.1f} to {self.AP:.1f} ({', '.join(x for x in said if x)}{inherits})"
