"""The generated data: determinism, truth of the annotations, the statistics it promises, atomic creation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from lgd.cache import cache_root
from lgd.data.shapes import CATEGORIES, SCENES, ShapesSpec, generate, make, processor
from lgd.data.shapes.__main__ import main as draw_set
from lgd.data.shapes.annotations import coco_annotations, mask_to_polygons
from lgd.data.shapes.draw import draw
from lgd.data.shapes.spec import SyntheticImage
from lgd.errors import InputError

SPEC = ShapesSpec(train=40, val=12, size=96, seed=3)
NAMES = [name for name, _ in CATEGORIES]


def digests(directory: Path) -> dict[str, str]:
    """Digest of each file below a directory, by its relative path."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(SPEC, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def images() -> list[SyntheticImage]:
    spec = ShapesSpec(seed=1)
    return [draw(spec, "train", index) for index in range(600)]


def loaded(made: Path, split: str) -> COCO:
    return COCO(str(made / "annotations" / f"instances_{split}.json"))


# ----------------------------------------------------------------------------------------------- determinism


def test_equal_specs_give_equal_bytes(made: Path, tmp_path: Path) -> None:
    again = make(SPEC, tmp_path)
    assert again.name == made.name
    assert digests(again) == digests(made)
    assert len(digests(made)) == 40 + 12 + 2


def test_a_process_without_avx512_draws_the_same(made: Path, tmp_path: Path) -> None:
    disabled = processor.avx512_features()
    code = (
        "import sys; from pathlib import Path; from lgd.data.shapes import ShapesSpec, make, processor;"
        "assert not processor.avx512_features(); make(ShapesSpec(40, 12, 96, 3), Path(sys.argv[1]))"
    )
    environment = {**os.environ, processor.DISABLE: ",".join(disabled)}
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=True)
    assert digests(tmp_path / "data" / made.name) == digests(made)


def test_a_numpy_that_cannot_do_without_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="drawing the default data ended with 1: .*X86_V2") as caught:
        processor.draw_in_process(ShapesSpec(2, 1, 64), tmp_path, ["X86_V2"])
    assert "\n" not in str(caught.value)


def test_a_full_disk_in_another_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        processor.draw_in_process(ShapesSpec(2, 1, 64), tmp_path / "missing", [])


def test_drawing_ends_with_the_process_that_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 10, 1, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    spec = json.dumps(dataclasses.asdict(ShapesSpec(5, 1, 64)))
    assert draw_set(spec, str(tmp_path)) == 0
    assert len(list(tmp_path.glob("*/*.jpg"))) == 2


def test_an_image_does_not_depend_on_how_many_there_are(made: Path, tmp_path: Path) -> None:
    fewer = make(ShapesSpec(train=5, val=2, size=96, seed=3), tmp_path)
    assert fewer.name != made.name
    whole, part = digests(made), digests(fewer)
    names = [name for name in part if name.endswith(".jpg")]
    assert len(names) == 7
    assert all(part[name] == whole[name] for name in names)
    few, many = (loaded(path, "train").dataset["annotations"] for path in (fewer, made))
    assert few
    assert many[: len(few)] == few


def test_seed_split_and_index_each_change_the_picture() -> None:
    base = draw(SPEC, "train", 0).pixels
    others = [draw(SPEC, "train", 1), draw(SPEC, "val", 0), draw(ShapesSpec(size=96, seed=4), "train", 0)]
    for other in others:
        assert np.abs(base.astype(int) - other.pixels.astype(int)).mean() > 5


def test_foreign_random_numbers_do_not_matter() -> None:
    np.random.seed(0)  # noqa: NPY002
    first = draw(SPEC, "train", 7).pixels
    np.random.random(100)  # noqa: NPY002
    np.testing.assert_array_equal(first, draw(SPEC, "train", 7).pixels)


# ----------------------------------------------------------------------------------------------- annotations


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_loads_a_split(made: Path, split: str) -> None:
    coco = loaded(made, split)
    assert len(coco.imgs) == getattr(SPEC, split)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == NAMES
    assert all(category["supercategory"] for category in coco.loadCats(coco.getCatIds()))
    assert coco.dataset["info"]["spec"] == {"train": 40, "val": 12, "size": 96, "seed": 3}
    for image in coco.imgs.values():
        with Image.open(made / split / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) == (96, 96)
            assert opened.mode == "RGB"


