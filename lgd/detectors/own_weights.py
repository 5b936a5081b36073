"""Weights into a detector that is not built-in, under the names that its own library gives them.

lgd/detectors/weights.py does the same for the built-in ones, whose conventions it knows. Here a config or torchvision's
builder says how images are normalised, so weights are taken as they are; what a file lacks keeps its initial values.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
import torchvision
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor, nn
from torchvision.models.detection import ssd, ssdlite
from torchvision.ops import FrozenBatchNorm2d

from lgd.config.detector_source import kind_of
from lgd.config.experiment import Detector
from lgd.detectors.model_layout import bottom_up_path
from lgd.detectors.weight_files import read_named
from lgd.detectors.weight_sources import WeightSource, find_weights, local_path, probe, without_query
from lgd.detectors.weights import LoadReport
from lgd.errors import InputError

__all__ = ["check_own_weights", "load_own_weights"]

ENOUGH = 0.5
"""Part of a bottom-up network's tensors that a file must hold to be taken for that network's."""

NO_WEIGHT = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Endings of what is no weight."""

STATISTICS = ("running_mean", "running_var")

PLACES = ("", "backbone.", "backbone.body.")
"""Beginnings that names of torchvision's classifiers and detectors get in a detector of torchvision's."""

WITHOUT_EPS = tuple(
    Path(str(torchvision.models.get_weight(f"{name}_ResNet50_FPN_Weights.COCO_V1").url)).name
    for name in ("RetinaNet", "FasterRCNN", "MaskRCNN")
)
"""Files whose batch norms were trained without the eps that torchvision's FrozenBatchNorm2d adds to the variance."""

log = logging.getLogger(__name__)


def load_own_weights(detector: nn.Module, settings: Detector, source: str, *, warn: bool = True) -> LoadReport:
    """Read ``source`` into ``detector``: all of its tensors whose names and shapes fit.

    warn: log the layers that keep their initial values. Raises InputError, one line, where the file cannot be had or
    read, and where it is another network's: where less than half of the bottom-up network's tensors fit.
    """
    if source == "none":
        return LoadReport(source)
    tensors, report = _match(detector, settings, source, local_path(without_query(source)))
    detector.load_state_dict(tensors, strict=False)
    log.info("%s", report)
    if not warn:
        return report
    if report.initial:
        log.warning("weights %s: initial values for %s", source, ", ".join(report.initial[:5]))
    if report.skipped:
        # As :func:`lgd.detectors.weights.load_weights` does; a layer that a number of classes changes has two tensors.
        layers = list(dict.fromkeys(x.rpartition(".")[0] for x in report.skipped))
        more = f" and {len(layers) - 5} more layers" if len(layers) > 5 else ""
        log.warning("weights %s: new initial values for %s%s that do not fit", source, ", ".join(layers[:5]), more)
    return report


def check_own_weights(detector: nn.Module, settings: Detector, source: str) -> WeightSource | None:
    """The result that :func:`load_own_weights` would have, without downloading and without a change to ``detector``."""
    if source == "none":
        return None
    # What detectron2's ``?matching_heuristics=True`` asks for is done here anyway.
    weights = find_weights(without_query(source))
    if weights.is_cached:
        _match(detector, settings, source, local_path(weights.source))
    return probe(weights)


def _match(detector: nn.Module, settings: Detector, source: str, path: Path) -> tuple[dict[str, Tensor], LoadReport]:
    """The file's tensors by the detector's names, those alone that fit. Raises InputError where too few do."""
    named, state = read_named(path, source), detector.state_dict()
    is_torchvision = kind_of(settings.source) == "torchvision"
    if is_torchvision:
        placed = _torchvision_names(named.tensors, detector)
        if path.name in WITHOUT_EPS:
            placed = _with_eps(placed, detector)
    else:
        placed = _detectron2_names(named.tensors, state, caffe2=named.format == "caffe2")
    fitting = {name: x for name, x in placed.items() if name in state and x.shape == state[name].shape}
    prefix = f"{bottom_up_path(detector, settings) or 'backbone'}."
    # A fused batch norm has no statistics of its own, and starts with those that change nothing.
    fused = not any(x.endswith(STATISTICS) for x in placed)
    ignored = (*NO_WEIGHT, *(STATISTICS if fused else ()))
    wanted = [x for x in state if x.startswith(prefix) and not x.endswith(ignored)]
    absent = [x for x in wanted if x not in fitting]
    if len(absent) > (1 - ENOUGH) * len(wanted):
        raise InputError(
            f"weights {source} do not fit detector {settings.label}: of {len(wanted)} tensors in {prefix[:-1]} the file"
            f" has {len(wanted) - len(absent)} (not {', '.join(absent[:3])})"
        )
    head = [x for x in state if not x.startswith(prefix) and not x.endswith(ignored)]
    whole = any(x in fitting for x in head if not x.startswith("backbone."))
    report = LoadReport(
        source=source,
        format="torchvision" if is_torchvision else named.format,
        path=path,
        detector=whole,
        loaded=len(fitting),
        initial=tuple(absent),
        skipped=tuple(x for x in head if whole and x not in fitting),
        unused=tuple(x for x in placed if x not in fitting and not x.endswith(NO_WEIGHT)),
    )
    return fitting, report


