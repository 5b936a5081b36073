"""Bootstrap intervals over validation images, from the detections that runs kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.grid_runs import RunsBySeed
from analysis.load import Run, arm_of, score
from analysis.stats.differences import CONFIDENCE
from lgd.errors import InputError
from lgd.results.detections import STUDENTS, load_detections
from lgd.results.record import Record

if TYPE_CHECKING:
    from analysis.stats import bootstrap
    from lgd.data.dataset import DataSet

Intervals = Mapping[str, tuple[float, float]]
"""By arm, percentage points."""


class MatchedDetections:
    """The runs' detections matched to the objects of their images, each run's read and matched once."""

    def __init__(self) -> None:
        self._by_directory: dict[Path, bootstrap.Matched] = {}

    def interval(self, ours: RunsBySeed, base: RunsBySeed, resamples: int) -> tuple[float, float] | None:
        """Interval of the mean AP difference of the common seeds, percentage points.

        None unless every pair of runs kept its detections, on images that are still to be had.
        """
        pairs = [(ours[seed], base[seed]) for seed in ours if seed in base]
        if not resamples or not pairs or not all((x.directory / STUDENTS).exists() for p in pairs for x in p):
            return None
        # Here, since pycocotools and what it brings are for those who kept detections.
        from analysis.stats.bootstrap import difference_over_images

        try:
            matched = [(self._of(a), self._of(b)) for a, b in pairs]
        except InputError:
            return None
        if len({x.images for pair in matched for x in pair}) != 1 or not matched[0][0].classes:
            return None
        return difference_over_images(matched, resamples=resamples, confidence=CONFIDENCE)

    def _of(self, run: Run) -> bootstrap.Matched:
        from analysis.stats.bootstrap import match

        if run.directory not in self._by_directory:
            detections = load_detections(run.directory / STUDENTS)
            self._by_directory[run.directory] = match(annotations_of(run.record), detections)
        return self._by_directory[run.directory]


def over_images(runs: Sequence[Run], arms: Iterable[str], reference: str, resamples: int = 1000) -> Intervals:
    """By arm, the interval of its AP over the reference's, where both kept their detections."""
    seeds: dict[str, RunsBySeed] = {}
    for run in (x for x in runs if x.record.status == "finished" and score("AP")(x.record) is not None):
        seeds.setdefault(arm_of(run.record), {})[run.record.experiment.seed] = run
    matches, base = MatchedDetections(), seeds.get(reference, {})
    found = {x: matches.interval(seeds.get(x, {}), base, resamples) for x in arms if x != reference}
    return {arm: interval for arm, interval in found.items() if interval}


def data_of(record: Record) -> DataSet:
    """The data that a run was scored on. Raises InputError where it is not here, or is not what it was."""
    # Here, not at the top: only what looks at images needs torch and the data sets.
    from lgd.data.catalog import load_dataset

    found = load_dataset(record.experiment.data)
    if found.fingerprint != record.data.get("fingerprint", found.fingerprint):
        raise InputError(f"{found.root}: holds other data than {record.name} was scored on")
    return found


def annotations_of(record: Record) -> dict[str, Any]:
    """The validation split's COCO annotations of a run's data. Raises InputError as :func:`data_of`."""
    found: dict[str, Any] = json.loads(data_of(record).layout.val_json.read_bytes())
    return found