@pytest.mark.parametrize("size", [64, 200])
def test_annotations_describe_the_visible_masks_exactly(size: int) -> None:
    spec = ShapesSpec(size=size)
    seen = 0
    several = 0
    for index in range(40):
        image = draw(spec, "train", index)
        assert image.masks.sum(0).max() <= 1, "visible regions overlap"
        found: list[dict[str, Any]] = list(coco_annotations(image, 1, 1))
        assert len(found) == len(image.labels) == len(image.visible)
        for annotation, mask in zip(found, image.masks, strict=True):
            polygons = annotation["segmentation"]
            rle = mask_util.merge(mask_util.frPyObjects(polygons, size, size))
            np.testing.assert_array_equal(mask_util.decode(rle).astype(bool), mask)
            assert annotation["area"] == mask.sum() == mask_util.area(rle)
            assert annotation["bbox"] == mask_util.toBbox(rle).tolist()
            x, y, width, height = annotation["bbox"]
            assert x >= 0
            assert y >= 0
            assert x + width <= size
            assert y + height <= size
            assert min(width, height) >= 3
            assert all(len(polygon) >= 8 for polygon in polygons)
            seen += 1
            several += len(polygons) > 1
    assert seen > 80
    # Rings cannot be one polygon, because COCO's have no holes.
    assert several > 5


def test_polygons_of_awkward_masks() -> None:
    rng = np.random.default_rng(0)
    for density in (0.2, 0.5, 0.8):
        for _ in range(20):
            mask = rng.random((13, 17)) < density
            polygons = mask_to_polygons(mask)
            rle = mask_util.merge(mask_util.frPyObjects(polygons, 13, 17))
            np.testing.assert_array_equal(mask_util.decode(rle).astype(bool), mask)
            assert sum(_shoelace(polygon) for polygon in polygons) == mask.sum()


def test_pixels_that_meet_at_a_corner_are_polygons_of_their_own() -> None:
    assert sorted(mask_to_polygons(np.eye(2, dtype=bool))) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]


def _shoelace(polygon: list[int]) -> float:
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


# ------------------------------------------------------------------------------------------------ statistics


def test_classes_are_uneven(images: list[SyntheticImage]) -> None:
    counts = Counter(NAMES[label] for image in images for label in image.labels)
    assert set(counts) == set(NAMES)
    assert 4 <= max(counts.values()) / min(counts.values()) <= 9


def test_numbers_of_objects(images: list[SyntheticImage]) -> None:
    numbers = Counter(len(image.labels) for image in images)
    assert set(numbers) == set(range(9))
    assert 0.02 < numbers[0] / len(images) < 0.08
    assert 3 < np.mean([len(image.labels) for image in images]) < 4
    val = [draw(ShapesSpec(seed=1), "val", index) for index in range(100)]
    assert 0 < sum(not image.labels for image in val) < 15


def test_scales_and_occlusion(images: list[SyntheticImage]) -> None:
    extents = []
    for image in images:
        for mask, visible in zip(image.masks, image.visible, strict=True):
            assert 0.25 <= visible <= 1
            if visible == 1:
                extents.append(max(mask.any(0).sum(), mask.any(1).sum()) / mask.shape[0])
    assert 0.15 < np.percentile(extents, 2) < 0.3
    assert 0.4 < np.percentile(extents, 98) < 0.6
    shares = np.concatenate([image.visible for image in images])
    assert 0.2 < (shares < 0.95).mean() < 0.6
    assert (shares < 0.6).mean() > 0.02


def test_context_tells_plates_from_balls(images: list[SyntheticImage]) -> None:
    ball, plate, cross = (NAMES.index(name) for name in ("ball", "plate", "cross"))
    outdoors = Counter(label for p in images if p.scene in ("meadow", "water") for label in p.labels)
    table = Counter(label for p in images if p.scene == "table" for label in p.labels)
    assert {image.scene for image in images} == set(SCENES)
    assert outdoors[ball] > 10 * outdoors[plate]
    assert table[plate] > 3 * table[ball]
    on_walls = [p.labels for p in images if p.scene == "wall"]
    with_plate = [cross in labels for labels in on_walls if plate in labels]
    with_ball = [cross in labels for labels in on_walls if ball in labels and plate not in labels]
    assert np.mean(with_plate) > np.mean(with_ball) + 0.2


