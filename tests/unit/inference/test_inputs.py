"""What lgd predict detects on: images, directories, frames of videos."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgd.errors import InputError
from lgd.inference.inputs import find_inputs, frames

SHADES = (0, 60, 120, 180, 240)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame of each shade, its left half black."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "shades.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in SHADES:
            pixels = np.full((48, 64, 3), shade, np.uint8)
            pixels[:, :32] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode(None))
    return path


def test_images_and_directories(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "deep/c.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    found = find_inputs([tmp_path / "b.jpg", tmp_path])
    assert [x.relative_to(tmp_path).as_posix() for x in found] == ["b.jpg", "a.PNG", "deep/c.bmp"]
    (frame,) = frames(found[0], 1)
    assert (frame.path, frame.pixels.shape, frame.frame) == (found[0], (6, 8, 3), None)
    for path, words in (
        (tmp_path / "none.jpg", "none.jpg: does not exist"),
        (tmp_path / "notes.txt", "notes.txt: neither an image nor a video"),
        (tmp_path / "empty", "empty: no image or video in this directory"),
    ):
        with pytest.raises(InputError, match=words):
            find_inputs([path])


def test_linked_directories_are_looked_into_once(tmp_path: Path) -> None:
    """As joined data has them."""
    (tmp_path / "there").mkdir()
    (tmp_path / "val").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "there" / "a.png")
    (tmp_path / "val" / "mine").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "up").symlink_to(tmp_path)
    assert find_inputs([tmp_path / "val"]) == [tmp_path / "val/mine/a.png"]
    # A directory has its own name, whatever links to it come first.
    (tmp_path / "a link").symlink_to(tmp_path / "there")
    assert find_inputs([tmp_path]) == [tmp_path / "there/a.png"]


def test_frames_of_a_video(video: Path) -> None:
    assert find_inputs([video]) == [video]
    found = list(frames(video, 2))
    assert [x.frame for x in found] == [0, 2, 4]
    for frame, shade in zip(found, SHADES[::2], strict=True):
        assert frame.pixels.shape == (48, 64, 3)
        assert frame.pixels[:, 48:].mean() == pytest.approx(shade, abs=12)
        assert frame.pixels[:, :16].mean() == pytest.approx(0, abs=12)


def test_a_broken_video_is_one_line(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:200])
    with pytest.raises(InputError, match="broken.mp4: cannot be decoded"):
        list(frames(broken, 1))
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / "image.jpg")
    assert next(frames(tmp_path / "image.jpg", 1)).pixels.shape == (8, 8, 3)


def test_without_the_package_that_reads_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "v.mp4").touch()
    with pytest.raises(InputError, match=r"v.mp4: the package av is missing: pip install -e '.\[video\]'"):
        find_inputs([tmp_path])
