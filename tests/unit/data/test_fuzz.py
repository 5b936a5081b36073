"""Whatever stands in an annotation file, it loads, trains and is scored, or one line says where it is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lgd.data import validate
from lgd.data.catalog import resolve
from lgd.data.check import report
from lgd.data.draw import draw
from lgd.data.layout import Problem
from lgd.data.loaders import train_loader
from lgd.errors import InputError
from lgd.evaluation.evaluate import score
from tests.helpers_data import (
    SMALL_SHAPES,
    VOC_SPLITS,
    coco_contents,
    person_box,
    write_coco,
    write_crowdhuman,
    write_roboflow,
    write_voc,
    write_yolo,
)

fuzzed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 1e308, 1e-308, float("nan")])
scalars = st.none() | st.booleans() | numbers | st.text(max_size=6) | st.sampled_from(["\ud800", "\0", "/", "..", "é"])
values = st.recursive(scalars, lambda x: st.lists(x, max_size=5) | st.dictionaries(st.text(max_size=6), x, max_size=3))
masks = st.one_of(
    st.lists(st.lists(numbers, max_size=9), max_size=3),
    st.fixed_dictionaries(
        {
            "size": st.just([48, 40]) | values,
            "counts": st.text(max_size=9) | st.lists(st.integers(), max_size=5) | values,
        }
    ),
)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a JSON tree but its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [x for key, value in items for x in [(*path, key), *places(value, (*path, key))]]


def changed(tree: Any, data: st.DataObject) -> Any:
    """The tree with one to three values replaced or taken away."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(tree) or [()]))
        if not path:
            return data.draw(values)
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()) or path[-1] == "segmentation":
            parent[path[-1]] = data.draw(masks if path[-1] == "segmentation" else values)
        elif isinstance(parent, dict):
            del parent[path[-1]]
        else:
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
    return tree


def torn(text: bytes, data: st.DataObject) -> bytes:
    """The text cut off, or with some bytes of it replaced."""
    if data.draw(st.booleans()):
        return text[: data.draw(st.integers(0, len(text)))]
    edited = bytearray(text)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(edited)))
        edited[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"<", b"["])
        )
    return bytes(edited)


def works(source: str, root: Path) -> bool:
    """Whether the data loads. If it does not, one line names a file or the directory; if it does, all else works."""
    validate._layouts.clear()
    problems: list[Problem] = []
    try:
        dataset = resolve(f"{source}:{root}", shapes=SMALL_SHAPES)
        assert resolve(f"{source}:{root}", shapes=SMALL_SHAPES, problems=problems) == dataset
    except InputError as error:
        message = str(error)
        assert str(root) in message
        assert len(message.splitlines()) == 1
        return False
    assert all(str(root) in x.where and len(str(x).splitlines()) == 1 for x in problems)
    assert "\n".join(report(dataset, problems))
    draw(dataset, 1, root / "drawn")
    assert score(dataset, []).box.AP in (0, None)
    loader = train_loader(
        dataset, batch_size=2, min_sizes=(24,), max_size=40, flip=True, masks=False, seed=0, workers=0, keep_empty=True,
        group_aspect=False,
    )  # fmt: skip
    for _, batch in zip(range(2), loader, strict=False):
        for sample in batch:
            boxes = sample["instances"].gt_boxes
            assert bool(boxes.nonempty().all())
            assert bool((sample["instances"].gt_classes < len(dataset.class_names)).all())
    return True


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_coco_with_other_values(coco: Path, data: st.DataObject) -> None:
    path = coco / "annotations/instances_train2017.json"
    path.write_text(json.dumps(changed(coco_contents(1), data)))
    works("coco-json", coco)


@fuzzed
@given(data=st.data())
def test_coco_torn(coco: Path, data: st.DataObject) -> None:
    path = coco / "annotations/instances_train2017.json"
    path.write_bytes(torn(json.dumps(coco_contents(1)).encode(), data))
    works("coco-json", coco)


