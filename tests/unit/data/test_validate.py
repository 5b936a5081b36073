"""What is dropped, fixed and noted of a COCO directory, and that training and evaluation see what is left."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as mask_util

from lgd.data.annotation_values import decode_run_lengths
from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from lgd.data.layout import Problem
from lgd.errors import InputError
from tests.helpers_data import SMALL_SHAPES, edit_json, write_coco

Edit = Callable[[dict[str, Any]], object]


def looked_at(root: Path) -> tuple[DataSet, list[Problem]]:
    problems: list[Problem] = []
    return resolve(f"coco-json:{root}", shapes=SMALL_SHAPES, problems=problems), problems


def box(value: Any) -> Edit:
    return lambda c: c["annotations"][1].update(bbox=value)


def mask(value: Any) -> Edit:
    return lambda c: c["annotations"][1].update(segmentation=value)


# Image 1 has 40x48 pixels and the annotations 11 and 12; 2 has 13, 3 the crowd 14.
DROPPED: list[tuple[Edit, str, str, str]] = [
    (lambda c: c["images"].insert(0, 5), "broken entry", "images[0]", "not an object"),
    (lambda c: c["images"][1].pop("file_name"), "broken entry", "image 2", "file_name None"),
    (lambda c: c["images"][1].update(id="b"), "broken entry", "images[1]", "the id 'b'"),
    (lambda c: c["images"][1].update(id=True), "broken entry", "images[1]", "the id True"),
    (lambda c: c["images"].append({**c["images"][0]}), "duplicate id", "image 1", "before it has the id 1"),
    (lambda c: c["images"][1].update(file_name="none.jpg"), "missing image", "image 2", "'none.jpg' is missing"),
    (lambda c: c["images"][1].update(file_name="a\0b"), "unreadable image", "image 2", "null byte"),
    (lambda c: c["images"][1].update(width=47), "other size", "image 2", "48x48 pixels, annotated are 47x48"),
    (lambda c: c["annotations"].insert(1, 3), "broken entry", "annotations[1]", "not an object"),
    (lambda c: c["annotations"][1].update(image_id=99), "unknown image", "annotation 12", "the image 99"),
    (lambda c: c["annotations"][1].update(image_id=[]), "broken entry", "annotation 12", "image_id []"),
    (lambda c: c["annotations"][1].update(category_id=1), "unknown category", "annotation 12", "the category 1"),
    (lambda c: c["annotations"][1].update(iscrowd="no"), "broken entry", "annotation 12", "iscrowd 'no'"),
    (lambda c: c["annotations"][1].pop("bbox"), "broken box", "annotation 12", "the bbox None"),
    (box([1, 2]), "broken box", "annotation 12", "[1, 2]"),
    (box([1, 2, float("nan"), 3]), "broken box", "annotation 12", "nan"),
    (box([1, 2, 0, 3]), "degenerate box", "annotation 12", "[1, 2, 0, 3]"),
    (box([1, 2, 3, -3]), "degenerate box", "annotation 12", "[1, 2, 3, -3]"),
    (box([40, 2, 3, 3]), "outside box", "annotation 12", "40x48"),
    (mask([[1, 2, 3, 4]]), "broken mask", "annotation 12", "segmentation"),
    (mask([[1, 2, 3, 4, "x", 5]]), "broken mask", "annotation 12", "segmentation"),
    (mask("x"), "broken mask", "annotation 12", "segmentation"),
    (mask({"size": [48, 40], "counts": [100]}), "broken mask", "annotation 12", "segmentation"),
    (mask({"size": [40, 48], "counts": [48 * 40]}), "broken mask", "annotation 12", "segmentation"),
    (mask({"size": [48, 40], "counts": "zz"}), "broken mask", "annotation 12", "segmentation"),
]


@pytest.mark.parametrize(("edit", "kind", "where", "what"), DROPPED)
def test_dropped(
    tmp_path: Path, edit: Edit, kind: str, where: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    edit_json(path, edit)
    found = resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES)
    assert [x.levelno for x in caplog.records] == [logging.WARNING]
    assert f"{path}: dropped" in caplog.text
    same, problems = looked_at(tmp_path)
    mine = [x for x in problems if x.outcome == "dropped" and x.kind == kind]
    assert len(mine) == 1
    assert mine[0].where in (f"{path}: {where}", f"{path}:{where}")
    assert what in mine[0].what
    assert f"1 {kind}" in str(found.summary()["train_dropped"])
    assert found.summary()["val_dropped"] == ""
    # The closer look finds no more than training did, and the rest is there.
    assert same == found
    records = DatasetCatalog.get(found.train)
    assert len(records) == found.counts.train.images
    assert sum(not x["iscrowd"] for r in records for x in r["annotations"]) == found.counts.train.objects >= 2


def test_an_object_of_a_dropped_image_goes_with_it(tmp_path: Path) -> None:
    (write_coco(tmp_path) / "train2017/000000000001.jpg").unlink()
    found = resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES)
    assert found.counts.train == (2, 1, 1, 1)
    assert found.summary()["train_dropped"] == "1 missing image, 2 of dropped image"


FIXED: list[tuple[Edit, str, dict[str, Any]]] = [
    (lambda c: c["annotations"][1].pop("area"), "no area", {"area": 225}),
    (lambda c: c["annotations"][1].update(area=-1), "no area", {"area": 225}),
    (lambda c: c["annotations"][1].pop("iscrowd"), "no iscrowd", {"iscrowd": 0}),
    (lambda c: c["annotations"][1].update(id=11), "duplicate id", {"id": 15}),
    # pycocotools takes a match with the object 0 for none.
    (lambda c: c["annotations"][1].update(id=0), "unusable id", {"id": 15}),
    (lambda c: c["annotations"][1].update(id="a"), "unusable id", {"id": 15}),
    (lambda c: c["annotations"][1].update(id=[]), "unusable id", {"id": 15}),
    (box([-5, 5, 10, 10]), "outside box", {"bbox": [0, 5, 5, 10], "area": 225}),
    (box([30, 40, 30, 30]), "outside box", {"bbox": [30, 40, 10, 8]}),
    (mask([[1, 2, 3, 4], [1, 1, 9, 1, 9, 9]]), "broken mask", {"segmentation": [[1, 1, 9, 1, 9, 9]]}),
    (lambda c: c["images"][0].update(width=0, height=0), "no size", {}),
    (lambda c: c["images"][0].update(width=40.0), "size no whole number", {}),
]


@pytest.mark.parametrize(("edit", "kind", "expected"), FIXED)
def test_fixed(tmp_path: Path, edit: Edit, kind: str, expected: dict[str, Any]) -> None:
    edit_json(write_coco(tmp_path) / "annotations/instances_train2017.json", edit)
    found, problems = looked_at(tmp_path)
    assert [x.kind for x in problems if x.outcome == "fixed"] == [kind]
    assert found.summary()["train_dropped"] == ""
    contents = json.loads(found.layout.train_json.read_bytes())
    assert contents["annotations"][1].items() >= expected.items()
    assert contents["images"][0]["width"] == 40
    assert len(DatasetCatalog.get(found.train)) == 3


def _all_areas(value: Any) -> Edit:
    def edit(contents: dict[str, Any]) -> None:
        for entry in contents["annotations"]:
            entry["area"] = value

    return edit


def test_areas_that_are_all_zero_are_the_boxes(tmp_path: Path) -> None:
    """An exporter's: by size, all objects would be small."""
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    edit_json(path, _all_areas(0))
    found, problems = looked_at(tmp_path)
    assert {x.kind for x in problems if x.outcome == "fixed"} == {"no area"}
    contents = json.loads(found.layout.train_json.read_bytes())
    assert [x["area"] for x in contents["annotations"]] == [
        x["bbox"][2] * x["bbox"][3] for x in contents["annotations"]
    ]
    # One of them may be so.
    edit_json(path, lambda c: c["annotations"][0].update(area=7))
    assert looked_at(tmp_path)[0].layout.train_json == path


