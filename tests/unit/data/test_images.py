"""Reading image files: detectron2's pixels, and one line for what cannot be read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image

from lgd.data.images import image_size, read_image
from lgd.errors import InputError
from tests.helpers_data import COCO_TINY


@pytest.fixture
def image() -> Image.Image:
    """A smooth one, 37x23, that JPEG keeps well."""
    x, y = np.meshgrid(np.linspace(0, 255, 37), np.linspace(0, 255, 23))
    return Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_equal_detectron2s(tmp_path: Path, image: Image.Image, mode: str, options: dict[str, Any]) -> None:
    path = tmp_path / "ein Bild – картинка.jpg"
    image.convert(mode).save(path, **options)
    np.testing.assert_array_equal(read_image(path), detection_utils.read_image(str(path), "BGR"))
    assert image_size(path, thorough=True) == (37, 23)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_equals_detectron2s(tmp_path: Path, image: Image.Image, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=turned(orientation))
    pixels = read_image(path)
    np.testing.assert_array_equal(pixels, detection_utils.read_image(str(path), "BGR"))
    assert image_size(path, thorough=False) == pixels.shape[1::-1] == ((37, 23) if orientation < 5 else (23, 37))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_turned_once(tmp_path: Path, image: Image.Image, orientation: int) -> None:
    """detectron2 turns them a second time: Pillow does it as it loads them."""
    paths = [tmp_path / "a.tif", tmp_path / "a.png"]
    for path in paths:
        image.save(path, exif=turned(orientation))
    np.testing.assert_array_equal(read_image(paths[0]), read_image(paths[1]))
    assert image_size(paths[0], thorough=True) == image_size(paths[1], thorough=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_pngs_equal_detectron2s(tmp_path: Path, image: Image.Image, mode: str) -> None:
    path = tmp_path / "a.png"
    image.convert(mode).save(path)
    pixels = read_image(path)
    np.testing.assert_array_equal(pixels, detection_utils.read_image(str(path), "BGR"))
    assert pixels.flags.c_contiguous


def test_thirty_two_bits_are_clipped(tmp_path: Path, image: Image.Image) -> None:
    """TIFFs of labels or counts: nobody knows what is white in them."""
    grey = np.asarray(image.convert("L")).astype(np.int32)
    grey[0, 0] = 70_000
    path = tmp_path / "a.tif"
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(grey.clip(0, 255)[:, :, None], 3, axis=2))


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 23 * 37).astype(np.uint16).reshape(23, 37)
    Image.fromarray(levels).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (23, 37, 3)
    for channel in range(3):
        np.testing.assert_array_equal(pixels[:, :, channel], levels >> 8)


@pytest.mark.skipif(COCO_TINY is None, reason="the real images are not on this machine")
def test_real_images_equal_detectron2s() -> None:
    for path in sorted((COCO_TINY / "val2017").iterdir())[:20]:  # type: ignore[operator]
        np.testing.assert_array_equal(read_image(path), detection_utils.read_image(str(path), "BGR"))


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_shrunk_jpegs(tmp_path: Path, shrink: int, mode: str) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 501), np.linspace(0, 255, 333))
    Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8)).convert(mode).save(tmp_path / "a.jpg")
    full, small = read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg", shrink)
    assert small.shape == (-(-333 // shrink), -(-501 // shrink), 3)
    centre = slice(shrink // 2, None, shrink)
    sampled = full[centre, centre].astype(int)
    assert np.abs(sampled - small[: sampled.shape[0], : sampled.shape[1]]).mean() < 3


def test_shrinking_leaves_others_alone(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.jpg", exif=turned(6))
    assert read_image(tmp_path / "a.png", 2).shape == (23, 37, 3)
    assert read_image(tmp_path / "a.jpg", 2).shape == (37, 23, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_files_that_are_cut_off_are_noticed(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    said = image_size(path, thorough=False)
    assert isinstance(said, str)
    assert said.startswith("cannot be decoded (")
    with pytest.raises(InputError, match="a\\..*cannot be decoded") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_what_follows_the_end_of_a_jpeg_does_not_matter(tmp_path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue() + b"padding")
    assert image_size(tmp_path / "a.jpg", thorough=False) == (37, 23)


def test_broken_exif_does_not_matter(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (23, 37, 3)
    assert image_size(tmp_path / "a.jpg", thorough=False) == (37, 23)


@pytest.mark.parametrize(
    ("contents", "said"),
    [(None, "is missing"), (b"", "no image format"), (b"GIF89a", "cannot be decoded"), (b"\xff\xd8\xff", "cannot be")],
)
def test_no_images(tmp_path: Path, contents: bytes | None, said: str) -> None:
    path = tmp_path / "a.jpg"
    if contents is not None:
        path.write_bytes(contents)
    assert said in str(image_size(path, thorough=False))
    with pytest.raises(InputError, match=f"{path}: .*{said}"):
        read_image(path)


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    assert image_size(tmp_path, thorough=False) == "cannot be read (Is a directory)"


@pytest.mark.parametrize("thorough", [True, False])
def test_floats_are_refused(tmp_path: Path, thorough: bool) -> None:
    """Values from 0 to 1 all became 0."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.linspace(0, 1, 23 * 37, dtype=np.float32).reshape(23, 37)).save(path)
    said = "cannot be decoded (its values are floats, and nobody knows which of them is white: save it with 8 bits)"
    assert image_size(path, thorough=thorough) == said
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path}: {said}"