@pytest.fixture(scope="module")
def roboflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roboflow(tmp_path_factory.mktemp("roboflow"))


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_roboflow_with_other_values(roboflow: Path, data: st.DataObject) -> None:
    path = roboflow / "train/_annotations.coco.json"
    path.write_text(json.dumps(changed(coco_contents(1), data)))
    works("coco-json", roboflow)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 10_000, '{"images": NaN}', "", "\ufeff{}", '"\\ud800"'])
def test_coco_of_nothing_but_trouble(coco: Path, text: str) -> None:
    (coco / "annotations/instances_train2017.json").write_text(text)
    assert not works("coco-json", coco)


@pytest.fixture(scope="module")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"), VOC_SPLITS)


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_voc_torn(pascal: Path, data: st.DataObject) -> None:
    write_voc(pascal, VOC_SPLITS)
    for path in [*sorted((pascal / "Annotations").iterdir()), pascal / "ImageSets/Main/trainval.txt"]:
        if data.draw(st.booleans()):
            path.write_bytes(torn(path.read_bytes(), data))
    works("voc", pascal)


@pytest.mark.slow
@fuzzed
@given(
    tag=st.sampled_from(["width", "xmin", "ymax", "name", "difficult", "bndbox", "object", "size"]),
    text=st.text(st.characters(codec="utf-8", exclude_characters="<&\0"), max_size=8)
    | st.sampled_from(["nan", "inf", "-1", "1e400", "0", "9999999999", "<object/>", "&amp;", "12.5"]),
)
def test_voc_with_other_values(pascal: Path, tag: str, text: str) -> None:
    write_voc(pascal, VOC_SPLITS)
    path = pascal / "Annotations/a 1.xml"
    head, _, rest = path.read_text().partition(f"<{tag}>")
    path.write_text(f"{head}<{tag}>{text}</{tag}>{rest.partition(f'</{tag}>')[2]}", encoding="utf-8")
    works("voc", pascal)


XML_TROUBLE = [
    b'<?xml version="1.0" encoding="nothing"?><annotation/>',
    b'<?xml version="1.0" encoding="utf-32"?><annotation/>',
    b'<!DOCTYPE a [<!ENTITY b "' + b"b" * 99 + b'"><!ENTITY c "' + b"&b;" * 99 + b'">]><annotation>&c;</annotation>',
    b"<annotation>" * 5000,
    b"",
]


@pytest.mark.parametrize("text", XML_TROUBLE, ids=range(len(XML_TROUBLE)))
def test_voc_of_nothing_but_trouble(pascal: Path, text: bytes) -> None:
    write_voc(pascal, VOC_SPLITS)
    (pascal / "Annotations/b.xml").write_bytes(text)
    assert works("voc", pascal)


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo(tmp_path_factory.mktemp("yolo"))


@fuzzed
@given(data=st.data())
def test_yolo_torn(yolo: Path, data: st.DataObject) -> None:
    write_yolo(yolo)
    for path in (yolo / "labels/train/a.txt", yolo / "data.yaml"):
        if data.draw(st.booleans()):
            path.write_bytes(torn(path.read_bytes(), data))
    works("yolo", yolo)


LINES = [
    {"ID": "a", "gtboxes": [person_box([5, 5, 10, 20]), person_box([30, 5, 10, 20], extra={"ignore": 1})]},
    {"ID": "b", "gtboxes": [person_box([-5, 5, 90, 90]), {"tag": "mask", "fbox": [1, 1, 5, 5]}]},
]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crowdhuman(tmp_path_factory.mktemp("people"), LINES, LINES)


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_crowdhuman_with_other_values(people: Path, data: st.DataObject) -> None:
    lines = [json.dumps(changed(LINES[0], data)), json.dumps(LINES[1])]
    (people / "annotation_train.odgt").write_text("\n".join(lines))
    assert works("crowdhuman", people)


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_crowdhuman_torn(people: Path, data: st.DataObject) -> None:
    text = "\n".join(map(json.dumps, LINES)).encode()
    (people / "annotation_train.odgt").write_bytes(torn(text, data))
    works("crowdhuman", people)
