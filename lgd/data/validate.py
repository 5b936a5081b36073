"""From annotation files as they are to COCO files that can be trusted, with every problem on the way.

The readers (coco.py, voc.py, crowdhuman.py) put a split into COCO's terms without judging it; :func:`layout` drops
what cannot be used, mends what can, and says where the COCO files lie that training and evaluation read. A COCO file
without fault is read where it is; for all else one is written into the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

from lgd.data.images import size_of
from lgd.data.shapes import cache_root
from lgd.errors import InputError
from lgd.files import write_text

__all__ = ["CocoLayout", "Counts", "Problem", "Raw", "SplitCounts", "layout", "read_bytes", "stamp"]

_log = logging.getLogger(__name__)

_TOLERANCE = 1.0
"""Pixels that a box may reach out of its image, as rounding and counting from 0 or 1 make it, without a word."""

_LARGEST = 2**53
"""Ids from here on are not the same in every reader of JSON."""


class SplitCounts(NamedTuple):
    """Size of a split. objects: without crowds. empty: images that show no object (crowds do not count)."""

    images: int
    objects: int
    crowds: int
    empty: int

    @property
    def mean_objects(self) -> float:
        """Objects an image, over all images of the split."""
        return self.objects / self.images


class Counts(NamedTuple):
    """Sizes of both splits."""

    train: SplitCounts
    val: SplitCounts


@dataclass(frozen=True)
class CocoLayout:
    """Where the COCO files of two splits lie and what is in them; absolute paths.

    root: directory of the data. class_names: by rising category id, the order of detectron2's contiguous labels;
    category_ids: these ids. fingerprint: hex digest of the annotation files' bytes and of the images' names and sizes,
    independent of where the directory lies. dropped: of either split, in words; empty where nothing was.
    """

    root: Path
    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    counts: Counts
    fingerprint: str
    dropped: tuple[str, str]


Outcome = Literal["dropped", "mended", "noted"]
"""What is noted changes nothing."""


class Problem(NamedTuple):
    """Something about a data set. where: file, and entry in it. outcome: what became of the entry."""

    outcome: Outcome
    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.outcome:<8}{self.kind:<20}{self.where}: {self.what}"


@dataclass
class Raw:
    """A split in COCO's terms, its entries as they were found. An entry may say in "_where" which place it has.

    path: what a message names, the COCO file itself where ``is_coco``. folder: of the images. problems: those of
    entries that could not even be put into COCO's terms.
    """

    path: Path
    folder: Path
    images: list[Any]
    annotations: list[Any]
    categories: list[tuple[int, str]]
    problems: list[Problem] = field(default_factory=list)
    is_coco: bool = False


# -------------------------------------------------------------------------------------------------- the whole


# By path, modification time and size of what was read: full COCO's files take many seconds.
_known: dict[tuple[tuple[str, int, int], ...], CocoLayout] = {}


def stamp(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """The state of files and directories, to see whether they have changed. Missing ones are left out."""
    states = []
    for path in paths:
        try:
            status = path.stat()
        except (OSError, ValueError):
            continue
        states.append((str(path), status.st_mtime_ns, status.st_size))
    return tuple(states)


def layout(
    root: Path, read: Callable[[], tuple[Raw, Raw]], files: Iterable[Path], problems: list[Problem] | None = None
) -> CocoLayout:
    """Read, clean and, where something had to change, write.

    read: makes train and val. files: what it reads, with the directories of the images; as long as none of them
    changes, this process does not read again, unless ``problems`` is there to be
    filled: then every image is decoded too.

    Raises InputError, one line, where the splits' categories differ or no image is left.
    """
    key = stamp(files)
    if problems is None and key in _known:
        return _known[key]
    train_raw, val_raw = read()
    _same_categories(train_raw, val_raw)
    train, val = _clean(train_raw, problems), _clean(val_raw, problems)
    dropped = train.dropped, val.dropped
    for raw, split, gone in ((train_raw, train, dropped[0]), (val_raw, val, dropped[1])):
        if not split.contents["images"]:
            raise InputError(f"{raw.path}: no image is left" + (f"; dropped: {gone}" if gone else ""))
        if gone and problems is None:
            _log.warning("%s: dropped %s", raw.path, gone)
    digest = hashlib.blake2b(digest_size=16)
    texts = [None if x.clean else json.dumps(x.contents, separators=(",", ":")) for x in (train, val)]
    for raw, split, text in ((train_raw, train, texts[0]), (val_raw, val, texts[1])):
        data = read_bytes(raw.path) if text is None else text.encode()
        digest.update(hashlib.blake2b(data).digest())
        for name, size in sorted(split.files):
            digest.update(f"{name}\0{size}\n".encode())
    fingerprint = digest.hexdigest()
    made = cache_root() / "data" / f"cleaned-{fingerprint[:16]}"
    paths = []
    for name, raw, text in (("train", train_raw, texts[0]), ("val", val_raw, texts[1])):
        path = raw.path if text is None else made / f"instances_{name}.json"
        if text is not None:
            try:
                write_text(path, text)
            except OSError as error:
                raise InputError(f"cannot write the cache {made} ({error.strerror}): set LGD_CACHE") from error
        paths.append(path)
    found = CocoLayout(
        root=root,
        train_json=paths[0],
        train_images=train_raw.folder,
        val_json=paths[1],
        val_images=val_raw.folder,
        class_names=tuple(name for _, name in train_raw.categories),
        category_ids=tuple(number for number, _ in train_raw.categories),
        counts=Counts(train.counts, val.counts),
        fingerprint=fingerprint,
        dropped=dropped,
    )
    _known[key] = found
    return found


def read_bytes(path: Path) -> bytes:
    """Raises InputError with one line."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _same_categories(train: Raw, val: Raw) -> None:
    ours, theirs = dict(train.categories), dict(val.categories)
    if ours == theirs:
        return
    number = min(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    raise InputError(
        f"train and val have different categories: id {number} is {ours.get(number, 'missing')!r} in"
        f" {train.path} and {theirs.get(number, 'missing')!r} in {val.path}"
    )


# ---------------------------------------------------------------------------------------------------- a split


class _Split(NamedTuple):
    """files: name and bytes of each image. dropped: in words. clean: nothing had to change."""

    contents: dict[str, Any]
    counts: SplitCounts
    files: list[tuple[str, int]]
    dropped: str
    clean: bool


def _clean(raw: Raw, problems: list[Problem] | None) -> _Split:
    return _Cleaner(raw, problems).split()


Entry = tuple[str, int, Any]
"""An entry of a list: "image" or "annotation", its position, what is there."""

Fault = tuple[str, str]
"""The kind of a problem, and what it is in words."""


class _Cleaner:
    """Goes over one split's entries; ``changed`` where the file cannot be read as it is."""

    def __init__(self, raw: Raw, problems: list[Problem] | None) -> None:
        self.raw, self.problems = raw, problems
        if problems is not None:
            problems += raw.problems
        self.dropped = Counter(x.kind for x in raw.problems)
        self.changed = not raw.is_coco
        self.images: dict[int, dict[str, Any]] = {}
        self.dropped_images: set[int] = set()
        self.files: list[tuple[str, int]] = []
        self.size = (0, 0)
        self.category_ids = {number for number, _ in raw.categories}

    def place(self, of: Entry) -> str:
        """Where an entry is, for whoever will look for it."""
        what, position, entry = of
        if isinstance(entry, dict):
            if "_where" in entry:
                return str(entry["_where"])
            if _is_id(entry.get("id")):
                return f"{self.raw.path}: {what} {entry['id']}"
        return f"{self.raw.path}: {what}s[{position}]"

    def found(self, outcome: Outcome, kind: str, said: str, of: Entry) -> None:
        if outcome != "noted":
            self.changed = True
        if outcome == "dropped":
            self.dropped[kind] += 1
        if self.problems is not None:
            self.problems.append(Problem(outcome, kind, self.place(of), said))

    def split(self) -> _Split:
        for position, entry in enumerate(self.raw.images):
            self.image(("image", position, entry))
        annotations: list[dict[str, Any]] = []
        for position, entry in enumerate(self.raw.annotations):
            kept = self.annotation(("annotation", position, entry))
            if kept is not None:
                annotations.append(kept)
        self.number(annotations)
        crowds = sum(x["iscrowd"] for x in annotations)
        filled = {x["image_id"] for x in annotations if not x["iscrowd"]}
        self.note(annotations, filled)
        contents = {
            "images": list(self.images.values()),
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in self.raw.categories],
        }
        counts = SplitCounts(len(self.images), len(annotations) - crowds, crowds, len(self.images) - len(filled))
        dropped = ", ".join(f"{count} {kind}" for kind, count in sorted(self.dropped.items()))
        return _Split(contents, counts, self.files, dropped, not self.changed)

    def image(self, of: Entry) -> None:
        entry = of[2]
        fault = self.fault_of_image(entry)
        number = entry.get("id") if isinstance(entry, dict) else None
        if fault:
            self.found("dropped", *fault, of)
            if _is_id(number) and number not in self.images:
                self.dropped_images.add(number)
            return
        width, height = self.size
        if entry.get("width") != width:
            self.changed = True
            if "width" in entry or self.raw.is_coco:
                self.found("mended", "no size", f"{entry['file_name']!r} has {width}x{height} pixels", of)
        self.files.append((entry["file_name"], (self.raw.folder / entry["file_name"]).stat().st_size))
        self.images[entry["id"]] = {"id": number, "file_name": entry["file_name"], "width": width, "height": height}

    def fault_of_image(self, entry: Any) -> Fault | None:
        """Why an image cannot be used. Keeps the size of one that can."""
        if not isinstance(entry, dict):
            return "broken entry", "is not an object"
        number, name = entry.get("id"), entry.get("file_name")
        if not _is_id(number):
            return "broken entry", f"has the id {number!r}, which is not a whole number"
        if number in self.images or number in self.dropped_images:
            return "duplicate id", f"an image before it has the id {number}"
        if not isinstance(name, str) or not name:
            return "broken entry", f"has the file_name {name!r}"
        size = size_of(self.raw.folder / name, thorough=self.problems is not None)
        if isinstance(size, str):
            return "missing image" if size == "is missing" else "unreadable image", f"{name!r} {size}"
        said = (entry.get("width"), entry.get("height"))
        if any(said) and said != size:
            turned = ", turned as EXIF says" if said == size[::-1] else ""
            shown = f"{name!r} has {size[0]}x{size[1]} pixels{turned}"
            return "other size", f"{shown}, annotated are {said[0]}x{said[1]}"
        self.size = size
        return None

    def annotation(self, of: Entry) -> dict[str, Any] | None:
        """The annotation mended, or None where it is dropped."""
        entry = of[2]
        fault = self.fault_of_annotation(entry)
        if fault:
            self.found("dropped", *fault, of)
            return None
        image = self.images[entry["image_id"]]
        size = image["width"], image["height"]
        kept = {key: entry.get(key) for key in ("id", "image_id", "category_id", "bbox", "area")}
        kept["bbox"] = _clip(entry["bbox"], *size)
        if kept["bbox"] != entry["bbox"]:
            self.found("mended", "outside box", f"has the bbox {entry['bbox']!r}, now {kept['bbox']!r}", of)
        if "iscrowd" not in entry:
            self.found("mended", "no iscrowd", "now 0", of)
        kept["iscrowd"] = int(entry.get("iscrowd", 0))
        if entry.get("ignore"):
            self.changed = True
            kept["iscrowd"] = 1
        if not _is_number(kept["area"]) or kept["area"] < 0:
            if self.raw.is_coco:
                self.found("mended", "no area", f"has the area {kept['area']!r}, now its box's", of)
            kept["area"] = kept["bbox"][2] * kept["bbox"][3]
        if entry.get("segmentation"):
            kept["segmentation"] = _segmentation(entry["segmentation"], *size)
            if kept["segmentation"] is not entry["segmentation"]:
                self.found("mended", "broken mask", "polygons of less than three points are left out", of)
        if kept["iscrowd"]:
            self.found("noted", "crowd or ignored", "is not taught, and detections in it do not count", of)
        return kept

    def fault_of_annotation(self, entry: Any) -> Fault | None:
        """Why an annotation cannot be used."""
        if not isinstance(entry, dict):
            return "broken entry", "is not an object"
        number, category = entry.get("image_id"), entry.get("category_id")
        if not _is_id(number):
            return "broken entry", f"has the image_id {number!r}"
        if number in self.dropped_images:
            return "of dropped image", f"image {number} was dropped"
        if number not in self.images:
            return "unknown image", f"names the image {number}, which is not there"
        if not _is_id(category) or category not in self.category_ids:
            return "unknown category", f"names the category {category!r}, which is not there"
        box, crowd, segmentation = entry.get("bbox"), entry.get("iscrowd", 0), entry.get("segmentation")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            return "broken box", f"has the bbox {box!r}, which is not [x, y, width, height]"
        if box[2] <= 0 or box[3] <= 0:
            return "degenerate box", f"has the bbox {box!r}"
        width, height = self.images[number]["width"], self.images[number]["height"]
        if _clip(box, width, height) is None:
            return "outside box", f"has the bbox {box!r}, which is not in the {width}x{height} pixels"
        if crowd not in (0, 1):
            return "broken entry", f"has the iscrowd {crowd!r}"
        if segmentation and _segmentation(segmentation, width, height) is None:
            return "broken mask", "its segmentation is neither polygons nor run lengths of the image"
        return None

    def number(self, annotations: list[dict[str, Any]]) -> None:
        """Ids that evaluation can go by: whole, from 1 (pycocotools takes a match with 0 for none), each used once."""
        used: set[int] = set()
        new = max((x["id"] for x in annotations if _is_id(x["id"])), default=0)
        for position, annotation in enumerate(annotations):
            number = annotation["id"]
            if _is_id(number) and number > 0 and number not in used:
                used.add(number)
                continue
            new += 1
            kind = "duplicate id" if _is_id(number) and number in used else "unusable id"
            self.found("mended", kind, f"the id {number!r} is now {new}", ("annotation", position, annotation))
            annotation["id"] = new

    def note(self, annotations: list[dict[str, Any]], filled: set[int]) -> None:
        """What changes nothing but may surprise."""
        if self.problems is None:
            return
        for position, (number, image) in enumerate(self.images.items()):
            if number not in filled:
                entry = {"id": number, "_where": f"{self.raw.path}: image {number}"}
                self.found("noted", "empty image", f"{image['file_name']!r} has no object", ("image", position, entry))
        ids = sorted(self.category_ids)
        if ids != list(range(1, len(ids) + 1)):
            gaps = f"category ids are {len(ids)} from {ids[0]} to {ids[-1]}, labels count on from 0 in their order"
            self.problems.append(Problem("noted", "non-contiguous ids", str(self.raw.path), gaps))


