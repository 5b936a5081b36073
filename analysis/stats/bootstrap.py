"""Paired bootstrap over images: how much of an AP difference hangs on which images were scored.

The interval over seeds says what another training would give; this one says what other validation images would. It
needs the detections of both runs, which ``evaluation.keep_detections`` leaves beside their records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lgd.logs import quiet_libraries

CHUNK = 50
"""Resamples that are scored at once: memory against speed."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Class:
    """A class's detections in falling order of score, and its objects: what an AP is counted from."""

    image: NDArray[np.int64]
    """(D): index of a detection's image."""
    hit: NDArray[np.bool_]
    """(T, D): whether it matches an object, at each IoU threshold."""
    counted: NDArray[np.bool_]
    """(T, D): whether it counts at all, at each IoU threshold."""
    objects: Floats
    """(I): the objects of each image that count."""


@dataclass(frozen=True)
class Matched:
    """Detections of one run, matched to the objects of ``images``."""

    images: tuple[int, ...]
    classes: tuple[_Class, ...]
    recalls: Floats


def match(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Matched:
    """Match boxes as pycocotools does (its own code): all areas, 100 detections an image, IoU 0.5 to 0.95.

    truth: a COCO annotation file's content.
    """
    with quiet_libraries():
        objects = COCO()
        # pycocotools writes into what it is given.
        objects.dataset = {**truth, "annotations": [dict(x) for x in truth["annotations"]]}
        objects.createIndex()
        found = COCO()
        found.dataset = {
            "images": truth["images"],
            "categories": truth["categories"],
            "annotations": [
                {**x, "id": i, "area": x["bbox"][2] * x["bbox"][3], "iscrowd": 0} for i, x in enumerate(detections, 1)
            ],
        }
        found.createIndex()
        scoring = COCOeval(objects, found, "bbox")
        scoring.params.areaRng, scoring.params.areaRngLbl = scoring.params.areaRng[:1], ["all"]
        scoring.params.maxDets = [100]
        scoring.evaluate()
    params = scoring.params
    images = [int(x) for x in params.imgIds]
    # One entry for each class and image, classes outermost.
    rows = [scoring.evalImgs[i : i + len(images)] for i in range(0, len(scoring.evalImgs), len(images))]
    classes = [_of_class(row, len(params.iouThrs)) for row in rows]
    return Matched(tuple(images), tuple(x for x in classes if x.objects.any()), np.asarray(params.recThrs))


def _of_class(row: Sequence[dict[str, Any] | None], thresholds: int) -> _Class:
    image, scores = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    hits, ignored = [np.zeros((thresholds, 0))], [np.zeros((thresholds, 0))]
    objects = np.zeros(len(row))
    for i, found in enumerate(row):
        if found is None:
            continue
        objects[i] = np.count_nonzero(np.asarray(found["gtIgnore"]) == 0)
        scores.append(np.asarray(found["dtScores"], dtype=float))
        image.append(np.full(len(scores[-1]), i))
        hits.append(np.asarray(found["dtMatches"]).reshape(thresholds, -1))
        ignored.append(np.asarray(found["dtIgnore"]).reshape(thresholds, -1))
    # The order among equal scores is pycocotools'.
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    counted = np.concatenate(ignored, axis=1)[:, order] == 0
    hit = (np.concatenate(hits, axis=1)[:, order] > 0) & counted
    return _Class(np.concatenate(image)[order], hit, counted, objects)


def average_precision(matched: Matched, weights: Floats) -> Floats:
    """AP (B,), percent, with image i counting ``weights[b, i]`` times: (B, I). NaN where no object is left."""
    found = np.concatenate([_chunk(matched, weights[i : i + CHUNK]) for i in range(0, len(weights), CHUNK)])
    return 100 * found


def _chunk(matched: Matched, weights: Floats) -> Floats:
    per_class = []
    for each in matched.classes:
        objects = weights @ each.objects
        there = objects > 0
        detections = weights[:, each.image]
        total = np.full(len(weights), 0.0)
        for hit, counted in zip(each.hit, each.counted, strict=True):
            total += _precision(detections, hit, counted, np.where(there, objects, 1.0), matched.recalls)
        per_class.append(np.where(there, total / len(each.hit), np.nan))
    if not per_class:
        return np.full(len(weights), np.nan)
    stacked = np.stack(per_class)
    known = np.count_nonzero(~np.isnan(stacked), axis=0)
    return np.where(known > 0, np.nansum(stacked, axis=0) / np.maximum(known, 1), np.nan)


def _precision(
    detections: Floats, hit: NDArray[np.bool_], counted: NDArray[np.bool_], objects: Floats, recalls: Floats
) -> Floats:
    """Mean precision (B,) over the recall thresholds; detections (B, D): how often each counts."""
    if not hit.any():
        return np.zeros(len(detections))
    # Recall rises, and so the curve is read, at hits alone.
    hits = np.cumsum(detections[:, hit], axis=1)
    detected = np.cumsum(detections * counted, axis=1)[:, hit]
    precision = hits / np.maximum(detected, np.finfo(float).tiny)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(detections))
    for b, (recall, envelope) in enumerate(zip(hits / objects[:, None], best, strict=True)):
        at = np.searchsorted(recall, recalls, side="left")
        result[b] = envelope[at[at < len(envelope)]].sum() / len(recalls)
    return result


def difference_over_images(
    pairs: Sequence[tuple[Matched, Matched]], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean AP difference, arm minus reference, percentage points.

    pairs: (arm, reference) of each seed, all on the same images; a resample draws the images anew, with replacement,
    the same for every run. Raises ValueError for runs on other images, and where there is nothing to score.
    """
    images = {x.images for pair in pairs for x in pair}
    if len(images) != 1:
        raise ValueError(f"the runs to compare must be scored on the same images, not on {len(images)} sets")
    n = len(images.pop())
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    differences = np.mean([average_precision(a, drawn) - average_precision(b, drawn) for a, b in pairs], axis=0)
    known = differences[~np.isnan(differences)]
    if not len(known):
        raise ValueError("no image has an object")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
