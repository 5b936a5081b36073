"""Scores from detections: hotcoco against pycocotools, VOC's AP against detectron2's, miss rates counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from pycocotools import mask as mask_util

from lgd.evaluation.scoring import coco_ap, log_average_miss_rate, voc_ap
from tests.helpers_data import write_voc

Box = tuple[float, float, float, float]
HEIGHT, WIDTH = 90, 120


def rle(box: list[float]) -> dict[str, Any]:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    x, y, w, h = (int(v) for v in box)
    pixels[y : y + h, x : x + w] = 1
    runs = mask_util.encode(np.asfortranarray(pixels))
    return {**runs, "counts": runs["counts"].decode()}


def polygon(box: list[float]) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def made(seed: int, *, classes: int, images: int, ties: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth with crowds and empty images, category ids with gaps; detections on and off it, some images with many."""
    rng = np.random.default_rng(seed)
    ids = [3 * c + 1 for c in range(classes)]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []

    def box() -> list[float]:
        x, y = rng.integers(0, WIDTH - 10), rng.integers(0, HEIGHT - 10)
        return [float(v) for v in (x, y, rng.integers(2, WIDTH - x), rng.integers(2, HEIGHT - y))]

    for image in range(1, images + 1):
        objects = 0 if rng.random() < 0.3 else int(rng.integers(0, 9))
        here: list[dict[str, Any]] = []
        for _ in range(objects):
            where, crowd = box(), int(rng.random() < 0.2)
            here.append(
                {
                    "id": len(annotations) + len(here) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(ids)),
                    "bbox": where,
                    "area": where[2] * where[3] * float(rng.uniform(0.5, 1)),
                    "iscrowd": crowd,
                    "segmentation": rle(where) if crowd else polygon(where),
                }
            )
        annotations += here
        for _ in range(int(rng.integers(0, 15)) if rng.random() < 0.8 else 130):
            if here and rng.random() < 0.6:
                like = here[rng.integers(len(here))]
                category = like["category_id"]
                moved = np.array(like["bbox"]) + (rng.integers(-3, 4, 4) if rng.random() < 0.7 else 0)
                where = moved.clip([0, 0, 1, 1]).tolist()
            else:
                category, where = int(rng.choice(ids)), box()
            detections.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": where,
                    "score": float(rng.choice([0.1, 0.2, 0.5, 0.9]) if ties else rng.random()),
                    "segmentation": rle(where),
                }
            )
    truth = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in ids],
    }
    return truth, detections


# -------------------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(12))
def test_hotcoco_equals_pycocotools(seed: int, task: Any) -> None:
    truth, detections = made(seed, classes=(1, 5, 80)[seed % 3], images=(1, 5, 20, 3)[seed % 4], ties=seed % 2 == 0)
    reference = coco_ap(truth, detections, task, "pycocotools")
    assert coco_ap(truth, detections, task, "hotcoco") == reference
    assert coco_ap(truth, detections, task) == reference
    assert len(reference[1]) == len(truth["categories"])


@pytest.mark.parametrize("seed", range(4))
def test_hotcoco_equals_pycocotools_between_the_pixels(seed: int) -> None:
    """Detectors' boxes are no whole numbers; some scores and some boxes are equal all the same."""
    truth, detections = made(seed, classes=5, images=20, ties=seed % 2 == 0)
    rng = np.random.default_rng(seed)
    for x in (*truth["annotations"], *detections):
        x["bbox"] = (np.array(x["bbox"]) + rng.choice([0.0, 1 / 3, rng.random()], 4)).tolist()
    assert coco_ap(truth, detections, "bbox", "hotcoco") == coco_ap(truth, detections, "bbox", "pycocotools")


def test_the_cases_are_what_they_are_meant_to_be() -> None:
    """Otherwise the test above would compare nothing."""
    cases = [made(seed, classes=5, images=20, ties=seed % 2 == 0) for seed in range(4)]
    for truth, detections in cases:
        assert any(x["iscrowd"] for x in truth["annotations"])
        assert len({x["image_id"] for x in truth["annotations"]}) < 20
        assert max(sum(x["image_id"] == i for x in detections) for i in range(1, 21)) > 100
        total = coco_ap(truth, detections, "bbox")[0]["AP"]
        assert total is not None
        assert 5 < total < 95
    assert len({x["score"] for x in cases[0][1]}) == 4


