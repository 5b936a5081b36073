"""COCO's AP, VOC's AP and the log-average miss rate of people, from detections and ground truth in COCO's format.

Knows nothing of models. pycocotools is the reference for COCO's AP; hotcoco gives its numbers, to the bit
(tests/unit/evaluation/test_scoring.py), in a hundredth of the time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import defaultdict
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["Scorer", "coco_ap", "log_average_miss_rate", "voc_ap"]

Scorer = Literal["auto", "pycocotools", "hotcoco"]
Truth = dict[str, Any]
Detections = list[dict[str, Any]]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FPPI = np.logspace(-2, 0, 9)
"""False positives per image at which MR^-2 is read (Dollár et al., PAMI 2012, section 3.1)."""

VOC_IOUS = tuple(x / 100 for x in range(50, 100, 5))
"""The IoUs of detectron2's PascalVOCDetectionEvaluator (T of the suffixes below; D detections, N objects)."""


def coco_ap(
    truth: Truth, detections: Detections, task: Literal["bbox", "segm"], scorer: Scorer = "auto"
) -> tuple[dict[str, float | None], list[float | None]]:
    """AP, AP50, AP75, APs, APm and APl, and the AP of each category by rising id; in percent.

    scorer: auto is hotcoco where it is installed. None where the truth has no object of that kind.
    """
    if scorer == "auto":
        scorer = "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"
    # Both libraries change their input, and hotcoco refuses other fields of unusual types, such as a numeric date.
    annotations = [_only(x, _OF_ANNOTATION) for x in truth["annotations"]]
    # Without its box, a mask's area is its own.
    found = [{k: v for k, v in x.items() if task == "bbox" or k != "bbox"} for x in detections]
    kept = {
        "images": [_only(x, _OF_IMAGE) for x in truth["images"]],
        "categories": [{"id": x["id"], "name": str(x["name"])} for x in truth["categories"]],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        if scorer == "hotcoco":
            import hotcoco

            objects = hotcoco.COCO({**kept, "annotations": annotations})
            results = objects.load_res(found) if found else hotcoco.COCO({**kept, "annotations": []})
            evaluated: Any = hotcoco.COCOeval(objects, results, task)
        else:
            objects = _index({**kept, "annotations": annotations})
            results = objects.loadRes(found) if found else _index({**kept, "annotations": []})
            evaluated = COCOeval(objects, results, task)
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    totals = {name: _percent(value) for name, value in zip(names, evaluated.stats, strict=False)}
    # (IoU thresholds, recalls, categories, areas, most detections an image); -1 where there is no object.
    precision = np.asarray(evaluated.eval["precision"])[:, :, :, 0, -1]
    return totals, [_percent(x[x > -1].mean() if (x > -1).any() else -1.0) for x in np.moveaxis(precision, 2, 0)]


_OF_IMAGE = ("id", "file_name", "width", "height")
_OF_ANNOTATION = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
"""The fields of COCO's files that scores depend on."""


def _only(entry: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: entry[name] for name in names if name in entry}


def _index(contents: Truth) -> COCO:
    coco = COCO()
    coco.dataset = contents
    coco.createIndex()
    return coco


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)


def voc_ap(truth: Truth, detections: Detections, *, eleven_points: bool) -> dict[str, float | None]:
    """Pascal VOC's AP of boxes, as detectron2's PascalVOCDetectionEvaluator has it: fields of Scores.

    ``VOC`` and ``VOC75`` above an IoU of 0.5 and 0.75, ``VOC_AP`` the mean of those above :data:`VOC_IOUS`; means over
    the classes that have objects, in percent, None without any. Difficult objects, which are crowds in ``truth``, count
    neither when they are found nor when they are not. eleven_points: VOC 2007's interpolation; since 2010 the area
    under the curve.
    """
    objects, found = _group(truth["annotations"]), _group(detections)
    values = []
    for category in sorted(x["id"] for x in truth["categories"]):
        mine = {image: boxes for (image, number), boxes in objects.items() if number == category}
        total = sum(not x["iscrowd"] for boxes in mine.values() for x in boxes)
        if not total:
            continue
        candidates = {image: boxes for (image, number), boxes in found.items() if number == category}
        marks = [_voc_marks(mine.get(image, []), boxes) for image, boxes in candidates.items()]
        scores_D = np.concatenate([np.zeros(0), *(scores for scores, _ in marks)])
        hits_TD = np.concatenate([np.zeros((len(VOC_IOUS), 0), int), *(hits for _, hits in marks)], axis=1)
        order = np.argsort(-scores_D, kind="stable")
        values.append([_area(hits_D, total, eleven_points) for hits_D in hits_TD[:, order]])
    if not values:
        return {"VOC": None, "VOC75": None, "VOC_AP": None}
    means = 100 * np.mean(values, axis=0)
    at = dict(zip(VOC_IOUS, means, strict=True))
    return {"VOC": float(at[0.5]), "VOC75": float(at[0.75]), "VOC_AP": float(means.mean())}


