"""What a sample holds: pixels, boxes, masks, as detectron2's mapper gives them; the cache of images; large images."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image

from lgd.data import images, mapper
from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from lgd.data.loaders import train_loader, val_loader
from lgd.data.mapper import FastDatasetMapper, ImageCache
from lgd.data.shapes import ShapesSpec
from lgd.errors import InputError
from tests.helpers_data import COCO_TINY, edit_json, write_coco
from tests.helpers_loaders import SPEC, assert_equal, batches


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


def test_cache_reads_once_within_its_budget(made: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in sorted(Path(str(made.layout.train_images)).iterdir())[:3]]
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


@pytest.mark.parametrize("is_ignored", [True, False])
def test_boxes_that_begin_outside_the_image_are_painted_as_far_as_they_are_inside(is_ignored: bool) -> None:
    """The checks leave up to a pixel. A labelled person there is not painted over with the region around it."""
    annotations = [{"bbox": [-1, -1, 32, 41], "iscrowd": int(is_ignored)}]
    if not is_ignored:
        annotations.append({"bbox": [0, 0, 40, 60], "iscrowd": 1})
    sample: Any = {"height": 60, "width": 40, "annotations": annotations}
    painted = mapper._paint_ignored(torch.full((3, 60, 40), 200, dtype=torch.uint8), sample)
    inside = torch.zeros(60, 40, dtype=torch.bool)
    inside[:40, :31] = True
    assert torch.equal(painted[0] == 200, ~inside if is_ignored else inside)


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


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_during_training_is_one_line(workers: int, tmp_path: Path) -> None:
    there = resolve(f"coco-json:{write_coco(tmp_path)}", shapes=SPEC)
    (tmp_path / "train2017/000000000001.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000001\.jpg.* is missing$"):
        batches(there, 4, workers=workers)
