"""``lgd data join``: several data sets as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lgd.data.__main__ import main
from lgd.data.catalog import resolve
from lgd.data.join import join
from lgd.data.shapes import ShapesSpec
from lgd.errors import InputError
from tests.helpers_data import edit_json, write_coco


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two data sets of the same classes and other images."""
    other = write_coco(tmp_path / "other" / "animals")
    for path in other.glob("*2017/*"):
        # What stands behind an image's end changes its bytes alone.
        path.write_bytes(path.read_bytes() + b"\0")
    return [f"coco-json:{write_coco(tmp_path / 'animals')}", f"coco-json:{other}"]


def _contents(directory: Path, split: str) -> Any:
    return json.loads((directory / f"annotations/instances_{split}.json").read_text())


def test_everything_is_in_it_once_under_ids_of_its_own(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "both"
    assert main(["join", *two, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "train: 6 images (3 of animals, 3 of animals-2), 6 objects\n" in shown
    assert shown.endswith(f"2 classes; train on it with --data coco-json:{output}\n")
    one = _contents(tmp_path / "animals", "train2017")
    both = _contents(output, "train")
    assert [x["id"] for x in both["images"]] == list(range(1, 7))
    assert len({x["id"] for x in both["annotations"]}) == 2 * len(one["annotations"])
    names = {x["id"]: x["name"] for x in one["categories"]}, {x["id"]: x["name"] for x in both["categories"]}
    of = {x["id"]: x["file_name"] for x in one["images"]}, {x["id"]: x["file_name"] for x in both["images"]}

    def objects(contents: Any, which: int, prefix: str = "") -> list[tuple[Any, ...]]:
        return sorted(
            (prefix + of[which][x["image_id"]], names[which][x["category_id"]], x["iscrowd"], *x["bbox"])
            for x in contents["annotations"]
        )

    assert objects(both, 1) == sorted(objects(one, 0, "animals/") + objects(one, 0, "animals-2/"))
    dataset = resolve(f"coco-json:{output}", shapes=ShapesSpec())
    assert dataset.counts.train.images == 6
    assert dataset.class_names == resolve(two[0], shapes=ShapesSpec()).class_names
    assert (output / "train" / "animals-2").resolve() == tmp_path / "other/animals/train2017"


def test_an_image_that_two_have_is_taken_once_and_never_trained_on_if_it_is_in_val(
    two: list[str], tmp_path: Path
) -> None:
    first, second = tmp_path / "animals", tmp_path / "other/animals"
    train, val = (_contents(first, x)["images"] for x in ("train2017", "val2017"))
    shutil.copy(first / "train2017" / train[0]["file_name"], second / "train2017" / train[0]["file_name"])
    # An image of one's val, of the same size, in the other's train.
    same = next(x for x in train[1:] if any((y["width"], y["height"]) == (x["width"], x["height"]) for y in val))
    its = next(y for y in val if (y["width"], y["height"]) == (same["width"], same["height"]))
    shutil.copy(first / "val2017" / its["file_name"], second / "train2017" / same["file_name"])
    joined = join(two, tmp_path / "both")
    assert {name: x.images for name, x in joined.counts["train"].items()} == {"animals": 3, "animals-2": 1}
    assert {name: x.images for name, x in joined.counts["val"].items()} == {"animals": 3, "animals-2": 3}
    assert sorted(joined.left_out) == sorted(
        [
            f"left out of train: animals-2/{train[0]['file_name']} is animals/{train[0]['file_name']} of train",
            f"left out of train: animals-2/{same['file_name']} is animals/{its['file_name']} of val",
        ]
    )


def test_other_classes_are_joined_when_asked(two: list[str], tmp_path: Path) -> None:
    for split in ("train", "val"):
        edit_json(
            tmp_path / f"other/animals/annotations/instances_{split}2017.json",
            lambda c: c["categories"][0].update(name="zebra"),
        )
    with pytest.raises(InputError, match=r"^animals has no class 'zebra': what it shows of it would be trained on as"):
        join(two, tmp_path / "both")
    assert not (tmp_path / "both").exists()
    joined = join(two, tmp_path / "both", any_classes=True)
    assert len(joined.class_names) == 3
    assert "zebra" in joined.class_names


def test_wrong_use_is_one_line(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["join", two[0], "--output", str(tmp_path / "both")]) == 2
    assert capsys.readouterr().err == "error: name at least two data sets to join\n"
    assert main(["join", *two, "--output", str(tmp_path / "animals")]) == 2
    assert "has something in it: name a new directory" in capsys.readouterr().err
    assert main(["join", two[0], f"coco-json:{tmp_path / 'none'}", "--output", str(tmp_path / "both")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["join", *two]) == 2
    assert "--output" in capsys.readouterr().err
