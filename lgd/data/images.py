"""Reading image files: what they say of themselves, and their pixels.

Pixels are those that detectron2's ``read_image`` gives, bit for bit, from JPEGs in less time; 16-bit grayscale, which
it shows white, keeps its upper eight bits here.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from lgd.errors import InputError
from lgd.files import open_file, read_file
from lgd.storage.object_path import AnyPath, ObjectPath, file_size
from lgd.storage.outputs import is_url
from lgd.storage.store import StorageError

__all__ = ["IMAGE_SUFFIXES", "Pixels", "image_path", "image_size", "read_image"]

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".dng", ".heic", ".jp2", ".jpeg", ".jpg", ".mpo", ".pfm", ".png", ".tif", ".tiff", ".webp"
)  # fmt: skip
"""Suffixes of the files in a directory that are taken for images, as Ultralytics lists them."""

Pixels = npt.NDArray[np.uint8]

_FILE_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of a file that is whole."""

_FLOATS = "its values are floats, and nobody knows which of them is white: save it with 8 bits"

_ROTATED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


def read_image(path: str | AnyPath, shrink: int = 1) -> Pixels:
    """(H, W, 3) uint8, BGR, contiguous, turned as EXIF says.

    path: a file, or a URL. shrink: 2, 4 or 8 decodes a JPEG at that part of its size, rounded up, in a part of the
    time. Whatever is not an ordinary upright JPEG comes in full size all the same.

    Raises InputError, one line that names the file, where it is missing, broken or cut off, or its store does not
    answer.
    """
    try:
        data = _content(image_path(path))
        with Image.open(io.BytesIO(data)) as image:
            plain = image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1
            if not plain:
                return _pixels(image)
            width, height = image.size
            try:
                return cast(
                    Pixels,
                    simplejpeg.decode_jpeg(
                        data, "BGR", min_height=-(-height // shrink), min_width=-(-width // shrink), min_factor=shrink
                    ),
                )
            except ValueError:
                # It takes every oddity for an error; Pillow knows which ones do not matter.
                return _pixels(image)
    except InputError:
        raise
    except Exception as error:  # Pillow's plugins raise anything at a broken file
        raise InputError(f"{path}: {_reason(error)}") from None


def _content(path: AnyPath) -> bytes:
    return read_file(path) if isinstance(path, Path) else path.read_bytes()


def _opened(path: AnyPath) -> BinaryIO:
    return open_file(path) if isinstance(path, Path) else path.open("rb")


def image_path(path: str | AnyPath) -> AnyPath:
    """An image of a data set, by the name that detectron2 has of it."""
    if not isinstance(path, str):
        return path
    return ObjectPath.of(path) if is_url(path) else Path(path)


def image_size(
    path: AnyPath, *, thorough: bool, decoded: Callable[[Pixels], None] = lambda _: None
) -> tuple[int, int] | str:
    """(width, height) as :func:`read_image` gives them, or in a few words why it cannot.

    From the head of the file, and its end, which is missing where it was cut off; ``thorough`` decodes all of it, and
    ``decoded`` is called with the pixels.
    """
    try:
        with _opened(path) as file, Image.open(file) as image:
            _refuse_floats(image)
            width, height = image.size
            # Of a TIFF, Pillow says the size that it has when turned.
            if _orientation(image) in _ROTATED and image.format != "TIFF":
                width, height = height, width
            ending = _FILE_ENDS.get(image.format or "", b"")
            file.seek(max(0, file_size(path) - len(ending)))
            whole = file.read() == ending
        if thorough or (ending and not whole):
            decoded(read_image(path))
    except StorageError:
        # Not the image's fault: it is not to be left out.
        raise
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    except Exception as error:  # see read_image
        return _reason(error)
    return width, height


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        # Pillow would decode all of it to look behind the pixels, and what that raises must not be lost here.
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's EXIF reader raises anything at broken tags; the pixels may be well
        return 1
    return orientation if orientation in range(1, 9) else 1


def _refuse_floats(image: Image.Image) -> None:
    # Pillow would cut off what follows the point: values from 0 to 1 would all be black.
    if image.mode == "F":
        raise ValueError(_FLOATS)


def _pixels(image: Image.Image) -> Pixels:
    _refuse_floats(image)
    turned = _orientation(image) != 1
    image.load()
    if turned:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Of 16 bits Pillow would clip what is brighter than 255 to white. Of 32 bits nobody knows what is white.
        grey = np.asarray(image).astype(np.int64) >> (8 if image.mode.startswith("I;16") else 0)
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    said = " ".join(str(error).split()) or type(error).__name__
    return f"cannot be decoded ({'no image format' if 'cannot identify' in said else said})"
