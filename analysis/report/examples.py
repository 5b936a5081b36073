"""Detections to look at: ground truth, baseline and LGD side by side on a few validation images.

From the detections that runs kept, else made once from their ``student.pth`` and left beside it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask

from analysis.grid_runs import reference_of
from analysis.image_intervals import data_of
from analysis.load import Run, arm_of
from lgd.data.images import read_image
from lgd.errors import InputError
from lgd.files import read_file, write_text
from lgd.results.detections import STUDENTS, is_detection, load_detections

CACHE = "examples.json"

REMEDY = "remove it, and it is made again"

IMAGES = 3

WIDTH = 360
"""Pixels of a drawn image."""

EDGE = 4
"""Pixels that a drawn box may be outside: so far that its line is not seen."""

HIT = 0.5
"""IoU from which on a detection of the right class is a hit, the best first, each object once."""

TRUTH, RIGHT, WRONG = "#0072B2", "#00795A", "#C24E00"
"""Colours of objects, of hits, and of detections that are none, which are dashed as well. White text reads on all."""

Boxes = Sequence[Mapping[str, Any]]
"""In COCO's format: ``bbox``, ``category_id``, and ``score`` for detections."""


@dataclass(frozen=True)
class Example:
    """One validation image, drawn for each of ``names``: PNG bytes, and how many of its objects were detected."""

    file: str
    names: tuple[str, ...]
    images: tuple[bytes, ...]
    objects: int
    detected: tuple[int | None, ...]
    """None for the ground truth."""


