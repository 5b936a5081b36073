"""Loaders: batches are a function of seed and position alone, and hold what detectron2 expects."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils import comm
from PIL import Image

from lgd.config.experiment import Experiment
from lgd.data import images, mapper
from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from lgd.data.loaders import train_loader, val_loader, worker_processes
from lgd.data.mapper import FastDatasetMapper, ImageCache
from lgd.data.shapes import ShapesSpec
from lgd.errors import InputError
from lgd.results.record import load
from lgd.training import run as training
from lgd.training.build import dry_build
from tests.helpers import quick_experiment, wait_until
from tests.helpers_data import COCO_TINY, REPOSITORY, edit_json, write_coco

SPEC = ShapesSpec(train=30, val=40, size=64, seed=0)
Batch = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return resolve("shapes", shapes=SPEC)


@pytest.fixture
def mixed(tmp_path: Path) -> DataSet:
    """A data set of wide and high images."""
    return resolve(f"coco-json:{write_coco(tmp_path)}", shapes=SPEC)


def batches(dataset: DataSet, count: int, **options: Any) -> list[Batch]:
    chosen: dict[str, Any] = {
        "batch_size": 4,
        "min_sizes": (64, 80, 96),
        "max_size": 128,
        "flip": True,
        "masks": False,
        "seed": 1,
        "workers": 0,
        **options,
    }
    return list(itertools.islice(train_loader(dataset, **chosen), count))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert [sample["image_id"] for sample in one] == [sample["image_id"] for sample in other]
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
            assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


def differ(left: list[Batch], right: list[Batch]) -> bool:
    return any(
        a["image"].shape != b["image"].shape or not torch.equal(a["image"], b["image"])
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


# ----------------------------------------------------------------------------------------------------- purity


def test_seeds(made: DataSet) -> None:
    first = batches(made, 10)
    assert_equal(first, batches(made, 10))
    assert differ(first, batches(made, 10, seed=2))


def test_an_image_is_augmented_anew_each_time(made: DataSet) -> None:
    sizes: dict[int, set[tuple[int, ...]]] = {}
    for batch in batches(made, 40):
        for sample in batch:
            sizes.setdefault(sample["image_id"], set()).add(tuple(sample["image"].shape))
    assert {shape[1] for found in sizes.values() for shape in found} == {64, 80, 96}
    assert max(map(len, sizes.values())) > 1


def test_flips_happen_to_about_half_and_to_the_boxes_as_well(made: DataSet) -> None:
    plain = batches(made, 25, min_sizes=(64,), flip=False)
    flipped = batches(made, 25, min_sizes=(64,))
    count = 0
    for a, b in zip(itertools.chain(*plain), itertools.chain(*flipped), strict=True):
        assert a["image_id"] == b["image_id"]
        boxes, mirrored = a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor
        if torch.equal(a["image"], b["image"]):
            assert torch.equal(boxes, mirrored)
        else:
            count += 1
            assert torch.equal(a["image"].flip(2), b["image"])
            x0, y0, x1, y1 = boxes.unbind(1)
            assert torch.equal(torch.stack([64 - x1, y0, 64 - x0, y1], 1), mirrored)
    assert 30 <= count <= 70


def test_foreign_random_numbers_change_nothing(made: DataSet) -> None:
    expected = batches(made, 6)
    got = []
    stream = iter(
        train_loader(
            made, batch_size=4, min_sizes=(64, 80, 96), max_size=128, flip=True, masks=False, seed=1, workers=0
        )
    )
    for step in range(6):
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002
        torch.manual_seed(step)
        torch.rand(step)
        got.append(next(stream))
    assert_equal(got, expected)


def test_loading_draws_no_foreign_random_numbers(made: DataSet) -> None:
    def drawn(load: bool) -> tuple[float, float, float]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        if load:
            batches(made, 3)
            list(val_loader(made, min_size=64, max_size=64, workers=0, with_labels=False))
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    assert drawn(True) == drawn(False)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(made: DataSet, workers: int) -> None:
    # More than two epochs of the data.
    assert_equal(batches(made, 16, workers=workers), batches(made, 16))


@pytest.mark.parametrize(("start", "workers"), [(4, 0), (36, 0), (20, 2)])
def test_start_continues(made: DataSet, start: int, workers: int) -> None:
    whole = batches(made, 14)
    rest = batches(made, 14 - start // 4, start=start, workers=workers)
    assert_equal(rest, whole[start // 4 :])


def test_start_continues_among_wide_and_high_images(mixed: DataSet) -> None:
    whole = batches(mixed, 9, batch_size=3, keep_empty=True)
    assert_equal(batches(mixed, 5, batch_size=3, keep_empty=True, start=12), whole[4:])


def test_grouping_equals_detectron2s(mixed: DataSet) -> None:
    size = [
        {"width": 40, "height": 48, "i": 0},
        {"width": 48, "height": 48, "i": 1},
        {"width": 56, "height": 48, "i": 2},
    ]
    stream = ({**size[index], "position": p} for p, index in enumerate(TrainingSampler(3, seed=1)))
    theirs = itertools.islice(AspectRatioGroupedDataset(stream, 3), 20)
    expected = [[sample["i"] + 1 for sample in batch] for batch in theirs]
    got = batches(mixed, 20, batch_size=3, keep_empty=True)
    assert [[sample["image_id"] for sample in batch] for batch in got] == expected
    assert all(len({sample["width"] > sample["height"] for sample in batch}) == 1 for batch in got)
    ungrouped = batches(mixed, 20, batch_size=3, keep_empty=True, group_aspect=False)
    order = itertools.islice(TrainingSampler(3, seed=1), 60)
    assert [sample["image_id"] - 1 for batch in ungrouped for sample in batch] == list(order)


def test_two_processes_share_the_stream(made: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batches(made, 6, group_aspect=False)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        halves.append(batches(made, 6, group_aspect=False))
    woven = [[sample for pair in zip(*step, strict=True) for sample in pair] for step in zip(*halves, strict=True)]
    assert_equal(woven, whole)


# --------------------------------------------------------------------------------------------------- contents


def test_samples_equal_detectron2s_mapper(made: DataSet) -> None:
    """With one size and no flip nothing is random: our mapper gives what detectron2's gives."""
    from detectron2.data import DatasetCatalog

    theirs = DatasetMapper(
        True,
        augmentations=[T.ResizeShortestEdge([80], 128, "choice")],
        image_format="BGR",
        use_instance_mask=True,
    )
    by_id = {record["image_id"]: record for record in DatasetCatalog.get(made.train)}
    for batch in batches(made, 5, min_sizes=(80,), flip=False, masks=True):
        for sample in batch:
            expected = theirs(by_id[sample["image_id"]])
            assert sample.keys() == expected.keys()
            assert torch.equal(sample["image"], expected["image"])
            mine, other = sample["instances"], expected["instances"]
            assert torch.equal(mine.gt_boxes.tensor, other.gt_boxes.tensor)
            assert torch.equal(mine.gt_classes, other.gt_classes)
            assert torch.equal(mine.gt_masks.area(), other.gt_masks.area())


