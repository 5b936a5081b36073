"""Ultralytics' YOLO layout: what its files mean, and what is wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from lgd.data.__main__ import main
from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from lgd.data.layout import Problem
from lgd.errors import InputError
from tests.helpers_data import COCO_TINY, SMALL_SHAPES, write_yolo

YOLO_SAMPLE = COCO_TINY.parent / "coco_yolo" if COCO_TINY else None


OF_BLACK_IMAGES = ("dark images", "in both splits")
"""Notes on the images that are written here, which are all the same."""


def found(place: Path) -> tuple[DataSet, list[Problem]]:
    problems: list[Problem] = []
    dataset = resolve(f"yolo:{place}", shapes=SMALL_SHAPES, problems=problems)
    return dataset, [x for x in problems if x.kind not in OF_BLACK_IMAGES]


def kinds(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(x.outcome, x.kind) for x in problems}


def test_boxes_polygons_and_images_without_labels(tmp_path: Path) -> None:
    dataset, problems = found(write_yolo(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert (dataset.counts.train, dataset.counts.val) == ((3, 3, 0, 1), (1, 1, 0, 0))
    assert kinds(problems) == {("noted", "empty image")}
    records = {Path(x["file_name"]).name: x for x in DatasetCatalog.get(dataset.train)}
    assert sorted(records) == ["a.jpg", "b.jpg", "empty.jpg"]
    box, polygon = records["a.jpg"]["annotations"]
    assert (box["category_id"], box["bbox"], "segmentation" in box) == (1, [15, 15, 30, 20], False)
    assert (polygon["category_id"], polygon["bbox"]) == (0, [15, 10, 15, 20])
    assert polygon["segmentation"] == [[15, 10, 30, 10, 30, 30]]
    # A polygon's area is its own, as in COCO, a box's that of the box.
    areas = {x["area"] for x in json.loads(dataset.layout.train_json.read_text())["annotations"]}
    assert areas == {600, 150, 6 * 5}


@pytest.mark.parametrize(
    "described",
    [
        "path: {root}\ntrain: images/train\nval: [images/val]\nnames: {{0: cat, 1: dog}}\n",
        # Roboflow's paths, which lead out of the directory; YAML reads its numbers as text.
        "train: ../images/train\nvalidation: ../images/val\nnc: 2\nnames: {{'1': dog, '0': cat}}\n",
        "train: [images/train/a.jpg.txt, images/train/sub]\nval: val.txt\nnames: [cat, dog]\ndownload: |\n  exit(1)\n",
        "path: /content/elsewhere\ntrain: images/train\nval: images/val\nnames: [cat, dog]\nkpt_shape: [0, 2]\n",
    ],
)
def test_data_yaml_may_say_it_in_other_ways(tmp_path: Path, described: str) -> None:
    expected, _ = found(write_yolo(tmp_path / "first"))
    root = write_yolo(tmp_path / "other", described=described.format(root=tmp_path / "other"))
    (root / "images/train/a.jpg.txt").write_text("./a.jpg\nimages/train/empty.jpg\n")
    (root / "val.txt").write_text(f"{root}/images/val/c.jpg\n\n")
    dataset, problems = found(root)
    keypoints = "kpt_shape" in described
    assert dataset.counts == expected.counts
    assert dataset.class_names == expected.class_names
    assert keypoints or dataset.fingerprint == expected.fingerprint
    noted = {"download": "download", "other path": "elsewhere", "keypoints": "kpt_shape"}
    assert {x.kind for x in problems} - {"empty image"} == {kind for kind, word in noted.items() if word in described}


def test_byte_order_marks_are_read_over(tmp_path: Path) -> None:
    """As Windows' editors write them."""
    write_yolo(tmp_path)
    before = found(tmp_path)[0].counts
    (tmp_path / "val.txt").write_text("images/val/c.jpg\n")
    described = tmp_path / "data.yaml"
    described.write_text("train: images/train\nval: val.txt\nnames: [cat, dog]\n")
    for path in [*tmp_path.rglob("labels/**/*.txt"), tmp_path / "val.txt"]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    dataset, problems = found(tmp_path)
    assert dataset.counts == before
    assert not [x for x in problems if x.outcome == "dropped"]