def test_two_entries_of_one_file_are_one_image(tmp_path: Path) -> None:
    """One for each box: the others' objects would be background in each."""
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    before = looked_at(tmp_path)[0].counts

    def edit(contents: dict[str, Any]) -> None:
        contents["images"].append({**contents["images"][0], "id": 77})
        again = {**contents["annotations"][0], "id": 78, "image_id": 77}
        contents["annotations"][1]["image_id"] = 77
        contents["annotations"].append(again)

    edit_json(path, edit)
    found, problems = looked_at(tmp_path)
    assert found.counts == before
    faults = [(x.outcome, x.kind, x.where) for x in problems if x.outcome != "noted"]
    assert faults == [
        ("fixed", "same file twice", f"{path}: image 77"),
        ("dropped", "duplicate object", f"{path}: annotation 78"),
    ]
    assert {x["image_id"] for x in json.loads(found.layout.train_json.read_bytes())["annotations"]} <= {1, 2, 3}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_pycocotools_cannot_read_is_written_as_it_can(tmp_path: Path, encoding: str) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    before = looked_at(tmp_path)[0].counts
    path.write_text(path.read_text(), encoding=encoding)
    found, _ = looked_at(tmp_path)
    assert found.layout.train_json != path
    assert found.counts == before
    assert len(DatasetCatalog.get(found.train)) == before.train.images