def _detectron2_names(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], *, caffe2: bool) -> dict[str, Tensor]:
    """As detectron2's checkpointer names them: equal names, else those of which the file's are the ends."""
    if not caffe2 and any(name in state for name in tensors):
        return dict(tensors)
    logger = logging.getLogger("detectron2.checkpoint.c2_model_loading")
    before, logger.disabled = logger.disabled, True
    try:
        found: dict[str, Tensor] = align_and_update_state_dicts(dict(state), dict(tensors), c2_conversion=caffe2)
    except ValueError:  # a name that ends several of the detector's: the file is of something else
        return dict(tensors)
    finally:
        logger.disabled = before
    return found


def _places_in_ssd(detector: nn.Module) -> dict[str, str]:
    """Where torchvision's builder of an SSD puts the classifier's tensors, by their names there; empty for others."""
    with torch.device("meta"):
        if isinstance(detector.backbone, ssd.SSDFeatureExtractorVGG):
            classifier = torchvision.models.vgg16()
            # It reads the layers' kinds alone.
            backbone: nn.Module = ssd._vgg_extractor(classifier, False, 5)
        elif isinstance(detector.backbone, ssdlite.SSDLiteFeatureExtractorMobileNet):
            classifier = torchvision.models.mobilenet_v3_large()
            backbone = ssdlite._mobilenet_extractor(classifier, 6, nn.BatchNorm2d)
        else:
            return {}
    names = {id(x): name for name, x in [*classifier.named_parameters(), *classifier.named_buffers()]}
    values = [*backbone.named_parameters(), *backbone.named_buffers()]
    return {names[id(x)]: f"backbone.{name}" for name, x in values if id(x) in names}


def _torchvision_names(tensors: Mapping[str, Tensor], detector: nn.Module) -> dict[str, Tensor]:
    """The file's tensors where torchvision itself loads them, which knows the names of its earlier versions.

    They are a whole detector's or, under one of PLACES, its backbone's; MobileNet's layers lose their ``features.``. In
    an SSD they are where its builder puts a classifier's.
    """
    state = detector.state_dict()
    choices = [
        {place + name.removeprefix(dropped): x for name, x in tensors.items()}
        for place in PLACES
        for dropped in ("", "features.")
    ]
    places = _places_in_ssd(detector)
    choices.append({places[name]: x for name, x in tensors.items() if name in places})
    named = max(choices, key=lambda x: sum(name in state for name in x))
    # Into a copy without values: what has one afterwards was in the file.
    values = [*detector.parameters(), *detector.buffers()]
    empty = copy.deepcopy(detector, {id(x): _without_value(x) for x in values})
    with suppress(RuntimeError):  # another shape, such as that of another number of classes
        empty.load_state_dict(named, strict=False, assign=True)
    return {name: x for name, x in empty.state_dict().items() if not x.is_meta}


def _without_value(x: Tensor) -> Tensor:
    empty = x.detach().to("meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(x, nn.Parameter) else empty


def _with_eps(tensors: dict[str, Tensor], detector: nn.Module) -> dict[str, Tensor]:
    """Variances to which the layer's eps adds up to the file's: a stock model with these weights computes the same."""
    changed = dict(tensors)
    for name, module in detector.named_modules():
        key = f"{name}.running_var"
        if isinstance(module, FrozenBatchNorm2d) and key in changed:
            changed[key] = changed[key] - module.eps
    return changed