def test_a_link_to_a_directory_above_repeats_no_image(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    before = found(tmp_path)[0].counts
    (tmp_path / "images/train/again").symlink_to(tmp_path / "images/train")
    assert found(tmp_path)[0].counts == before


def test_names_that_are_no_utf_8_are_names(tmp_path: Path) -> None:
    """As old archives leave them."""
    write_yolo(tmp_path)
    before = found(tmp_path)[0].counts
    for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
        path = tmp_path / kind / "train" / f"a{suffix}"
        os.rename(path, os.fsencode(path.parent) + b"/caf\xe9" + suffix.encode())  # noqa: PTH104 - bytes
    dataset, problems = found(tmp_path)
    assert dataset.counts == before
    assert not [x for x in problems if x.outcome == "dropped"]
    assert "caf\udce9.jpg" in {Path(x["file_name"]).name for x in DatasetCatalog.get(dataset.train)}


def test_any_yaml_file_may_be_named(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "data.yaml").rename(root / "mine.yaml")
    assert found(root)[0].fingerprint == found(root / "mine.yaml")[0].fingerprint
    (root / "other.yml").write_text("{}")
    with pytest.raises(InputError, match="it has no data.yaml, only mine.yaml, other.yml: name one, yolo:FILE"):
        found(root)


@pytest.mark.parametrize(
    ("line", "outcome", "kind", "words"),
    [
        ("0 0.5 0.5 0.2", "dropped", "broken line", "'0 0.5 0.5 0.2': has 4 values; a box has 5"),
        ("0 0.5 0.5 0.2 0.2 0.9", "dropped", "broken line", "has 6 values"),
        ("0 0.1 0.1 x 0.2", "dropped", "broken line", "is not numbers alone"),
        ("0.5 0.1 0.1 0.2 0.2", "dropped", "broken line", "does not begin with the number of a class"),
        ("0 30 20 10 10", "dropped", "broken line", "is not in parts of the image's width and height"),
        ("0 nan 0.5 0.5 0.5", "dropped", "broken line", "is not in parts"),
        ("2 0.5 0.5 0.2 0.2", "dropped", "unknown category", "names the category 2, which is not there"),
        ("0 0.5 0.5 0 0.2", "dropped", "degenerate box", "has the bbox [30.0, 20.0, 0.0, 10.0]"),
        ("0 1.5 0.5 0.2 0.2", "dropped", "outside box", "which is not in the 60x50 pixels"),
        ("0 1 0.5 0.2 0.2", "fixed", "outside box", "now [54.0, 20.0, 6.0, 10.0]"),
        ("1 0.5 0.5 0.5 0.4", "dropped", "duplicate line", "a line before it says the same"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_line(tmp_path: Path, line: str, outcome: str, kind: str, words: str) -> None:
    label = write_yolo(tmp_path) / "labels/train/a.txt"
    label.write_text(f"1 0.5 0.5 0.5 0.4\n{line}\n")
    (problem,) = [x for x in found(tmp_path)[1] if x.kind != "empty image"]
    assert (problem.outcome, problem.kind, problem.where) == (outcome, kind, f"{label}:2")
    assert words in problem.what


def test_images_are_checked_as_in_other_layouts(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "images/train/sub/b.jpg").write_bytes(b"no image")
    Image.new("RGB", (600, 500)).save(root / "images/train/big.png")
    (root / "labels/train/big.txt").write_text("0 0.5 0.5 0.1 0.1")
    dataset, problems = found(root)
    assert kinds(problems) >= {("dropped", "unreadable image"), ("dropped", "of dropped image")}
    boxes = [x["bbox"] for r in DatasetCatalog.get(dataset.train) for x in r["annotations"]]
    assert [270, 225, 60, 50] in boxes


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ("train: [", "broken YAML in {root}/data.yaml, line 1 column 9"),
        ("- 1", "the keys train, val and names are needed"),
        ("!!python/object/apply:os.system ['touch {root}/ran']", "broken YAML in {root}/data.yaml, line 1 column 1"),
        ("names: [cat, dog]\nval: images/val", "the key 'train' is missing"),
        ("names: [cat, dog]\ntrain: images/train", "the key 'val' is missing: .*--val-fraction 0.2"),
        ("train: images/train\nval: images/val", "names: a list of the classes' names"),
        ("train: images/train\nval: images/val\nnames: [cat, [1]]", "names: class 1 has the name"),
        ("train: images/train\nval: images/val\nnames: {{-1: cat}}", "names: -1 is not the number of a class"),
        ("train: images/train\nval: images/val\nnames: [cat]\nnc: 2", "nc is 2, but there are 1 names"),
        ("train: images/train\nval: images/none\nnames: [cat]", "val: {root}/images/none does not exist; --val-fra"),
        ("train: 5\nval: images/val\nnames: [cat]", "train: a directory, a text file or a list of them"),
        ("path: [1]\ntrain: a\nval: b\nnames: [cat]", "path: a directory is needed"),
        ("train: labels\nval: images/val\nnames: [cat]", "train: no image in {root}/labels"),
    ],
)
def test_a_wrong_data_yaml_is_one_line(tmp_path: Path, described: str, words: str) -> None:
    write_yolo(tmp_path, described=described.format(root=tmp_path))
    with pytest.raises(InputError, match=words.format(root=tmp_path)) as caught:
        found(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_label_file_without_its_image_is_noted(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    (root / "labels/train/other.txt").write_text("0 0.5 0.5 0.5 0.4\n")
    (root / "labels/train/classes.txt").write_text("cat\ndog\n")
    noted = [x for x in found(root)[1] if x.kind == "label without image"]
    assert [(x.outcome, x.where) for x in noted] == [("noted", f"{root}/labels/train/other.txt")]


def test_labels_in_the_wrong_place_are_one_line(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    shutil.move(root / "labels", root / "annotations")
    with pytest.raises(InputError, match="train: none of the 3 images has a label file, such as .*labels/train/a.txt"):
        found(root)


@pytest.mark.skipif(YOLO_SAMPLE is None, reason="no sample here")
def test_the_command_reads_a_sample_of_ultralytics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"yolo:{YOLO_SAMPLE}"]) == 1
    assert "names the category 86, which is not there" in capsys.readouterr().out


def test_a_changed_label_file_is_read_again(tmp_path: Path) -> None:
    root = write_yolo(tmp_path)
    first = resolve(f"yolo:{root}", shapes=SMALL_SHAPES)
    assert resolve(f"yolo:{root}", shapes=SMALL_SHAPES) == first
    (root / "labels/train/empty.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert resolve(f"yolo:{root}", shapes=SMALL_SHAPES).counts.train.objects == 4