def test_empty_images(made: DataSet) -> None:
    empty = made.counts.train.empty
    assert empty > 0

    def seen(**options: Any) -> dict[int, int]:
        return {
            sample["image_id"]: len(sample["instances"]) for batch in batches(made, 15, **options) for sample in batch
        }

    assert min(seen().values()) > 0
    kept = seen(keep_empty=True, masks=True)
    assert len(kept) == SPEC.train
    assert sum(count == 0 for count in kept.values()) == empty


def test_masks(made: DataSet, mixed: DataSet) -> None:
    for sample in itertools.chain(*batches(made, 8, masks=True, keep_empty=True)):
        found = sample["instances"]
        assert isinstance(found.gt_masks, PolygonMasks)
        assert len(found.gt_masks) == len(found)
    assert not batches(made, 1)[0][0]["instances"].has("gt_masks")
    # An object, not a crowd, in run lengths.
    runs = {"counts": [100, 50, 48 * 48 - 150], "size": [48, 48]}
    edit_json(mixed.layout.train_json, lambda c: c["annotations"][2].update(segmentation=runs))
    changed = resolve(f"coco-json:{mixed.root}", shapes=SPEC)
    for sample in itertools.chain(*batches(changed, 4, masks=True, keep_empty=True)):
        found = sample["instances"]
        assert isinstance(found.gt_masks, BitMasks)
        assert found.gt_masks.tensor.shape == (len(found), *sample["image"].shape[1:])
    edit_json(mixed.layout.train_json, lambda c: c["annotations"][2].pop("segmentation"))
    without = resolve(f"coco-json:{mixed.root}", shapes=SPEC)
    assert batches(without, 1)
    with pytest.raises(InputError, match=r"000000000002\.jpg has no segmentation"):
        batches(without, 1, masks=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"start": 3}, "start 3"),
        ({"start": -4}, "start -4"),
        ({"min_sizes": ()}, "min_sizes"),
    ],
)
def test_wrong_options(made: DataSet, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        batches(made, 1, **wrong)


@pytest.mark.parametrize(("split", "purpose"), [("train", "train on"), ("val", "evaluate on, and AP would not be")])
def test_a_split_without_objects_is_refused_before_training(
    split: str, purpose: str, mixed: DataSet, tmp_path: Path
) -> None:
    """A validation split without any used to be trained on to the end, for an AP that is not defined."""
    path = tmp_path / f"annotations/instances_{split}2017.json"
    edit_json(path, lambda c: c["annotations"].clear())
    bare = resolve(f"coco-json:{mixed.root}", shapes=SPEC)
    said = f"{path} has no object to {purpose}"
    experiment = quick_experiment(data__source=bare.source)
    for refuse in (
        lambda: batches(bare, 1),
        lambda: training.run(experiment, tmp_path / "run"),
        lambda: dry_build(experiment, to_train=True),
    ):
        with pytest.raises(InputError, match=re.escape(said)) as caught:
            refuse()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert batches(bare, 1, keep_empty=True)


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_validation(made: DataSet, with_labels: bool, workers: int) -> None:
    loader = val_loader(made, min_size=96, max_size=128, workers=workers, with_labels=with_labels, batch_size=3)
    samples = list(itertools.chain(*loader))
    assert len(loader) == 14
    assert [sample["image_id"] for sample in samples] == list(range(1, SPEC.val + 1))
    assert all(sample["image"].shape == (3, 96, 96) for sample in samples)
    assert all((sample["height"], sample["width"]) == (64, 64) for sample in samples)
    assert all(("instances" in sample) == with_labels for sample in samples)
    if with_labels:
        counts = [len(sample["instances"]) for sample in samples]
        assert sum(counts) == made.counts.val.objects
        assert counts.count(0) == made.counts.val.empty > 0
        assert all(sample["instances"].image_size == (96, 96) for sample in samples)


# ------------------------------------------------------------------------------------------------------ cache


def test_cache_reads_once_within_its_budget(made: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in sorted(made.layout.train_images.iterdir())[:3]]
    reads: list[str] = []
    real = images.read_image

    def counted(path: str, shrink: int) -> Any:
        reads.append(path)
        return real(path, shrink)

    monkeypatch.setattr(mapper, "read_image", counted)
    cache = ImageCache(budget=2 * 64 * 64 * 3)
    found = [cache.read(path) for path in paths * 2]
    assert reads == [*paths, paths[2]]
    assert cache.used == cache.budget
    assert found[0] is found[3]
    assert torch.equal(found[2], found[5])


def test_cached_and_uncached_batches_are_equal(made: DataSet) -> None:
    assert_equal(batches(made, 16), batches(made, 16, cache_bytes=0))


def test_a_batch_may_be_changed_in_place(made: DataSet) -> None:
    """Not even an image that needed no resize shares memory with the cache."""
    options: dict[str, Any] = {"min_sizes": (64,), "flip": False}
    expected = batches(made, 8, **options)
    for batch in batches(made, 8, **options):
        for sample in batch:
            sample["image"].zero_()
    assert_equal(batches(made, 8, **options), expected)


@pytest.mark.skipif(COCO_TINY is None, reason="the real images are not on this machine")
def test_real_images() -> None:
    real = resolve(f"coco-json:{COCO_TINY}", shapes=SPEC)
    for batch in batches(real, 4, masks=True, min_sizes=(96,), max_size=160):
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1
        for sample in batch:
            boxes = sample["instances"].gt_boxes.tensor
            height, width = sample["image"].shape[1:]
            assert max(height, width) <= 160
            assert cast(bool, (boxes >= 0).all())
            assert cast(bool, (boxes <= torch.tensor([width, height, width, height])).all())


@pytest.mark.skipif(COCO_TINY is None, reason="the real images are not on this machine")
@pytest.mark.parametrize("size", [320, 800])
def test_real_images_are_detectron2s_but_for_rounding(size: int) -> None:
    """Resized by torch: shapes, boxes and masks are the same, pixels within one level, few of them off at all."""
    from detectron2.data import DatasetCatalog

    real = resolve(f"coco-json:{COCO_TINY}", shapes=SPEC)
    theirs = DatasetMapper(
        True,
        augmentations=[T.ResizeShortestEdge([size], 1333, "choice")],
        image_format="BGR",
        use_instance_mask=True,
    )
    by_id = {record["image_id"]: record for record in DatasetCatalog.get(real.train)}
    off = []
    for sample in itertools.chain(*batches(real, 3, min_sizes=(size,), max_size=1333, flip=False, masks=True)):
        expected = theirs(by_id[sample["image_id"]])
        assert sample["image"].shape == expected["image"].shape
        levels = (sample["image"].int() - expected["image"].int()).abs()
        assert levels.max() <= 1
        off.append(float((levels > 0).float().mean()))
        assert torch.equal(sample["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        assert torch.equal(sample["instances"].gt_masks.area(), expected["instances"].gt_masks.area())
    assert np.mean(off) < 0.01


# ---------------------------------------------------------------------------------------------- large pictures


@pytest.fixture
def large(tmp_path: Path) -> DataSet:
    """Smooth JPEGs of 601x403 pixels, with boxes and masks."""
    root = write_coco(tmp_path)
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}2017.json"

        def grow(contents: dict[str, Any], split: str = split) -> None:
            for image in contents["images"]:
                image.update(width=601, height=403)
                x, y = np.meshgrid(np.linspace(0, 255, 601), np.linspace(0, 255, 403))
                pixels = np.stack([x, y, np.full_like(x, image["id"])], 2).astype(np.uint8)
                Image.fromarray(pixels).save(root / f"{split}2017" / image["file_name"])
            runs = {"counts": [403 * 601 - 500, 500], "size": [403, 601]}
            contents["annotations"] = [
                {**x, "bbox": [101, 51, 300, 200], "segmentation": runs} for x in contents["annotations"]
            ]

        edit_json(path, grow)
    return resolve(f"coco-json:{root}", shapes=SPEC)


def test_large_jpegs_are_decoded_small(large: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"min_sizes": (90, 100), "max_size": 200, "keep_empty": True, "masks": True}
    cached, fresh = batches(large, 6, **options), batches(large, 6, cache_bytes=0, **options)
    assert_equal(fresh, cached)
    assert_equal(batches(large, 6, workers=2, **options), cached)
    real, shrinks = images.read_image, []

    def full(path: str, shrink: int) -> Any:
        shrinks.append(shrink)
        return real(path)

    monkeypatch.setattr(mapper, "read_image", full)
    whole = batches(large, 6, cache_bytes=0, **options)
    # 403 pixels to 100 at most.
    assert set(shrinks) == {4}
    for a, b in zip(itertools.chain(*cached), itertools.chain(*whole), strict=True):
        assert a["image"].shape == b["image"].shape
        assert (a["image"].int() - b["image"].int()).abs().float().mean() < 2
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)
    val = next(iter(val_loader(large, min_size=100, max_size=200, workers=0, with_labels=False)))[0]
    assert val["image"].shape == (3, 100, 149)
    assert (val["height"], val["width"]) == (403, 601)


@pytest.mark.parametrize(
    ("size", "sizes", "longest", "expected"),
    [
        ((403, 601), (403,), 800, 1),
        ((403, 601), (202,), 800, 1),
        ((404, 601), (202,), 800, 2),
        ((400, 800), (100, 201), 800, 1),
        ((400, 800), (300,), 400, 2),
        ((4000, 6000), (100,), 800, 8),
    ],
)
def test_shrink(size: tuple[int, int], sizes: tuple[int, ...], longest: int, expected: int) -> None:
    """Never below the largest of the sizes to choose from."""
    built = FastDatasetMapper(
        min_sizes=sizes, max_size=longest, flip=False, labels=False, masks=False, mask_format="polygon",
        cache=ImageCache(0),
    )  # fmt: skip
    assert built.shrink(*size) == expected


# ---------------------------------------------------------------------------------------------------- workers


def test_workers_are_sized_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert worker_processes(3, cuda=True) == 3
    assert worker_processes("auto", cuda=False) == 0
    assert worker_processes("auto", cuda=True) == 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_processes("auto", cuda=True) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert worker_processes("auto", cuda=True) == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(256)))
    assert worker_processes("auto", cuda=True) == 16


