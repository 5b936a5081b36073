"""Pascal VOC's layout and CrowdHuman's: the same data as detectron2 reads, with what is wrong left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.structures import BoxMode
from PIL import Image

from lgd.config.presets import PAPER
from lgd.data.catalog import load_dataset, resolve
from lgd.data.dataset import DataSet
from lgd.data.layout import Problem
from lgd.errors import InputError
from tests.helpers_data import (
    BCCD,
    COCO_TINY,
    SMALL_SHAPES,
    VOC_SPLITS,
    VocObject,
    person_box,
    voc_xml,
    write_crowdhuman,
    write_voc,
)


def found(source: str, root: Path) -> tuple[DataSet, list[Problem]]:
    problems: list[Problem] = []
    return resolve(f"{source}:{root}", shapes=SMALL_SHAPES, problems=problems), problems


def records(name: str) -> dict[str, list[tuple[int, list[float], int]]]:
    """Of each image the label, corners and crowd flag of its objects."""
    return {
        Path(record["file_name"]).stem: [
            (x["category_id"], BoxMode.convert(x["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS), x.get("iscrowd", 0))
            for x in record["annotations"]
        ]
        for record in DatasetCatalog.get(name)
    }


# --------------------------------------------------------------------------------------------------------- VOC


def test_voc(tmp_path: Path) -> None:
    dataset, problems = found("voc", write_voc(tmp_path / "my data", VOC_SPLITS))
    assert dataset.class_names == ("cat", "dog")
    # Difficult objects are trained on and, in evaluation, ignored.
    assert records(dataset.train) == {"a 1": [(1, [0, 0, 60, 50], 0), (0, [4, 5, 20, 30], 0)], "b": []}
    assert records(dataset.val) == {"c": [(0, [1, 1, 9, 9], 0), (1, [9, 9, 30, 30], 1)]}
    assert (dataset.counts.train, dataset.counts.val) == ((2, 2, 0, 1), (1, 1, 1, 0))
    # The images that are written here are all black.
    of_black_images = {("noted", "dark images"), ("noted", "in both splits")}
    assert {(x.outcome, x.kind) for x in problems} == {
        ("noted", "empty image"),
        ("noted", "crowd or ignored"),
        *of_black_images,
    }
    assert dataset.is_voc
    assert not dataset.is_people


@pytest.mark.parametrize(
    ("there", "train", "val"),
    [
        ({"train", "val", "trainval", "test"}, "trainval", "test"),
        ({"train", "val", "test"}, "train", "test"),
        # Not trainval, which has the images that are evaluated on.
        ({"train", "val", "trainval"}, "train", "val"),
    ],
)
def test_splits(tmp_path: Path, there: set[str], train: str, val: str) -> None:
    write_voc(tmp_path, {split: {f"in_{split}": [("dog", (1, 1, 60, 50), False)]} for split in there})
    dataset = found("voc", tmp_path)[0]
    assert (set(records(dataset.train)), set(records(dataset.val))) == ({f"in_{train}"}, {f"in_{val}"})


def test_missing_splits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has neither trainval.txt and test.txt nor"):
        found("voc", write_voc(tmp_path, {"trainval": {}}))
    with pytest.raises(InputError, match="does not exist"):
        found("voc", tmp_path / "none")
    (write_voc(tmp_path, VOC_SPLITS) / "JPEGImages").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="JPEGImages does not exist"):
        found("voc", tmp_path)


def test_flags_of_the_lists_of_one_class_are_read_over(tmp_path: Path) -> None:
    write_voc(tmp_path, VOC_SPLITS)
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("a 1  1\nb -1\na 1\n\n")
    assert set(records(found("voc", tmp_path)[0].train)) == {"a 1", "b"}


def test_images_need_not_be_jpegs(tmp_path: Path) -> None:
    write_voc(tmp_path, VOC_SPLITS)
    Image.new("RGB", (60, 50)).save(tmp_path / "JPEGImages/b.png")
    (tmp_path / "JPEGImages/b.jpg").unlink()
    dataset, problems = found("voc", tmp_path)
    assert DatasetCatalog.get(dataset.train)[1]["file_name"] == str(tmp_path / "JPEGImages/b.png")
    assert not [x for x in problems if x.outcome == "dropped"]


def test_files_beside_an_image_are_not_taken_for_it(tmp_path: Path) -> None:
    """As labelling tools leave them, and masks."""
    write_voc(tmp_path, VOC_SPLITS)
    images = tmp_path / "JPEGImages"
    for name in ("a 1.xml", "a 1.json", "b.png", "b.txt"):
        (images / name).write_text("")
    Image.new("RGB", (60, 50)).save(images / "b.png")
    dataset, problems = found("voc", tmp_path)
    assert {Path(x["file_name"]).name for x in DatasetCatalog.get(dataset.train)} == {"a 1.jpg", "b.jpg"}
    assert not [x for x in problems if x.outcome == "dropped"]
    (noted,) = [x for x in problems if x.kind == "several images"]
    assert noted.where == str(tmp_path / "Annotations/b.xml")
    assert noted.what == "names no image: JPEGImages/b.jpg is taken, and not b.png beside it"
    # The annotation says which.
    annotation = tmp_path / "Annotations/b.xml"
    annotation.write_text(annotation.read_text().replace("<annotation>", "<annotation><filename>b.png</filename>"))
    dataset, problems = found("voc", tmp_path)
    assert {Path(x["file_name"]).name for x in DatasetCatalog.get(dataset.train)} == {"a 1.jpg", "b.png"}
    assert not [x for x in problems if x.kind == "several images"]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    write_voc(tmp_path, VOC_SPLITS)
    path = tmp_path / "ImageSets/Main/trainval.txt"
    before = found("voc", tmp_path)[0].counts
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert found("voc", tmp_path)[0].counts == before


def test_what_is_wrong_with_xml_is_left_out(tmp_path: Path) -> None:
    images: dict[str, list[VocObject]] = {
        "good": [("dog", (1, 1, 60, 50), False)],
        "torn": [("dog", (1, 1, 60, 50), False)],
        "gone": [("dog", (1, 1, 60, 50), False)],
        "boxes": [
            ("dog", (5, 5, 5, 20), False),
            ("dog", (9, 9, 8, 20), False),
            ("dog", (70, 9, 80, 20), False),
            ("dog", (30, 30, 90, 40), False),
        ],
    }
    root = write_voc(tmp_path, {"trainval": images, "test": {"t": [("cow", (1, 1, 9, 9), False)]}})
    (root / "Annotations/torn.xml").write_text("<annotation><size>")
    (root / "Annotations/gone.xml").unlink()
    dataset, problems = found("voc", root)
    listed = [(x.outcome, x.kind, x.where) for x in problems if x.outcome != "noted"]
    boxes = f"{root / 'Annotations/boxes.xml'}: object"
    assert sorted(listed) == sorted(
        [
            ("dropped", "broken XML", f"{root / 'Annotations/torn.xml'}"),
            ("dropped", "broken XML", f"{root / 'Annotations/gone.xml'}"),
            ("dropped", "degenerate box", f"{boxes} 1"),
            ("dropped", "degenerate box", f"{boxes} 2"),
            ("dropped", "outside box", f"{boxes} 3"),
            ("fixed", "outside box", f"{boxes} 4"),
            ("dropped", "unknown category", f"{root / 'Annotations/t.xml'}: object 1"),
        ]
    )
    assert dataset.summary()["train_dropped"] == "2 broken XML, 2 degenerate box, 1 outside box"
    assert dataset.summary()["val_dropped"] == "1 unknown category"
    assert records(dataset.train)["boxes"] == [(0, [29, 29, 60, 40], 0)]


def test_an_object_without_a_name_is_of_no_class(tmp_path: Path) -> None:
    objects: list[VocObject] = [("dog", (1, 1, 60, 50), False), (" ", (5, 5, 20, 20), False)]
    dataset, problems = found("voc", write_voc(tmp_path, {**VOC_SPLITS, "trainval": {"a": objects}}))
    assert dataset.class_names == ("dog",)
    assert [x.where for x in problems if x.outcome == "dropped"][:1] == [f"{tmp_path / 'Annotations/a.xml'}: object 2"]


def test_a_changed_xml_is_other_data(tmp_path: Path) -> None:
    first = found("voc", write_voc(tmp_path / "a", VOC_SPLITS))[0]
    assert found("voc", write_voc(tmp_path / "b", VOC_SPLITS))[0].fingerprint == first.fingerprint
    assert resolve(f"voc:{tmp_path / 'a'}", shapes=SMALL_SHAPES) == first
    (tmp_path / "a/Annotations/b.xml").write_text(voc_xml([("cat", (1, 1, 9, 9), False)], (60, 50)))
    assert resolve(f"voc:{tmp_path / 'a'}", shapes=SMALL_SHAPES).fingerprint != first.fingerprint


@pytest.mark.skipif(BCCD is None, reason="the real images are not on this machine")
def test_the_real_images_are_as_detectron2_reads_them() -> None:
    dataset, problems = found("voc", BCCD)  # type: ignore[arg-type]
    assert dataset.class_names == ("Platelets", "RBC", "WBC")
    assert [len(DatasetCatalog.get(x)) for x in (dataset.train, dataset.val)] == [292, 72]
    assert {(x.outcome, x.kind) for x in problems} == {("dropped", "degenerate box")}
    for name, split, dropped in ((dataset.train, "trainval", len(problems)), (dataset.val, "test", 0)):
        theirs = load_voc_instances(str(BCCD), split, dataset.class_names)
        ours = records(name)
        more = 0
        for record in theirs:
            kept = [(x["category_id"], x["bbox"], 0) for x in record["annotations"]]
            mine = ours[record["image_id"]]
            assert [x for x in kept if x in mine] == mine
            more += len(kept) - len(mine)
        assert more == dropped


# --------------------------------------------------------------------------- where detectron2 looks for data sets


def test_voc0712(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dog: list[VocObject] = [("dog", (1, 1, 60, 50), False)]
    write_voc(tmp_path / "VOC2007", {"trainval": {"old": dog}, "test": {"new": dog}})
    write_voc(tmp_path / "VOC2012", {"trainval": {"young": dog, "old": []}})
    for name, year in (("2007_trainval", 2007), ("2012_trainval", 2012), ("2007_test", 2007)):
        monkeypatch.setitem(vars(MetadataCatalog.get(f"voc_{name}")), "dirname", str(tmp_path / f"VOC{year}"))
    dataset = resolve("voc0712", shapes=SMALL_SHAPES)
    assert [Path(x["file_name"]) for x in DatasetCatalog.get(dataset.train)] == [
        tmp_path / "VOC2007/JPEGImages/old.jpg",
        tmp_path / "VOC2012/JPEGImages/young.jpg",
        tmp_path / "VOC2012/JPEGImages/old.jpg",
    ]
    assert [Path(x["file_name"]).stem for x in DatasetCatalog.get(dataset.val)] == ["new"]
    assert len(dataset.class_names) == 20
    assert dataset.class_names[11] == "dog"
    assert records(dataset.val) == {"new": [(11, [0, 0, 60, 50], 0)]}
    (tmp_path / "VOC2012").rename(tmp_path / "VOC12")
    with pytest.raises(InputError, match="VOC2012 is missing; set DETECTRON2_DATASETS"):
        resolve("voc0712", shapes=SMALL_SHAPES)


@pytest.mark.skipif(COCO_TINY is None, reason="the real images are not on this machine")
def test_coco(monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        known = vars(MetadataCatalog.get(f"coco_2017_{split}"))
        monkeypatch.setitem(known, "json_file", f"{COCO_TINY}/annotations/instances_{split}2017.json")
        monkeypatch.setitem(known, "image_root", f"{COCO_TINY}/{split}2017")
    dataset = resolve("coco", shapes=SMALL_SHAPES)
    assert dataset.fingerprint == resolve(f"coco-json:{COCO_TINY}", shapes=SMALL_SHAPES).fingerprint
    assert dataset.root == COCO_TINY.absolute()  # type: ignore[union-attr]


def test_coco_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(vars(MetadataCatalog.get("coco_2017_train")), "json_file", str(tmp_path / "x.json"))
    with pytest.raises(InputError, match="x.json is missing; set DETECTRON2_DATASETS"):
        resolve("coco", shapes=SMALL_SHAPES)


# -------------------------------------------------------------------------------------------------- CrowdHuman


def test_crowdhuman(tmp_path: Path) -> None:
    boxes = [
        person_box([5, 5, 10, 20]),
        person_box([-8, 30, 20, 40]),
        person_box([30, 5, 10, 20], extra={"ignore": 1}),
        {"tag": "mask", "fbox": [40, 5, 10, 20]},
    ]
    root = write_crowdhuman(
        tmp_path,
        [{"ID": "273271,c9db000d5146c15", "gtboxes": boxes}, {"ID": "b", "gtboxes": []}, ""],
        [{"ID": "c", "gtboxes": boxes[:1]}],
    )
    dataset, problems = found("crowdhuman", root)
    assert dataset.class_names == ("person",)
    assert dataset.is_people
    assert not dataset.is_voc
    # Bodies end with the image; what is to be ignored is a crowd.
    assert records(dataset.train) == {
        "273271,c9db000d5146c15": [
            (0, [5, 5, 15, 25], 0),
            (0, [0, 30, 12, 50], 0),
            (0, [30, 5, 40, 25], 1),
            (0, [40, 5, 50, 25], 1),
        ],
        "b": [],
    }
    assert dataset.counts.train == (2, 2, 2, 1)
    where = f"{root / 'annotation_train.odgt'}:1 (273271,c9db000d5146c15): gtboxes"
    assert [(x.outcome, x.kind, x.where) for x in problems[:3]] == [
        ("fixed", "outside box", f"{where}[1]"),
        ("noted", "crowd or ignored", f"{where}[2]"),
        ("noted", "crowd or ignored", f"{where}[3]"),
    ]


def test_what_is_wrong_with_odgt_is_left_out(tmp_path: Path) -> None:
    good = {"ID": "a", "gtboxes": [person_box([5, 5, 10, 20]), 7, person_box(None), person_box([1, 1, 0, 5])]}
    root = write_crowdhuman(tmp_path, ["{", good, "[]", {"ID": "b", "gtboxes": 3}], [good])
    dataset, problems = found("crowdhuman", root)
    train = root / "annotation_train.odgt"
    assert [(x.kind, x.where) for x in problems if x.where.startswith(str(train)) and x.outcome == "dropped"] == [
        ("broken line", f"{train}:1"),
        ("broken entry", f"{train}:2 (a): gtboxes[1]"),
        ("broken line", f"{train}:3"),
        ("broken line", f"{train}:4"),
        ("broken box", f"{train}:2 (a): gtboxes[2]"),
        ("degenerate box", f"{train}:2 (a): gtboxes[3]"),
    ]
    assert "line 1 column 2" in problems[0].what
    assert dataset.counts.train == (1, 1, 0, 0)


def test_missing_files_of_crowdhuman(tmp_path: Path) -> None:
    root = write_crowdhuman(tmp_path, [{"ID": "a"}], [{"ID": "b"}])
    (root / "annotation_val.odgt").rename(root / "away")
    with pytest.raises(InputError, match=r"no validation split: .* has no annotation_val\.odgt"):
        found("crowdhuman", root)
    (root / "away").rename(root / "annotation_val.odgt")
    (root / "Images").rename(root / "images of it")
    with pytest.raises(InputError, match="neither Images nor Images_train"):
        found("crowdhuman", root)


def test_a_missing_coco_says_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_dataset(PAPER.data)
    assert str(caught.value) == (
        f"data directory {tmp_path}/datasets/coco does not exist; MS-COCO is looked for in datasets/coco and"
        " $DETECTRON2_DATASETS/coco: link it there (ln -s DIR datasets/coco), set that variable, or say --data"
        " coco-json:DIR (docs/tables.md)"
    )
    for source, words in (
        ("coco-json:mine", f"{tmp_path}/mine does not exist"),
        ("coco-json:data", "say where your data"),
    ):
        with pytest.raises(InputError) as caught:
            load_dataset(PAPER.data.model_copy(update={"source": source}))
        assert words in str(caught.value)
        assert "MS-COCO" not in str(caught.value)
    (tmp_path / "datasets" / "coco").mkdir(parents=True)
    with pytest.raises(InputError, match="no annotations in") as caught:
        load_dataset(PAPER.data)
    assert "MS-COCO" not in str(caught.value)