def test_objects_stand_out_from_their_surroundings(images: list[SyntheticImage]) -> None:
    """A person can see most objects: their colours differ from the rest of the image's near them."""
    contrasts = []
    for image in images[:100]:
        free = np.logical_not(image.masks.any(axis=0))
        for mask in image.masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            near = (slice(max(rows[0] - 6, 0), rows[-1] + 7), slice(max(columns[0] - 6, 0), columns[-1] + 7))
            around = image.pixels[near][free[near]]
            if len(around) > 20:
                contrasts.append(np.abs(image.pixels[mask].mean(0) - around.mean(0)).sum())
    assert np.median(contrasts) > 80
    assert np.percentile(contrasts, 5) > 15


# ----------------------------------------------------------------------------------------------------- making


@pytest.mark.parametrize("size", [64, 1024])
def test_smallest_and_largest_side(size: int) -> None:
    image = draw(ShapesSpec(size=size), "val", 1)
    assert image.pixels.shape == (size, size, 3)
    assert image.pixels.std() > 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": 63}, "size"),
        ({"size": 1025}, "size"),
        ({"train": 0}, "train"),
        ({"val": 0}, "val"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_specs_are_refused(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ShapesSpec(**wrong)


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LGD_CACHE", raising=False)
    assert cache_root() == tmp_path / "home/.cache/lgd"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/lgd"
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert make(ShapesSpec(1, 1, 64)).parent == tmp_path / "own/data"


def test_a_made_set_is_not_made_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "draw", lambda *_: pytest.fail("drawn again"))
    assert make(SPEC, made.parent.parent) == made


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = draw

    def interrupted(spec: ShapesSpec, split: str, index: int) -> SyntheticImage:
        if (split, index) == ("val", 1):
            raise KeyboardInterrupt
        return real(spec, split, index)

    spec = ShapesSpec(3, 3, 64)
    monkeypatch.setattr(generate, "avx512_features", list)
    monkeypatch.setattr(generate, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(spec, tmp_path)
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.undo()
    assert len(digests(make(spec, tmp_path))) == 8


def _race(arguments: tuple[ShapesSpec, Path, Any]) -> Path:
    spec, root, barrier = arguments
    real = generate._generate

    # Both have seen that the set is missing before either begins.
    def together(spec: ShapesSpec, target: Path) -> None:
        barrier.wait(timeout=60)
        real(spec, target)

    generate._generate = together
    return make(spec, root)


@pytest.mark.parametrize("many", [2, 3])
def test_a_long_wait_is_told(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(generate, "MANY_IMAGES", many)
    for _ in range(2):
        make(ShapesSpec(2, 1, 64), tmp_path)
    told = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    wanted = f"generating 3 images of 64 pixels, once, in {tmp_path}/data/shapes-"
    assert [x.startswith(wanted) for x in told] == ([True] if many == 2 else [])


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    spec = ShapesSpec(12, 4, 64)
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        first, second = pool.map(_race, [(spec, tmp_path, barrier)] * 2, chunksize=1)
    assert first == second
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == [first.name]
    assert digests(first) == digests(make(spec, tmp_path / "alone"))


def test_a_damaged_set_is_named(tmp_path: Path) -> None:
    spec = ShapesSpec(3, 1, 64)
    directory = make(spec, tmp_path)
    (directory / "train/000001.jpg").unlink()
    with pytest.raises(InputError, match=f"damaged.*{directory.name}") as caught:
        make(spec, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the directory should be")
    with pytest.raises(InputError, match=r"cannot write the cache .*LGD_CACHE"):
        make(ShapesSpec(1, 1, 64), tmp_path)


def test_annotation_files_are_compact(made: Path) -> None:
    """Whoever reads the file need not wait for it: polygons are whole numbers, not floats."""
    text = (made / "annotations/instances_train.json").read_text()
    assert ", " not in text
    assert all(isinstance(v, int) for a in json.loads(text)["annotations"] for p in a["segmentation"] for v in p)
