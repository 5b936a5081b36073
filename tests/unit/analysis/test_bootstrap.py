"""AP from matches, against pycocotools; the bootstrap's coverage and its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from analysis.stats.bootstrap import average_precision, difference_over_images, match
from lgd.logs import quiet_libraries

IMAGES, CLASSES = 24, 3


def _truth(seed: int = 0) -> dict[str, Any]:
    """Images with up to five objects of three classes, some crowds, one image empty."""
    draw = np.random.default_rng(seed)
    boxes: list[dict[str, Any]] = []
    for image in range(1, IMAGES):
        for _ in range(draw.integers(1, 6)):
            x, y, w, h = [*draw.uniform(0, 60, 2), *draw.uniform(5, 40, 2)]
            boxes.append(
                {
                    "id": len(boxes) + 1, "image_id": image, "category_id": int(draw.integers(1, CLASSES + 1)),
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(draw.random() < 0.1),
                }
            )  # fmt: skip
    return {
        "images": [{"id": i} for i in range(1, IMAGES + 1)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)],
        "annotations": boxes,
    }


def _detections(truth: dict[str, Any], noise: float, seed: int = 1) -> list[dict[str, Any]]:
    """Most objects found, ``noise`` pixels off; false ones beside them; scores of one decimal, so many are equal."""
    draw = np.random.default_rng(seed)
    found = []
    for x in truth["annotations"]:
        for _ in range(draw.integers(0, 3)):
            box = (np.asarray(x["bbox"]) + draw.normal(0, noise, 4)).clip(0.5)
            score = round(float(draw.uniform()), 1)
            category = x["category_id"] if draw.random() < 0.8 else int(draw.integers(1, CLASSES + 1))
            found.append({"image_id": x["image_id"], "category_id": category, "bbox": box.tolist(), "score": score})
    return found


def _reference(truth: dict[str, Any], detections: list[dict[str, Any]]) -> float:
    """pycocotools' own AP, percent."""
    with quiet_libraries():
        objects = COCO()
        objects.dataset = truth
        objects.createIndex()
        scoring = COCOeval(objects, objects.loadRes(detections), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return 100 * float(scoring.stats[0])


@pytest.mark.parametrize("noise", [0.5, 3.0, 12.0])
def test_with_every_image_once_it_is_pycocotools_ap(noise: float) -> None:
    truth = _truth()
    detections = _detections(truth, noise)
    found = average_precision(match(truth, detections), np.ones((1, IMAGES)))
    assert found[0] == pytest.approx(_reference(truth, detections), abs=1e-9)
    assert found[0] > 0


def test_a_weighted_image_is_an_image_that_many_times() -> None:
    """Copies of images under new ids, scored by pycocotools."""
    truth = _truth()
    detections = _detections(truth, 3.0)
    weights = np.random.default_rng(5).integers(0, 4, IMAGES)
    copied: dict[str, Any] = {"images": [], "categories": truth["categories"], "annotations": []}
    found = []
    for image, times in enumerate(weights, 1):
        for _ in range(times):
            new = len(copied["images"]) + 1
            copied["images"].append({"id": new})
            for x in (x for x in truth["annotations"] if x["image_id"] == image):
                copied["annotations"].append({**x, "id": len(copied["annotations"]) + 1, "image_id": new})
            found += [{**x, "image_id": new} for x in detections if x["image_id"] == image]
    weighted = average_precision(match(truth, detections), weights[None].astype(float))[0]
    # Detections of equal score, which pycocotools orders by image, come in another order among the copies.
    assert weighted == pytest.approx(_reference(copied, found), abs=1.0)
    distinct = [{**x, "score": x["score"] + 1e-6 * i} for i, x in enumerate(detections)]
    ranked = {(x["image_id"], *x["bbox"]): x["score"] for x in distinct}
    origin = np.repeat(np.arange(1, IMAGES + 1), weights)
    exact = [{**x, "score": ranked[(int(origin[x["image_id"] - 1]), *x["bbox"])]} for x in found]
    weighted = average_precision(match(truth, distinct), weights[None].astype(float))[0]
    assert weighted == pytest.approx(_reference(copied, exact), abs=1e-6)


def test_intervals_tell_a_better_detector_from_an_equal_one() -> None:
    truth = _truth()
    good, bad, other = (match(truth, _detections(truth, x, seed)) for x, seed in ((0.5, 1), (8.0, 2), (0.5, 3)))
    low, high = difference_over_images([(good, bad)], resamples=200)
    ones = np.ones((1, IMAGES))
    observed = (average_precision(good, ones) - average_precision(bad, ones))[0]
    assert 0 < low < observed < high
    low, high = difference_over_images([(good, other)], resamples=200)
    assert low < 0 < high
    assert difference_over_images([(good, good), (bad, bad)], resamples=20) == (0.0, 0.0)
    assert difference_over_images([(good, bad)], resamples=50) == difference_over_images([(good, bad)], resamples=50)


def test_no_detection_at_all_is_an_ap_of_zero() -> None:
    truth = _truth()
    assert average_precision(match(truth, []), np.ones((2, IMAGES))).tolist() == [0.0, 0.0]


def test_other_images_are_refused() -> None:
    truth = _truth()
    fewer = {**truth, "images": truth["images"][:-1]}
    with pytest.raises(ValueError, match="same images"):
        difference_over_images([(match(truth, []), match(fewer, []))])


@pytest.mark.slow
def test_as_many_images_as_bccd_and_more_take_seconds() -> None:
    """500 images: memory stays small because resamples are scored in chunks."""
    truth = _truth()
    truth["images"] = [{"id": i} for i in range(1, 501)]
    truth["annotations"] = [
        {**x, "id": i * 1000 + x["id"], "image_id": (x["image_id"] + 23 * i - 1) % 500 + 1}
        for i in range(20)
        for x in truth["annotations"]
    ]
    pair = match(truth, _detections(truth, 2.0)), match(truth, _detections(truth, 3.0))
    low, high = difference_over_images([pair], resamples=1000)
    assert low < high
