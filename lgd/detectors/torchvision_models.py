"""torchvision's detectors behind the interface of detectron2's: its batches in, its losses and Instances out.

The model stays torchvision's own, class and parameter names included. Only its ``forward`` and that of its transform
are replaced, so that a batch is transformed once, however often it goes through the model: :func:`prepare_batch` runs
the model's own GeneralizedRCNNTransform and gives back what the model will see, with the labels in its pixels. Images
in the suite are BGR, 0 to 255; torchvision's models read RGB, 0 to 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast, get_args
from unittest import mock

import torch
import torchvision
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from lgd.config.detector_source import TORCHVISION
from lgd.config.experiment import Data, split_assignment
from lgd.errors import InputError

Batch = Sequence[Mapping[str, Any]]

RESIZED_BY_DATA = ("retinanet", "fcos", "fasterrcnn", "maskrcnn")
"""Beginnings of the names of models that take images of any size; SSD's have one of their own."""

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to an object, as in detectron2."""


class PreparedBatch(list[dict[str, Any]]):
    """A batch that went through a model's transform: ``image`` and ``instances`` of each are what the model sees.

    images, targets: the same as torchvision's models take them; targets None where there are no labels.
    """

    def __init__(
        self, samples: Sequence[dict[str, Any]], images: ImageList, targets: list[dict[str, Tensor]] | None
    ) -> None:
        super().__init__(samples)
        self.images = images
        self.targets = targets


class _Transformed(list[Tensor]):
    """A prepared batch as a model's images. It reads their sizes only: those that its detections are scaled to."""

    def __init__(self, batch: PreparedBatch) -> None:
        pixel = batch.images.tensors.new_zeros(1)
        super().__init__(pixel.expand(3, *size) for size in _output_sizes(batch))
        self.batch = batch


WITH_REDUCED_TAIL = "SSDLite320_MobileNet_V3_Large_Weights"
"""In the name of weights of a whole SSDLite, whose last layers are half as wide as with ImageNet weights."""


def build(
    source: str, overrides: Sequence[str], num_classes: int, *, weights: str, data: Data | None = None
) -> nn.Module:
    """The model that a source (``torchvision:NAME``) names, for ``num_classes`` classes, with initial weights.

    overrides: arguments of its builder. weights: "none", or what will be loaded, for which torchvision freezes batch
    norms and first layers; nothing is loaded here. data: images come resized as it says and are not resized again,
    unless ``overrides`` give sizes. Raises InputError, one line, for what torchvision does not have or take.
    """
    builder, given = builder_of(source), dict(split_assignment(x) for x in overrides)
    _check_arguments(source, builder, given)
    sizes: dict[str, Any] = {}
    if data is not None and name_of(source).startswith(RESIZED_BY_DATA) and not {"min_size", "max_size"} & given.keys():
        sizes = {"min_size": data.test_size, "max_size": data.max_size, "_skip_resize": True}
    trained = _any_backbone_weights(builder) if weights != "none" and WITH_REDUCED_TAIL not in weights else None
    fixed: dict[str, Any] = {"weights": None, "weights_backbone": trained, "num_classes": num_classes + 1}
    try:
        with ExitStack() as stack:
            if trained is not None:
                # The builder makes what it would make for trained weights; lgd/detectors/own_weights.py loads them.
                stack.enter_context(mock.patch.object(WeightsEnum, "get_state_dict", return_value={}))
                stack.enter_context(mock.patch.object(nn.Module, "load_state_dict"))
            model = builder(**{**sizes, **given, **fixed})
    except Exception as error:  # the builder raises anything at an argument that it does not take
        said = " ".join(str(error).split())[:300]
        raise InputError(f"detector {source}: {type(error).__name__}: {said}") from None
    return adapt(model)


def _check_arguments(source: str, builder: Any, given: Mapping[str, Any]) -> None:
    """Raise InputError for an argument that nothing reads: torchvision's classes accept any."""
    signature = inspect.signature(builder)
    classes = [*signature.return_annotation.__mro__, GeneralizedRCNNTransform]
    inits = [inspect.signature(x.__init__) for x in classes if "__init__" in vars(x) and x is not object]
    known = {name for each in (signature, *inits) for name, x in each.parameters.items() if x.kind is not x.VAR_KEYWORD}
    known = (known | {"_skip_resize"}) - {"self", "args", "backbone", "weights", "weights_backbone", "num_classes"}
    unknown = [x for x in given if x not in known]
    if unknown:
        raise InputError(f"detector {source} has no argument {unknown[0]}; it has {', '.join(sorted(known))}")


def name_of(source: str) -> str:
    return source.removeprefix(TORCHVISION)


def builder_of(source: str) -> Any:
    """torchvision's function that builds the model. Raises InputError, one line, where it has none of that name."""
    known = torchvision.models.list_models(module=torchvision.models.detection)
    if name_of(source) not in known:
        raise InputError(f"detector {source}: torchvision has no such detector; it has {', '.join(known)}")
    return torchvision.models.get_model_builder(name_of(source))


def weights_named_by(source: str) -> str:
    """The weights that the builder starts from where nothing is said: its backbone's, "" for none."""
    default = inspect.signature(builder_of(source)).parameters["weights_backbone"].default
    return f"torchvision://{type(default).__name__}.{default.name}" if isinstance(default, WeightsEnum) else ""


