"""One split's images and annotations: what cannot be used is dropped, what can be fixed is fixed; all is reported."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from lgd.data.annotation_values import clip_box, is_id, is_number, usable_segmentation
from lgd.data.box_format import BoxFormat
from lgd.data.image_sizes import DARK, ImageSizes
from lgd.data.layout import Outcome, Problem, RawSplit, SplitCounts
from lgd.storage.object_path import file_size

__all__ = ["ValidatedSplit", "first_dropped", "validate_split"]


class ValidatedSplit(NamedTuple):
    """A split that can be trained on."""

    contents: dict[str, Any]
    """Of a COCO file."""
    counts: SplitCounts
    image_sizes: list[tuple[str, int]]
    """Name and bytes of each image file."""
    dropped: str
    """What was dropped, in words."""
    first: str
    """Where the first of them was, and why."""
    unchanged: bool
    """The split was read from a COCO file that can be used as it is."""
    doubt: str
    """What is to be asked about all boxes together (lgd/data/box_format.py); "" for nothing."""


def validate_split(raw: RawSplit, problems: list[Problem] | None) -> ValidatedSplit:
    """problems: is filled where it is not None; then every image is decoded too, which takes longer."""
    return _SplitValidator(raw, problems).run()


def first_dropped(raw: RawSplit) -> str:
    """Where a reader dropped something first, and why; "" where it read all."""
    return next((x.short for x in raw.problems if x.outcome == "dropped"), "")


class _Entry(NamedTuple):
    """An entry of one of the file's lists."""

    kind: str
    """``image`` or ``annotation``."""
    position: int
    value: Any


class _Fault(NamedTuple):
    """Why an entry cannot be used."""

    kind: str
    """Of the problem."""
    what: str


