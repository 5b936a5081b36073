"""What is detected on: image files, the images of a directory, the frames of a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lgd.data.images import IMAGE_SUFFIXES, Pixels, read_image
from lgd.errors import InputError
from lgd.files import walk

__all__ = ["VIDEO_SUFFIXES", "Frame", "UnreadableError", "find_inputs", "frames"]

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


class UnreadableError(InputError):
    """An image or a video cannot be decoded. No other error is one: others may be left out for this one alone."""


class Frame(NamedTuple):
    """An image, or a frame of a video."""

    path: Path
    """Path of the image or video file."""
    pixels: Pixels
    """(H, W, 3) uint8, BGR."""
    frame: int | None = None
    """Its number in the video, from 0; None for an image."""


def find_inputs(paths: Sequence[Path]) -> list[Path]:
    """Image and video files: those that are named, and those in the directories that are named and below them, sorted.

    Raises InputError, one line, for what does not exist, a file that is neither, a directory without any, and for a
    video where the package that reads it is missing.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(x for x in _files(path) if x.name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)))
            if not inside:
                raise InputError(f"{path}: no image or video in this directory")
            found |= dict.fromkeys(inside)
        elif not path.exists():
            raise InputError(f"{path}: does not exist")
        elif path.name.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)):
            found[path] = None
        else:
            raise InputError(f"{path}: neither an image nor a video, by its ending")
    videos = [x for x in found if is_video(x)]
    if videos:
        _video_package(videos[0])
    return list(found)


def is_video(path: Path) -> bool:
    return path.name.lower().endswith(VIDEO_SUFFIXES)


def frames(path: Path, every: int) -> Iterator[Frame]:
    """The image of a file, or each ``every``-th frame of a video, from the first on.

    Raises UnreadableError, one line, where the file cannot be decoded; for a video that may be after some frames.
    """
    try:
        if is_video(path):
            yield from _video_frames(path, every)
        else:
            yield Frame(path, read_image(path))
    except InputError as error:
        raise UnreadableError(str(error)) from None


def _files(directory: Path) -> Iterator[Path]:
    for folder, names in walk(directory):
        yield from (Path(folder) / name for name in names)


def _video_package(video: Path) -> Any:
    """PyAV. Raises InputError, one line, where it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError(f"{video}: the package av is missing: pip install -e '.[video]'") from None
    return av


def _video_frames(path: Path, every: int) -> Iterator[Frame]:
    av = _video_package(path)
    number = -1
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: has no video stream")
            container.streams.video[0].thread_type = "AUTO"
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    # The rotation is in degrees, counterclockwise.
                    turned = np.rot90(frame.to_ndarray(format="bgr24"), frame.rotation // 90)
                    yield Frame(path, np.ascontiguousarray(turned), number)
    except (av.error.FFmpegError, OSError) as error:
        after = f" after frame {number}" if number >= 0 else ""
        raise InputError(f"{path}: cannot be decoded{after} ({error.strerror or error})") from None
    if number < 0:
        raise InputError(f"{path}: has no frame")