def _group(entries: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """By (image_id, category_id)."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"], entry["category_id"]].append(entry)
    return groups


def _voc_marks(objects: list[dict[str, Any]], detections: Detections) -> tuple[Floats, Ints]:
    """Scores (D,) of an image's detections of a class, falling, and what they are above each of VOC_IOUS (T, D): 1 for
    found, 0 for false, -1 for a difficult object's, which does not count.

    A detection belongs to the object that it overlaps most, whether or not another has found that one before.
    """
    ordered = sorted(detections, key=lambda x: -x["score"])
    scores_D = np.array([x["score"] for x in ordered], float)
    hits_TD = np.zeros((len(VOC_IOUS), len(ordered)), int)
    if objects:
        overlaps_DN = _overlaps(ordered, objects)[0]
        best_D, overlap_D = overlaps_DN.argmax(axis=1), overlaps_DN.max(axis=1)
        difficult_D = np.array([bool(x["iscrowd"]) for x in objects])[best_D]
        for hits_D, iou in zip(hits_TD, VOC_IOUS, strict=True):
            hits_D[(overlap_D > iou) & difficult_D] = -1
            matched = np.flatnonzero((overlap_D > iou) & ~difficult_D)
            hits_D[matched[np.unique(best_D[matched], return_index=True)[1]]] = 1
    return scores_D, hits_TD


def _area(hits_D: Ints, total: int, eleven_points: bool) -> float:
    """AP from what the detections are, by falling score, and the number of objects to be found."""
    hits = np.cumsum(hits_D[hits_D >= 0])
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    if eleven_points:
        # The thresholds as the devkit makes them, rounding and all.
        best = [precision[recall >= x].max(initial=0.0) for x in np.arange(0.0, 1.1, 0.1)]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def log_average_miss_rate(truth: Truth, detections: Detections) -> float | None:
    """MR^-2 of a split with one class, in percent, as CrowdHuman's toolkit computes it; None without any object.

    In the order of their scores detections take the object that they overlap most, by an IoU above 0.5, of those that
    are not taken. One without an object is left out where more than half of it lies in a region to ignore (a crowd in
    ``truth``), else it is false. The rate is the geometric mean of the share of objects that are missed, where the
    curve first reaches nine numbers of false detections an image from 0.01 to 1, or ends. Detections of one score come
    all at once, since no threshold can part them.
    """
    objects: dict[int, Detections] = defaultdict(list)
    found: dict[int, Detections] = defaultdict(list)
    for groups, entries in ((objects, truth["annotations"]), (found, detections)):
        for entry in entries:
            groups[entry["image_id"]].append(entry)
    total = sum(not x["iscrowd"] for x in truth["annotations"])
    if not total:
        return None
    marks: list[tuple[float, int]] = []
    for image, candidates in found.items():
        marks += _people_marks(objects[image], candidates)
    if not marks:
        return 100.0
    scores, hits = np.array(sorted(marks, key=lambda x: -x[0])).T
    # The last detection of each score.
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))
    missed = 1 - np.cumsum(hits)[ends] / total
    false = np.cumsum(1 - hits)[ends] / len(truth["images"])
    rates = missed[np.minimum(np.searchsorted(false, FPPI), len(false) - 1)]
    with np.errstate(divide="ignore"):
        return 100 * float(np.exp(np.log(rates).mean()))


def _people_marks(objects: list[dict[str, Any]], detections: Detections) -> list[tuple[float, int]]:
    """(score, 1 for found or 0 for false) of an image's detections; those in ignored regions left out."""
    ordered = sorted(detections, key=lambda x: -x["score"])
    people = [x for x in objects if not x["iscrowd"]]
    regions = [x for x in objects if x["iscrowd"]]
    overlaps = _overlaps(ordered, people)[0]
    inside = _overlaps(ordered, regions)[1].max(axis=1, initial=0.0)
    marks = []
    for detection, row, ignored in zip(ordered, overlaps, inside, strict=True):
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] > 0.5:
            overlaps[:, best] = 0
            marks.append((detection["score"], 1))
        elif ignored <= 0.5:
            marks.append((detection["score"], 0))
    return marks


def _overlaps(detections: Detections, objects: list[dict[str, Any]]) -> tuple[Floats, Floats]:
    """(D, N) intersection over union, and over the detection's own area; 0 for one without area."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects))), np.zeros((len(detections), len(objects)))
    ours, theirs = (np.array([x["bbox"] for x in boxes], float) for boxes in (detections, objects))
    # Over the detection's own area is what COCO does with crowds.
    union, own = (np.asarray(mask.iou(ours, theirs, [crowd] * len(theirs))) for crowd in (0, 1))
    return union, own