class _SplitValidator:
    """Goes over one split's entries; ``changed`` where the file cannot be read as it is."""

    def __init__(self, raw: RawSplit, problems: list[Problem] | None) -> None:
        self.raw, self.problems = raw, problems
        if problems is not None:
            problems += raw.problems
        self.dropped = Counter(x.kind for x in raw.problems if x.outcome == "dropped")
        self.first = first_dropped(raw)
        self.changed = not (raw.is_coco and raw.is_whole)
        self.images: dict[int, dict[str, Any]] = {}
        self.dropped_images: set[int] = set()
        self.first_of_file: dict[str, int] = {}
        self.same_file: dict[int, int] = {}
        areas = (x.get("area", 0) for x in raw.annotations if isinstance(x, dict))
        self.has_areas = any(is_number(x) and x > 0 for x in areas)
        self.image_sizes: list[tuple[str, int]] = []
        self.sizes = ImageSizes(raw, thorough=problems is not None)
        self.category_ids = {number for number, _ in raw.categories}
        self.boxes = BoxFormat()

    def run(self) -> ValidatedSplit:
        for position, value in enumerate(self.raw.images):
            self.add_image(_Entry("image", position, value))
        annotations: list[dict[str, Any]] = []
        sources: list[int] = []
        for position, value in enumerate(self.raw.annotations):
            kept = self.fixed_annotation(_Entry("annotation", position, self.in_pixels(self.of_first(value))))
            if kept is not None:
                annotations.append(kept)
                sources.append(value["image_id"])
        annotations = self.without_copies(annotations, sources)
        self.renumber(annotations)
        crowds = sum(x["iscrowd"] for x in annotations)
        with_objects = {x["image_id"] for x in annotations if not x["iscrowd"]}
        doubt = self.boxes.doubt(is_coco=self.raw.is_coco)
        self.add_notes(with_objects, doubt)
        contents = {
            "images": list(self.images.values()),
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in self.raw.categories],
        }
        counts = SplitCounts(len(self.images), len(annotations) - crowds, crowds, len(self.images) - len(with_objects))
        dropped = ", ".join(f"{count} {kind}" for kind, count in sorted(self.dropped.items()))
        return ValidatedSplit(contents, counts, self.image_sizes, dropped, self.first, not self.changed, doubt)

    def location(self, entry: _Entry) -> str:
        """The position of an entry in its file, for messages."""
        if isinstance(entry.value, dict):
            if "_where" in entry.value:
                return str(entry.value["_where"])
            if is_id(entry.value.get("id")):
                return f"{self.raw.path}: {entry.kind} {entry.value['id']}"
        return f"{self.raw.path}: {entry.kind}s[{entry.position}]"

    def report(self, outcome: Outcome, kind: str, what: str, entry: _Entry) -> None:
        if outcome != "noted":
            self.changed = True
        if outcome == "dropped":
            self.dropped[kind] += 1
            self.first = self.first or Problem(outcome, kind, self.location(entry), what).short
        if self.problems is not None:
            self.problems.append(Problem(outcome, kind, self.location(entry), what))

    # ------------------------------------------------------------------------------------------------- images

    def add_image(self, entry: _Entry) -> None:
        value = entry.value
        result = self.image_fault(value)
        number = value.get("id") if isinstance(value, dict) else None
        if isinstance(result, _Fault):
            self.report("dropped", *result, entry)
            if is_id(number) and number not in self.images:
                self.dropped_images.add(number)
            return
        width, height = result
        name, number = value["file_name"], value["id"]
        if (first := self.first_of_file.setdefault(name, number)) != number:
            # Its objects would be background in the other, and the other's here.
            self.same_file[number] = first
            self.report("fixed", "same file twice", f"{name!r} is image {first}, which has its objects now", entry)
            return
        # 640.0 is equal to 640, and no number of pixels to NumPy.
        sizes = [(value.get("width"), width), (value.get("height"), height)]
        if any(given != found or type(given) is not int for given, found in sizes):
            self.changed = True
            if "width" in value or self.raw.is_coco:
                kind = "size no whole number" if all(x == y for x, y in sizes) else "no size"
                self.report("fixed", kind, f"{name!r} has {width}x{height} pixels", entry)
        self.image_sizes.append((name, file_size(self.raw.folder / name)))
        self.images[number] = {"id": number, "file_name": name, "width": width, "height": height}

    def image_fault(self, value: Any) -> _Fault | tuple[int, int]:
        """Why an image cannot be used, or the width and height of one that can."""
        if not isinstance(value, dict):
            return _Fault("broken entry", "is not an object")
        number, name = value.get("id"), value.get("file_name")
        if not is_id(number):
            return _Fault("broken entry", f"has the id {number!r}, which is not a whole number")
        if number in self.images or number in self.dropped_images or number in self.same_file:
            return _Fault("duplicate id", f"an image before it has the id {number}")
        if not isinstance(name, str) or not name:
            return _Fault("broken entry", f"has the file_name {name!r}")
        size = self.sizes.of(name)
        if isinstance(size, str):
            return _Fault("missing image" if size == "is missing" else "unreadable image", f"{name!r} {size}")
        annotated = (value.get("width"), value.get("height"))
        if any(annotated) and annotated != size:
            turned = ", turned as EXIF says" if annotated == size[::-1] else ""
            shown = f"{name!r} has {size[0]}x{size[1]} pixels{turned}"
            return _Fault("other size", f"{shown}, annotated are {annotated[0]}x{annotated[1]}")
        return size

    # -------------------------------------------------------------------------------------------- annotations

    def of_first(self, value: Any) -> Any:
        """The annotation, of the first image of its file."""
        number = value.get("image_id") if isinstance(value, dict) and self.same_file else None
        return {**value, "image_id": self.same_file[number]} if is_id(number) and number in self.same_file else value

    def without_copies(self, annotations: list[dict[str, Any]], sources: list[int]) -> list[dict[str, Any]]:
        """Those without the ones that two entries of one file both had. sources: the image that each was of."""
        if not self.same_file:
            return annotations
        first, found = dict[tuple[Any, ...], int](), []
        for position, (kept, source) in enumerate(zip(annotations, sources, strict=True)):
            if first.setdefault((kept["image_id"], kept["category_id"], *kept["bbox"]), source) == source:
                found.append(kept)
                continue
            entry = _Entry("annotation", position, kept)
            self.report("dropped", "duplicate object", "another entry of its file has it, too", entry)
        return found

    def in_pixels(self, value: Any) -> Any:
        """The annotation with its box, area and polygons in pixels."""
        image = self.images.get(value["image_id"]) if self.raw.is_normalised else None
        if image is None:
            return value
        width, height = image["width"], image["height"]
        scaled = {**value, "bbox": _times(value["bbox"], width, height)}
        if "segmentation" in value:
            scaled["segmentation"] = [_times(polygon, width, height) for polygon in value["segmentation"]]
            scaled["area"] = round(value["area"] * width * height, 3)
        return scaled

    def fixed_annotation(self, entry: _Entry) -> dict[str, Any] | None:
        """The annotation with what can be fixed, or None where it is dropped."""
        value = entry.value
        fault = self.annotation_fault(value)
        if fault:
            self.report("dropped", *fault, entry)
            return None
        image = self.images[value["image_id"]]
        size = image["width"], image["height"]
        self.boxes.add(value["bbox"], *size)
        kept = {key: value.get(key) for key in ("id", "image_id", "category_id", "bbox", "area")}
        kept["bbox"] = clip_box(value["bbox"], *size)
        if kept["bbox"] != value["bbox"]:
            self.report("fixed", "outside box", f"has the bbox {value['bbox']!r}, now {kept['bbox']!r}", entry)
        if "iscrowd" not in value:
            self.report("fixed", "no iscrowd", "now 0", entry)
        kept["iscrowd"] = int(value.get("iscrowd", 0))
        if value.get("ignore", 0) != 0:
            # Also "" and null, which detectron2 stops at.
            self.changed = True
            kept["iscrowd"] = 1 if value["ignore"] else kept["iscrowd"]
        if not is_number(kept["area"]) or kept["area"] < 0 or not (kept["area"] or self.has_areas):
            if self.raw.is_coco:
                self.report("fixed", "no area", f"has the area {kept['area']!r}, now its box's", entry)
            kept["area"] = kept["bbox"][2] * kept["bbox"][3]
        if value.get("segmentation"):
            kept["segmentation"] = usable_segmentation(value["segmentation"], *size)
            if kept["segmentation"] is not value["segmentation"]:
                self.report("fixed", "broken mask", "polygons of less than three points are left out", entry)
        if kept["iscrowd"]:
            self.report("noted", "crowd or ignored", "is not trained on, and detections in it do not count", entry)
        return kept

    def annotation_fault(self, value: Any) -> _Fault | None:
        """Why an annotation cannot be used."""
        if not isinstance(value, dict):
            return _Fault("broken entry", "is not an object")
        number, category = value.get("image_id"), value.get("category_id")
        if not is_id(number):
            return _Fault("broken entry", f"has the image_id {number!r}")
        if number in self.dropped_images:
            return _Fault("of dropped image", f"image {number} was dropped")
        if number not in self.images:
            return _Fault("unknown image", f"names the image {number}, which is not there")
        if not is_id(category) or category not in self.category_ids:
            return _Fault("unknown category", f"names the category {category!r}, which is not there")
        box, crowd, segmentation = value.get("bbox"), value.get("iscrowd", 0), value.get("segmentation")
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
            return _Fault("broken box", f"has the bbox {box!r}, which is not [x, y, width, height]")
        if box[2] <= 0 or box[3] <= 0:
            return _Fault("degenerate box", f"has the bbox {box!r}")
        width, height = self.images[number]["width"], self.images[number]["height"]
        if clip_box(box, width, height) is None:
            return _Fault("outside box", f"has the bbox {box!r}, which is not in the {width}x{height} pixels")
        if crowd not in (0, 1):
            return _Fault("broken entry", f"has the iscrowd {crowd!r}")
        if segmentation and usable_segmentation(segmentation, width, height) is None:
            return _Fault("broken mask", "its segmentation is neither polygons nor run lengths of the image")
        return None

    def renumber(self, annotations: list[dict[str, Any]]) -> None:
        """Ids that evaluation can use: whole, from 1 (pycocotools takes a match with 0 for none), each used once."""
        used: set[int] = set()
        new = max((x["id"] for x in annotations if is_id(x["id"])), default=0)
        for position, annotation in enumerate(annotations):
            number = annotation["id"]
            if is_id(number) and number > 0 and number not in used:
                used.add(number)
                continue
            new += 1
            kind = "duplicate id" if is_id(number) and number in used else "unusable id"
            self.report("fixed", kind, f"the id {number!r} is now {new}", _Entry("annotation", position, annotation))
            annotation["id"] = new

    def add_notes(self, with_objects: set[int], doubt: str) -> None:
        """Note unusual entries that stay as they are. with_objects: ids of the images that have any."""
        if self.problems is None:
            return
        for position, (number, image) in enumerate(self.images.items()):
            if number not in with_objects:
                entry = _Entry("image", position, {"id": number, "_where": f"{self.raw.path}: image {number}"})
                self.report("noted", "empty image", f"{image['file_name']!r} has no object", entry)
        if doubt:
            self.problems.append(Problem("noted", "box format", str(self.raw.path), doubt))
        if dark := [x["file_name"] for x in self.images.values() if x["file_name"] in self.sizes.dark]:
            what = (
                f"{len(dark)} of {len(self.images)} images are darker than {DARK} of 255 everywhere, such as"
                f" {dark[0]!r} (of 16 bits the upper eight are kept, which of values of 12 bits are 0 to 15)"
            )
            self.problems.append(Problem("noted", "dark images", str(self.raw.path), what))
        ids = sorted(self.category_ids)
        if ids != list(range(1, len(ids) + 1)) and not (self.raw.is_normalised and ids == list(range(len(ids)))):
            gaps = f"category ids are {len(ids)} from {ids[0]} to {ids[-1]}, labels count on from 0 in their order"
            self.problems.append(Problem("noted", "non-contiguous ids", str(self.raw.path), gaps))


def _times(values: list[float], width: int, height: int) -> list[float]:
    """x, y, x, y, ... from parts of an image's sides to pixels, to a thousandth."""
    return [round(x * (height if i % 2 else width), 3) for i, x in enumerate(values)]
