"""What a method gets to build its training model from, and what it has to return.

A method is one class, a subclass of :class:`lgd.config.base_method.Method` (docs/own-method.md). Its ``build(parts)``
returns one of

- :class:`lgd.methods.distiller.Distiller`, for a method that compares feature maps: a source of features (``teacher``)
  and a ``distance``, both ``nn.Module``;
- another subclass of :class:`lgd.methods.distiller.TrainingModel`, for one that compares predictions: its ``forward``
  returns the student's losses under their own names and the method's own under others, already weighted.

A built-in method is a folder, so that its class and settings can be imported without torch: ``lgd/methods/pkd/`` has
the class in ``__init__.py`` and its ``nn.Module`` in ``distance.py``, which ``build`` imports. Losses have this form::

    class PearsonDistance(nn.Module):
        trains_on_detached_features = False

        def forward(self, student, teacher_features, instances, image_size): ...
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lgd.config.detector import Detector
from lgd.config.experiment import Experiment
from lgd.detectors import model_layout
from lgd.errors import InputError
from lgd.methods.channel_adapters import ChannelAdapters


@dataclass(frozen=True)
class Parts:
    """The student and what else there is when a method's model is built."""

    experiment: Experiment
    student: nn.Module
    """The detector, its initial weights loaded."""
    num_classes: int
    detector: Callable[[Detector], nn.Module]
    """Builds another detector for the same classes, without its pretrained weights."""
    frozen_detector: Callable[[], nn.Module]
    """The trained detector that a method with a frozen teacher asks for (``Method.teacher_detector``), with its
    weights; in a dry build with random ones."""
    second_student: Callable[[int], nn.Module]
    """Another student, as ``student``, from the experiment's seed plus a number."""
    once: Callable[[Hashable, Callable[[], Any]], Any]
    """What a function returns, by a key; several dry builds with the same key share it. For networks that take long to
    make."""
    has_values: bool = True
    """Whether the parameters have values; False in a dry build."""
    pretrained: Path | None = None
    """Directory of the training that the method needs before (``Method.teacher_training``): ``student.pth``, and
    ``teacher.pth`` where that training's model has one. None in a dry build."""

    @property
    def channels(self) -> int:
        """Channels of the student's feature maps. Raises InputError where they differ between levels."""
        return channels_of(self.student, f"method {self.experiment.method.name}", "backbone")

    def channel_adapters(self) -> ChannelAdapters | None:
        """Convolutions to one number of channels and back, where levels differ and ``detector.adapt_channels`` is set.

        Raises InputError, one line, where levels differ and it is not.
        """
        channels = {name: x.channels for name, x in levels_of(self.student).items()}
        if len(set(channels.values())) == 1:
            return None
        if not self.experiment.detector.adapt_channels:
            listed = ", ".join(f"{name} {x}" for name, x in channels.items())
            raise InputError(
                f"method {self.experiment.method.name} needs the same number of channels on every level, the backbone"
                f" has {listed}: set detector.adapt_channels=true"
            )
        return ChannelAdapters(channels)


def levels_of(detector: nn.Module) -> dict[str, Any]:
    """detectron2's ShapeSpec (``channels``, ``stride``) of each level of a detector's FPN, by name, finest first."""
    return model_layout.levels_of(detector)


def channels_of(detector: nn.Module, method: str, role: str) -> int:
    """Channels of every level of a detector; InputError, naming the method and the detector's role, if they differ."""
    channels = {x.channels for x in levels_of(detector).values()}
    if len(channels) != 1:
        raise InputError(
            f"{method} needs the same number of channels on every level, the {role} has {sorted(channels)}"
        )
    return int(channels.pop())
