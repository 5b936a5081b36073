"""lgd export: the student for detectron2, torchvision and ONNX."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn

from ablations.command import main as lgd
from lgd.config.experiment import Detector, Experiment
from lgd.detectors import build_detector, from_elsewhere
from lgd.errors import InputError
from lgd.inference import onnx_file
from lgd.inference.export import main
from lgd.inference.onnx_file import Inference, _other_size, export_onnx, same_objects
from lgd.inference.weights_file import export_torchvision
from lgd.training.export import TrainedStudent, describe_student, export_student
from tests.helpers import tiny_settings

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


def write_student(directory: Path, experiment: Experiment, classes: int = 3) -> TrainedStudent:
    """An untrained detector that finds objects all the same: of any score."""
    torch.manual_seed(0)
    detector: Any = build_detector(experiment.detector, classes, experiment.data)
    if not experiment.detector.is_built_in:
        detector.head.classification_head.cls_logits.bias.data.zero_()
    export_student(detector, directory / "student.pth")
    describe_student(detector, experiment, [f"class {i}" for i in range(classes)], directory, range(classes))
    detector_source = None if experiment.detector.is_built_in else experiment.detector.source
    student = TrainedStudent(directory, source=detector_source)
    if not experiment.detector.is_built_in:
        return student
    _keep_every_score(student.detector)
    return student


def _keep_every_score(detector: nn.Module) -> None:
    for module in detector.modules():
        for name in ("test_score_thresh", "score_thresh", "test_score_threshold"):
            if hasattr(module, name):
                setattr(module, name, 0.0)


@pytest.mark.parametrize("name", ["retinanet", "fcos", "atss", "poto", "faster_rcnn", "mask_rcnn"])
def test_onnx_computes_what_the_detector_does(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    experiment = Experiment(detector=tiny_settings(name)).override({"data.test_size": 96, "data.max_size": 160})
    student = write_student(tmp_path, experiment)
    path = tmp_path / "model.onnx"
    said = export_onnx(student, path, student.resized(PIXELS))
    assert said.startswith("takes images of any size; onnxruntime finds the ")
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["names"]) == ["class 0", "class 1", "class 2"]
    # Of another size than it was traced with, in the image's own pixels.
    image = np.random.default_rng(1).integers(0, 256, (96, 110, 3), np.uint8)
    outputs = session.run(None, {"image": _input(image)})
    found = student.detect(image)
    assert len(found) > 5
    expected = found.pred_boxes.tensor, found.scores, found.pred_classes
    same = same_objects([torch.from_numpy(x) for x in outputs[:3]], expected)
    # In an untrained network many scores are nearly one, and rounding decides which boxes stay.
    assert min(same.any(dim=0).sum(), same.any(dim=1).sum()) >= 0.9 * max(same.shape)
    assert [x.name for x in session.get_outputs()[3:]] == (["masks"] if name == "mask_rcnn" else [])


@pytest.mark.parametrize("name", ["retinanet", "fcos", "atss", "poto", "faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_exported_student_detects_the_same_on_every_device(
    device: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its files on ``device``, and on the CPU as it was before the export."""
    # cuDNN's convolutions round float32 to TF32 otherwise.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    experiment = Experiment(detector=tiny_settings(name)).override({"data.test_size": 96, "data.max_size": 160})
    on_cpu = write_student(tmp_path, experiment)
    student = TrainedStudent(tmp_path, device)
    torch.manual_seed(0)
    on_cpu.detector = build_detector(experiment.detector, 3, experiment.data).eval()
    _keep_every_score(on_cpu.detector)
    _keep_every_score(student.detector)
    found, expected = student.detect(PIXELS), on_cpu.detect(PIXELS)
    assert len(found) > 5
    ours, theirs = ((x.pred_boxes.tensor, x.scores, x.pred_classes) for x in (found, expected))
    same = same_objects(ours, theirs)
    # In an untrained network many scores are nearly one, and rounding decides which boxes stay.
    assert min(same.any(dim=0).sum(), same.any(dim=1).sum()) >= 0.9 * max(same.shape)


def small_retinanet(num_classes: int) -> nn.Module:
    """As a user's own function: one of torchvision's, built with one class more."""
    sizes: dict[str, Any] = {"min_size": 96, "max_size": 160}
    return retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes + 1, **sizes)


