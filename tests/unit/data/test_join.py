"""``lgd data join``: several data sets as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lgd.data import join as module
from lgd.data.__main__ import main
from lgd.data.catalog import resolve
from lgd.data.join import join
from lgd.data.shapes import ShapesSpec
from lgd.data.split import ValSplit
from lgd.errors import InputError
from lgd.signals import keep_handlers
from tests.helpers_data import edit_json, write_coco

SPLITS = ("train", "val")


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two data sets of other images and the same classes, which have other ids in the second."""
    first, other = write_coco(tmp_path / "animals"), write_coco(tmp_path / "other" / "animals")
    for path in other.glob("*2017/*"):
        # What stands behind an image's end changes its bytes alone.
        path.write_bytes(path.read_bytes() + b"\0")
    for split in SPLITS:
        edit_json(other / f"annotations/instances_{split}2017.json", _exchange_ids)
    return [f"coco-json:{first}", f"coco-json:{other}"]


def _exchange_ids(contents: dict[str, Any]) -> None:
    ids = sorted(x["id"] for x in contents["categories"])
    other = dict(zip(ids, reversed(ids), strict=True))
    for entry in contents["categories"]:
        entry["id"] = other[entry["id"]]
    for entry in contents["annotations"]:
        entry["category_id"] = other[entry["category_id"]]


def _contents(directory: Path, split: str) -> Any:
    return json.loads((directory / f"annotations/instances_{split}.json").read_text())


def _objects(contents: Any, prefix: str = "") -> Counter[tuple[Any, ...]]:
    """Image, class, and box of each object."""
    names = {x["id"]: x["name"] for x in contents["categories"]}
    files = {x["id"]: x["file_name"] for x in contents["images"]}
    return Counter(
        (prefix + files[x["image_id"]], names[x["category_id"]], x["iscrowd"], *x["bbox"])
        for x in contents["annotations"]
    )


