"""What methods do where student and teacher have different numbers of channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lgd.methods.parts import levels_of


def align(channels: int, teacher_channels: int) -> nn.Conv2d | None:
    """A 1x1 convolution to the teacher's channels; None where the student has as many."""
    return None if channels == teacher_channels else nn.Conv2d(channels, teacher_channels, 1)


def level_channels(student: nn.Module, teacher: nn.Module) -> Mapping[str, tuple[int, int]]:
    """Channels of the student and of the teacher on each of the student's levels, by name, finest first."""
    teachers = levels_of(teacher)
    return {name: (x.channels, teachers[name].channels) for name, x in levels_of(student).items()}
