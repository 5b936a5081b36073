"""What is asked about a data set whose entries could all be used: boxes of another format, dark images, copies."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lgd.data.__main__ import main
from lgd.data.box_format import BoxFormat
from lgd.data.catalog import resolve
from lgd.data.layout import Problem
from lgd.data.same_files import shared_digests
from tests.helpers_data import SMALL_SHAPES, coco_contents, edit_json, write_coco, write_crowdhuman

NORMALISED = "4 of 4 boxes are not larger than 1 pixel: are they normalised to 0..1?"

CORNERS = "boxes reach more than 5 pixels out of their image: are they x1, y1, x2, y2 (COCO's are x, y, width, height)?"


def notes(root: Path, kind: str) -> list[Problem]:
    problems: list[Problem] = []
    resolve(f"coco-json:{root}", shapes=SMALL_SHAPES, problems=problems)
    return [x for x in problems if x.kind == kind]


def normalised(contents: dict[str, Any]) -> None:
    sizes = {x["id"]: (x["width"], x["height"]) for x in contents["images"]}
    for x in contents["annotations"]:
        width, height = sizes[x["image_id"]]
        x["bbox"] = [value / side for value, side in zip(x["bbox"], (width, height) * 2, strict=True)]


def as_corners(contents: dict[str, Any]) -> None:
    for x in contents["annotations"]:
        left, top, width, height = x["bbox"]
        x["bbox"] = [left, top, left + width, top + height]


@pytest.mark.parametrize(("edit", "said"), [(normalised, NORMALISED), (as_corners, CORNERS)])
def test_boxes_of_another_format(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    contents = coco_contents(1)
    for x in contents["annotations"]:
        image = next(i for i in contents["images"] if i["id"] == x["image_id"])
        x["bbox"] = [image["width"] - 12, image["height"] - 12, 10, 10]
    edit(contents)
    path.write_text(json.dumps(contents))
    # As a training or the plan of a sweep reads it, where nobody sees the notes.
    resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES)
    (warned,) = [x.getMessage() for x in caplog.records if x.levelno >= logging.WARNING and "dropped" not in x.msg]
    caplog.clear()
    (note,) = notes(tmp_path, "box format")
    assert (note.outcome, note.where) == ("noted", str(path))
    assert said in note.what
    assert warned == f"{path}: {note.what}"
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]


def test_boxes_in_the_right_format_are_not_asked_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolve(f"coco-json:{write_coco(tmp_path)}", shapes=SMALL_SHAPES)
    assert caplog.records == []
    assert notes(tmp_path, "box format") == []


def test_people_who_are_annotated_beyond_the_edge(tmp_path: Path) -> None:
    """CrowdHuman's boxes are of the whole person, and COCO files are made of them."""
    box = {"tag": "person", "fbox": [10, 20, 50, 50], "extra": {}, "head_attr": {}}
    write_crowdhuman(tmp_path, [{"ID": "a", "gtboxes": [box]}], [{"ID": "a", "gtboxes": [box]}])
    problems: list[Problem] = []
    resolve(f"crowdhuman:{tmp_path}", shapes=SMALL_SHAPES, problems=problems)
    assert "box format" not in {x.kind for x in problems}
    coco = BoxFormat()
    for x in range(0, 600, 20):
        for y in range(0, 240, 20):
            coco.add([x, y, 80, 300], 640, 480)
    assert coco.doubt(is_coco=True) == ""


def test_a_few_boxes_of_another_format() -> None:
    few = BoxFormat()
    for i in range(100):
        few.add([0.5, 0.5, 1, 1] if i < 50 else [300, 200, 400, 300] if i < 60 else [1, 1, 30, 30], 640, 480)
    assert few.doubt(is_coco=True) == ""
    few.add([300, 200, 400, 300], 640, 480)
    assert few.doubt(is_coco=True).startswith("11 of 101 boxes reach")
    few.add([0, 0, 0.5, 0.5], 640, 480)
    few.add([0, 0, 0.5, 0.5], 640, 480)
    assert few.doubt(is_coco=True).startswith("52 of 103 boxes are not larger")


def test_images_of_twelve_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were as good as black in 16 bits, and nothing said so."""
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    names: dict[str, str] = {}
    for number, most in ((100, 65535), (101, 4095)):
        image = next(x for x in json.loads(path.read_text())["images"] if x["id"] == number)
        levels = np.linspace(0, most, image["width"] * image["height"]).astype(np.uint16)
        name = f"{number}.png"
        Image.fromarray(levels.reshape(image["height"], image["width"])).save(tmp_path / "val2017" / name)
        names[image["file_name"]] = name
    edit_json(path, lambda c: [x.update(file_name=names.get(x["file_name"], x["file_name"])) for x in c["images"]])
    assert main(["check", f"coco-json:{tmp_path}"]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if f"dark images         {path}: " in x]
    assert len(lines) == 1
    assert "1 of 3 images are darker than 16 of 255 everywhere, such as '101.png'" in lines[0]


def test_images_of_train_that_val_has_too(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    assert notes(tmp_path, "in both splits") == []
    val, train = tmp_path / "val2017/000000000101.jpg", tmp_path / "train2017/000000000002.jpg"
    shutil.copy(train, val)
    (note,) = notes(tmp_path, "in both splits")
    assert note.where == str(path)
    assert note.what == f"1 images are copies of training images, such as {val} of {train}"


def test_only_files_of_equal_sizes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"a": b"same", "b": b"same", "c": b"else", "d": b"other", "e": b"other size", "f": b"other"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    read: list[str] = []
    opened = Path.open

    def watched(path: Path, mode: str) -> Any:
        read.append(path.name)
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", watched)
    found = dict(shared_digests((name, name in "ade", tmp_path / name) for name in "abcde"))
    assert read == list(found) == ["a", "b", "c"]
    assert found["a"] == found["b"] != found["c"]
