"""A data set with two splits, and what has to be true of it before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from lgd.data.crowdhuman import PERSON
from lgd.data.layout import CLEANED, CocoLayout, Counts, dropped_note
from lgd.errors import InputError
from lgd.storage.object_path import FETCHED, AnyPath

__all__ = ["DataSet", "check_objects"]


@dataclass(frozen=True)
class DataSet:
    """A data set with a train and a val split.

    May be pickled: the loaders register it with detectron2 again in the process where they run.
    """

    source: str
    """As given to :func:`lgd.data.catalog.resolve`."""
    root: AnyPath
    """Absolute directory, or its URL."""
    train: str
    """Name in detectron2's catalogs."""
    val: str
    """The same."""
    class_names: tuple[str, ...]
    """By contiguous label."""
    fingerprint: str
    """Hex digest of the annotation files' bytes and of the images' names and sizes; the directory does not matter."""
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


def check_objects(dataset: DataSet) -> None:
    """Raise InputError, one line, when a split has no object: nothing to train on, or AP would not be defined."""
    layout, counts = dataset.layout, dataset.counts
    for i, (name, path, split, purpose) in enumerate(
        (
            ("train", layout.train_json, counts.train, "to train on"),
            ("val", layout.val_json, counts.val, "to evaluate on, and AP would not be defined"),
        )
    ):
        if split.objects == 0:
            # A file that was written into the cache tells nobody which data it is.
            is_ours = path.parent.name.startswith((CLEANED, FETCHED))
            where = f"data {dataset.source}: {name} ({layout.sources[i]})" if is_ours else str(path)
            note = dropped_note(layout.dropped[i], layout.first_dropped[i])
            raise InputError(f"{where} has no object {purpose}{note}")