@pytest.mark.parametrize("value", [None, ""])
def test_an_ignore_that_says_nothing_is_left_out(value: object, tmp_path: Path) -> None:
    """detectron2 would stop at it."""
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    before = looked_at(tmp_path)[0].counts
    edit_json(path, lambda c: c["annotations"][1].update(ignore=value))
    found, _ = looked_at(tmp_path)
    assert found.counts == before
    assert len(DatasetCatalog.get(found.train)) == before.train.images


def test_ignored_objects_are_crowds(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    edit_json(path, lambda c: c["annotations"][1].update(ignore=1))
    found, problems = looked_at(tmp_path)
    assert found.counts.train == (3, 2, 2, 1)
    assert [x.where for x in problems if x.kind == "crowd or ignored"][:2] == [
        f"{path}: annotation 12",
        f"{path}: annotation 14",
    ]


def test_a_file_without_fault_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    found, problems = looked_at(write_coco(tmp_path))
    assert found.layout.train_json == tmp_path / "annotations/instances_train2017.json"
    assert not (tmp_path / "cache").exists()
    assert {(x.outcome, x.kind) for x in problems} == {
        ("noted", "crowd or ignored"),
        ("noted", "empty image"),
        ("noted", "non-contiguous ids"),
        # Those of train are.
        ("noted", "dark images"),
    }


def test_the_same_faults_elsewhere_are_the_same_data(tmp_path: Path) -> None:
    fingerprints = set()
    for name in ("first", "second"):
        path = write_coco(tmp_path / name) / "annotations/instances_train2017.json"
        edit_json(path, box([1, 2, 0, 0]))
        fingerprints.add(resolve(f"coco-json:{tmp_path / name}", shapes=SMALL_SHAPES).fingerprint)
    assert len(fingerprints) == 1


def test_nothing_left(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    edit_json(path, lambda c: [x.update(width=1) for x in c["images"]])
    with pytest.raises(InputError, match=rf"{path}: no image is left; dropped: 4 of dropped image, 3 other size"):
        resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES)


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(write_coco(tmp_path) / "annotations/instances_train2017.json", box([1, 2, 0, 0]))
    (tmp_path / "cache").write_text("a file where the directory should be")
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"cannot write the cache .*LGD_CACHE"):
        resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES)


def test_names_with_spaces_and_in_other_scripts(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "mine и твоё")
    path = root / "annotations/instances_train2017.json"
    (root / "train2017/000000000001.jpg").rename(root / "train2017/фото 1 ü.jpg")
    edit_json(path, lambda c: c["images"][0].update(file_name="фото 1 ü.jpg"))
    found, problems = looked_at(root)
    assert found.layout.train_json == path
    assert not [x for x in problems if x.outcome != "noted"]
    assert DatasetCatalog.get(found.train)[0]["file_name"].endswith("фото 1 ü.jpg")


def test_an_image_that_is_annotated_without_its_turn(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 48)).save(root / "train2017/000000000001.jpg", exif=exif)
    problems = looked_at(root)[1]
    said = next(x.what for x in problems if x.kind == "other size")
    assert said.endswith("has 48x40 pixels, turned as EXIF says, annotated are 40x48")


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_run_lengths_are_read_as_pycocotools_writes_them(density: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels = np.asfortranarray(rng.random((37, 211)) < density, dtype=np.uint8)
        text = mask_util.encode(pixels)["counts"].decode()
        runs = decode_run_lengths(text)
        assert runs is not None
        assert sum(runs) == pixels.size
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        np.testing.assert_array_equal(flat, pixels.ravel(order="F"))


@pytest.mark.parametrize("text", ["\x00", "o", "oooooooooooooooooooooooooo0", "é"])
def test_broken_run_lengths(text: str) -> None:
    assert decode_run_lengths(text) is None


def test_line_breaks_in_what_is_annotated_make_no_lines(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    edit_json(path, lambda c: c["images"][0].update(width="a\nb\x85c"))
    problems = looked_at(tmp_path)[1]
    assert [x.kind for x in problems if x.outcome == "dropped"] == ["other size", *["of dropped image"] * 2]
    assert all(len(str(x).splitlines()) == 1 for x in problems)