def examples(runs: Sequence[Run]) -> list[Example]:
    """Examples of the first pair of LGD and its reference, on images spread evenly over the split.

    The images are chosen by their place in the annotation file, not by what was detected on them, and as many
    detections are drawn of each as it has objects, those of the highest scores. An empty list where there is no such
    pair; raises InputError where the data is not to be had here, and for detections that are not of these images.
    """
    pair = _pair(runs)
    if pair is None:
        return []
    base, ours = pair
    layout = data_of(ours.record).layout
    truth = json.loads(layout.val_json.read_bytes())
    objects: dict[int, list[dict[str, Any]]] = {}
    # A region to ignore is nothing that a detector should find.
    for each in (x for x in truth["annotations"] if not x.get("iscrowd", 0)):
        objects.setdefault(each["image_id"], []).append(each)
    shown = [x for x in sorted(truth["images"], key=lambda x: x["id"]) if x["id"] in objects]
    chosen = [shown[(2 * i + 1) * len(shown) // (2 * IMAGES)] for i in range(min(IMAGES, len(shown)))]
    titles = {x["id"]: str(x["name"]) for x in truth["categories"]}
    detected = [_detections(run, [x["id"] for x in chosen], titles) for run in (base, ours)]
    names = ("ground truth", arm_of(base.record), arm_of(ours.record))
    found = []
    for image in chosen:
        boxes = [objects[image["id"]], *(x[image["id"]] for x in detected)]
        # As training reads it: turned as EXIF says, of 16 bits the upper eight.
        pixels = Image.fromarray(read_image(layout.val_images / image["file_name"])[:, :, ::-1])
        most, drawn, counts = len(boxes[0]), [_draw(pixels, boxes[0], titles, None)], list[int | None]([None])
        for made in boxes[1:]:
            best = sorted(made, key=lambda x: -x["score"])[:most]
            hits = _hits(best, boxes[0])
            drawn.append(_draw(pixels, best, titles, hits))
            counts.append(sum(hits))
        found.append(Example(str(image["file_name"]), names, tuple(drawn), most, tuple(counts)))
    return found


def _pair(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    usable = [
        run
        for run in runs
        if run.record.status == "finished"
        and ((run.directory / STUDENTS).exists() or (run.directory / "student.pth").exists())
    ]
    for run in (x for x in usable if x.record.experiment.method.name == "lgd"):
        for other in usable:
            record, theirs = run.record, other.record
            same = (record.preset, record.experiment.seed, record.experiment.data) == (
                theirs.preset, theirs.experiment.seed, theirs.experiment.data,
            )  # fmt: skip
            if same and arm_of(theirs) == reference_of(record) and other is not run:
                return other, run
    return None


def _detections(run: Run, images: Sequence[int], categories: Collection[int]) -> dict[int, Boxes]:
    """By image. Kept ones, those of an earlier call, or made now. Raises InputError for such of other categories."""
    kept = run.directory / STUDENTS
    if kept.exists():
        found = load_detections(kept)
        return _checked({image: [x for x in found if x["image_id"] == image] for image in images}, categories, kept)
    cache = run.directory / CACHE
    key = {"fingerprint": run.record.fingerprint, "finished": run.record.finished, "images": list(images)}
    earlier = _cached(cache, key)
    if earlier is not None:
        return _checked(earlier, categories, cache)
    made = _detect(run, images)
    # A read-only directory costs the time again, no more.
    with suppress(OSError):
        write_text(cache, json.dumps({"of": key, "detections": made}) + "\n")
    return made


def _cached(cache: Path, key: Mapping[str, Any]) -> dict[int, Boxes] | None:
    """What an earlier call left; None where that is nothing, or of another training or other images.

    Raises InputError for a file that does not have what it should.
    """
    try:
        earlier = json.loads(read_file(cache))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{cache}: cannot be read ({' '.join(str(error).split())}): {REMEDY}") from None
    if not isinstance(earlier, dict):
        raise InputError(f"{cache}: an object is needed: {REMEDY}")
    if earlier.get("of") != key:
        return None
    found = earlier.get("detections")
    if not isinstance(found, dict) or found.keys() != {str(x) for x in key["images"]}:
        raise InputError(f"{cache}: detections of images {', '.join(map(str, key['images']))} are needed: {REMEDY}")
    for image, boxes in found.items():
        # Under their image they do not name it again.
        if not isinstance(boxes, list) or not all(
            isinstance(x, dict) and is_detection({**x, "image_id": 0}) for x in boxes
        ):
            raise InputError(f"{cache}: image {image}: a list of bbox, category_id and score is needed: {REMEDY}")
    return {int(image): boxes for image, boxes in found.items()}


def _checked(found: dict[int, Boxes], categories: Collection[int], path: Path) -> dict[int, Boxes]:
    """The same. Raises InputError, naming ``path``, for a category that the data does not have."""
    unknown = sorted({x["category_id"] for boxes in found.values() for x in boxes} - {*categories})
    if unknown:
        raise InputError(f"{path}: has detections of category {unknown[0]}, which the data does not have")
    return found


def _detect(run: Run, images: Sequence[int]) -> dict[int, Boxes]:
    """Run the exported student on the CPU."""
    import torch

    from lgd.data.loaders import val_loader
    from lgd.detectors import build_detector
    from lgd.detectors.weight_files import reason
    from lgd.training.export import consented, load_student

    settings = run.record.experiment
    dataset = data_of(run.record)
    detector = consented(settings.detector, None, run.directory)
    student = build_detector(detector, len(dataset.class_names), settings.data).eval()
    try:
        load_student(student, run.directory / "student.pth")
    except Exception as error:  # of a file that is missing, damaged or another detector's: anything
        raise InputError(f"{run.directory / 'student.pth'}: cannot be loaded ({reason(error)})") from None
    loader: Any = val_loader(
        dataset, min_size=settings.data.test_size, max_size=settings.data.max_size, workers=0, with_labels=False
    )
    ids, found = dataset.layout.category_ids, dict[int, Boxes]()
    for i in range(len(loader.dataset)):
        sample = loader.dataset[i]
        if sample["image_id"] not in images:
            continue
        with torch.no_grad():
            instances = student([sample])[0]["instances"]
        rows = zip(
            instances.pred_boxes.tensor.tolist(),
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            strict=True,
        )
        found[sample["image_id"]] = [
            {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": ids[label], "score": score}
            for (x0, y0, x1, y1), label, score in rows
        ]
    return found


def _hits(detections: Boxes, objects: Boxes) -> list[bool]:
    """Which detections, in falling order of score, match an object of their class that none before them did."""
    left, hits = list(objects), []
    for detection in detections:
        same = [x for x in left if x["category_id"] == detection["category_id"]]
        boxes = np.array([x["bbox"] for x in same], float).reshape(-1, 4)
        overlaps = mask.iou(np.array([detection["bbox"]], float), boxes, [0] * len(same))[0] if same else []
        hits.append(max(overlaps, default=0.0) >= HIT)
        if hits[-1]:
            left.remove(same[int(np.argmax(overlaps))])
    return hits


def _draw(pixels: Image.Image, boxes: Boxes, titles: Mapping[int, str], hits: Sequence[bool] | None) -> bytes:
    """The image at WIDTH with its boxes, PNG. hits: of detections; None draws them as ground truth."""
    scale = WIDTH / pixels.width
    canvas = pixels.resize((WIDTH, round(pixels.height * scale)), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    marks: Sequence[bool | None] = [None] * len(boxes) if hits is None else hits
    for box, hit in zip(boxes, marks, strict=True):
        x, y, w, h = (value * scale for value in box["bbox"])
        # What a file says may be far outside, or upside down.
        left, right = sorted(min(max(value, -EDGE), WIDTH + EDGE) for value in (x, x + w))
        top, bottom = sorted(min(max(value, -EDGE), canvas.height + EDGE) for value in (y, y + h))
        colour, text = TRUTH, titles[box["category_id"]]
        if hit is not None:
            colour = RIGHT if hit else WRONG
            text = f"{'hit' if hit else 'wrong'} {text} {box['score']:.2f}"
        _rectangle(draw, (left, top, right, bottom), colour, dashed=hit is False)
        corner = left + 2, max(top - 13, 0)
        x0, y0, x1, y1 = draw.textbbox(corner, text, font=font)
        draw.rectangle((x0 - 2, y0 - 1, x1 + 2, y1 + 1), fill=colour)
        draw.text(corner, text, fill="white", font=font)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _rectangle(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: str, *, dashed: bool) -> None:
    if not dashed:
        draw.rectangle(box, outline=colour, width=2)
        return
    (x0, y0, x1, y1), dash = box, 6.0
    for a, b in (((x0, y0), (x1, y0)), ((x0, y1), (x1, y1)), ((x0, y0), (x0, y1)), ((x1, y0), (x1, y1))):
        length = abs(b[0] - a[0]) + abs(b[1] - a[1])
        for i in range(0, max(round(length / dash), 1), 2):
            start, end = (min(k * dash / length, 1.0) if length else 0.0 for k in (i, i + 1))
            ends = [(a[0] + (b[0] - a[0]) * k, a[1] + (b[1] - a[1]) * k) for k in (start, end)]
            draw.line(ends, fill=colour, width=2)