# ---------------------------------------------------------------------------------------------------- values


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _LARGEST


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _LARGEST  # type: ignore[arg-type]


def _clip(box: list[float], width: int, height: int) -> list[float] | None:
    """The box inside the image, the same list where it is inside already; None where nothing of it is."""
    x, y, w, h = box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return None
    if x >= -_TOLERANCE and y >= -_TOLERANCE and x + w <= width + _TOLERANCE and y + h <= height + _TOLERANCE:
        return box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, width) - left, min(y + h, height) - top]


def _segmentation(found: Any, width: int, height: int) -> Any:
    """What of it can be used: the same object, a list of fewer polygons, or None."""
    if isinstance(found, list):
        good = [x for x in found if isinstance(x, list) and all(map(_is_number, x))]
        polygons = [x for x in good if len(x) >= 6 and len(x) % 2 == 0]
        if not polygons or len(good) < len(found):
            return None
        return found if len(polygons) == len(found) else polygons
    if not isinstance(found, dict) or found.get("size") != [height, width]:
        return None
    runs = found.get("counts")
    if isinstance(runs, str):
        runs = _run_lengths(runs)
    fits = isinstance(runs, list) and all(type(x) is int and x >= 0 for x in runs) and sum(runs) == width * height
    return found if fits else None


def _run_lengths(text: str) -> list[int] | None:
    """COCO's compressed run lengths, read here first because pycocotools trusts them with its memory.

    Numbers of five bits a character, lowest first, 32 meaning that more follow and 16 in the last one a minus; from the
    fourth on each is the difference to the one two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
