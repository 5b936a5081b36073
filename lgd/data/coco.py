"""Find the splits of a directory in COCO layout and read their annotation files, before anything slow begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from lgd.data.layout import CocoLayout, Problem, RawSplit, read_bytes
from lgd.data.split import HINT, ValSplit, takes_val_from_train
from lgd.data.validate import validated_layout
from lgd.errors import InputError
from lgd.storage.object_path import AnyPath, ObjectPath, data_path
from lgd.storage.store import StorageError

__all__ = ["coco_files", "find_coco_files", "find_coco_splits", "parse_json"]

_SPLITS = ("train", "val")

ROBOFLOW_FILE = "_annotations.coco.json"
"""Name of the annotation file in each split's directory of a data set exported by Roboflow in COCO format."""


def find_coco_splits(
    directory: Path | str,
    suffix: str | None = None,
    problems: list[Problem] | None = None,
    split: ValSplit | None = None,
) -> CocoLayout:
    """Find train and val of a directory in COCO layout.

    Takes ``annotations/instances_{train,val}*.json`` with the images in ``<split><suffix>/``,
    ``images/<split><suffix>/``, or the same without the suffix (2017 in ``train2017``). Where there are several
    sets of annotations, ``suffix`` says which. Without ``annotations``, takes Roboflow's layout:
    ``train/_annotations.coco.json`` and the same in ``valid`` or ``val``, each beside its images.
    directory: may be a URL. problems, split: see :func:`lgd.data.validate.validated_layout`.

    Raises InputError, one line that names the path, when something is missing, broken, ambiguous or when the
    splits' categories differ.
    """
    root = data_path(directory)
    if not root.is_dir():
        raise InputError(f"data directory {root} {'is not a directory' if root.exists() else 'does not exist'}")
    if not (root / "annotations").is_dir() and (root / "train" / ROBOFLOW_FILE).exists():
        parts = [(path, [path.parent]) for path in _roboflow_files(root, split)]
    else:
        parts = [(path, _candidates(root, name, path)) for name, path in _choose(root, suffix, split).items()]
    return _searched_layout(root, parts, problems, split)


def find_coco_files(
    train_json: AnyPath,
    val_json: AnyPath | None,
    images: AnyPath,
    problems: list[Problem] | None = None,
    split: ValSplit | None = None,
) -> CocoLayout:
    """Two annotation files, wherever they are, and the directory of the images that they name.

    val_json: None where ``split`` takes the validation images from train.

    An image is looked for in ``images``, or in its subdirectory of the split's name (``train``, ``val`` or ``valid``,
    or the annotation file's without ``instances_``). problems, split and errors: as :func:`find_coco_splits`.
    """
    from_train = takes_val_from_train(train_json, val_json is not None, split)
    if val_json is None and not from_train:
        raise InputError(f"no validation annotations beside {train_json}: name them; {HINT}")
    named = [("train", train_json)] + ([("val", val_json)] if val_json and not from_train else [])
    for _, path in named:
        if not path.is_file():
            raise InputError(f"annotations {path} {'are a directory' if path.is_dir() else 'do not exist'}")
    if not images.is_dir():
        raise InputError(f"image directory {images} {'is not a directory' if images.exists() else 'does not exist'}")
    parts: list[tuple[AnyPath, list[AnyPath]]] = []
    for name, path in named:
        own = dict.fromkeys([path.stem.removeprefix("instances_"), name, *(["valid"] if name == "val" else [])])
        parts.append((path, [images, *(images / x for x in own)]))
    return _searched_layout(images, parts, problems, split)


def coco_files(
    root: Path,
    train: tuple[Path, Path],
    val: tuple[Path, Path],
    problems: list[Problem] | None = None,
    split: ValSplit | None = None,
) -> CocoLayout:
    """The same for known files: each split's annotation file and directory of images."""
    given = [train] if takes_val_from_train(train[0], True, split) else [train, val]
    parts: list[tuple[AnyPath, list[AnyPath]]] = [(json_file, [folder]) for json_file, folder in given]
    return _searched_layout(root, parts, problems, split)


def _searched_layout(
    root: AnyPath,
    parts: list[tuple[AnyPath, list[AnyPath]]],
    problems: list[Problem] | None,
    split: ValSplit | None,
) -> CocoLayout:
    """parts: the annotation file of train and of val, and the directories where its images may be; train's alone where
    ``split`` takes val from it."""

    def read() -> tuple[RawSplit, RawSplit | None]:
        raws = []
        for json_file, candidates in parts:
            raw = _raw_split(json_file)
            raw.folder = _image_folder(root, candidates, raw)
            raws.append(raw)
        return raws[0], raws[1] if len(raws) > 1 else None

    files = [path for json_file, candidates in parts for path in (json_file, *candidates)]
    return validated_layout(root, read, files, problems, split)


# ----------------------------------------------------------------------------------------------------- files


def _roboflow_files(root: AnyPath, split: ValSplit | None) -> list[AnyPath]:
    """Train's and val's; train's alone where ``split`` takes val from it."""
    train = root / "train" / ROBOFLOW_FILE
    val = next((x for x in (root / "valid" / ROBOFLOW_FILE, root / "val" / ROBOFLOW_FILE) if x.exists()), None)
    if takes_val_from_train(root, val is not None, split):
        return [train]
    if val is None:
        raise InputError(
            f"no val annotations: {root} has neither valid/{ROBOFLOW_FILE} nor val/{ROBOFLOW_FILE}; {HINT}"
        )
    return [train, val]


