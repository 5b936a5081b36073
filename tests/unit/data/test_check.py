"""``python -m lgd.data check``: the report, the images and the exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgd.data.__main__ import main
from tests.helpers_data import REPOSITORY, VOC_SPLITS, edit_json, write_coco, write_voc


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    assert main(["check", f"coco-json:{tmp_path}"]) == 0
    shown = capsys.readouterr().out
    rows = {" ".join(line.split()) for line in shown.splitlines()}
    assert {"images 3 3", "objects 3 3", "crowds or ignored 1 1", "objects an image, mean 1.00 1.00"} <= rows
    assert {"objects an image, 95th percentile 2 2", "medium objects 0 0", "small objects 3 3"} <= rows
    assert "image width, least / median / most 40 / 48 / 56 40 / 48 / 56" in rows
    assert {"0 3 three 2 2", "1 7 seven 1 1", "noted empty image 2"} <= rows
    assert f"noted   empty image         {path}: image 3: '000000000003.jpg' has no object" in shown


def test_something_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    edit_json(path, lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 3]))
    (tmp_path / "val2017/000000000101.jpg").write_bytes(b"no image")
    assert main(["check", f"coco-json:{tmp_path}"]) == 1
    shown, warned = capsys.readouterr()
    assert f"dropped degenerate box      {path}: annotation 11: has the bbox [1, 2, 0, 3]\n" in shown
    assert "'000000000101.jpg' cannot be decoded (no image format)\n" in shown
    assert warned == ""


def test_damage_that_the_ends_of_a_file_do_not_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check decodes every image whole."""
    path = write_coco(tmp_path) / "train2017/000000000001.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (48, 40, 3), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    edit_json(tmp_path / "annotations/instances_train2017.json", lambda c: c["images"][0].update(file_name=path.name))
    assert main(["check", f"coco-json:{tmp_path}"]) == 1
    assert "dropped unreadable image" in capsys.readouterr().out


def test_nothing_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    edit_json(path, lambda c: [x.update(width=1) for x in c["images"]])
    assert main(["check", f"coco-json:{tmp_path}"]) == 2
    shown, said = capsys.readouterr()
    assert shown.count("dropped other size") == 3
    first = f"{path}: image 100: '000000000100.jpg' has 40x48 pixels, annotated are 1x48"
    said_of_all = "no image is left; dropped: 4 of dropped image, 3 other size"
    assert said == f"error: {path}: {said_of_all}; the first: {first}\n"
    path.write_text("{")
    assert main(["check", f"coco-json:{tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: broken JSON in {path}, line 1 column 2")
    assert main(["check", "nothing"]) == 2


@pytest.mark.parametrize(
    ("split", "words"), [("train", "train on"), ("val", "evaluate on, and AP would not be defined")]
)
def test_a_split_without_objects_is_of_no_use(
    split: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path) / f"annotations/instances_{split}2017.json"
    edit_json(path, lambda c: c.update(annotations=[]))
    assert main(["check", f"coco-json:{tmp_path}"]) == 2
    shown, said = capsys.readouterr()
    assert "images without objects" in shown
    assert f"has no object to {words}" in said
    assert said.count("\n") == 1


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path)
    assert main(["check", f"coco-json:{tmp_path}", "--draw", "2", "--output", str(tmp_path / "seen")]) == 0
    assert "4 images in" in capsys.readouterr().out
    assert sorted(x.name for x in (tmp_path / "seen").iterdir()) == [
        "train-1.png", "train-3.png", "val-100.png", "val-102.png",
    ]  # fmt: skip
    first = np.asarray(Image.open(tmp_path / "seen/train-1.png"))
    plain = np.asarray(Image.open(tmp_path / "train2017/000000000001.jpg"))
    assert first.shape == plain.shape
    changed = (first != plain).any(2)
    # The box's frame and the mask in it, nothing in the far corner.
    assert changed[5:20, 5:20].mean() > 0.9
    assert not changed[30:, 30:].any()


def test_pictures_of_boxes_without_masks(tmp_path: Path) -> None:
    write_voc(tmp_path, VOC_SPLITS)
    assert main(["check", f"voc:{tmp_path}", "--draw", "9", "--output", str(tmp_path / "seen")]) == 0
    assert len(list((tmp_path / "seen").iterdir())) == 3


def test_an_unwritable_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path)
    (tmp_path / "file").touch()
    assert main(["check", f"coco-json:{tmp_path}", "--draw", "1", "--output", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_each_kind_of_problem_is_listed_ten_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand broken boxes used to be a thousand lines."""
    path = write_coco(tmp_path) / "annotations/instances_train2017.json"
    broken = {"image_id": 1, "category_id": 7, "bbox": [1, 1, 0, 0], "area": 1, "iscrowd": 0}
    edit_json(path, lambda c: c["annotations"].extend({**broken, "id": 100 + i} for i in range(25)))
    edit_json(path, lambda c: c["annotations"].extend({**broken, "id": 200 + i, "image_id": 9} for i in range(3)))
    assert main(["check", f"coco-json:{tmp_path}"]) == 1
    shown = capsys.readouterr().out
    assert shown.count(f"dropped degenerate box      {path}: annotation ") == 10
    assert "dropped degenerate box      and 15 more: --verbose lists all\n" in shown
    assert shown.count("dropped unknown image") == 3
    rows = {" ".join(line.split()) for line in shown.splitlines()}
    assert {"dropped degenerate box 25", "dropped unknown image 3"} <= rows
    assert main(["check", f"coco-json:{tmp_path}", "--verbose"]) == 1
    shown = capsys.readouterr().out
    assert shown.count(f"dropped degenerate box      {path}: annotation ") == 25
    assert "more" not in shown


def test_files_named_by_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_coco(tmp_path)
    train, val = (str(root / f"annotations/instances_{split}2017.json") for split in ("train", "val"))
    files = ["--train-json", train, "--val-json", val]
    assert main(["check", *files, "--images", str(root)]) == 0
    assert f"coco-files:{train},{val},{root}: {root}\n" in capsys.readouterr().out
    for arguments, said in (
        (files, "--images missing"),
        ([f"coco-json:{root}", *files, "--images", str(root)], "name two data sets"),
        ([], "name a DATASET"),
    ):
        assert main(["check", *arguments]) == 2
        said_in_one_line = capsys.readouterr().err
        assert said in said_in_one_line
        assert said_in_one_line.count("\n") == 1


def test_neither_torch_nor_detectron2_is_loaded(tmp_path: Path) -> None:
    """The command answers within a second."""
    code = (
        "import sys; from lgd.data.__main__ import main; status = main(sys.argv[1:]);"
        "print(status, sorted({'torch', 'detectron2', 'pycocotools'} & set(sys.modules)))"
    )
    for source in (f"coco-json:{write_coco(tmp_path / 'coco')}", f"voc:{write_voc(tmp_path / 'voc', VOC_SPLITS)}"):
        command = [sys.executable, "-c", code, "check", source]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 []", done.stderr