def _any_backbone_weights(builder: Any) -> WeightsEnum:
    """Some weights that the builder takes: which of the backbone's changes nothing in what is built."""
    kinds = get_args(inspect.signature(builder).parameters["weights_backbone"].annotation)
    return cast(WeightsEnum, next(iter(kinds[0])))


def adapt(model: nn.Module) -> nn.Module:
    """Give a detector of torchvision's the interface of detectron2's, in place."""
    target, transform = cast(Any, model), cast(Any, model.transform)
    target.forward = partial(_forward, model)
    target.prepare_batch = partial(prepare_batch, model)
    transform.forward = partial(_transform, transform)
    _keep_digits_of_boxes(model)
    return model


def _keep_digits_of_boxes(model: nn.Module) -> None:
    """Under autocast anchors and decoded boxes stay float32, in place.

    torchvision takes them to the type of the features and of the head's output, and labels to that of the proposals:
    bfloat16 tells coordinates near 1000 pixels to 4 pixels.
    """
    for module in model.modules():
        if isinstance(module, AnchorGenerator):
            module.set_cell_anchors = partial(_set_cell_anchors, module)
        if isinstance(module, DefaultBoxGenerator):
            module._grid_default_boxes = partial(_grid_default_boxes, module)
        coder: Any = getattr(module, "box_coder", None)
        if isinstance(coder, (BoxCoder, BoxLinearCoder)):
            cast(Any, coder).decode = partial(_decode, coder)


def _set_cell_anchors(generator: AnchorGenerator, _: torch.dtype, device: torch.device) -> None:
    AnchorGenerator.set_cell_anchors(generator, torch.float32, device)


def _grid_default_boxes(
    generator: DefaultBoxGenerator, grid_sizes: list[list[int]], image_size: list[int], **_: torch.dtype
) -> Tensor:
    boxes: Tensor = DefaultBoxGenerator._grid_default_boxes(generator, grid_sizes, image_size, dtype=torch.float32)
    return boxes


def _decode(coder: Any, codes: Tensor, boxes: Any) -> Tensor:
    decoded: Tensor = type(coder).decode(coder, codes.float(), boxes)
    return decoded


def prepare_batch(model: nn.Module, batch: Batch) -> PreparedBatch:
    """``batch`` (detectron2's) after the model's transform: normalised, resized, padded; on the model's device."""
    if isinstance(batch, PreparedBatch):
        return batch
    device = next(model.parameters()).device
    pixels = [x["image"].to(device, non_blocking=True).float().flip(0) / 255 for x in batch]
    labelled = all("instances" in x for x in batch)
    targets = [_target(x["instances"], device) for x in batch] if labelled else None
    # Without autocast: pixels and boxes keep all their digits.
    with torch.autocast(device.type, enabled=False):
        images, targets = cast(Any, model.transform)(pixels, targets)
    samples = []
    for i, sample in enumerate(batch):
        seen = {**sample, "image": images.tensors[i], "input_size": tuple(sample["image"].shape[-2:])}
        if targets is not None:
            seen["instances"] = _instances(targets[i], images.image_sizes[i])
        samples.append(seen)
    return PreparedBatch(samples, images, targets)


def _target(labels: Instances, device: torch.device) -> dict[str, Tensor]:
    """Labels as torchvision takes them: classes from 1, since 0 is the background."""
    target = {
        "boxes": labels.gt_boxes.tensor.to(device).float(),
        "labels": labels.gt_classes.to(device) + 1,
    }
    if labels.has("gt_masks"):
        masks = labels.gt_masks
        if isinstance(masks, PolygonMasks):
            masks = BitMasks.from_polygon_masks(masks, *labels.image_size)
        target["masks"] = masks.tensor.to(device, torch.uint8)
    return target


def _instances(target: Mapping[str, Tensor], size: tuple[int, int]) -> Instances:
    labels = Instances(size, gt_boxes=Boxes(target["boxes"]), gt_classes=target["labels"] - 1)
    if "masks" in target:
        labels.gt_masks = BitMasks(target["masks"].bool())
    return labels


def _transform(transform: nn.Module, images: Any, targets: Any = None) -> Any:
    """The transform's forward, which has run already for a prepared batch."""
    if isinstance(images, _Transformed):
        return images.batch.images, images.batch.targets
    return cast(Any, type(transform)).forward(transform, images, targets)


def _forward(model: nn.Module, batch: Batch) -> Any:
    """Losses by torchvision's names in training; one dict with ``instances`` for each image in evaluation."""
    prepared = prepare_batch(model, batch)
    output = cast(Any, type(model)).forward(model, _Transformed(prepared), prepared.targets)
    if model.training:
        return output
    sizes = _output_sizes(prepared)
    return [{"instances": _detections(found, size)} for found, size in zip(output, sizes, strict=True)]


def _output_sizes(batch: PreparedBatch) -> list[tuple[int, int]]:
    """(height, width) that detections are scaled to: the image's before it was loaded in another size."""
    return [(x.get("height", x["input_size"][0]), x.get("width", x["input_size"][1])) for x in batch]


def _detections(found: Mapping[str, Tensor], size: tuple[int, int]) -> Instances:
    # RetinaNet and FCOS have a score for the background, too, which no object was ever labelled with.
    real = found["labels"] > 0
    detections = Instances(
        size,
        pred_boxes=Boxes(found["boxes"][real]),
        scores=found["scores"][real],
        pred_classes=found["labels"][real] - 1,
    )
    if "masks" in found:
        detections.pred_masks = found["masks"][real, 0] > MASK_THRESHOLD
    return detections
