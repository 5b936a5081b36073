"""Data sets by name: which files a source means, read and validated. Neither torch nor detectron2 is loaded for most.

Whatever its layout, a set is read as COCO files: its own where they are without fault, else those that
lgd/data/validate.py writes into the cache.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lgd.config.data_source import COCO_FILES, SCHEMES, parse_coco_files
from lgd.data.coco import coco_files, find_coco_files, find_coco_splits
from lgd.data.crowdhuman import find_crowdhuman_splits
from lgd.data.dataset import DataSet
from lgd.data.layout import CocoLayout, Problem
from lgd.data.shapes import ShapesSpec, make
from lgd.data.split import ValSplit, takes_val_from_train
from lgd.data.voc import find_voc_splits, voc_files
from lgd.data.yolo import find_yolo_splits
from lgd.errors import InputError
from lgd.storage.file_cache import image_cache
from lgd.storage.object_path import ObjectPath, data_path, refresh
from lgd.storage.outputs import is_url
from lgd.storage.store import StorageError

__all__ = ["find_dataset"]

URL_SCHEMES = ("coco-json", COCO_FILES)
"""Sources whose directories and files may be URLs."""


def find_dataset(
    source: str, *, shapes: ShapesSpec, problems: list[Problem] | None = None, split: ValSplit | None = None
) -> DataSet:
    """Find or make the data that ``source`` names; see :func:`lgd.data.catalog.resolve`, which registers it too."""
    try:
        layout = _find_layout(source, shapes, problems, split)
    except StorageError:
        raise
    except OSError as error:
        # A path that is too long, a directory that may not be read.
        raise InputError(f"data {source}: {error.filename or 'a file'}: {error.strerror or error}") from None
    # The name says what the data is *now*: files that change under a long-lived process get a new one.
    identity = f"{layout.root}\0{layout.train_json}\0{layout.fingerprint}"
    key = hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:12]
    scheme = source.partition(":")[0]
    return DataSet(
        source=source,
        root=layout.root,
        train=f"lgd_{scheme}_{key}_train",
        val=f"lgd_{scheme}_{key}_val",
        class_names=layout.class_names,
        fingerprint=layout.fingerprint,
        counts=layout.counts,
        layout=layout,
    )


def _find_layout(source: str, shapes: ShapesSpec, problems: list[Problem] | None, split: ValSplit | None) -> CocoLayout:
    scheme, _, rest = source.partition(":")
    _check_urls(source)
    if source == "shapes":
        # Before any image is made.
        takes_val_from_train("the data set shapes", True, split)
        return find_coco_splits(make(shapes), problems=problems, split=split)
    if source == "coco":
        return _coco_2017(problems, split)
    if source == "voc0712":
        return _voc_0712(problems, split)
    if scheme == "coco-json" and rest:
        return _coco(rest, problems, split)
    if scheme == COCO_FILES and rest:
        return find_coco_files(*parse_coco_files(rest), problems, split)
    directories = {"voc": find_voc_splits, "yolo": find_yolo_splits, "crowdhuman": find_crowdhuman_splits}
    if scheme in directories and rest:
        return directories[scheme](rest, problems, split)
    raise InputError(f"unknown data {source!r}: known are {', '.join(SCHEMES[:-1])} and {SCHEMES[-1]}")


def _check_urls(source: str) -> None:
    """Look anew at what lies in object storage. Raises InputError where this layout is not read from there."""
    scheme, _, rest = source.partition(":")
    urls = [x for x in rest.split(",") if is_url(x)]
    if not urls:
        return
    if scheme not in URL_SCHEMES:
        raise InputError(
            f"data {source}: of object storage {' and '.join(f'{x}:' for x in URL_SCHEMES)} are read alone"
        )
    # Before anything is fetched.
    image_cache()
    for url in urls:
        place = data_path(url.partition("#")[0] if scheme == "coco-json" else url)
        assert isinstance(place, ObjectPath)
        refresh(place)


def _coco(rest: str, problems: list[Problem] | None, split: ValSplit | None) -> CocoLayout:
    """A directory, or DIR#SUFFIX where there is no directory of the whole name."""
    directory, mark, suffix = rest.rpartition("#")
    if mark and (is_url(rest) or not Path(rest).expanduser().is_dir()):
        return find_coco_splits(directory, suffix, problems, split)
    return find_coco_splits(rest, problems=problems, split=split)


def _coco_2017(problems: list[Problem] | None, split: ValSplit | None) -> CocoLayout:
    # Not at the top: it loads torch, which no other source needs.
    from detectron2.data import MetadataCatalog

    parts = []
    for name in ("train", "val"):
        known = MetadataCatalog.get(f"coco_2017_{name}")
        parts.append((Path(known.json_file).absolute(), Path(known.image_root).absolute()))
        if not parts[-1][0].is_file():
            raise InputError(f"no MS-COCO: {parts[-1][0]} is missing; set DETECTRON2_DATASETS to what holds coco/")
    return coco_files(parts[0][0].parents[1], parts[0], parts[1], problems, split)


def _voc_0712(problems: list[Problem] | None, split: ValSplit | None) -> CocoLayout:
    # Not at the top: it loads torch, which no other source needs.
    from detectron2.data import MetadataCatalog

    names = ("voc_2007_trainval", "voc_2012_trainval", "voc_2007_test")
    known = [MetadataCatalog.get(name) for name in names]
    *train, val = ((Path(x.dirname).absolute(), str(x.split)) for x in known)
    for directory, _ in (*train, val):
        if not directory.is_dir():
            raise InputError(f"no Pascal VOC: {directory} is missing; set DETECTRON2_DATASETS to what holds VOC2007/")
    takes_val_from_train(val[0].parent, True, split)
    return voc_files(val[0].parent, train, [val], known[-1].thing_classes, problems, split)