READER = """
import time
import psutil
from lgd.data.catalog import resolve
from lgd.data.loaders import train_loader, val_loader
from lgd.data.shapes import ShapesSpec

data = resolve("shapes", shapes=ShapesSpec(16, 8, 256))
# Masks make batches that are larger than a pipe's buffer.
train = iter(train_loader(
    data, batch_size=8, min_sizes=(256,), max_size=256, flip=True, masks=True, seed=0, workers=2
))
val = iter(val_loader(data, min_size=256, max_size=256, workers=2, with_labels=True))
next(train), next(val)
print(*[x.pid for x in psutil.Process().children()], flush=True)
time.sleep(600)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """They used to wait for ever for somebody to take their batches."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LGD_CACHE": str(tmp_path)},
        cwd=REPOSITORY,
    )
    assert reader.stdout is not None
    with reader.stdout:
        workers = [psutil.Process(int(x)) for x in reader.stdout.readline().split()]
    assert len(workers) == 4
    time.sleep(1)  # until they have as many batches ready as they are asked for
    reader.kill()
    reader.wait()
    try:
        wait_until(lambda: not any(_runs(x) for x in workers), 20)
    finally:
        for worker in filter(_runs, workers):
            worker.kill()


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("wrong", [-1, "many", 1.5, True])
def test_impossible_numbers_of_workers(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"data\.workers: must be auto or a whole number from 0"):
        Experiment().override({"data.workers": wrong})


