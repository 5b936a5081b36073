"""Find the splits of a directory in COCO layout and read their annotation files, before anything slow begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from lgd.data.layout import CocoLayout, Problem, RawSplit, read_bytes
from lgd.data.validate import validated_layout
from lgd.errors import InputError

__all__ = ["coco_files", "find_coco_splits", "parse_json"]

_SPLITS = ("train", "val")


def find_coco_splits(
    directory: Path | str, suffix: str | None = None, problems: list[Problem] | None = None
) -> CocoLayout:
    """Find train and val of a directory in COCO layout.

    Takes ``annotations/instances_{train,val}*.json`` with the images in ``<split><suffix>/``,
    ``images/<split><suffix>/``, or the same without the suffix (2017 in ``train2017``). Where there are several
    sets of annotations, ``suffix`` says which. problems: see :func:`lgd.data.validate.validated_layout`.

    Raises InputError, one line that names the path, when something is missing, broken, ambiguous or when the
    splits' categories differ.
    """
    root = Path(directory).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"data directory {root} {'is not a directory' if root.exists() else 'does not exist'}")
    chosen = _choose(root, suffix)

    def read() -> tuple[RawSplit, RawSplit]:
        train, val = (_raw(chosen[split]) for split in _SPLITS)
        train.folder, val.folder = (
            _image_folder(root, split, raw) for split, raw in zip(_SPLITS, (train, val), strict=True)
        )
        return train, val

    folders = [folder for split in _SPLITS for folder in _candidates(root, split, chosen[split])]
    return validated_layout(root, read, [*chosen.values(), *folders], problems)


def coco_files(
    root: Path, train: tuple[Path, Path], val: tuple[Path, Path], problems: list[Problem] | None = None
) -> CocoLayout:
    """The same for known files: each split's annotation file and directory of images."""

    def read() -> tuple[RawSplit, RawSplit]:
        raws = []
        for json_file, folder in (train, val):
            raw = _raw(json_file)
            raw.folder = folder
            raws.append(raw)
        return raws[0], raws[1]

    return validated_layout(root, read, [*train, *val], problems)


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


def _candidates(root: Path, split: str, json_file: Path) -> list[Path]:
    """Where the images may lie, in the order they are looked for."""
    full = _suffix(split, json_file)
    year = re.match(r"\d*", full)
    names = dict.fromkeys([split + full, split + (year.group() if year else ""), split])
    return [parent / name for name in names for parent in (root, root / "images")]


def _image_folder(root: Path, split: str, raw: RawSplit) -> Path:
    """The first folder of the known ones that has images which the annotation file names."""
    candidates = _candidates(root, split, raw.path)
    existing = [folder for folder in candidates if folder.is_dir()]
    if not existing:
        looked = ", ".join(str(folder.relative_to(root)) for folder in candidates)
        raise InputError(f"no image directory for {raw.path}: looked in {root} for {looked}")
    names = [x["file_name"] for x in raw.images if isinstance(x, dict) and isinstance(x.get("file_name"), str)]
    for folder in existing:
        if any(_is_file(folder / name) for name in names):
            return folder
    looked = ", ".join(map(str, existing))
    such = f", such as {names[0]!r}" if names else ""
    raise InputError(f"none of the {len(names)} images that {raw.path} names is in {looked}{such}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
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


def _raw(path: Path) -> RawSplit:
    """One annotation file, its outline checked; the folder of its images is still to be found."""

    def fail(what: str) -> NoReturn:
        raise InputError(f"{path}: {what}")

    contents = parse_json(read_bytes(path), str(path))
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
    return RawSplit(
        path=path,
        folder=path.parent,
        images=contents["images"],
        annotations=contents["annotations"],
        categories=sorted(categories.items()),
        is_coco=True,
    )
