"""Too little memory is one line that names what to lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from ablations.command import main as lgd
from lgd.errors import InputError
from lgd.inference import onnx_file
from lgd.inference.out_of_memory import enough_memory

ON_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: 9 bytes.\nmore")


def _raise(error: Exception) -> Any:
    def act(*_: object, **__: object) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "device", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore"), "cuda:1", "the GPU's"),
        (RuntimeError("CUDA error: out of memory"), "cuda", "the GPU's"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuda", "the GPU's"),
        (MemoryError(), "cpu", "this machine's"),
        (ON_CPU, "cpu", "this machine's"),
    ],
)
def test_every_way_of_saying_it_is_one_line(error: Exception, device: str, whose: str) -> None:
    with pytest.raises(InputError) as raised, enough_memory(device, "x.jpg", "lower min_size"):
        raise error
    assert str(raised.value) == f"{whose} memory is too small for x.jpg: lower min_size"


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), InputError("f: CUDA out of memory"), KeyError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, enough_memory("cpu", "x.jpg", "lower min_size"):
        raise error
    assert raised.value is error


def test_each_command_says_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photo = str(trained), tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(photo)
    monkeypatch.setattr("lgd.training.export.TrainedStudent.detect", _raise(ON_CPU))
    monkeypatch.setattr("lgd.inference.score_detector.detect", _raise(ON_CPU))
    monkeypatch.setattr("lgd.inference.weights_file.build_snippet", _raise(MemoryError()))
    sizes = f"lower min_size and max_size in {trained}/student.json"
    for arguments, said in (
        (["predict", run, str(photo), "--output", str(tmp_path / "out")], f"{photo}: {sizes}"),
        (["eval", run, "--output", str(tmp_path), "--batch", "2"], "--batch 2 at this image size: lower --batch"),
        (
            ["eval", run, "--output", str(tmp_path), "--batch", "1"],
            "--batch 1 at this image size: lower the images' size (--set data.test_size=N)",
        ),
        (
            ["export", run, "--format", "detectron2", "--output", str(tmp_path / "x.pth")],
            f"--format detectron2: {sizes}",
        ),
    ):
        assert lgd(arguments) == 2
        assert capsys.readouterr().err == f"error: this machine's memory is too small for {said}\n"


def test_it_is_not_taken_for_what_onnx_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.onnx, "export", _raise(ON_CPU))
    network: Any = nn.Identity()
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        onnx_file._export(network, torch.zeros(3, 8, 8), tmp_path / "x.onnx", any_size=True)
    monkeypatch.setattr("onnxruntime.InferenceSession", _raise(RuntimeError("Failed to allocate memory for a buffer")))
    with pytest.raises(RuntimeError, match="Failed to allocate memory"):
        onnx_file._difference(network, tmp_path / "x.onnx", torch.zeros(3, 8, 8))
