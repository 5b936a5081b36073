"""Finding a COCO directory's splits, naming what is wrong with it, and registering it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from lgd.data.catalog import resolve
from lgd.data.coco import find_coco_splits
from lgd.data.loaders import train_loader, val_loader
from lgd.data.shapes import ShapesSpec
from lgd.errors import InputError
from tests.helpers_data import (
    COCO_TINY,
    SMALL_SHAPES,
    coco_contents,
    edit_json,
    write_coco,
    write_coco_split,
    write_roboflow,
)


def refused(root: Path, *said: str) -> str:
    """The message of the error for a directory: one line with these parts."""
    with pytest.raises(InputError) as caught:
        resolve(f"coco-json:{root}", shapes=SMALL_SHAPES)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message
    return message


# ---------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("suffix", ["2017", "", "2014", "_mine"])
@pytest.mark.parametrize("parent", ["", "images/"])
def test_layouts(tmp_path: Path, suffix: str, parent: str) -> None:
    write_coco_split(tmp_path, "train", suffix, f"{parent}train{suffix}")
    write_coco_split(tmp_path, "val", suffix, f"{parent}val{suffix}", first_id=100)
    layout = find_coco_splits(tmp_path)
    assert layout.train_json == tmp_path / f"annotations/instances_train{suffix}.json"
    assert layout.val_json == tmp_path / f"annotations/instances_val{suffix}.json"
    assert layout.train_images == tmp_path / f"{parent}train{suffix}"
    assert layout.val_images == tmp_path / f"{parent}val{suffix}"
    assert layout.class_names == ("three", "seven")
    assert layout.category_ids == (3, 7)
    assert layout.counts.train == (3, 3, 1, 1)
    assert layout.counts.val.mean_objects == 1


def test_subset_of_a_year_reads_the_years_images(tmp_path: Path) -> None:
    write_coco_split(tmp_path, "train", "2017")
    write_coco_split(tmp_path, "val", "2017_100", "val2017", first_id=100)
    assert find_coco_splits(tmp_path).val_images == tmp_path / "val2017"


def test_an_empty_folder_does_not_hide_the_images(tmp_path: Path) -> None:
    write_coco_split(tmp_path, "train", "2017", "images/train2017")
    write_coco_split(tmp_path, "val", "2017", first_id=100)
    (tmp_path / "train2017").mkdir()
    assert find_coco_splits(tmp_path).train_images == tmp_path / "images/train2017"


def test_several_years(tmp_path: Path) -> None:
    write_coco(tmp_path, "2014")
    write_coco(tmp_path, "2017")
    refused(tmp_path, "instances_train2014.json", "instances_val2017.json", f"{tmp_path}#2017")
    assert find_coco_splits(tmp_path, "2014").val_images == tmp_path / "val2014"
    chosen = resolve(f"coco-json:{tmp_path}#2017", shapes=SMALL_SHAPES)
    assert chosen.layout.train_images == tmp_path / "train2017"
    with pytest.raises(InputError, match=r"no instances_train2015\.json, only instances_train2014\.json"):
        resolve(f"coco-json:{tmp_path}#2015", shapes=SMALL_SHAPES)


def test_a_second_val_file_is_told_apart_by_trains_suffix(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_coco_split(tmp_path, "val", "2017_100", "val2017", first_id=100)
    assert find_coco_splits(tmp_path).val_json.name == "instances_val2017.json"


@pytest.mark.parametrize("val", ["valid", "val"])
def test_roboflows_layout(tmp_path: Path, val: str) -> None:
    layout = find_coco_splits(write_roboflow(tmp_path, val))
    assert (layout.train_json, layout.train_images) == (
        tmp_path / "train/_annotations.coco.json",
        tmp_path / "train",
    )
    assert (layout.val_json, layout.val_images) == (tmp_path / val / "_annotations.coco.json", tmp_path / val)
    assert layout.counts.train == layout.counts.val == (3, 3, 1, 1)
    assert len(DatasetCatalog.get(resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES).val)) == 3


def test_roboflows_layout_with_something_missing(tmp_path: Path) -> None:
    (write_roboflow(tmp_path) / "valid/_annotations.coco.json").unlink()
    refused(tmp_path, f"no val annotations: {tmp_path} has neither valid/_annotations.coco.json nor val/_annotations")
    shutil.rmtree(tmp_path / "train")
    refused(tmp_path, f"neither {tmp_path / 'annotations'} nor train/_annotations.coco.json")


def test_a_directory_with_annotations_is_not_taken_for_roboflows(tmp_path: Path) -> None:
    write_coco(tmp_path, "")
    (tmp_path / "train/_annotations.coco.json").write_text("{}")
    assert find_coco_splits(tmp_path).train_json == tmp_path / "annotations/instances_train.json"


@pytest.mark.parametrize("folders", [("", ""), ("train", "valid"), ("my train", "my val")])
def test_files_named_one_by_one(tmp_path: Path, folders: tuple[str, str]) -> None:
    files = []
    for name, folder, first_id in (("my train", folders[0], 1), ("my val", folders[1], 100)):
        path = write_coco_split(tmp_path, name, folder=f"images/{folder}", first_id=first_id)
        files.append(path.rename(tmp_path / f"{name}.json"))
    found = resolve(f"coco-files:{files[0]},{files[1]},{tmp_path / 'images'}", shapes=SMALL_SHAPES)
    assert (found.layout.train_json, found.layout.val_json) == tuple(files)
    assert found.layout.train_images == tmp_path / "images" / folders[0]
    assert found.layout.val_images == tmp_path / "images" / folders[1]
    assert found.counts.train == found.counts.val == (3, 3, 1, 1)


def test_files_named_one_by_one_that_are_wrong(tmp_path: Path) -> None:
    train, val = write_coco_split(tmp_path, "train"), write_coco_split(tmp_path, "val", first_id=100)
    for rest, said in (
        (f"{train}", "three paths are needed"),
        (f"{train},{tmp_path}", f"no validation annotations beside {train}: name them; --val-fraction 0.2"),
        (f"{train},,{tmp_path}", "three paths are needed"),
        (f"{train},{tmp_path / 'none.json'},{tmp_path}", f"annotations {tmp_path / 'none.json'} do not exist"),
        (f"{train},{tmp_path},{tmp_path}", f"annotations {tmp_path} are a directory"),
        (f"{train},{val},{train}", f"image directory {train} is not a directory"),
        (f"{train},{val},{tmp_path / 'annotations'}", "none of the 3 images"),
    ):
        with pytest.raises(InputError) as caught:
            resolve(f"coco-files:{rest}", shapes=SMALL_SHAPES)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_path_that_is_too_long_is_one_line() -> None:
    with pytest.raises(InputError, match="File name too long"):
        resolve(f"coco-json:/{'x' * 5000}", shapes=SMALL_SHAPES)


# ----------------------------------------------------------------------------------------------------- errors


def test_missing_directory(tmp_path: Path) -> None:
    refused(tmp_path / "none", str(tmp_path / "none"), "does not exist")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", str(tmp_path / "file"), "not a directory")


def test_missing_annotations(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path / "annotations"))
    write_coco_split(tmp_path, "train", "2017")
    refused(tmp_path, "no val annotations", str(tmp_path / "annotations"), "instances_val*.json")


def test_ambiguous_without_a_common_suffix(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations/instances_val2017.json").rename(tmp_path / "annotations/instances_val1.json")
    write_coco_split(tmp_path, "val", "2", first_id=100)
    refused(tmp_path, "instances_val1.json", "instances_val2.json", "leave one of each")


def test_broken_json(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    path.write_text('{"images": [],\n "annotations": [}')
    refused(tmp_path, str(path), "line 2 column 18")
    path.write_bytes(b'{"images": "\xff"}')
    refused(tmp_path, str(path), "byte 12")


BROKEN: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    *((f"no {key}", lambda c, key=key: c.pop(key), f"the key '{key}' is missing") for key in coco_contents(1)),
    ("no images", lambda c: c["images"].clear(), "'images' is empty"),
    ("no categories", lambda c: c["categories"].clear(), "'categories' is empty"),
    ("list", lambda c: c.update(images={}), "'images' is not a list"),
    ("no name", lambda c: c["categories"][0].pop("name"), "categories[0] has no 'name'"),
    ("no class", lambda c: c["categories"].insert(0, 1), "categories[0] is not an object"),
    ("text id", lambda c: c["categories"][0].update(id="a"), "categories[0] has the id 'a'"),
    ("class twice", lambda c: c["categories"][0].update(id=3), "categories has the id 3 twice"),
]


@pytest.mark.parametrize(("edit", "said"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_wrong_contents(tmp_path: Path, edit: Callable[[dict[str, Any]], object], said: str) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    edit_json(path, edit)
    refused(tmp_path, str(path), said)


def test_top_level_list(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    path.write_text("[]")
    refused(tmp_path, str(path), "top level")


def test_missing_image_directory(tmp_path: Path) -> None:
    (write_coco(tmp_path) / "val2017").rename(tmp_path / "elsewhere")
    refused(tmp_path, "instances_val2017.json", "images/val2017")


def test_no_image_on_disk(tmp_path: Path) -> None:
    for path in (write_coco(tmp_path) / "val2017").iterdir():
        path.unlink()
    refused(tmp_path, "none of the 3 images", str(tmp_path / "val2017"), "000000000100.jpg")


def test_different_categories(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    edit_json(path, lambda c: c["categories"][0].update(name="eight"))
    refused(tmp_path, "different categories", "id 7", "'seven'", "'eight'", str(path))


@pytest.mark.parametrize(
    "source",
    [
        "coco:x",
        "shapes:x",
        "coco-json:",
        "coco-json",
        "coco-files",
        "coco-files:",
        "",
        "voc",
        "voc:",
        "crowdhuman",
        "yolo:",
    ],
)
def test_unknown_source(source: str) -> None:
    with pytest.raises(
        InputError,
        match=re.escape(
            "known are shapes, coco, voc0712, coco-json:DIR, coco-files:TRAIN.json,VAL.json,IMAGES, voc:DIR,"
            " yolo:DIR and crowdhuman:DIR"
        ),
    ):
        resolve(source, shapes=SMALL_SHAPES)


# ----------------------------------------------------------------------------------------------- registration


def test_resolve_registers(tmp_path: Path) -> None:
    found = resolve(f"coco-json:{write_coco(tmp_path)}", shapes=SMALL_SHAPES)
    for name, split, first in ((found.train, "train", 1), (found.val, "val", 100)):
        records = DatasetCatalog.get(name)
        assert [record["image_id"] for record in records] == [first, first + 1, first + 2]
        assert [a["category_id"] for a in records[0]["annotations"]] == [1, 0]
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco"
        assert metadata.thing_classes == ["three", "seven"]
        assert metadata.json_file == str(tmp_path / f"annotations/instances_{split}2017.json")
        assert metadata.image_root == str(tmp_path / f"{split}2017")
    assert found.class_names == ("three", "seven")
    assert found.root == tmp_path
    assert resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES) == found
    summary = found.summary()
    assert (summary["train_images"], summary["train_objects"], summary["val_mean_objects"]) == (3, 3, 1.0)
    json.dumps(summary)


def test_relative_directory_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    found = resolve("coco-json:here", shapes=SMALL_SHAPES)
    monkeypatch.chdir("/")
    assert found.root == tmp_path / "here"
    assert len(DatasetCatalog.get(found.val)) == 3


def test_a_directory_with_a_hash_in_its_name(tmp_path: Path) -> None:
    write_coco(tmp_path / "a#b")
    assert resolve(f"coco-json:{tmp_path / 'a#b'}", shapes=SMALL_SHAPES).root == tmp_path / "a#b"


def test_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    first = resolve(f"coco-json:{write_coco(tmp_path / 'first')}", shapes=SMALL_SHAPES)
    second = resolve(f"coco-json:{write_coco(tmp_path / 'second')}", shapes=SMALL_SHAPES)
    assert first.fingerprint == second.fingerprint
    assert first.train != second.train
    edit_json(second.layout.train_json, lambda c: c["annotations"][0].update(area=224))
    edited = resolve(f"coco-json:{tmp_path / 'second'}", shapes=SMALL_SHAPES)
    assert edited.fingerprint != first.fingerprint
    assert edited.train != second.train
    image = Path(str(first.layout.val_images)) / "000000000100.jpg"
    other = image.with_suffix(".part")
    other.write_bytes(image.read_bytes() + b"\0")
    other.rename(image)
    assert resolve(f"coco-json:{tmp_path / 'first'}", shapes=SMALL_SHAPES).fingerprint != first.fingerprint


def test_a_pickled_data_set_works_where_it_is_not_registered(tmp_path: Path) -> None:
    """As in the worker processes of a training."""
    found = resolve(f"coco-json:{write_coco(tmp_path)}", shapes=SMALL_SHAPES)
    pickled = pickle.dumps(found)
    for name in (found.train, found.val):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    loaded = pickle.loads(pickled)
    assert found.val not in DatasetCatalog
    assert len(list(val_loader(loaded, min_size=48, max_size=96, workers=0, with_labels=False))) == 3
    assert MetadataCatalog.get(loaded.val).thing_classes == ["three", "seven"]


def test_shapes_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_CACHE", str(tmp_path))
    found = resolve("shapes", shapes=SMALL_SHAPES)
    assert found.root.parent == tmp_path / "data"
    assert (found.counts.train.images, found.counts.val.images) == (4, 2)
    assert len(found.class_names) == 7
    assert resolve("shapes", shapes=ShapesSpec(4, 2, 64, seed=1)).fingerprint != found.fingerprint


@pytest.mark.skipif(COCO_TINY is None, reason="the real images are not on this machine")
def test_real_images() -> None:
    found = resolve(f"coco-json:{COCO_TINY}", shapes=SMALL_SHAPES)
    assert len(found.class_names) == 80
    assert found.class_names[0] == "person"
    assert found.counts.train == (80, 699, 6, 0)
    assert found.counts.val.images == 80
    assert len(DatasetCatalog.get(found.train)) == 80


def test_sizes_and_names_that_are_other_numbers(tmp_path: Path) -> None:
    """``640.0``, as pandas writes it, and a class that is called 1."""

    def edit(found: dict[str, Any]) -> None:
        for image in found["images"]:
            image["height"] = float(image["height"])
        for category in found["categories"]:
            category["name"] = category["id"]

    root = write_coco(tmp_path / "data")
    for path in (root / "annotations").iterdir():
        edit_json(path, edit)
    dataset = resolve(f"coco-json:{root}", shapes=SMALL_SHAPES)
    assert all(isinstance(name, str) for name in dataset.class_names)
    train = train_loader(dataset, batch_size=2, min_sizes=(32,), max_size=64, flip=True, masks=False, seed=0, workers=0)
    for loader in (train, val_loader(dataset, min_size=32, max_size=64, workers=0, with_labels=False)):
        assert next(iter(loader))[0]["image"].shape[0] == 3
