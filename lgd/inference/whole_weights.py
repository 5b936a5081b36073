"""Weights of a whole detector, to score it: every tensor has to be in the file, those of the heads too.

A training may start from less (lgd/detectors/initial_weights.py). What a scored detector keeps of its random values
would be seen in its AP alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from detectron2 import model_zoo
from torch import Tensor, nn

from lgd.config.detector import NO_WEIGHTS, OWN_WEIGHTS
from lgd.config.detector_source import ZOO, kind_of
from lgd.config.experiment import Detector
from lgd.config.paper_recipes import BACKBONES
from lgd.config.presets import ZOO_WEIGHTS
from lgd.detectors.conventions import TORCHVISION
from lgd.detectors.initial_weights import initial_weights
from lgd.detectors.own_weights import NO_WEIGHT, load_own_weights
from lgd.detectors.torchvision_models import builder_of
from lgd.detectors.weight_files import read_named
from lgd.detectors.weights import LoadReport, load_weights
from lgd.errors import InputError

__all__ = ["InDataClasses", "class_names_of", "load_whole_weights", "own_weights_of"]

_SHOWN = 3
"""Names that a message shows of many."""

_NOT_LEARNT = ("pixel_mean", "pixel_std", "cell_anchors", "num_batches_tracked")
"""Parts of names that detectron2's files of earlier versions have, and no detector of today."""


def own_weights_of(settings: Detector) -> str:
    """The weights that a detector is published with, where nobody names others.

    ``detector.weights`` where that is set; for a built-in one with the paper's R-50, detectron2's model zoo's; for a
    config of the zoo, the model trained with it; for another config, what it names; for torchvision's, its own of
    MS-COCO; "none" for a function, which returns the detector as it is to be. Raises InputError, one line, where there
    are none.
    """
    if settings.weights not in (NO_WEIGHTS, OWN_WEIGHTS):
        return settings.weights
    kind, found = kind_of(settings.source), NO_WEIGHTS
    if settings.is_built_in:
        found = ZOO_WEIGHTS.get(settings.name, NO_WEIGHTS) if settings.backbone == BACKBONES["r50"] else NO_WEIGHTS
    elif kind == "function":
        return NO_WEIGHTS
    elif kind == "torchvision":
        default: Any = torchvision.models.get_model_weights(builder_of(settings.source)).DEFAULT
        found = f"{TORCHVISION}{default}"
    elif settings.source.startswith(ZOO):
        try:
            found = model_zoo.get_checkpoint_url(settings.source.removeprefix(ZOO))
        except RuntimeError:
            found = NO_WEIGHTS
    else:
        found = initial_weights(settings)
    if found == NO_WEIGHTS:
        backbone = f" on {settings.backbone.name}" if settings.is_built_in else ""
        raise InputError(f"detector {settings.label}{backbone} has no published weights here: name some with --weights")
    return found


def load_whole_weights(detector: nn.Module, settings: Detector, source: str, num_classes: int) -> LoadReport:
    """Load ``source`` into all of the detector that ``settings`` describe, built for ``num_classes`` classes.

    Raises InputError, one line with the tensors' names, where any is not in the file or has another shape there.
    """
    if settings.is_built_in:
        report = load_weights(detector, source)
    else:
        report = load_own_weights(detector, settings, source, warn=False)
    state = {name: x for name, x in detector.state_dict().items() if not name.endswith(NO_WEIGHT)}
    absent = [*report.initial, *report.skipped]
    if not report.detector:
        absent = [name for name in state if not name.startswith("backbone.")]
    if absent:
        what = f"detector {settings.label} for the data's {num_classes} classes"
        listed = _differences(absent, state, source, report.path)
        raise InputError(
            f"weights {source} do not fit {what}: {len(absent)} of its {len(state)} tensors are missing or of another"
            f" shape ({listed})"
        )
    return report


def _differences(names: Sequence[str], state: dict[str, Tensor], source: str, path: Path | None) -> str:
    """The first of ``names``: with both shapes, or that the file has none of that name."""
    theirs = read_named(path, source).tensors if path else {}
    said = [
        f"{name} {_shape(theirs[name])} for {_shape(state[name])}" if name in theirs else f"{name} missing"
        for name in names[:_SHOWN]
    ]
    return ", ".join([*said, *(["..."] if len(names) > _SHOWN else [])])


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "scalar"


def left_over(report: LoadReport) -> list[str]:
    """Names in the file that the detector has no place for: of another head, for example."""
    return [name for name in report.unused if not any(x in name for x in _NOT_LEARNT)]


def class_names_of(source: str) -> tuple[str, ...]:
    """The classes, by label without the background, of torchvision's own detection weights; () of all other sources.

    Those of MS-COCO count its category ids: 90 labels, ten of them "N/A".
    """
    name = source.partition("#")[0].removeprefix(TORCHVISION)
    if not source.startswith(TORCHVISION) or name.endswith((".pth", ".pt", ".pkl")):
        return ()
    try:
        categories = torchvision.models.get_weight(name).meta.get("categories", ())
    except ValueError:
        return ()
    background, *classes = categories or ("",)
    return tuple(classes) if background == "__background__" else ()


class InDataClasses(nn.Module):
    """A detector of classes ``theirs``, whose detections are of the data's classes ``ours``: by name, others left out.

    Raises InputError, one line, where the detector lacks one of the data's.
    """

    labels: Tensor

    def __init__(self, detector: nn.Module, theirs: Sequence[str], ours: Sequence[str], source: str) -> None:
        super().__init__()
        unknown = [name for name in ours if name not in theirs]
        if unknown:
            raise InputError(
                f"weights {source} know {len(theirs)} classes, and not {', '.join(unknown[:_SHOWN])}"
                f"{', ...' if len(unknown) > _SHOWN else ''} of the data's {len(ours)}"
            )
        self.detector = detector
        of = {name: label for label, name in enumerate(ours)}
        self.register_buffer("labels", torch.tensor([of.get(name, -1) for name in theirs]), persistent=False)

    def forward(self, batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": self._renamed(output["instances"])} for output in self.detector(batch)]

    def _renamed(self, found: Any) -> Any:
        labels = self.labels[found.pred_classes]
        kept = found[labels >= 0]
        kept.pred_classes = labels[labels >= 0]
        return kept