def test_onnx_of_a_function_that_returns_torchvisions_detector(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    student = write_student(tmp_path, Experiment(detector=Detector(source=f"{__name__}:small_retinanet")))
    assert " objects that torch finds" in export_onnx(student, tmp_path / "model.onnx", student.resized(PIXELS))


def test_onnx_of_a_detector_that_takes_rgb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file takes BGR all the same; one with the channels the wrong way round is not written."""
    pytest.importorskip("onnxruntime")
    experiment = Experiment(detector=tiny_settings("faster_rcnn")).override({"data.test_size": 96})
    student = write_student(tmp_path, experiment)
    student.detector.register_forward_pre_hook(from_elsewhere._to_rgb)
    path = tmp_path / "model.onnx"
    export_onnx(student, path, student.resized(PIXELS))
    path.unlink()
    monkeypatch.setattr(onnx_file, "is_turned_to_rgb", lambda _: False)
    with pytest.raises(InputError, match=r"does not compute what the detector does: only \d+ of the"):
        export_onnx(student, path, student.resized(PIXELS))
    assert not path.exists()


def _input(image: Any) -> Any:
    return image.transpose(2, 0, 1).astype(np.float32)


class _Odd(nn.Module):
    """Scores that are others while it is traced; operator: used on a matrix besides."""

    def __init__(self, detector: nn.Module, operator: Callable[[torch.Tensor], torch.Tensor] = torch.sum) -> None:
        super().__init__()
        self.detector, self.operator = detector, operator

    def forward(self, batch: Any) -> Any:
        found = self.detector(batch)
        found[0]["instances"].scores = found[0]["instances"].scores + float(torch.jit.is_tracing())
        found[0]["instances"].scores += self.operator(batch[0]["image"][0, :4, :4]).sum() * 0
        return found


def test_a_detector_that_onnx_cannot_follow_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    experiment = Experiment(detector=tiny_settings("retinanet")).override({"data.test_size": 96, "data.max_size": 160})
    student = write_student(tmp_path, experiment)
    student.detector = _Odd(student.detector)
    with pytest.raises(InputError, match="the ONNX file does not compute what the detector does: only 0 of torch's"):
        export_onnx(student, tmp_path / "model.onnx", student.resized(PIXELS))
    student.detector = _Odd(student.detector.detector, lambda x: torch.linalg.eigvals(x).real)
    with pytest.raises(InputError) as caught:
        export_onnx(student, tmp_path / "model.onnx", student.resized(PIXELS))
    assert "the detector cannot be exported to ONNX" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["student.json", "student.pth"]


def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"the package onnxruntime is missing: pip install -e '.\[export\]'"):
        export_onnx(TrainedStudent(trained), tmp_path / "x.onnx", torch.zeros(3, 64, 64))


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert lgd(["export", str(trained), "--format", "onnx", "--output", str(tmp_path / "a.onnx")]) == 0
    assert "objects that torch finds" in capsys.readouterr().out
    assert main([str(trained), "--format", "detectron2", "--output", str(tmp_path / "b.pth")]) == 0
    lines = capsys.readouterr().out.splitlines()
    # What it prints loads the weights.
    scope: dict[str, Any] = {}
    exec("\n".join(lines[1:]), scope)
    expected = torch.load(trained / "student.pth", weights_only=True)["model"]
    loaded = scope["detector"].state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], x) for name, x in expected.items())
    for arguments, words in (
        (["--format", "torchvision"], "the student is not torchvision's (retinanet): --format detectron2"),
        (["--format", "onnx", "--image", str(tmp_path / "none.jpg")], "none.jpg: is missing"),
        (["--format", "onnx", "--output", str(tmp_path)], "is a directory: a file is needed"),
        (["--format", "onnx", "--output", str(trained / "student.pth")], "is a file of the training itself"),
        (["--format", "keras"], "invalid choice: 'keras'"),
    ):
        assert main([str(trained), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_a_student_of_torchvision(tmp_path: Path) -> None:
    """Its stock model takes the weights strictly and finds the same; so does the ONNX file."""
    source = "torchvision:retinanet_resnet50_fpn"
    experiment = Experiment().override({"data.test_size": 64, "data.max_size": 96, "detector.source": source})
    student = write_student(tmp_path, experiment)
    lines = export_torchvision(student, tmp_path / "weights.pth", PIXELS)
    scope: dict[str, Any] = {"torch": torch, "image": torch.from_numpy(_input(PIXELS)).flip(0) / 255}
    exec("\n".join(["import torchvision", *lines[:2]]), scope)
    model = scope["model"].eval()
    (found,) = model([scope["image"]])
    expected = student.detect(PIXELS)
    assert len(expected) > 0
    # torchvision resizes with another filter.
    assert found["scores"][:5].tolist() == pytest.approx(expected.scores[:5].tolist(), abs=0.05)
    pytest.importorskip("onnxruntime")
    assert "of any size" in export_onnx(student, tmp_path / "model.onnx", student.resized(PIXELS))


@pytest.mark.parametrize(
    ("shape", "shapes", "seen"),
    [
        # Turned by a quarter where that is another size, else halved; then most of the image.
        ((3, 8, 16), [(3, 16, 8)], True),
        ((3, 16, 16), [(3, 8, 16)], True),
        ((3, 8, 16), [(3, 7, 16)], True),
        ((3, 8, 16), [(3, 8, 14)], True),
        ((3, 8, 16), [], False),
    ],
)
def test_another_size_is_one_in_which_there_is_an_object(
    shape: tuple[int, ...], shapes: list[tuple[int, ...]], seen: bool
) -> None:
    network = cast(Inference, lambda image: (None, [0] if tuple(image.shape) in shapes else []))
    other, found = _other_size(network, torch.zeros(shape))
    assert found == seen
    assert tuple(other.shape) in (shapes or [(3, 16, 8)])
