"""Data sets by name, registered with detectron2, and the loaders that read them.

``resolve("shapes", ...)`` generates the default set; ``resolve("coco-json:DIR", ...)`` reads any directory in
COCO layout.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from lgd.data.coco import CocoLayout, Counts, SplitCounts, find_coco_splits, image_files
from lgd.data.loaders import train_loader, val_loader
from lgd.data.shapes import ShapesSpec, make
from lgd.errors import InputError

__all__ = [
    "SCHEMES",
    "CocoLayout",
    "Counts",
    "DataSet",
    "ShapesSpec",
    "SplitCounts",
    "find_coco_splits",
    "register",
    "resolve",
    "train_loader",
    "val_loader",
]

SCHEMES = ("shapes", "coco-json:DIR")


@dataclass(frozen=True)
class DataSet:
    """A data set with a train and a val split.

    source: as given to resolve(). root: absolute directory. train, val: names in detectron2's catalogs.
    class_names: by contiguous label. fingerprint: hex digest of the annotation files' bytes and of the names
    and sizes of the images, independent of where the directory lies. May be pickled: the loaders register it
    again in the process where they run.
    """

    source: str
    root: Path
    train: str
    val: str
    class_names: tuple[str, ...]
    fingerprint: str
    counts: Counts
    layout: CocoLayout

    def summary(self) -> dict[str, str | int | float]:
        """The set in a few plain values, for a record of a run."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "classes": len(self.class_names),
            "train_images": self.counts.train.images,
            "train_objects": self.counts.train.objects,
            "train_mean_objects": round(self.counts.train.mean_objects, 3),
            "val_images": self.counts.val.images,
            "val_objects": self.counts.val.objects,
            "val_mean_objects": round(self.counts.val.mean_objects, 3),
        }


def resolve(source: str, *, shapes: ShapesSpec) -> DataSet:
    """Find or make the data that ``source`` names and register it with detectron2.

    source: "shapes", made as ``shapes`` says, or "coco-json:DIR", where DIR may end in "#SUFFIX" to choose
    between several sets of annotations ("coco#2017"). A relative DIR counts from the present working directory.

    Raises InputError, one line, for an unknown source and for whatever is wrong with the directory.
    """
    scheme, _, rest = source.partition(":")
    if source == "shapes":
        layout = find_coco_splits(make(shapes))
    elif scheme == "coco-json" and rest:
        layout = _coco(rest)
    else:
        raise InputError(f"unknown data {source!r}: known are {' and '.join(SCHEMES)}")
    fingerprint = _fingerprint(layout)
    root = layout.train_json.parent.parent
    # The name says what the data is *now*: files that change under a long-lived process get a new one.
    key = hashlib.sha256(f"{root}\0{layout.train_json}\0{fingerprint}".encode()).hexdigest()[:12]
    dataset = DataSet(
        source=source,
        root=root,
        train=f"lgd_{scheme}_{key}_train",
        val=f"lgd_{scheme}_{key}_val",
        class_names=layout.class_names,
        fingerprint=fingerprint,
        counts=layout.counts,
        layout=layout,
    )
    register(dataset)
    return dataset


def register(dataset: DataSet) -> None:
    """Make a data set known to detectron2 in this process; does nothing where it is known already."""
    layout = dataset.layout
    for name, json_file, images in (
        (dataset.train, layout.train_json, layout.train_images),
        (dataset.val, layout.val_json, layout.val_images),
    ):
        if name in DatasetCatalog:
            continue
        # detectron2 would find these out by reading the file; metadata must be there before that.
        known = {
            "thing_classes": list(dataset.class_names),
            "thing_dataset_id_to_contiguous_id": {n: i for i, n in enumerate(layout.category_ids)},
        }
        register_coco_instances(name, known, str(json_file), str(images))
        assert MetadataCatalog.get(name).evaluator_type == "coco"


def _coco(rest: str) -> CocoLayout:
    """A directory, or DIR#SUFFIX where there is no directory of the whole name."""
    directory, mark, suffix = rest.rpartition("#")
    if mark and not Path(rest).expanduser().is_dir():
        return find_coco_splits(directory, suffix)
    return find_coco_splits(rest)


# By path, modification time and size of the annotation files and of the image directories.
_fingerprints: dict[tuple[tuple[str, int, int], ...], str] = {}


def _fingerprint(layout: CocoLayout) -> str:
    paths = (layout.train_json, layout.train_images, layout.val_json, layout.val_images)
    stats = [(path, path.stat()) for path in paths]
    key = tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats)
    if key not in _fingerprints:
        digest = hashlib.blake2b(digest_size=16)
        for json_file, images in ((layout.train_json, layout.train_images), (layout.val_json, layout.val_images)):
            with json_file.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
            for name, size in image_files(json_file, images):
                digest.update(f"{name}\0{size}\n".encode())
        _fingerprints[key] = digest.hexdigest()
    return _fingerprints[key]
