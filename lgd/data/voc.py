"""Pascal VOC's layout: an XML file an image in Annotations, the splits in ImageSets/Main, the images in JPEGImages.

As detectron2 reads it: boxes in pixels counted from 1, both ends inclusive; ``difficult`` objects are trained on. In
evaluation they are ignored, as VOC's own rules say.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lgd.data.images import IMAGE_SUFFIXES
from lgd.data.layout import CocoLayout, Problem, RawSplit, read_bytes
from lgd.data.split import HINT, ValSplit, names_of_val, takes_val_from_train
from lgd.data.validate import validated_layout
from lgd.errors import InputError
from lgd.files import read_file

__all__ = ["find_voc_splits", "voc_files"]


class _SplitList(NamedTuple):
    """A directory in VOC layout and a split of it; "" for every image that has an annotation file."""

    root: Path
    split: str

    @property
    def listing(self) -> Path:
        return self.root / "ImageSets" / "Main" / f"{self.split}.txt" if self.split else self.root / "Annotations"


def find_voc_splits(
    directory: Path | str, problems: list[Problem] | None = None, split: ValSplit | None = None
) -> CocoLayout:
    """Train and val of a directory in VOC layout, with the classes that its training objects have, by name.

    Where there is a test.txt, trained on trainval (or train) and evaluated on test; else trained on train and evaluated
    on val. Where ``split`` takes val from train, that is trainval, else train, else every annotated image.
    problems, split: see :func:`lgd.data.validate.validated_layout`.

    Raises InputError, one line, when a split or everything in it is missing.
    """
    root = Path(directory).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"data directory {root} {'is not a directory' if root.exists() else 'does not exist'}")
    there = {x for x in ("train", "trainval", "val", "test") if _SplitList(root, x).listing.is_file()}
    pairs = [("trainval", "test"), ("train", "test"), ("train", "val")]
    chosen = next(((train, val) for train, val in pairs if {train, val} <= there), None)
    if takes_val_from_train(root, chosen is not None, split):
        train = next((x for x in ("trainval", "train") if x in there), "")
        return voc_files(root, [(root, train)], [], problems=problems, split=split)
    if chosen is None:
        lists = root / "ImageSets" / "Main"
        raise InputError(f"{lists} has neither trainval.txt and test.txt nor train.txt and val.txt; {HINT}")
    return voc_files(root, [(root, chosen[0])], [(root, chosen[1])], problems=problems)


def voc_files(
    root: Path,
    train: Sequence[tuple[Path, str]],
    val: Sequence[tuple[Path, str]],
    class_names: Sequence[str] = (),
    problems: list[Problem] | None = None,
    split: ValSplit | None = None,
) -> CocoLayout:
    """The same for known (directory, split) pairs under ``root``. class_names: in order; those found where empty.

    split: takes the validation images from train; val is not read then.
    """
    if split is not None:
        val = train
    parts = [[_SplitList(*x) for x in pairs] for pairs in (train, val)]
    listings = [part.listing for pairs in parts for part in pairs]
    roots = dict.fromkeys(part.root for pairs in parts for part in pairs)
    for path in [*listings, *(x / y for x in roots for y in ("Annotations", "JPEGImages"))]:
        if not path.exists():
            raise InputError(f"no VOC data in {root}: {path} does not exist")
    listed = [[(part, name) for part in pairs for name in _names(part)] for pairs in parts]
    if split is not None:
        listed = _divided(listed[0], root, split)
    images = {x: _images_by_stem(x / "JPEGImages") for x in roots}

    def read() -> tuple[RawSplit, RawSplit]:
        classes = list(class_names)
        raws = []
        for pairs, entries, evaluated in zip(parts, listed, (False, True), strict=True):
            parsed = [_AnnotationFile(part.root, name, root, images[part.root]) for part, name in entries]
            if not classes:
                classes = sorted({x["name"] for file in parsed for x in file.objects} - {""})
            raws.append(_raw_split(pairs[0].listing, root, parsed, classes, evaluated))
        return raws[0], raws[1]

    annotations = [_xml(part.root, name) for entries in listed for part, name in entries]
    files = [*listings, *(x / "JPEGImages" for x in roots), *annotations]
    return validated_layout(root, read, files, problems, split)


def _images_by_stem(folder: Path) -> dict[str, list[str]]:
    """Names of the files, for not all VOC-like data is JPEG; JPEGs first, and no others where any is an image by its
    ending: a labelling tool may have left its own files beside them, or masks."""
    found: dict[str, list[str]] = {}
    for path in folder.iterdir():
        found.setdefault(path.stem, []).append(path.name)
    for stem, names in found.items():
        images = [x for x in names if x.lower().endswith(IMAGE_SUFFIXES)]
        found[stem] = sorted(images or names, key=lambda x: (not x.lower().endswith((".jpg", ".jpeg")), x))
    return found


_Entries = list[tuple[_SplitList, str]]


def _divided(entries: _Entries, root: Path, split: ValSplit) -> list[_Entries]:
    """Train and val of one list of images."""

    def key(part: _SplitList, name: str) -> str:
        return str(part.root.relative_to(root) / name)

    chosen = names_of_val((key(*x) for x in entries), split)
    return [[x for x in entries if key(*x) not in chosen], [x for x in entries if key(*x) in chosen]]


def _xml(root: Path, name: str) -> Path:
    return root / "Annotations" / f"{name}.xml"


def _names(part: _SplitList) -> list[str]:
    """The images of a split. A line may end in a flag, as in the lists of one class."""
    if not part.split:
        return sorted(path.stem for path in part.listing.glob("*.xml"))
    try:
        lines = read_bytes(part.listing).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{part.listing}, byte {error.start}: {error.reason}") from error
    names = []
    for line in map(str.strip, lines.splitlines()):
        flagged = re.fullmatch(r"(.*\S)\s+-?[01]", line)
        # A name may itself end so.
        names.append(flagged.group(1) if flagged and not _xml(part.root, line).exists() else line)
    return list(dict.fromkeys(x for x in names if x))


class _AnnotationFile:
    """The content of one XML file. objects: unchecked values; trouble: why the file cannot be read, else empty.

    images: names of the files in JPEGImages by stem. doubt: what is said of several; else empty.
    """

    def __init__(self, root: Path, name: str, base: Path, images: dict[str, list[str]]) -> None:
        self.path = _xml(root, name)
        folder = (root / "JPEGImages").relative_to(base)
        self.files = images.get(name, [f"{name}.jpg"])
        self.image = str(folder / self.files[0])
        self.size: tuple[int | None, int | None] = (None, None)
        self.objects: list[dict[str, Any]] = []
        self.trouble = self.doubt = ""
        try:
            tree = ET.fromstring(read_file(self.path))
        except (ET.ParseError, LookupError, ValueError) as error:
            self.trouble = f"broken XML: {error}"
            return
        except OSError as error:
            self.trouble = f"cannot be read ({error.strerror})"
            return
        named = (tree.findtext("filename") or "").strip()
        if named in self.files:
            self.image = str(folder / named)
        elif len(self.files) > 1:
            self.doubt = f"names no image: {self.image} is taken, and not {', '.join(self.files[1:4])} beside it"
        width, height = (_number(tree, f"size/{side}") for side in ("width", "height"))
        self.size = (int(width) if width else None, int(height) if height else None)
        for entry in tree.iterfind("object"):
            self.objects.append(
                {
                    "name": (entry.findtext("name") or "").strip(),
                    "difficult": (entry.findtext("difficult") or "").strip() == "1",
                    "corners": [_number(entry, f"bndbox/{x}") for x in ("xmin", "ymin", "xmax", "ymax")],
                }
            )


def _number(element: ET.Element, path: str) -> float | None:
    try:
        found = float(element.findtext(path) or "")
    except ValueError:
        return None
    return found if abs(found) < 2**31 else None


def _raw_split(
    listing: Path, base: Path, files: list[_AnnotationFile], classes: list[str], evaluated: bool
) -> RawSplit:
    raw = RawSplit(listing, base, [], [], [(number, name) for number, name in enumerate(classes, 1)])
    ids = {name: number for number, name in raw.categories}
    for number, file in enumerate(files, 1):
        if file.trouble:
            raw.problems.append(Problem("dropped", "broken XML", str(file.path), file.trouble))
            continue
        if file.doubt:
            raw.problems.append(Problem("noted", "several images", str(file.path), file.doubt))
        width, height = file.size
        raw.images.append(
            {"_where": file.path, "id": number, "file_name": file.image, "width": width, "height": height}
        )
        for position, annotated in enumerate(file.objects, 1):
            raw.annotations.append(
                {
                    "_where": f"{file.path}: object {position}",
                    "id": len(raw.annotations) + 1,
                    "image_id": number,
                    "category_id": ids.get(annotated["name"], annotated["name"]),
                    "bbox": _box(annotated["corners"]),
                    "iscrowd": int(evaluated and annotated["difficult"]),
                }
            )
    return raw


def _box(corners: list[float | None]) -> list[float] | None:
    """[x, y, width, height] from 0 on. A box whose ends meet or cross has no size."""
    if None in corners:
        return None
    left, top, right, bottom = (float(x) for x in corners if x is not None)
    width = right - left + 1 if right > left else 0.0
    return [left - 1, top - 1, width, bottom - top + 1 if bottom > top else 0.0]