def _suffix(split: str, path: AnyPath) -> str:
    return path.stem.removeprefix(f"instances_{split}")


def _choose(root: AnyPath, suffix: str | None, wanted: ValSplit | None) -> dict[str, AnyPath]:
    """The annotation file of each split; train's alone where ``wanted`` takes val from it."""
    annotations = root / "annotations"
    if not annotations.is_dir():
        raise InputError(f"no annotations in {root}: there is neither {annotations} nor train/{ROBOFLOW_FILE}")
    found: dict[str, list[AnyPath]] = {split: sorted(annotations.glob(f"instances_{split}*.json")) for split in _SPLITS}
    if takes_val_from_train(root, bool(found["val"]), wanted):
        del found["val"]
    by_suffix = {split: {_suffix(split, path): path for path in paths} for split, paths in found.items()}
    for split in found:
        if not found[split]:
            hint = f"; {HINT}" if split == "val" else ""
            raise InputError(f"no {split} annotations: {annotations} has no instances_{split}*.json{hint}")
        if suffix is not None and suffix not in by_suffix[split]:
            names = ", ".join(path.name for path in found[split])
            raise InputError(f"{annotations} has no instances_{split}{suffix}.json, only {names}")
    if suffix is not None:
        return {split: by_suffix[split][suffix] for split in found}
    if all(len(paths) == 1 for paths in found.values()):
        return {split: paths[0] for split, paths in found.items()}
    common = sorted(set.intersection(*map(set, by_suffix.values())))
    if len(common) == 1:
        return {split: by_suffix[split][common[0]] for split in found}
    names = ", ".join(path.name for paths in found.values() for path in paths)
    if common:
        hint = f"say which by adding #SUFFIX to the directory, such as {root}#{common[-1]}"
    else:
        hint = "no train and val there have the same suffix; leave one of each"
    raise InputError(f"several annotation files in {annotations} ({names}): {hint}")


def _candidates(root: AnyPath, split: str, json_file: AnyPath) -> list[AnyPath]:
    """Where the images may lie, in the order they are looked for."""
    full = _suffix(split, json_file)
    year = re.match(r"\d*", full)
    names = dict.fromkeys([split + full, split + (year.group() if year else ""), split])
    return [parent / name for name in names for parent in (root, root / "images")]


def _image_folder(root: AnyPath, candidates: list[AnyPath], raw: RawSplit) -> AnyPath:
    """The first of the candidates that has an image which the annotation file names."""
    existing = [folder for folder in candidates if folder.is_dir()]
    if not existing:
        looked = ", ".join(str(folder).removeprefix(f"{root}/") for folder in candidates)
        raise InputError(f"no image directory for {raw.path}: looked in {root} for {looked}")
    names = [x["file_name"] for x in raw.images if isinstance(x, dict) and isinstance(x.get("file_name"), str)]
    for folder in existing:
        if isinstance(folder, ObjectPath):
            folder.listed()
        if any(_is_file(folder / name) for name in names):
            return folder
    looked = ", ".join(map(str, existing))
    such = f", such as {names[0]!r}" if names else ""
    raise InputError(f"none of the {len(names)} images that {raw.path} names is in {looked}{such}")


def _is_file(path: AnyPath) -> bool:
    try:
        return path.is_file()
    except StorageError:
        raise
    except (OSError, ValueError):
        # A name may be no name at all, with a zero byte in it.
        return False


# -------------------------------------------------------------------------------------------------- contents


def parse_json(data: bytes, where: str) -> Any:
    """Raises InputError, one line that says where it is broken."""
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON in {where}, line {error.lineno} column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"broken JSON in {where}, byte {error.start}: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets as deep.
        raise InputError(f"broken JSON in {where}: {error}") from error


def _raw_split(path: AnyPath) -> RawSplit:
    """One annotation file, its outline checked; the folder of its images is still to be found."""

    def fail(what: str) -> NoReturn:
        raise InputError(f"{path}: {what}")

    data = read_bytes(path)
    contents = parse_json(data, str(path))
    if not isinstance(contents, dict):
        fail("the top level is not an object")
    for name in ("images", "annotations", "categories"):
        if name not in contents:
            fail(f"the key {name!r} is missing")
        if not isinstance(contents[name], list):
            fail(f"{name!r} is not a list")
    if not contents["images"]:
        fail("'images' is empty")
    if not contents["categories"]:
        fail("'categories' is empty")
    # Without its classes an annotation means nothing, so these have to be right.
    categories: dict[int, str] = {}
    for position, entry in enumerate(contents["categories"]):
        if not isinstance(entry, dict):
            fail(f"categories[{position}] is not an object")
        for key in ("id", "name"):
            if key not in entry:
                fail(f"categories[{position}] has no {key!r}")
        if type(entry["id"]) is not int:
            fail(f"categories[{position}] has the id {entry['id']!r}, which is not a whole number")
        if entry["id"] in categories:
            fail(f"categories has the id {entry['id']} twice")
        categories[entry["id"]] = str(entry["name"])
    # detectron2 would take other names as they are, and so other ones than these; pycocotools reads UTF-8 alone.
    named = all(type(entry["name"]) is str for entry in contents["categories"])
    return RawSplit(
        path=path,
        folder=path.parent,
        images=contents["images"],
        annotations=contents["annotations"],
        categories=sorted(categories.items()),
        is_coco=True,
        is_whole=named and json.detect_encoding(data) == "utf-8",
    )
