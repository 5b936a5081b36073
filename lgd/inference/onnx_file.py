"""A trained detector as an ONNX file, through torch's exporter, and whether onnxruntime computes the same with it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from lgd.detectors.from_elsewhere import is_turned_to_rgb
from lgd.errors import InputError
from lgd.files import atomic_write
from lgd.inference.out_of_memory import is_out_of_memory
from lgd.logs import quiet_libraries
from lgd.training.export import TrainedStudent

__all__ = ["AGREEING", "export_onnx", "same_objects"]

OPSET = 17
"""The version of ONNX's operators; from 16 on RoiAlign samples as torch does."""

OUTPUTS = ("boxes", "scores", "classes", "masks")

BOX_TOLERANCE, SCORE_TOLERANCE, MASK_TOLERANCE = 0.05, 1e-3, 1e-2
"""Pixels, and parts of 1, by which an object may differ that both find."""

AGREEING = 0.95
"""Part of the objects that both must find. Rounding decides which of two boxes of nearly one score is suppressed."""


class Inference(nn.Module):
    """What the ONNX file computes, of an image that was resized already (:meth:`TrainedStudent.resized`).

    From (3, h, w) float32, BGR, 0 to 255: ``boxes`` (N, 4) as corners in its pixels, ``scores`` (N,), ``classes`` (N,)
    int64 from 0, and of a detector with masks ``masks``, each object's probabilities inside its box: (N, 28, 28) of
    detectron2's, (N, h, w) in the whole image of torchvision's.
    """

    def __init__(self, student: TrainedStudent) -> None:
        super().__init__()
        self.detector = student.detector
        # A function of somebody's may return one, too.
        self.is_torchvision = isinstance(getattr(self.detector, "transform", None), GeneralizedRCNNTransform)
        # A hook before the detector's forward turns the channels round; its inference is called without.
        self.takes_rgb = is_turned_to_rgb(self.detector)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        detector = cast(Any, self.detector)
        if self.is_torchvision:
            # The stock forward, without what lgd/detectors/torchvision_models.py puts around it.
            (found,) = type(detector).forward(detector, [image.flip(0) / 255])
            real = found["labels"] > 0
            outputs = [found["boxes"][real], found["scores"][real], found["labels"][real] - 1]
            return (*outputs, found["masks"][real, 0]) if "masks" in found else tuple(outputs)
        if hasattr(detector, "roi_heads"):
            # Masks as they come out of the head: pasting them into the image does not survive the exporter.
            taken = image.flip(0) if self.takes_rgb else image
            (found,) = detector.inference([{"image": taken}], do_postprocess=False)
        else:
            found = detector([{"image": image}])[0]["instances"]
        outputs = [found.pred_boxes.tensor, found.scores, found.pred_classes]
        return (*outputs, found.pred_masks[:, 0]) if found.has("pred_masks") else tuple(outputs)


def export_onnx(student: TrainedStudent, path: Path, image: Tensor) -> str:
    """Write the ONNX file and return in words what was checked.

    image: what it is traced and checked with, from :meth:`TrainedStudent.resized`. The file takes images of any size
    where that gives the same as torch, too, else of this size alone. Raises InputError, one line, where the packages
    are missing, the detector cannot be exported, or the results differ.
    """
    _check_packages()
    network = Inference(student).eval()
    _check_same_as_detector(network, student, image)
    other, seen = _other_size(network, image)
    with atomic_write(path) as temporary:
        _export(network, image, temporary, any_size=True)
        difference = _difference(network, temporary, image)
        sizes = "of any size"
        with torch.no_grad():
            count = len(network(image)[1])
        if difference or _difference(network, temporary, other):
            _export(network, image, temporary, any_size=False)
            difference = _difference(network, temporary, image)
            sizes = f"of {image.shape[2]} x {image.shape[1]} pixels alone"
        elif not seen:
            sizes += " (no object was found in the other sizes that it was checked on, which says little)"
        if difference:
            raise InputError(f"the ONNX file does not compute what the detector does: {difference}")
        _describe(temporary, student)
    if not count:
        return (
            f"takes images {sizes}; torch and onnxruntime find no object in the image that it was checked on, which"
            " says little: --image FILE names one with objects"
        )
    return f"takes images {sizes}; onnxruntime finds the {count} objects that torch finds"


