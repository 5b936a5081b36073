"""Data sets in detectron2's catalogs, under names of their own."""

from __future__ import annotations

from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from lgd.config.data_source import COCO_2017, NO_COCO, portable_source
from lgd.config.experiment import Data
from lgd.config.presets import FINETUNE
from lgd.data.dataset import DataSet
from lgd.data.layout import Problem
from lgd.data.shapes import ShapesSpec
from lgd.data.sources import find_dataset
from lgd.data.split import ValSplit, val_split_of
from lgd.errors import InputError
from lgd.storage.outputs import is_url

__all__ = ["load_dataset", "register", "resolve"]


def load_dataset(settings: Data) -> DataSet:
    """The data set that ``settings`` name, generated or looked up, registered with detectron2."""
    spec = ShapesSpec(
        train=settings.shapes_train,
        val=settings.shapes_val,
        size=settings.shapes_side,
        seed=settings.shapes_seed,
    )
    try:
        return resolve(settings.source, shapes=spec, split=val_split_of(settings))
    except InputError as error:
        if settings.source == FINETUNE.data.source:
            raise InputError(f"{error}: say where your data is, such as --data coco-json:DIR (docs/data.md)") from None
        place = settings.source.partition(":")[2]
        if portable_source(settings.source) != COCO_2017 or is_url(place) or Path(place).is_dir():
            raise
        raise InputError(f"{error}; {NO_COCO}") from None


def resolve(
    source: str, *, shapes: ShapesSpec, problems: list[Problem] | None = None, split: ValSplit | None = None
) -> DataSet:
    """Find or make the data that ``source`` names and register it with detectron2.

    source: "shapes", made as ``shapes`` says; "coco" and "voc0712", where detectron2 looks for COCO 2017 and Pascal VOC
    ($DETECTRON2_DATASETS, else ``datasets``; VOC trained on 2007 and 2012 trainval, evaluated on 2007 test);
    "coco-json:DIR", where DIR may end in "#SUFFIX" to choose between several sets of annotations ("coco#2017");
    "coco-files:TRAIN.json,VAL.json,IMAGES"; "voc:DIR"; "yolo:DIR"; "crowdhuman:DIR". Relative paths count from the
    working directory.
    problems: is filled with everything that was dropped, fixed or is worth a note, after a closer look than training
    takes: every image is decoded.

    split: takes the validation images from the training images, for data that has none.

    What cannot be used is left out, with a warning that says how much and why. Raises InputError, one line, for an
    unknown source, where nothing is left, and for whatever else is wrong with the directory.
    """
    dataset = find_dataset(source, shapes=shapes, problems=problems, split=split)
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
        metadata = {
            "thing_classes": list(dataset.class_names),
            "thing_dataset_id_to_contiguous_id": {n: i for i, n in enumerate(layout.category_ids)},
        }
        register_coco_instances(name, metadata, str(json_file), str(images))
        assert MetadataCatalog.get(name).evaluator_type == "coco"
