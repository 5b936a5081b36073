"""A thousand damaged annotation files of each format: the check ends with its report, or with one line."""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lgd.cli import exit_status
from lgd.data import validate
from lgd.data.__main__ import run
from lgd.data.images import image_size
from tests.damage import damaged_bytes, damaged_tree
from tests.helpers_data import (
    VOC_SPLITS,
    coco_contents,
    person_box,
    write_coco,
    write_crowdhuman,
    write_voc,
    write_yolo,
)

FILES = 1000

Damage = Callable[[random.Random], Path]
"""Damages one file, which it returns."""


def _coco(root: Path) -> tuple[str, Damage]:
    path = write_coco(root) / "annotations/instances_train2017.json"
    contents = coco_contents(1)

    def damage(rng: random.Random) -> Path:
        if rng.random() < 0.5:
            path.write_bytes(damaged_bytes(rng, json.dumps(contents).encode()))
        else:
            path.write_text(json.dumps(damaged_tree(rng, contents)))
        return path

    return f"coco-json:{root}", damage


def _of_files(root: Path, files: list[Path]) -> Damage:
    """Damage to one of the files; the others are as they were."""
    whole = {path: path.read_bytes() for path in files}
    last: list[Path] = []

    def damage(rng: random.Random) -> Path:
        for path in last:
            path.write_bytes(whole[path])
        last[:] = [rng.choice(files)]
        last[0].write_bytes(damaged_bytes(rng, whole[last[0]]))
        return last[0]

    return damage


def _voc(root: Path) -> tuple[str, Damage]:
    write_voc(root, VOC_SPLITS)
    return f"voc:{root}", _of_files(root, [*(root / "Annotations").iterdir(), *(root / "ImageSets/Main").iterdir()])


def _yolo(root: Path) -> tuple[str, Damage]:
    write_yolo(root)
    return f"yolo:{root}", _of_files(root, [root / "data.yaml", *(root / "labels").rglob("*.txt")])


def _odgt(root: Path) -> tuple[str, Damage]:
    lines = [
        {"ID": "a", "gtboxes": [person_box([5, 5, 10, 20]), person_box([30, 5, 10, 20], extra={"ignore": 1})]},
        {"ID": "b", "gtboxes": [person_box([-5, 5, 90, 90]), {"tag": "mask", "fbox": [1, 1, 5, 5]}]},
    ]
    write_crowdhuman(root, lines, lines)
    path = root / "annotation_train.odgt"

    def damage(rng: random.Random) -> Path:
        if rng.random() < 0.5:
            path.write_bytes(damaged_bytes(rng, "\n".join(map(json.dumps, lines)).encode()))
        else:
            path.write_text("\n".join(json.dumps(damaged_tree(rng, line)) for line in lines))
        return path

    return f"crowdhuman:{root}", damage


def _options(source: str, output: Path) -> argparse.Namespace:
    return argparse.Namespace(
        source=source, train_json=None, val_json=None, images=None, val_fraction=None, split_seed=None, resplit=False,
        draw=0, verbose=False, output=output,
    )  # fmt: skip


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize(
    ("write", "name", "expected"),
    [
        (_coco, "annotations/instances_train2017.json", 2),
        (_coco, "train2017/000000000001.jpg", 1),
        (_voc, "Annotations/a 1.xml", 2),
        (_yolo, "data.yaml", 2),
        (_yolo, "labels/train/a.txt", 1),
        (_odgt, "annotation_train.odgt", 2),
    ],
)
def test_what_is_no_file_is_not_waited_for(
    write: Callable[[Path], tuple[str, Damage]], name: str, expected: int, make: Callable[[Path], None],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    source, _ = write(tmp_path / "data")
    path = tmp_path / "data" / name
    path.unlink()
    make(path)
    validate._layouts.clear()
    assert exit_status(lambda: run(_options(source, tmp_path))) == expected
    said = capsys.readouterr()
    assert said.err.count("\n") == (expected == 2)
    assert path.name in said.err + said.out


def test_aliases_of_aliases_are_not_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    source, _ = _yolo(tmp_path / "data")
    lines = ["a0: &a0 [x, y]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    (tmp_path / "data/data.yaml").write_text("\n".join([*lines, "names: *a11", "train: images/train"]))
    assert exit_status(lambda: run(_options(source, tmp_path))) == 2
    assert "more than 1,000,000 values" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("write", [_coco, _voc, _yolo, _odgt])
def test_the_check_ends_with_a_report_or_a_line(
    write: Callable[[Path], tuple[str, Damage]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    # The images stay the same; writing through to the disk is not what is tested.
    monkeypatch.setattr("lgd.data.image_sizes.image_size", functools.cache(image_size))
    monkeypatch.setattr("os.fsync", lambda _: None)
    source, damage = write(tmp_path / "data")
    options = _options(source, tmp_path)
    rng = random.Random(f"{write.__name__} 0")
    statuses = [0, 0, 0]
    for number in range(FILES):
        path = damage(rng)
        validate._layouts.clear()
        status = exit_status(lambda: run(options))
        printed = capsys.readouterr()
        statuses[status] += 1
        if status == 2:
            (line,) = printed.err.splitlines()
            assert line.startswith("error: "), number
            # An empty file of labels can be read: its image shows nothing.
            assert str(path) in line or not path.read_bytes().strip(), (number, path, line)
        else:
            assert printed.err == "", number
            assert ("dropped " in printed.out) == (status == 1), number
    # Damage that changes nothing, that costs some entries, and that leaves nothing to read.
    assert min(statuses) > FILES / 50, statuses
    _check_that_all_is_whole(tmp_path / "cache")


def _check_that_all_is_whole(cache: Path) -> None:
    """No temporary file is left, and what was written can be read."""
    written = [x for x in cache.rglob("*") if x.is_file()]
    assert written
    for path in written:
        assert path.suffix == ".json"
        assert not path.name.startswith(".")
        assert json.loads(path.read_bytes())["images"]