@pytest.mark.gpu
def test_batches_for_a_gpu_are_pinned(made: DataSet) -> None:
    for workers in (0, 2):
        assert all(x["image"].is_pinned() for x in batches(made, 1, workers=workers, cuda=True)[0])
        loader = val_loader(made, min_size=64, max_size=64, workers=workers, with_labels=False, cuda=True)
        assert next(iter(loader))[0]["image"].is_pinned()


def test_masks_of_data_that_had_to_be_cleaned(mixed: DataSet) -> None:
    """Polygons and run lengths survive; what was dropped or ignored is not taught."""
    runs = {"counts": [100, 50, 48 * 48 - 150], "size": [48, 48]}

    def spoil(contents: dict[str, Any]) -> None:
        contents["annotations"][0].update(bbox=[1, 1, 0, 0])
        contents["annotations"][2].update(segmentation=runs)
        contents["annotations"].append({**contents["annotations"][1], "id": 99, "ignore": 1})

    edit_json(mixed.layout.train_json, spoil)
    cleaned = resolve(f"coco-json:{mixed.root}", shapes=SPEC)
    assert cleaned.layout.train_json != mixed.layout.train_json
    seen = {x["image_id"]: x["instances"] for x in itertools.chain(*batches(cleaned, 4, masks=True, keep_empty=True))}
    assert {image: len(found) for image, found in seen.items()} == {1: 1, 2: 1, 3: 0}
    assert all(isinstance(found.gt_masks, BitMasks) for found in seen.values())
    assert all(bool(seen[image].gt_masks.tensor.any()) for image in (1, 2))


