"""Find and check the splits of a directory in COCO layout, before anything slow begins."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lgd.errors import InputError

__all__ = ["CocoLayout", "Counts", "SplitCounts", "find_coco_splits"]

_SPLITS = ("train", "val")
# What pycocotools and detectron2 read without asking whether it is there.
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
_CATEGORY_KEYS = ("id", "name")


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
    """Where a COCO directory's splits lie; absolute paths.

    class_names: by rising category id, the order of detectron2's contiguous labels. category_ids: these ids.
    """

    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    counts: Counts


class _Split(NamedTuple):
    """What is kept of one annotation file once it has been checked."""

    file_names: tuple[str, ...]
    categories: tuple[tuple[int, str], ...]
    counts: SplitCounts


# By (path, mtime_ns, size): full COCO's file takes many seconds to parse and check.
_checked: dict[tuple[str, int, int], _Split] = {}


def find_coco_splits(directory: Path | str, suffix: str | None = None) -> CocoLayout:
    """Find train and val of a directory in COCO layout.

    Takes ``annotations/instances_{train,val}*.json`` with the images in ``<split><suffix>/``,
    ``images/<split><suffix>/``, or the same without the suffix (2017 in ``train2017``). Where there are several
    sets of annotations, ``suffix`` says which.

    Raises InputError, one line that names the path, when something is missing, broken, ambiguous or when the
    splits' categories differ.
    """
    root = Path(directory).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"data directory {root} {'is not a directory' if root.exists() else 'does not exist'}")
    chosen = _choose(root, suffix)
    splits = {split: _check(chosen[split]) for split in _SPLITS}
    folders = {split: _image_folder(root, split, chosen[split], splits[split]) for split in _SPLITS}
    _same_categories(chosen, splits)
    return CocoLayout(
        train_json=chosen["train"],
        train_images=folders["train"],
        val_json=chosen["val"],
        val_images=folders["val"],
        class_names=tuple(name for _, name in splits["train"].categories),
        category_ids=tuple(number for number, _ in splits["train"].categories),
        counts=Counts(splits["train"].counts, splits["val"].counts),
    )


def image_files(json_file: Path, folder: Path) -> list[tuple[str, int]]:
    """(name, bytes) of the images that an annotation file names, sorted. Raises InputError where one is missing."""
    found: list[tuple[str, int]] = []
    missing: list[str] = []
    names = sorted(_check(json_file).file_names)
    for name in names:
        try:
            found.append((name, (folder / name).stat().st_size))
        except OSError:
            missing.append(name)
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(names)} images that {json_file} names are not in {folder},"
            f" such as {missing[0]}"
        )
    return found


# ----------------------------------------------------------------------------------------------------- files


def _suffix(split: str, path: Path) -> str:
    return path.stem.removeprefix(f"instances_{split}")


def _choose(root: Path, suffix: str | None) -> dict[str, Path]:
    """The annotation file of each split."""
    annotations = root / "annotations"
    if not annotations.is_dir():
        raise InputError(f"no annotations in {root}: there is no directory {annotations}")
    found = {split: sorted(annotations.glob(f"instances_{split}*.json")) for split in _SPLITS}
    by_suffix = {split: {_suffix(split, path): path for path in found[split]} for split in _SPLITS}
    for split in _SPLITS:
        if not found[split]:
            raise InputError(f"no {split} annotations: {annotations} has no instances_{split}*.json")
        if suffix is not None and suffix not in by_suffix[split]:
            names = ", ".join(path.name for path in found[split])
            raise InputError(f"{annotations} has no instances_{split}{suffix}.json, only {names}")
    if suffix is not None:
        return {split: by_suffix[split][suffix] for split in _SPLITS}
    if all(len(paths) == 1 for paths in found.values()):
        return {split: paths[0] for split, paths in found.items()}
    common = sorted(set(by_suffix["train"]) & set(by_suffix["val"]))
    if len(common) == 1:
        return {split: by_suffix[split][common[0]] for split in _SPLITS}
    names = ", ".join(path.name for split in _SPLITS for path in found[split])
    if common:
        hint = f"say which by adding #SUFFIX to the directory, such as {root}#{common[-1]}"
    else:
        hint = "no train and val there have the same suffix; leave one of each"
    raise InputError(f"several annotation files in {annotations} ({names}): {hint}")


def _image_folder(root: Path, split: str, json_file: Path, contents: _Split) -> Path:
    """The first folder of the known ones that has images which the annotation file names."""
    full = _suffix(split, json_file)
    year = re.match(r"\d*", full)
    names = dict.fromkeys([split + full, split + (year.group() if year else ""), split])
    candidates = [parent / name for name in names for parent in (root, root / "images")]
    existing = [folder for folder in candidates if folder.is_dir()]
    if not existing:
        looked = ", ".join(str(folder.relative_to(root)) for folder in candidates)
        raise InputError(f"no image directory for {json_file}: looked in {root} for {looked}")
    for folder in existing:
        if any((folder / name).is_file() for name in contents.file_names):
            return folder
    looked = ", ".join(map(str, existing))
    raise InputError(
        f"none of the {len(contents.file_names)} images that {json_file} names is in {looked},"
        f" such as {contents.file_names[0]}"
    )


def _same_categories(files: dict[str, Path], splits: dict[str, _Split]) -> None:
    train, val = dict(splits["train"].categories), dict(splits["val"].categories)
    if train == val:
        return
    number = min(n for n in train.keys() | val.keys() if train.get(n) != val.get(n))
    raise InputError(
        f"train and val have different categories: id {number} is {train.get(number, 'missing')!r} in"
        f" {files['train']} and {val.get(number, 'missing')!r} in {files['val']}"
    )


# -------------------------------------------------------------------------------------------------- contents


def _check(path: Path) -> _Split:
    """Parse and check one annotation file, once for each state of it."""
    try:
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        if key not in _checked:
            _checked[key] = _Checker(path).split(json.loads(path.read_bytes()))
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON in {path}, line {error.lineno} column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"broken JSON in {path}, byte {error.start}: {error.reason}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return _checked[key]


class _Checker:
    """Checks the parts of one annotation file and names the first that detectron2 would stumble over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, what: str) -> NoReturn:
        raise InputError(f"{self.path}: {what}")

    def records(self, contents: dict[str, Any], name: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
        """The named list, each of its entries an object with these keys and an id of its own."""
        if name not in contents:
            self.fail(f"the key {name!r} is missing")
        entries = contents[name]
        if not isinstance(entries, list):
            self.fail(f"{name!r} is not a list")
        ids = set()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.fail(f"{name}[{position}] is not an object")
            for key in keys:
                if key not in entry:
                    self.fail(f"{name}[{position}] has no {key!r}")
            if not isinstance(entry["id"], int):
                self.fail(f"{name}[{position}] has the id {entry['id']!r}, which is not a whole number")
            ids.add(entry["id"])
            if len(ids) <= position:
                self.fail(f"{name} has the id {entry['id']} twice")
        return entries

    def split(self, contents: Any) -> _Split:
        """Check everything; keep the little that is needed later."""
        if not isinstance(contents, dict):
            self.fail("the top level is not an object")
        images = self.records(contents, "images", _IMAGE_KEYS)
        annotations = self.records(contents, "annotations", _ANNOTATION_KEYS)
        categories = self.records(contents, "categories", _CATEGORY_KEYS)
        if not images:
            self.fail("'images' is empty")
        if not categories:
            self.fail("'categories' is empty")
        image_ids = {image["id"] for image in images}
        category_ids = {category["id"] for category in categories}
        filled: set[int] = set()
        objects = 0
        for position, annotation in enumerate(annotations):
            if annotation["image_id"] not in image_ids:
                self.fail(f"annotations[{position}] names the image {annotation['image_id']}, which is not there")
            if annotation["category_id"] not in category_ids:
                self.fail(f"annotations[{position}] names the category {annotation['category_id']}, which is not there")
            box = annotation["bbox"]
            if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)):
                self.fail(f"annotations[{position}] has the bbox {box!r}, which is not [x, y, width, height]")
            if annotation.get("ignore"):
                self.fail(f"annotations[{position}] is marked 'ignore', which detectron2 does not know")
            if not annotation["iscrowd"]:
                filled.add(annotation["image_id"])
                objects += 1
        return _Split(
            file_names=tuple(str(image["file_name"]) for image in images),
            categories=tuple(sorted((category["id"], str(category["name"])) for category in categories)),
            counts=SplitCounts(
                images=len(images),
                objects=objects,
                crowds=len(annotations) - objects,
                empty=len(images) - len(filled),
            ),
        )