def _other_size(network: Inference, image: Tensor) -> tuple[Tensor, bool]:
    """The image in another size, to see whether the trace depends on the first one's, and whether it has objects."""
    height, width = image.shape[1:]
    turned = image.transpose(1, 2).contiguous() if height != width else image[:, : height // 2]
    # Most of it is what likely has an object, where the image has any.
    for other in (turned, image[:, : height * 7 // 8], image[:, :, : width * 7 // 8]):
        with torch.no_grad():
            if len(network(other.contiguous())[1]):
                return other.contiguous(), True
    return turned.contiguous(), False


def _check_packages() -> None:
    for name in ("onnx", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise InputError(f"the package {name} is missing: pip install -e '.[export]'") from None


def _check_same_as_detector(network: Inference, student: TrainedStudent, image: Tensor) -> None:
    """Raise InputError where the network to be exported finds other objects than the detector as it is used here."""
    with torch.no_grad():
        found = student.detector([{"image": image, "height": image.shape[1], "width": image.shape[2]}])[0]["instances"]
        theirs = network(image)[:3]
    ours = found.pred_boxes.tensor, found.scores, found.pred_classes
    shared = same_objects(ours, theirs)
    for count, dim, whose in ((len(ours[0]), 1, "detector's"), (len(theirs[0]), 0, "export's")):
        if int(shared.any(dim=dim).sum()) < AGREEING * count:
            raise InputError(
                f"what would be exported does not compute what the detector does: only {int(shared.any(dim=dim).sum())}"
                f" of the {whose} {count} objects are also found by the other"
            )


def _export(network: Inference, image: Tensor, path: Path, *, any_size: bool) -> None:
    with torch.no_grad(), quiet_libraries(), warnings.catch_warnings():
        # The tracer warns of every Python value that it takes for a constant; the check afterwards sees which vary.
        warnings.simplefilter("ignore")
        count = len(network(image))
        try:
            # The exporter that traces: sizes in detectron2's detectors depend on values, which torch.export refuses.
            torch.onnx.export(
                network,
                (image,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=list(OUTPUTS[:count]),
                dynamic_axes={
                    **({"image": {1: "height", 2: "width"}} if any_size else {}),
                    **{name: {0: "objects"} for name in OUTPUTS[:count]},
                },
            )
        except OSError:
            raise
        except Exception as error:  # the exporter raises anything at an operator that it does not have
            if is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:300]
            raise InputError(
                f"the detector cannot be exported to ONNX ({type(error).__name__}: {said}); --format detectron2 or"
                " torchvision writes its weights"
            ) from None


def _difference(network: Inference, path: Path, image: Tensor) -> str:
    """What onnxruntime computes otherwise than torch, in words; "" where they agree."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with torch.no_grad():
        expected = network(image)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {"image": image.numpy()})
    except Exception as error:  # onnxruntime's errors have no common class
        if is_out_of_memory(error):
            raise
        return " ".join(str(error).split())[:300]
    theirs = [torch.from_numpy(x) for x in found]
    for ours, others, whose in ((expected, theirs, "torch's"), (theirs, expected, "onnxruntime's")):
        count, shared = len(ours[0]), int(same_objects(ours, others).any(dim=1).sum())
        if shared < AGREEING * count:
            return f"only {shared} of {whose} {count} objects are also found by the other"
    return ""


def same_objects(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """(N, M) bool: whether an object of ``ours`` is one of ``theirs``; each: boxes, scores, classes, perhaps masks."""
    boxes, scores, classes = ((a[:, None] - b[None]).abs().double() for a, b in zip(ours[:3], theirs[:3], strict=True))
    same = (boxes.amax(dim=2) <= BOX_TOLERANCE) & (scores <= SCORE_TOLERANCE) & (classes == 0)
    for row, column in same.nonzero().tolist() if len(ours) > 3 else []:
        same[row, column] = bool((ours[3][row] - theirs[3][column]).abs().max() <= MASK_TOLERANCE)
    return same


def _describe(path: Path, student: TrainedStudent) -> None:
    """Add the class names and the preprocessing to the file's metadata."""
    import onnx

    model = onnx.load(str(path))
    description = student.description
    sizes = description.preprocessing
    onnx.helper.set_model_props(
        model,
        {
            "names": json.dumps(description.class_names),
            "category_ids": json.dumps(student.category_ids),
            "preprocessing": json.dumps(
                {"color_order": "BGR", "values": "0 to 255", "min_size": sizes.min_size, "max_size": sizes.max_size}
            ),
        },
    )
    onnx.save(model, str(path))
