"""A finished training leaves all that is needed to use its student."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, detection_utils

from lgd.data.catalog import load_dataset
from lgd.data.loaders import val_loader
from lgd.errors import InputError
from lgd.methods.distiller import student_of
from lgd.training.build import build
from lgd.training.export import DESCRIPTION_FILE, WEIGHTS_FILE, TrainedStudent, load_student
from lgd.training.run import run
from tests.helpers import quick_experiment


@pytest.mark.slow
def test_a_student_detects_from_its_two_files_alone(tmp_path: Path) -> None:
    """In another directory, from an image file: as the trained model detects through its own loader."""
    experiment = quick_experiment(**{"schedule.steps": 30, "data.test_size": 80, "data.max_size": 90})
    run(experiment, tmp_path / "out")
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        shutil.copy(tmp_path / "out" / name, alone)
    student = TrainedStudent(alone)

    dataset = load_dataset(experiment.data)
    assert student.description.class_names == tuple(dataset.class_names)
    assert student.description.experiment == experiment
    detector: Any = student_of(build(experiment).model)
    assert student.description.preprocessing.pixel_mean == pytest.approx(detector.pixel_mean.flatten().tolist())
    load_student(detector, tmp_path / "out" / WEIGHTS_FILE)
    loader = val_loader(dataset, min_size=80, max_size=90, workers=0, with_labels=False)
    seen = 0
    for batch in loader:
        with torch.no_grad():
            expected = detector.eval()(batch)[0]["instances"]
        found = student.detect(detection_utils.read_image(batch[0]["file_name"], "BGR"))
        assert found.image_size == (batch[0]["height"], batch[0]["width"])
        assert len(found) == len(expected)
        # The loader resizes with torch and detect() with Pillow: they differ by a level of 255.
        assert torch.allclose(found.scores, expected.scores, atol=0.02)
        seen += len(found)
    assert seen > 0
    assert len(DatasetCatalog.get(dataset.val)) == len(loader)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _described(directory: Path, key: list[str], value: object) -> None:
    """Change one value of student.json."""
    path = directory / DESCRIPTION_FILE
    whole = described = json.loads(path.read_text())
    for name in key[:-1]:
        described = described[name]
    described[key[-1]] = value
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / DESCRIPTION_FILE).unlink(), "student.json: cannot be read .No such file"),
        (lambda d: (d / DESCRIPTION_FILE).write_text("{"), "student.json: not the description of a student"),
        (lambda d: (d / DESCRIPTION_FILE).write_text("[" * 100_000), "student.json: not the description of a student"),
        (lambda d: (d / DESCRIPTION_FILE).write_text("{}"), "student.json: class_names: "),
        (lambda d: (d / WEIGHTS_FILE).unlink(), "student.pth: cannot be loaded .*No such file"),
        (lambda d: (d / WEIGHTS_FILE).write_bytes(b"PK"), "student.pth: cannot be loaded"),
        (lambda d: _pipe(d / WEIGHTS_FILE), "student.pth: cannot be loaded .*not a regular file"),
        (
            lambda d: torch.save({"model": Path.touch}, d / WEIGHTS_FILE),
            "student.pth: cannot be loaded .not a checkpoint of tensors and plain values alone",
        ),
        (
            lambda d: _described(d, ["preprocessing", "min_size"], 10**9),
            "preprocessing.min_size: must be 20000 or less",
        ),
        (lambda d: _described(d, ["preprocessing", "max_size"], 0), "preprocessing.max_size: must be above 0"),
        (lambda d: _described(d, ["category_ids"], [1]), "student.json: 1 category_ids for 7 class_names"),
    ],
)
def test_a_damaged_student_is_one_line(damage, words: str, student: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "broken"
    shutil.copytree(student, broken)
    damage(broken)
    with pytest.raises(InputError, match=words) as caught:
        TrainedStudent(broken)
    assert "\n" not in str(caught.value)


def test_a_student_whose_detector_cannot_be_built_is_one_line(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of a width that fits into no memory."""

    def build(*_: Any) -> None:
        raise RuntimeError("can't allocate\nmemory")

    monkeypatch.setattr("lgd.training.export.build_detector", build)
    with pytest.raises(InputError, match=r"student.json: its detector cannot be built \(can't allocate memory\)$"):
        TrainedStudent(student)


def test_weights_of_another_detector_are_refused(student: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(student, other)
    path = other / DESCRIPTION_FILE
    described = json.loads(path.read_text())
    described["experiment"]["detector"]["channels"] = 24
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="student.pth: cannot be loaded .*size mismatch"):
        TrainedStudent(other)


def test_a_student_of_images_in_another_order_of_colours_is_refused(student: Path, tmp_path: Path) -> None:
    """As its code builds the detector now."""
    other = tmp_path / "other"
    shutil.copytree(student, other)
    described = json.loads((other / DESCRIPTION_FILE).read_text())
    described["preprocessing"]["color_order"] = "RGB"
    (other / DESCRIPTION_FILE).write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"student.json: .*trained on RGB images, and its code builds one for BGR$"):
        TrainedStudent(other)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("student")
    run(quick_experiment(**{"schedule.steps": 3, "method.name": "baseline"}), directory)
    for path in directory.iterdir():
        if path.name not in (WEIGHTS_FILE, DESCRIPTION_FILE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert TrainedStudent(directory).detect(np.zeros((48, 64, 3), np.uint8)).image_size == (48, 64)
    return directory
