"""Data sets by name, registered with detectron2, and the loaders that read them.

Whatever its layout, a set is read as COCO files: its own where they are without fault, else those that
lgd/data/validate.py writes into the cache.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from lgd.config.data_source import SCHEMES
from lgd.config.experiment import Data
from lgd.data.coco import coco_files, find_coco_splits
from lgd.data.crowdhuman import PERSON, find_crowdhuman_splits
from lgd.data.loaders import check_objects, train_loader, val_loader
from lgd.data.shapes import ShapesSpec, make
from lgd.data.validate import CocoLayout, Counts, Problem, SplitCounts
from lgd.data.voc import find_voc_splits, voc_files
from lgd.errors import InputError

__all__ = [
    "SCHEMES",
    "CocoLayout",
    "Counts",
    "DataSet",
    "Problem",
    "ShapesSpec",
    "SplitCounts",
    "check_objects",
    "find_coco_splits",
    "load_dataset",
    "register",
    "resolve",
    "train_loader",
    "val_loader",
]


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

    @property
    def is_voc(self) -> bool:
        """Whether VOC's own AP is asked for."""
        return self.source.startswith("voc")

    @property
    def is_voc_2007(self) -> bool:
        """Whether it is evaluated on VOC 2007, whose AP is of eleven points."""
        return self.source == "voc0712"

    @property
    def is_people(self) -> bool:
        """One class, person, as the log-average miss rate is defined for."""
        return self.class_names == (PERSON,)

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
            "train_dropped": self.layout.dropped[0],
            "val_dropped": self.layout.dropped[1],
        }


def load_dataset(settings: Data) -> DataSet:
    """The data set that ``settings`` name, generated or looked up, registered with detectron2."""
    spec = ShapesSpec(
        train=settings.shapes_train,
        val=settings.shapes_val,
        size=settings.shapes_side,
        seed=settings.shapes_seed,
    )
    return resolve(settings.source, shapes=spec)


def resolve(source: str, *, shapes: ShapesSpec, problems: list[Problem] | None = None) -> DataSet:
    """Find or make the data that ``source`` names and register it with detectron2.

    source: "shapes", made as ``shapes`` says; "coco" and "voc0712", where detectron2 looks for COCO 2017 and Pascal VOC
    ($DETECTRON2_DATASETS, else ``datasets``; VOC trained on 2007 and 2012 trainval, evaluated on 2007 test);
    "coco-json:DIR", where DIR may end in "#SUFFIX" to choose between several sets of annotations ("coco#2017");
    "voc:DIR"; "crowdhuman:DIR". A relative DIR counts from the present working directory.
    problems: is filled with everything that was dropped, mended or is worth a note, after a closer look than training
    takes: every image is decoded.

    What cannot be used is left out, with a warning that says how much and why. Raises InputError, one line, for an
    unknown source, where nothing is left, and for whatever else is wrong with the directory.
    """
    scheme, _, rest = source.partition(":")
    if source == "shapes":
        layout = find_coco_splits(make(shapes), problems=problems)
    elif source == "coco":
        layout = _coco_2017(problems)
    elif source == "voc0712":
        layout = _voc_0712(problems)
    elif scheme == "coco-json" and rest:
        layout = _coco(rest, problems)
    elif scheme == "voc" and rest:
        layout = find_voc_splits(rest, problems)
    elif scheme == "crowdhuman" and rest:
        layout = find_crowdhuman_splits(rest, problems)
    else:
        raise InputError(f"unknown data {source!r}: known are {', '.join(SCHEMES[:-1])} and {SCHEMES[-1]}")
    # The name says what the data is *now*: files that change under a long-lived process get a new one.
    identity = f"{layout.root}\0{layout.train_json}\0{layout.fingerprint}"
    key = hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:12]
    dataset = DataSet(
        source=source,
        root=layout.root,
        train=f"lgd_{scheme}_{key}_train",
        val=f"lgd_{scheme}_{key}_val",
        class_names=layout.class_names,
        fingerprint=layout.fingerprint,
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


def _coco(rest: str, problems: list[Problem] | None) -> CocoLayout:
    """A directory, or DIR#SUFFIX where there is no directory of the whole name."""
    directory, mark, suffix = rest.rpartition("#")
    if mark and not Path(rest).expanduser().is_dir():
        return find_coco_splits(directory, suffix, problems)
    return find_coco_splits(rest, problems=problems)


def _coco_2017(problems: list[Problem] | None) -> CocoLayout:
    splits = []
    for split in ("train", "val"):
        known = MetadataCatalog.get(f"coco_2017_{split}")
        splits.append((Path(known.json_file).absolute(), Path(known.image_root).absolute()))
        if not splits[-1][0].is_file():
            raise InputError(f"no MS-COCO: {splits[-1][0]} is missing; set DETECTRON2_DATASETS to what holds coco/")
    return coco_files(splits[0][0].parents[1], splits[0], splits[1], problems)


def _voc_0712(problems: list[Problem] | None) -> CocoLayout:
    names = ("voc_2007_trainval", "voc_2012_trainval", "voc_2007_test")
    known = [MetadataCatalog.get(name) for name in names]
    *train, val = ((Path(x.dirname).absolute(), str(x.split)) for x in known)
    for directory, _ in (*train, val):
        if not directory.is_dir():
            raise InputError(f"no Pascal VOC: {directory} is missing; set DETECTRON2_DATASETS to what holds VOC2007/")
    return voc_files(val[0].parent, train, [val], known[-1].thing_classes, problems)