def test_ignored_regions_of_people_are_painted_over(tmp_path: Path) -> None:
    """But not where they overlap somebody who is labelled, and not in the cache."""
    root = tmp_path / "people"
    (root / "Images").mkdir(parents=True)
    pixels = np.full((60, 80, 3), 200, np.uint8)
    for split in ("train", "val"):
        Image.fromarray(pixels).save(root / "Images" / f"{split}.jpg")
        boxes = [
            {"tag": "person", "fbox": [10, 10, 20, 30], "extra": {}},
            {"tag": "mask", "fbox": [20, 20, 40, 20], "extra": {"ignore": 1}},
        ]
        line = json.dumps({"ID": split, "gtboxes": boxes})
        (root / f"annotation_{split}.odgt").write_text(line + "\n")
    dataset = resolve(f"crowdhuman:{root}", shapes=ShapesSpec())
    loader = train_loader(
        dataset, batch_size=1, min_sizes=(60,), max_size=80, flip=False, masks=False, seed=0, workers=0
    )
    for sample in itertools.islice(loader, 2):
        image, (row,) = sample[0]["image"], sample[0]["instances"].gt_boxes.tensor.tolist()
        assert row == [10, 10, 30, 40]
        expected = torch.full((3, 60, 80), 200, dtype=torch.uint8)
        expected[:, 20:40, 30:60] = torch.tensor([104, 116, 124], dtype=torch.uint8)[:, None, None]
        assert torch.equal(image, expected)


def test_a_training_knows_how_long_it_stands_still_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that take long to read."""
    read = ImageCache.read

    def slow(self: ImageCache, path: str, shrink: int = 1) -> torch.Tensor:
        time.sleep(0.05)
        return read(self, path, shrink)

    monkeypatch.setattr(ImageCache, "read", slow)
    record = training.run(quick_experiment(method__name="baseline"), tmp_path)
    # Six steps of two images; those of the evaluation are not waited for by steps.
    assert 12 * 0.05 <= record.within_training["data_wait"] < record.seconds["training"]
    assert load(tmp_path / "record.json").data_wait == record.data_wait