def test_everything_is_in_it_once_under_ids_of_its_own(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "both"
    assert main(["join", *two, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "train: 6 images (3 of animals, 3 of animals-2), 6 objects\n" in shown
    assert shown.endswith(f"2 classes; train on it with --data coco-json:{output}\n")
    one, other = (_contents(x, "train2017") for x in (tmp_path / "animals", tmp_path / "other/animals"))
    both = _contents(output, "train")
    assert [x["id"] for x in both["images"]] == list(range(1, 7))
    assert [x["id"] for x in both["annotations"]] == list(range(1, 2 * len(one["annotations"]) + 1))
    assert _objects(both) == _objects(one, "animals/") + _objects(other, "animals-2/")
    dataset = resolve(f"coco-json:{output}", shapes=ShapesSpec())
    assert dataset.counts.train.images == 6
    assert set(dataset.class_names) == set(resolve(two[0], shapes=ShapesSpec()).class_names)
    assert (output / "train" / "animals-2").resolve() == tmp_path / "other/animals/train2017"
    assert [x.name for x in tmp_path.iterdir() if x.name.startswith(".")] == []


def test_sigterm_in_the_middle_of_it_leaves_nothing(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(module, "write_text", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with keep_handlers(signal.SIGTERM):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert main(["join", *two, "--output", str(tmp_path / "both")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert sorted(tmp_path.iterdir()) == before


def _give_its_images(first: Path, second: Path) -> tuple[str, str, str]:
    """An image of the first's train and one of its val are in the second's train, too: their names there, the last one
    after its name in the first's val."""
    train, val = (_contents(first, f"{x}2017")["images"] for x in SPLITS)
    shutil.copy(first / "train2017" / train[0]["file_name"], second / "train2017" / train[0]["file_name"])
    size = {(y["width"], y["height"]): y for y in val}
    same = next(x for x in train[1:] if (x["width"], x["height"]) in size)
    its = size[same["width"], same["height"]]
    shutil.copy(first / "val2017" / its["file_name"], second / "train2017" / same["file_name"])
    return train[0]["file_name"], its["file_name"], same["file_name"]


def test_an_image_that_two_have_is_taken_once_and_never_trained_on_if_it_is_in_val(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, its, same = _give_its_images(tmp_path / "animals", tmp_path / "other/animals")
    joined = join(two, tmp_path / "both")
    assert {name: x.images for name, x in joined.counts["train"].items()} == {"animals": 3, "animals-2": 1}
    assert {name: x.images for name, x in joined.counts["val"].items()} == {"animals": 3, "animals-2": 3}
    lines = [
        f"left out: animals-2/{shared} of train is animals/{shared} of train",
        f"left out: animals-2/{same} of train is animals/{its} of val",
    ]
    assert sorted(joined.left_out) == sorted(lines)
    monkeypatch.setattr("lgd.data.check.LISTED", 1)
    assert main(["join", *two, "--output", str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left out: animals-2/") == 1
    assert "left out: 1 more: --verbose lists all\n" in shown


def test_other_classes_are_joined_when_asked_and_labels_of_one_image_too(two: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "animals", tmp_path / "other/animals"
    for split in SPLITS:
        edit_json(second / f"annotations/instances_{split}2017.json", lambda c: c["categories"][0].update(name="zebra"))
    with pytest.raises(InputError, match=r"^animals has no class 'zebra': what it shows of it would be trained on as"):
        join(two, tmp_path / "both")
    assert not (tmp_path / "both").exists()
    shared, _, _ = _give_its_images(first, second)
    joined = join(two, tmp_path / "both", any_classes=True)
    assert len(joined.class_names) == 3
    theirs = [x[1:] for x in _objects(_contents(second, "train2017")).elements() if x[0] == shared and x[1] == "zebra"]
    both = _objects(_contents(tmp_path / "both", "train"))
    assert theirs
    assert sorted(x[1:] for x in both.elements() if x[0] == f"animals/{shared}" and x[1] == "zebra") == sorted(theirs)
    # Of the classes that both label, each object is there once.
    own = Counter({x: n for x, n in both.items() if x[0] == f"animals/{shared}" and x[1] != "zebra"})
    assert own == Counter(
        {("animals/" + x[0], *x[1:]): n for x, n in _objects(_contents(first, "train2017")).items() if x[0] == shared}
    )


def test_objects_that_two_others_label_are_moved_once(two: list[str], tmp_path: Path) -> None:
    """Two sources of one more class have an image of the first."""
    first, second = tmp_path / "animals", tmp_path / "other/animals"
    for split in SPLITS:
        edit_json(second / f"annotations/instances_{split}2017.json", lambda c: c["categories"][0].update(name="zebra"))
    shared, _, _ = _give_its_images(first, second)
    third = tmp_path / "third"
    shutil.copytree(second, third)
    for path in third.glob("*2017/*"):
        if path.name != shared:
            path.write_bytes(path.read_bytes() + b"\0")
    join([*two, f"coco-json:{third}"], tmp_path / "both", any_classes=True)
    theirs = [x for x in _objects(_contents(second, "train2017")).elements() if x[0] == shared and x[1] == "zebra"]
    both = _objects(_contents(tmp_path / "both", "train"))
    assert sum(n for x, n in both.items() if x[0] == f"animals/{shared}" and x[1] == "zebra") == len(theirs) > 0


def test_data_without_validation_images_is_split_when_asked(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other/animals/annotations/instances_val2017.json").unlink()
    assert main(["join", *two, "--output", str(tmp_path / "both")]) == 2
    assert "--val-fraction 0.2" in capsys.readouterr().err
    assert main(["join", *two, "--output", str(tmp_path / "both"), "--val-fraction", "0.34"]) == 0
    assert "train: 5 images (3 of animals, 2 of animals-2)" in (shown := capsys.readouterr().out)
    assert "val: 4 images (3 of animals, 1 of animals-2)" in shown
    joined = join(two, tmp_path / "again", split=ValSplit(0.34))
    assert joined.counts["val"]["animals-2"].images == 1


def test_nothing_is_written_where_something_is_wrong(
    two: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(first: str, second: str, why: str) -> None:
        with pytest.raises(InputError, match=why):
            join([first, second], tmp_path / "both")
        assert not (tmp_path / "both").exists()
        assert [x.name for x in tmp_path.iterdir() if x.name.startswith(".both")] == []

    refused(two[0], f"coco-json:{tmp_path / 'none'}", "does not exist")
    swapped = write_coco(tmp_path / "swapped")
    for what in ("{}2017", "annotations/instances_{}2017.json"):
        (swapped / what.format("train")).rename(swapped / "between")
        (swapped / what.format("val")).rename(swapped / what.format("train"))
        (swapped / "between").rename(swapped / what.format("val"))
    refused(two[0], f"coco-json:{swapped}", "no image is left of train: the others have all of them")
    outside = tmp_path / "outside.png"
    path = tmp_path / "other/animals/annotations/instances_train2017.json"
    before = path.read_text()
    first = json.loads(before)["images"][0]["file_name"]
    shutil.copy(tmp_path / "other/animals/train2017" / first, outside)
    edit_json(path, lambda c: c["images"][0].update(file_name=str(outside)))
    refused(two[0], two[1], f"animals-2: the image {outside} is not in .*train2017, so it cannot be joined")
    path.write_text(before)
    with monkeypatch.context() as patch:

        def full(where: Path, text: str) -> None:
            if where.name == "instances_val.json":
                raise OSError(28, "No space left on device", str(where))
            where.write_text(text)

        patch.setattr(module, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            join(two, tmp_path / "both")
        assert [x.name for x in tmp_path.iterdir() if "both" in x.name] == []
    (tmp_path / "both").mkdir()
    assert join(two, tmp_path / "both").counts["val"]["animals"].images == 3


def test_wrong_use_is_one_line(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in [
        ([two[0], "--output", str(tmp_path / "both")], "name at least two data sets to join"),
        ([*two, "--output", str(tmp_path / "animals")], "has something in it: name a new directory"),
        (two, "--output"),
        ([*two, "--output", "s3://bucket/both"], "--output s3://bucket/both: a directory of this machine is needed"),
        ([*two, "--output", str(tmp_path / "both"), "--split-seed", "1"], "--split-seed needs --val-fraction"),
    ]:
        assert main(["join", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
