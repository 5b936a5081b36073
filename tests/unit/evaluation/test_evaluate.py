"""Evaluation: the scores of the right measures, detections kept, and the same from any number of processes."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import spawn

from lgd.config.experiment import Data, Evaluation
from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from lgd.errors import InputError
from lgd.evaluation.evaluate import Evaluated, _CocoDetections, _scores, evaluate, score
from lgd.results.detections import STUDENTS, load_detections
from tests.helpers_data import SMALL_SHAPES, person_box, write_coco, write_crowdhuman, write_voc

SETTINGS = Data(min_sizes=(64,), test_size=64, max_size=96)
KEEP = Evaluation(keep_detections=True)


class Guessing(nn.Module):
    """Finds most objects of the split, with scores that often tie, and some that are not there.

    What it finds depends on the image alone. mistaken: finds nothing but what is not there.
    """

    def __init__(self, dataset: DataSet, mistaken: bool = False) -> None:
        super().__init__()
        contents = json.loads(dataset.layout.val_json.read_bytes())
        self.labels = {number: label for label, number in enumerate(dataset.layout.category_ids)}
        self.objects: dict[int, list[dict[str, Any]]] = {x["id"]: [] for x in contents["images"]}
        for annotation in [] if mistaken else contents["annotations"]:
            self.objects[annotation["image_id"]].append(annotation)
        self.seen: list[int] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [self.found(image) for image in batch]

    def found(self, image: dict[str, Any]) -> dict[str, Instances]:
        self.seen.append(image["image_id"])
        rng = np.random.default_rng(image["image_id"])
        boxes, labels = [], []
        for x in self.objects[image["image_id"]]:
            if rng.random() < 0.8:
                left, top, width, height = x["bbox"]
                boxes.append([left, top, left + width * rng.uniform(0.7, 1), top + height])
                labels.append(self.labels[x["category_id"]])
        for _ in range(int(rng.integers(0, 4))):
            left, top = rng.uniform(0, 20, 2)
            boxes.append([left, top, left + 9, top + 9])
            labels.append(int(rng.integers(len(self.labels))))
        found = Instances((image["height"], image["width"]))
        found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        found.scores = torch.tensor(rng.choice([0.3, 0.5, 0.9], len(boxes)), dtype=torch.float32)
        found.pred_classes = torch.tensor(labels, dtype=torch.long)
        return {"instances": found}


def shapes() -> DataSet:
    return resolve("shapes", shapes=SMALL_SHAPES.__class__(train=1, val=13, size=64))


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_scorers_agree() -> None:
    dataset = shapes()
    scored = [
        evaluate(Guessing(dataset), dataset, SETTINGS, evaluation=Evaluation(scorer=scorer))
        for scorer in ("auto", "pycocotools", "hotcoco")
    ]
    assert scored[0] == scored[1] == scored[2]
    assert scored[0].mask is None
    box = scored[0].box
    assert box.AP is not None
    assert 10 < box.AP < 90
    assert set(box.per_class) == set(dataset.class_names)
    assert box.mMR is None
    assert box.VOC is None


@pytest.mark.parametrize("number", [-1, 4])
def test_classes_that_the_data_does_not_have_are_one_line(number: int) -> None:
    """-1 was scored as the last class, and a class too many was an IndexError."""
    detections = _CocoDetections((3, 5, 7, 9))
    image = {"image_id": 1, "height": 20, "width": 20}
    found = Instances((20, 20), pred_boxes=Boxes(torch.ones(2, 4)), scores=torch.ones(2))
    found.pred_classes = torch.tensor([0, 3])
    detections.process([image, image], [{"instances": found}, {"instances": found[:0]}])
    assert [x["category_id"] for x in detections.detections] == [3, 9]
    found.pred_classes = torch.tensor([1, number])
    with pytest.raises(InputError) as caught:
        detections.process([image], [{"instances": found}])
    assert str(caught.value) == f"pred_classes count from 0 to 3, without the background: got {number}"


def test_people_are_scored_by_their_miss_rate(tmp_path: Path) -> None:
    lines = [{"ID": str(i), "gtboxes": [person_box([5, 5, 10, 20]), person_box([25, 5, 10, 20])]} for i in range(5)]
    lines.append({"ID": "i", "gtboxes": [{"tag": "mask", "fbox": [0, 0, 60, 50]}]})
    dataset = resolve(f"crowdhuman:{write_crowdhuman(tmp_path, lines, lines)}", shapes=SMALL_SHAPES)
    box = evaluate(Guessing(dataset), dataset, SETTINGS).box
    assert box.mMR is not None
    assert 5 < box.mMR < 95
    assert box.AP is not None
    assert evaluate(Guessing(dataset, mistaken=True), dataset, SETTINGS).box.mMR == 100
    assert box.VOC is None


def test_voc_has_its_own_ap_beside_cocos(tmp_path: Path) -> None:
    images: Any = {str(i): [("dog", (5, 5, 30, 30), i % 2 == 1), ("cat", (31, 31, 50, 50), False)] for i in range(6)}
    dataset = resolve(f"voc:{write_voc(tmp_path, {'train': images, 'val': images})}", shapes=SMALL_SHAPES)
    box = evaluate(Guessing(dataset), dataset, SETTINGS).box
    assert box.VOC is not None
    assert box.AP50 is not None
    # Both are of an IoU of a half; they differ in where they look at the curve.
    assert abs(box.VOC - box.AP50) < 5
    assert 20 < box.VOC < 100
    assert box.VOC75 is not None
    assert box.VOC_AP is not None
    assert box.AP is not None
    assert box.VOC_AP < box.VOC
    assert box.VOC75 <= box.VOC
    assert abs(box.VOC_AP - box.AP) < 5
    assert box.mMR is None


def test_classes_of_one_name_are_told_apart() -> None:
    """Some tools export a category and its parent under one name."""
    dataset: Any = SimpleNamespace(class_names=["car", "car", "bus"], layout=SimpleNamespace(category_ids=(0, 1, 7)))
    totals: dict[str, float | None] = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 46.7)
    found = _scores(dataset, totals, [80.0, 10.0, 50.0])
    assert found.per_class == {"car (0)": 80.0, "car (1)": 10.0, "bus": 50.0}


def test_detections_are_kept_and_score_the_same(tmp_path: Path) -> None:
    dataset = shapes()
    kept = evaluate(Guessing(dataset), dataset, SETTINGS, evaluation=KEEP, directory=tmp_path / "a")
    assert score(dataset, load_detections(tmp_path / "a" / STUDENTS)) == kept
    evaluate(Guessing(dataset), dataset, SETTINGS, evaluation=KEEP, directory=tmp_path / "b")
    assert (tmp_path / "a" / STUDENTS).read_bytes() == (tmp_path / "b" / STUDENTS).read_bytes()
    evaluate(Guessing(dataset), dataset, SETTINGS, directory=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert [x.name for x in (tmp_path / "a").iterdir()] == [STUDENTS]


@pytest.mark.parametrize("contents", [b"", b"no gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\xff"])
def test_no_detections(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(contents)
    with pytest.raises(InputError, match="x.gz: holds no detections"):
        load_detections(tmp_path / "x.gz")


# --------------------------------------------------------------------------------------------------- processes


WORLDS = (2, 3)


def _process(rank: int, ports: dict[int, int], cases: list[DataSet], results: Path) -> None:
    """The cases in process groups of two and of three: starting the processes takes longer than what they do."""
    torch.set_num_threads(1)
    for world, port in ports.items():
        if rank < world:
            _evaluate_all(rank, world, port, cases, results / str(world))


def _evaluate_all(rank: int, world: int, port: int, cases: list[DataSet], results: Path) -> None:
    # A process that waits for one that has failed must not wait for ever; on a busy machine the other may come late.
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=world, timeout=timedelta(seconds=240))
    for number, dataset in enumerate(cases):
        model = Guessing(dataset)
        kept = results / str(number)
        scores = evaluate(model, dataset, SETTINGS, evaluation=KEEP, directory=kept)
        torch.save((scores, model.seen), results / f"{number}-{rank}.pt")
    # The first process cannot keep its detections: the others hear of it.
    try:
        evaluate(Guessing(cases[0]), cases[0], SETTINGS, evaluation=KEEP, directory=results / "0" / STUDENTS)
    except OSError as error:
        (results / f"error-{rank}").write_text(type(error).__name__)
    dist.destroy_process_group()
    # detectron2 keeps the group of all processes, which is another one next time.
    comm._get_global_gloo_group.cache_clear()


@pytest.mark.slow
def test_any_number_of_processes_counts_each_image_once(tmp_path: Path) -> None:
    """13 images, which neither two nor three processes share evenly; one image, which leaves some without any."""
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in WORLDS]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = {world: x.getsockname()[1] for world, x in zip(WORLDS, free, strict=True)}
    single = write_coco(tmp_path / "data")
    path = single / "annotations/instances_val2017.json"
    contents = json.loads(path.read_text())
    image = contents["images"][0]
    own = [x for x in contents["annotations"] if x["image_id"] == image["id"]]
    path.write_text(json.dumps({**contents, "images": [image], "annotations": own}))
    cases = [shapes(), resolve(f"coco-json:{single}", shapes=SMALL_SHAPES)]
    assert [x.counts.val.images for x in cases] == [13, 1]
    for world in WORLDS:
        (tmp_path / str(world)).mkdir()
    spawn(_process, (ports, cases, tmp_path), nprocs=max(WORLDS))
    for number, dataset in enumerate(cases):
        expected = evaluate(Guessing(dataset), dataset, SETTINGS, evaluation=KEEP, directory=tmp_path / "alone")
        alone = (tmp_path / "alone" / STUDENTS).read_bytes()
        images = [x["id"] for x in json.loads(dataset.layout.val_json.read_bytes())["images"]]
        for world in WORLDS:
            outcomes: list[tuple[Evaluated, list[int]]] = [
                torch.load(tmp_path / str(world) / f"{number}-{rank}.pt", weights_only=False) for rank in range(world)
            ]
            assert [scores for scores, _ in outcomes] == [expected] * world
            assert [image for _, images in outcomes for image in images] == images
            assert (tmp_path / str(world) / str(number) / STUDENTS).read_bytes() == alone
    for world in WORLDS:
        errors = [(tmp_path / str(world) / f"error-{rank}").read_text() for rank in range(world)]
        assert errors == ["FileExistsError"] * world
