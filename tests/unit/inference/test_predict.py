"""lgd predict: COCO results and annotated images from a trained student."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from ablations.command import main as lgd
from lgd.data.catalog import load_dataset
from lgd.inference.predict import main
from lgd.signals import keep_handlers
from lgd.training.export import TrainedStudent
from tests.helpers import quick_experiment


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validation images of the training's data, two of them with one name."""
    layout = load_dataset(quick_experiment().data).layout
    root = tmp_path_factory.mktemp("images")
    for place, path in zip(
        ("x.png", "a/x.png", "a/y.png"), sorted(Path(str(layout.val_images)).iterdir()), strict=False
    ):
        (root / place).parent.mkdir(exist_ok=True)
        Image.open(path).save(root / place)
    return root


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_results_are_cocos_and_what_the_student_finds(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained), str(images / "x.png"), str(images / "a"), "--output", str(tmp_path), "--threshold", "0"]
    assert lgd(["predict", *arguments]) == 0
    results, described = read(tmp_path / "detections.json"), read(tmp_path / "images.json")
    assert f"{len(results)} objects of score 0 or more in 3 images" in capsys.readouterr().out
    assert [Path(x["file_name"]).relative_to(images).as_posix() for x in described["images"]] == [
        "x.png", "a/x.png", "a/y.png"
    ]  # fmt: skip
    student = TrainedStudent(trained)
    found = student.detect(np.asarray(Image.open(images / "a/x.png").convert("RGB"))[:, :, ::-1])
    ours = [x for x in results if x["image_id"] == 2]
    assert len(ours) == len(found) > 0
    assert [x["score"] for x in ours] == pytest.approx(found.scores.tolist())
    ids = [student.category_ids[i] for i in found.pred_classes]
    assert [x["category_id"] for x in ours] == ids
    left, top, right, bottom = found.pred_boxes.tensor[0].tolist()
    assert ours[0]["bbox"] == pytest.approx([left, top, right - left, bottom - top])
    # pycocotools reads both files together.
    assert len(COCO(tmp_path / "images.json").loadRes(results).getAnnIds()) == len(results)
    assert sorted(x.name for x in (tmp_path / "images").iterdir()) == ["x-2.png", "x.png", "y.png"]
    drawn = np.asarray(Image.open(tmp_path / "images/x.png"))
    original = np.asarray(Image.open(images / "x.png").convert("RGB"))
    assert drawn.shape == original.shape
    assert (drawn != original).any()


def test_the_threshold_and_a_broken_image(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    arguments = [str(trained), str(images / "x.png"), str(broken), "--output", str(tmp_path / "out"), "--no-images"]
    assert main([*arguments, "--threshold", "1"]) == 1
    assert read(tmp_path / "out/detections.json") == []
    assert len(read(tmp_path / "out/images.json")["images"]) == 1
    assert not (tmp_path / "out/images").exists()
    assert f"warning: {broken}: cannot be decoded (no image format): left out" in capsys.readouterr().err
    assert main([str(trained), str(broken), "--output", str(tmp_path / "none")]) == 2
    assert "error: no image could be decoded" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_frames_of_a_video_are_named_by_their_numbers(trained: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="bgr24")))
        container.mux(stream.encode(None))
    arguments = [str(trained), str(tmp_path / "v.mp4"), "--video-every", "2", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert [x["frame"] for x in read(tmp_path / "out/images.json")["images"]] == [0, 2]
    assert sorted(x.name for x in (tmp_path / "out/images").iterdir()) == ["v-000000.jpg", "v-000002.jpg"]


@pytest.mark.parametrize("number", [-1, 99])
def test_classes_that_the_data_does_not_have(
    number: int,
    trained: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """-1 was written as the last class."""
    found = Instances((9, 9), pred_boxes=Boxes(torch.tensor([[1.0, 1, 5, 5]] * 2)), scores=torch.tensor([0.9, 0.1]))
    found.pred_classes = torch.tensor([number, 0])
    monkeypatch.setattr(TrainedStudent, "detect", lambda *_: found)
    assert main([str(trained), str(images), "--output", str(tmp_path / "out")]) == 2
    last = len(read(trained / "student.json")["class_names"]) - 1
    said = f"error: pred_classes count from 0 to {last}, without the background: got {number}\n"
    assert capsys.readouterr().err == said


def full(path: Path) -> NoReturn:
    """In place of ``atomic_write``."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_full_disk_is_not_an_image_that_cannot_be_decoded(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgd.data.draw.atomic_write", full)
    arguments = [str(trained), str(images), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    early, error = capsys.readouterr().err.splitlines()
    assert early == f"ended early: {tmp_path}/out/detections.json covers 1 image"
    assert error == f"error: {tmp_path}/out/images/x.png cannot be written (No space left on device)"
    assert len(read(tmp_path / "out/images.json")["images"]) == 1
    # Where not even the small files can be written, no earlier run's are taken for this one's.
    monkeypatch.setattr("lgd.files.atomic_write", full)
    assert main(arguments) == 2
    early, error = capsys.readouterr().err.splitlines()
    assert early.startswith(f"ended early, after 1 image: {tmp_path}/out/images.json cannot be written (No space left")
    assert error.startswith("error: ")
    assert not (tmp_path / "out/detections.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_found_before_an_interrupt_is_written(
    number: signal.Signals,
    trained: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detect, calls = TrainedStudent.detect, list[int]()

    def interrupted(student: TrainedStudent, image: Any) -> Instances:
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        calls.append(1)
        return detect(student, image)

    monkeypatch.setattr(TrainedStudent, "detect", interrupted)
    output = tmp_path / "out"
    (output / "images").mkdir(parents=True)
    # Of an earlier run, on another image.
    (output / "images/other.jpg").touch()
    with keep_handlers(signal.SIGTERM):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert main([str(trained), str(images), "--output", str(output), "--threshold", "0"]) == 130
    warning, early, said = capsys.readouterr().err.splitlines()
    assert warning == f"warning: {output}/images also has files (1) that this run has not written"
    assert early == f"ended early: {output}/detections.json covers 2 images"
    assert said == "interrupted"
    described = read(output / "images.json")["images"]
    assert [x["id"] for x in described] == [1, 2]
    assert {x["image_id"] for x in read(output / "detections.json")} == {1, 2}
    assert len(list((output / "images").iterdir())) == 3


def test_an_interrupt_before_the_first_image_leaves_nothing(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainedStudent, "detect", interrupted)
    assert main([str(trained), str(images), "--output", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "out").exists()


def test_wrong_input_is_one_line(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    shutil.copytree(trained, sweep / "trials/LGD-seed0")
    (sweep / "sweep.json").touch()
    image, output = str(images / "x.png"), ["--output", str(tmp_path / "out")]
    for arguments, words in (
        ([str(tmp_path / "none"), image, *output], "none does not exist"),
        ([str(images), image, *output], "images0 holds no finished training: student.json is missing"),
        ([str(sweep), image, *output], "sweep holds a sweep: name one of its trainings, such as "),
        ([str(trained), str(images / "z.png"), *output], "z.png: does not exist"),
        ([str(trained), image, *output, "--threshold", "2"], "--threshold 2.0: from 0 to 1"),
        ([str(trained), image, *output, "--video-every", "0"], "--video-every 0: at least 1"),
        ([str(trained), str(images), "--output", str(images / "out")], "lies in a directory that is detected on"),
        ([str(trained), image, "--output", str(images / "x.png" / "out")], "x.png/out: Not a directory"),
        ([str(trained), image], "the following arguments are required: --output"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not (tmp_path / "out").exists()
