"""Writing the generated data set into the cache, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from lgd.cache import cache_root
from lgd.data.shapes.annotations import coco_annotations
from lgd.data.shapes.draw import draw
from lgd.data.shapes.processor import avx512_features, draw_in_process
from lgd.data.shapes.spec import CATEGORIES, GENERATOR_VERSION, SPLITS, ShapesSpec
from lgd.errors import InputError

# JPEG, as photographs are: a third of a PNG's bytes here and nearly twice as fast to decode.
_JPEG_QUALITY = 92

MANY_IMAGES = 2000
"""More than so many take more than half a minute to generate, and that is told."""

_log = logging.getLogger(__name__)


def write_splits(spec: ShapesSpec, directory: Path, *, wanted: Callable[[], bool] = lambda: True) -> None:
    """Draw the set into an empty directory. wanted: asked before each image; the rest is left out when it says no."""
    (directory / "annotations").mkdir()
    for split in SPLITS:
        _write_split(spec, split, directory, wanted)


def _write_split(spec: ShapesSpec, split: str, directory: Path, wanted: Callable[[], bool]) -> None:
    (directory / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(getattr(spec, split)):
        if not wanted():
            return
        image = draw(spec, split, index)
        name = f"{index:06d}.jpg"
        Image.fromarray(image.pixels).save(directory / split / name, quality=_JPEG_QUALITY, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "width": spec.size, "height": spec.size})
        annotations.extend(coco_annotations(image, index + 1, len(annotations) + 1))
    contents = {
        "info": {
            # Part of the fingerprint of the data: earlier records have it.
            "description": "LGD shapes: generated pictures of simple objects",
            "version": GENERATOR_VERSION,
            "split": split,
            "spec": asdict(spec),
        },
        "licenses": [],
        "categories": [
            {"id": number + 1, "name": name, "supercategory": group} for number, (name, group) in enumerate(CATEGORIES)
        ],
        "images": images,
        "annotations": annotations,
    }
    path = directory / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(contents, separators=(",", ":")), encoding="utf-8")


def _check_complete(spec: ShapesSpec, directory: Path) -> None:
    for split in SPLITS:
        with contextlib.suppress(FileNotFoundError):
            count = sum(entry.name.endswith(".jpg") for entry in os.scandir(directory / split))
            if count == getattr(spec, split) and (directory / f"annotations/instances_{split}.json").is_file():
                continue
        raise InputError(f"generated data is damaged in {directory / split}: delete {directory} to make it again")


def _generate(spec: ShapesSpec, target: Path) -> None:
    """Make the set beside its place and move it there; leaves nothing behind when interrupted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        aside.chmod(0o755)
        disabled = avx512_features()
        if disabled:
            draw_in_process(spec, aside, disabled)
        else:
            write_splits(spec, aside)
        try:
            aside.rename(target)
        except OSError:
            # Another process was first; its set is equal. Any other failure is a real one.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make(spec: ShapesSpec, root: Path | None = None) -> Path:
    """The directory of a generated set, made now if it is not there yet.

    root: cache directory, cache_root() when None; the set is root/data/shapes-<hash of spec and version>.
    The set is made aside and renamed at the end, so a directory of that name is always whole, also when the
    making is interrupted or two processes make it at once.

    Raises InputError when the cache cannot be written or somebody has removed files from the set.
    """
    # The second number is not in the data: sets of before it were drawn with AVX-512 where there is any.
    identity = json.dumps({"version": f"{GENERATOR_VERSION}.1", **asdict(spec)}, sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    parent = (root.absolute() if root is not None else cache_root()) / "data"
    target = parent / f"shapes-{digest}"
    if not target.is_dir():
        count = spec.train + spec.val
        # A minute or more of silence would look like a command that hangs.
        level = logging.WARNING if count > MANY_IMAGES else logging.INFO
        _log.log(level, "generating %d images of %d pixels, once, in %s ...", count, spec.size, target)
        try:
            _generate(spec, target)
        except OSError as error:
            raise InputError(f"cannot write the cache {parent} ({error.strerror}): set LGD_CACHE") from error
    _check_complete(spec, target)
    return target
