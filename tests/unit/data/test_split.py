"""--val-fraction: a validation split for data that has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from lgd.config.experiment import Experiment
from lgd.data.__main__ import main
from lgd.data.catalog import load_dataset, resolve
from lgd.data.dataset import DataSet
from lgd.data.epochs import epoch_overrides
from lgd.data.layout import Problem
from lgd.data.split import ValSplit, names_of_val, part_of
from lgd.errors import InputError
from tests.helpers_data import (
    SMALL_SHAPES,
    VocObject,
    person_box,
    write_coco_split,
    write_crowdhuman,
    write_roboflow,
    write_voc,
    write_yolo,
)
from tests.helpers_loaders import batches

HALF = ValSplit(0.5)


def _coco(root: Path) -> str:
    write_coco_split(root, "train")
    return f"coco-json:{root}"


def _coco_files(root: Path) -> str:
    return f"coco-files:{write_coco_split(root, 'train', folder='images')},{root / 'images'}"


def _roboflow(root: Path) -> str:
    write_roboflow(root, val="other")
    return f"coco-json:{root}"


def _voc(root: Path) -> str:
    objects: list[VocObject] = [("dog", (1, 1, 60, 50), True)]
    write_voc(root, {"train": dict.fromkeys(("a", "b", "c"), objects)})
    return f"voc:{root}"


def _voc_without_lists(root: Path) -> str:
    _voc(root)
    (root / "ImageSets/Main/train.txt").unlink()
    return f"voc:{root}"


def _yolo(root: Path) -> str:
    write_yolo(root, {"train": {name: f"0 0.5 0.5 0.{name} 0.5\n" for name in "123"}})
    return f"yolo:{root}"


def _crowdhuman(root: Path) -> str:
    write_crowdhuman(root, [{"ID": x, "gtboxes": [person_box([5, 5, 10, 20])]} for x in "abc"], [])
    (root / "annotation_val.odgt").unlink()
    return f"crowdhuman:{root}"


SOURCES = [_coco, _coco_files, _roboflow, _voc, _voc_without_lists, _yolo, _crowdhuman]


def images(name: str) -> set[str]:
    return {x["file_name"] for x in DatasetCatalog.get(name)}


@pytest.mark.parametrize("write", SOURCES)
def test_every_source_can_be_split(write: Callable[[Path], str], tmp_path: Path) -> None:
    source = write(tmp_path)
    with pytest.raises(InputError, match="--val-fraction 0.2 takes a fifth of the training images"):
        resolve(source, shapes=SMALL_SHAPES)
    problems: list[Problem] = []
    dataset = resolve(source, shapes=SMALL_SHAPES, split=HALF, problems=problems)
    train, val = images(dataset.train), images(dataset.val)
    assert (len(train), len(val), train & val) == (1, 2, set())
    assert [x.what for x in problems if x.kind == "split"] == [
        "2 of 3 training images are validated on, chosen with split seed 0"
    ]
    assert not any(x.outcome == "dropped" for x in problems)
    seeds = {resolve(source, shapes=SMALL_SHAPES, split=ValSplit(0.5, seed)).fingerprint for seed in range(8)}
    assert dataset.fingerprint in seeds
    assert 1 < len(seeds) <= 3


def test_difficult_objects_are_trained_on_and_not_validated_on(tmp_path: Path) -> None:
    counts = resolve(_voc(tmp_path), shapes=SMALL_SHAPES, split=HALF).counts
    assert (counts.train.objects, counts.train.crowds) == (1, 0)
    assert (counts.val.objects, counts.val.crowds) == (0, 2)


def test_the_order_in_the_file_does_not_matter_and_places_are_named_as_in_the_file(tmp_path: Path) -> None:
    path = write_coco_split(tmp_path, "train")
    contents = json.loads(path.read_text())

    def split() -> tuple[DataSet, list[Problem]]:
        problems: list[Problem] = []
        return resolve(f"coco-json:{tmp_path}", shapes=SMALL_SHAPES, split=HALF, problems=problems), problems

    first = images(split()[0].val)
    contents["images"].reverse()
    contents["annotations"] = [5, *contents["annotations"][::-1], {"image_id": 99}]
    path.write_text(json.dumps(contents))
    dataset, problems = split()
    assert images(dataset.val) == first
    assert [x.where for x in problems if x.outcome == "dropped"] == [
        f"{path}: annotations[0]",
        f"{path}: annotations[5]",
    ]


def test_the_images_are_as_many_as_asked_for() -> None:
    names = [f"{i}.jpg" for i in range(100)]
    chosen = names_of_val(names, ValSplit(0.2))
    assert len(chosen) == 20
    assert names_of_val(reversed(names), ValSplit(0.2)) == chosen
    assert names_of_val(names, ValSplit(0.2, 1)) != chosen
    # More of them include those of fewer.
    assert names_of_val(names, ValSplit(0.1)) < chosen
    assert len(names_of_val(names, ValSplit(1e-9))) == 1
    assert len(names_of_val(names[:2], ValSplit(0.99))) == 1


@pytest.mark.parametrize("source", ["shapes", "yolo"])
def test_a_validation_split_is_replaced_only_where_asked(source: str, tmp_path: Path) -> None:
    write_yolo(tmp_path)
    changes = {
        "data.source": source if source == "shapes" else f"yolo:{tmp_path}",
        "data.val_fraction": 0.25, "data.shapes_train": 4, "data.shapes_val": 2, "data.shapes_side": 64,
    }  # fmt: skip
    experiment = Experiment().override(changes)
    with pytest.raises(InputError, match="has a validation split: leave out --val-fraction, or add --resplit"):
        load_dataset(experiment.data)
    counts = load_dataset(experiment.override({"data.resplit": True}).data).counts
    assert (counts.train.images, counts.val.images) == ((3, 1) if source == "shapes" else (2, 1))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _yolo(tmp_path)
    assert main(["check", source, "--val-fraction", "0.3", "--split-seed", "3"]) == 0
    assert "1 of 3 training images are validated on, chosen with split seed 3" in capsys.readouterr().out
    for options, words in (
        (["--split-seed", "3"], "--split-seed needs --val-fraction"),
        (["--resplit"], "--resplit needs --val-fraction"),
        (["--val-fraction", "1"], "--val-fraction 1.0: above 0 and below 1"),
        (["--val-fraction", "nan"], "--val-fraction nan: above 0 and below 1"),
        (["--val-fraction", "0.5", "--split-seed", "-1"], "--split-seed -1: a number from 0"),
    ):
        assert main(["check", source, *options]) == 2
        assert capsys.readouterr().err == f"error: {words}\n"


def test_a_part_of_the_training_images_lies_within_a_larger_one() -> None:
    images = list(range(200))
    half, quarter, all_ = (part_of(images, x, lambda image: image) for x in (0.5, 0.25, 1.0))
    assert (len(half), len(quarter), all_) == (100, 50, images)
    assert set(quarter) < set(half)
    assert half == sorted(half)
    # Not simply the first ones, and of another order of the same images the same ones.
    assert half != images[:100]
    assert set(part_of(images[::-1], 0.5, lambda image: image)) == set(half)
    assert len(part_of(images, 1e-6, lambda image: image)) == 1
    assert part_of([], 0.5, lambda image: image) == []


def test_a_training_sees_its_part_only_and_epochs_are_of_it() -> None:
    dataset = resolve("shapes", shapes=SMALL_SHAPES)
    images = dataset.counts.train.images - dataset.counts.train.empty
    seen = {x["image_id"] for batch in batches(dataset, 4 * images, fraction=0.5) for x in batch}
    assert len(seen) == round(images / 2)
    data = {"data.shapes_train": SMALL_SHAPES.train, "data.shapes_val": SMALL_SHAPES.val, "data.train_fraction": 0.5}
    data |= {"data.shapes_side": SMALL_SHAPES.size, "schedule.epochs": 2}
    assert epoch_overrides(Experiment().override(data)) == [f"schedule.epoch_images={round(images / 2)}"]