@pytest.mark.parametrize("scorer", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_nothing_found_and_nothing_to_find(scorer: Any, task: Any) -> None:
    truth, detections = made(0, classes=3, images=4, ties=False)
    objects = [x for x in truth["annotations"] if x["category_id"] == 1 and not x["iscrowd"]]
    assert objects
    only = {**truth, "annotations": [{**x, "area": 50.0} for x in objects]}
    totals, classes = coco_ap(only, [], task, scorer)
    assert totals == {"AP": 0, "AP50": 0, "AP75": 0, "APs": 0, "APm": None, "APl": None}
    assert classes == [0, None, None]
    bare = {**truth, "annotations": []}
    for found in ([], detections):
        totals, classes = coco_ap(bare, found, task, scorer)
        assert set(totals.values()) == {None}
        assert classes == [None] * 3


@pytest.mark.parametrize("scorer", ["pycocotools", "hotcoco"])
def test_scoring_changes_nothing_of_what_it_is_given(scorer: Any) -> None:
    case = made(3, classes=2, images=5, ties=False)
    coco_ap(*case, "segm", scorer)
    assert case == made(3, classes=2, images=5, ties=False)


# --------------------------------------------------------------------------------------------------------- VOC


@pytest.mark.parametrize("eleven_points", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_voc_ap_equals_detectron2s(tmp_path: Path, seed: int, eleven_points: bool) -> None:
    truth, detections = made(seed, classes=3, images=8, ties=False)
    for annotation in truth["annotations"]:
        annotation["bbox"] = [float(int(v)) for v in annotation["bbox"]]
    names = {x["id"]: x["name"] for x in truth["categories"]}
    by_image: dict[str, Any] = {str(x["id"]): [] for x in truth["images"]}
    for x in truth["annotations"]:
        left, top, w, h = (int(v) for v in x["bbox"])
        corners = (left + 1, top + 1, left + w, top + h)
        by_image[str(x["image_id"])].append((names[x["category_id"]], corners, bool(x["iscrowd"])))
    write_voc(tmp_path, {"test": by_image}, (WIDTH, HEIGHT))
    for path in (tmp_path / "Annotations").iterdir():
        # Theirs wants to be told.
        extra = "</name><pose>?</pose><truncated>0</truncated>"
        path.write_text(path.read_text().replace("</name>", extra))
    expected = []
    for number, name in names.items():
        mine = [x for x in detections if x["category_id"] == number]
        if not any(x["category_id"] == number and not x["iscrowd"] for x in truth["annotations"]):
            # Theirs divides by zero and takes the outcome into the mean.
            continue
        lines = [
            f"{x['image_id']} {x['score']:.17g} {x['bbox'][0] + 1} {x['bbox'][1] + 1}"
            f" {x['bbox'][0] + x['bbox'][2]} {x['bbox'][1] + x['bbox'][3]}"
            for x in mine
        ]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        files = [str(tmp_path / x) for x in ("{}.txt", "Annotations/{}.xml", "ImageSets/Main/test.txt")]
        # As their PascalVOCDetectionEvaluator calls it.
        expected.append([voc_eval(*files, name, x / 100, eleven_points)[2] for x in range(50, 100, 5)])
    found = voc_ap(truth, detections, eleven_points=eleven_points)
    means = 100 * np.mean(expected, axis=0)
    assert found == pytest.approx({"VOC": means[0], "VOC75": means[5], "VOC_AP": means.mean()}, rel=1e-9)
    assert 1 < means.mean() < means[0] < 99


def people(objects: dict[int, list[Box]], ignored: dict[int, list[Box]], images: int = 10) -> dict[str, Any]:
    annotations = [
        {"id": 0, "image_id": image, "category_id": 1, "bbox": list(box), "iscrowd": crowd}
        for crowd, boxes in ((0, objects), (1, ignored))
        for image, listed in boxes.items()
        for box in listed
    ]
    return {
        "images": [{"id": i} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }


def hit(image: int, box: Box, score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": list(box), "score": score}


A, B, FAR = (0.0, 0.0, 10.0, 20.0), (20.0, 0.0, 10.0, 20.0), (60.0, 60.0, 10.0, 20.0)


@pytest.mark.parametrize("eleven_points", [False, True])
def test_voc_by_hand(eleven_points: bool) -> None:
    def ap(truth: dict[str, Any], found: list[dict[str, Any]]) -> float | None:
        return voc_ap(truth, found, eleven_points=eleven_points)["VOC"]

    truth = people({0: [A, B]}, {})
    # An overlap of 0.8: above six of the ten thresholds, for it has to be above.
    near = (0.0, 0.0, 10.0, 16.0)
    assert voc_ap(people({0: [A]}, {}), [hit(0, near, 0.9)], eleven_points=eleven_points) == pytest.approx(
        {"VOC": 100, "VOC75": 100, "VOC_AP": 60}
    )
    assert ap(truth, []) == 0
    assert ap(truth, [hit(0, A, 0.9), hit(0, B, 0.8)]) == pytest.approx(100)
    # Recall 1/2 at precision 1, then 1 at 2/3: the one found twice is false.
    doubled = ap(truth, [hit(0, A, 0.9), hit(0, A, 0.8), hit(0, B, 0.7)])
    assert doubled == pytest.approx(100 * ((6 + 5 * 2 / 3) / 11 if eleven_points else (1 + 2 / 3) / 2))
    # What is found of a difficult object does not count.
    assert ap(people({0: [A]}, {0: [B]}), [hit(0, B, 0.9), hit(0, A, 0.8)]) == pytest.approx(100)
    assert ap(people({}, {0: [B]}), [hit(0, B, 0.9)]) is None
    # Of what is found twice only the first is, by the score; at 0.75 the second one is the first.
    far = (0.0, 0.0, 10.0, 13.0)
    found = voc_ap(people({0: [A]}, {}), [hit(0, near, 0.8), hit(0, far, 0.9)], eleven_points=eleven_points)
    assert found["VOC"] == pytest.approx(100)
    assert found["VOC75"] == pytest.approx(50)


# --------------------------------------------------------------------------------------------------- miss rate


def test_no_detections_miss_everyone() -> None:
    assert log_average_miss_rate(people({0: [A]}, {}), []) == 100


def test_perfect_detections_miss_no_one() -> None:
    truth = people({0: [A, B], 3: [A]}, {0: [FAR]})
    assert log_average_miss_rate(truth, [hit(0, A, 0.9), hit(0, B, 0.5), hit(3, A, 0.1)]) == 0
    # What lies in a region to ignore is not false, however often.
    assert (
        log_average_miss_rate(truth, [*[hit(0, FAR, 1.0)] * 50, *(hit(0, x, 0.9) for x in (A, B)), hit(3, A, 0)]) == 0
    )


def test_no_one_to_be_found() -> None:
    assert log_average_miss_rate(people({}, {0: [A]}), [hit(0, A, 0.9)]) is None
    assert log_average_miss_rate(people({}, {}), []) is None


def test_half_missed_without_a_false_one() -> None:
    assert log_average_miss_rate(people({0: [A, B]}, {}), [hit(0, A, 0.9)]) == pytest.approx(50)


def test_the_curve_by_hand() -> None:
    """Ten images, four people. Found, false (0.1 an image), found, false (0.2), found."""
    truth = people({0: [A, B], 1: [A, B]}, {})
    found = [hit(0, A, 0.9), hit(2, A, 0.8), hit(0, B, 0.7), hit(3, A, 0.6), hit(1, A, 0.5)]
    # Up to 0.1 (five of the nine points) the curve first gets there with 3/4 missed; 0.178 is reached at 0.2 with 2/4;
    # beyond, the curve has ended with 1/4.
    expected = (0.75**5 * 0.5 * 0.25**3) ** (1 / 9)
    assert log_average_miss_rate(truth, found) == pytest.approx(100 * expected)


def test_equal_scores_come_at_once_in_any_order() -> None:
    truth = people({0: [A, B], 1: [A, B]}, {})
    tied = [hit(0, A, 0.5), hit(2, A, 0.5), hit(0, B, 0.5), hit(3, FAR, 0.5)]
    # There is one threshold: half found at 0.2 false an image, which is also where the curve ends.
    for order in (tied, tied[::-1], [tied[1], tied[0], tied[3], tied[2]]):
        assert log_average_miss_rate(truth, order) == pytest.approx(50)


def test_an_object_is_found_once() -> None:
    truth = people({0: [A]}, {}, images=1)
    twice = log_average_miss_rate(truth, [hit(0, A, 0.9), hit(0, A, 0.8)])
    assert twice == 0
    assert log_average_miss_rate(people({0: [A], 1: [A]}, {}, 2), [hit(0, A, 0.9), hit(0, A, 0.8)]) == pytest.approx(50)


def test_an_overlap_of_just_a_half_is_none() -> None:
    truth = people({0: [A]}, {})
    half, more = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 10.5)
    assert log_average_miss_rate(truth, [hit(0, half, 0.9)]) == 100
    assert log_average_miss_rate(truth, [hit(0, more, 0.9)]) == 0


def test_regions_to_ignore_go_by_the_detections_own_area() -> None:
    """A small detection in a large region has a small IoU with it, and is left out all the same; not one half out."""
    truth = people({0: [A]}, {1: [(0.0, 0.0, 100.0, 100.0)]}, images=2)
    inside, half_out = (50.0, 50.0, 10.0, 10.0), (95.0, 0.0, 10.0, 10.0)
    assert log_average_miss_rate(truth, [hit(1, inside, 0.9), hit(0, A, 0.8)]) == 0
    # A false one at 0.5 an image, with all missed; the last point of the nine comes at the curve's end.
    assert log_average_miss_rate(truth, [hit(1, half_out, 0.9)]) == 100


def test_people_come_before_regions() -> None:
    """An object inside a region to ignore is found, not left out."""
    truth = people({0: [A]}, {0: [(0.0, 0.0, 100.0, 100.0)]})
    assert log_average_miss_rate(truth, [hit(0, A, 0.9)]) == 0


@pytest.mark.parametrize("scorer", ["hotcoco", "pycocotools"])
def test_fields_that_scores_do_not_depend_on_may_be_anything(scorer: Any) -> None:
    """As CVAT writes them, and others."""
    truth, detections = made(0, classes=2, images=4, ties=False)
    expected = coco_ap(truth, detections, "bbox", scorer)
    odd = {
        "info": 3,
        "images": [
            {**x, "date_captured": 0, "license": "", "coco_url": 7, "flickr_url": None} for x in truth["images"]
        ],
        "categories": [{**x, "name": x["id"], "supercategory": 1} for x in truth["categories"]],
        "annotations": [
            {**x, "attributes": {"occluded": False}, "iscrowd": bool(x["iscrowd"])} for x in truth["annotations"]
        ],
    }
    assert coco_ap(odd, detections, "bbox", scorer) == expected
