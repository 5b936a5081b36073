"""Ultralytics' YOLO layout: a data.yaml with train, val and names, images, and a label file for each image.

https://docs.ultralytics.com/datasets/detect/ and .../segment/. Nothing of the file is run: its ``download`` key, which
Ultralytics executes, is ignored. Label files: lgd/data/yolo_labels.py.
"""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lgd.data.images import IMAGE_SUFFIXES
from lgd.data.layout import CocoLayout, Problem, RawSplit, read_bytes
from lgd.data.split import HINT, ValSplit, takes_val_from_train
from lgd.data.validate import validated_layout
from lgd.data.yolo_labels import add_labels, label_path
from lgd.errors import InputError
from lgd.files import walk

__all__ = ["find_yolo_splits"]

CLASSES_FILE = "classes.txt"
"""Beside the label files, written by labelling tools."""


MOST_VALUES = 1_000_000
"""Of a data.yaml."""


def find_yolo_splits(
    directory: Path | str, problems: list[Problem] | None = None, split: ValSplit | None = None
) -> CocoLayout:
    """Train and val of a directory with a data.yaml, or of a YAML file of any name.

    problems, split: see :func:`lgd.data.validate.validated_layout`. Raises InputError, one line that names the file and
    the key, where the YAML file or a path in it is wrong.
    """
    described = _DataYaml(_yaml_file(Path(directory).expanduser().absolute()))
    train = described.images("train")
    if train is None:
        raise InputError(f"{described.path}: the key 'train' is missing")
    val = None
    if not takes_val_from_train(described.path, described.has("val"), split):
        val = described.images("val")
        if val is None:
            raise InputError(f"{described.path}: the key 'val' is missing: name the validation images; {HINT}")

    def read() -> tuple[RawSplit, RawSplit | None]:
        first = _raw_split(described, train)
        first.problems[:0] = described.notes
        return first, None if val is None else _raw_split(described, val)

    parts = [train] if val is None else [train, val]
    return validated_layout(described.root, read, _files(described, parts), problems, split)


class _Images(NamedTuple):
    """The images of a split."""

    key: str
    paths: list[str]
    """Absolute, sorted."""
    sources: list[Path]
    """The directories and text files that name them."""


class _DataYaml:
    """The content of data.yaml. root: of its relative paths. notes: on what is ignored in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[Problem] = []
        self._values = _parse_yaml(path)
        self.root = self._root()
        self.categories = self._categories()
        self.has_keypoints = "kpt_shape" in self._values
        if self._values.get("download"):
            self.note("download", "the key 'download' is ignored: nothing is fetched or run")
        if self.has_keypoints:
            self.note("keypoints", "are ignored: boxes alone are read")

    def note(self, kind: str, what: str) -> None:
        self.notes.append(Problem("noted", kind, str(self.path), what))

    def has(self, key: str) -> bool:
        """Whether a split's images are there."""
        return any(x.exists() for x in self._places(key))

    def images(self, key: str) -> _Images | None:
        """None where data.yaml does not name the split."""
        places = self._places(key)
        if not places:
            return None
        found: dict[str, None] = {}
        sources: list[Path] = []
        for place in places:
            if place.is_dir():
                directories, names = _walk(place)
                sources += directories
            elif place.is_file():
                names = self._listed(place)
                sources.append(place)
            else:
                end = f"; {HINT}" if key == "val" else ""
                raise InputError(f"{self.path}: {key}: {place} does not exist{end}")
            if not names:
                raise InputError(f"{self.path}: {key}: no image in {place}")
            found |= dict.fromkeys(names)
        return _Images(key, sorted(found), sources)

    # --------------------------------------------------------------------------------------------- values

    def _root(self) -> Path:
        value = self._values.get("path")
        if value in (None, ""):
            return self.path.parent
        if not isinstance(value, str):
            raise InputError(f"{self.path}: path: a directory is needed, not {value!r}")
        root = _joined(self.path.parent, value)
        if root.is_dir():
            return root
        self.note("other path", f"path: {value} is no directory here, {self.path.parent} is taken instead")
        return self.path.parent

    def _categories(self) -> list[tuple[int, str]]:
        """Ids as in the label files."""
        names, count = self._values.get("names"), self._values.get("nc")
        if names is None and type(count) is int and 0 < count <= 100_000:
            return [(number, f"class_{number}") for number in range(count)]
        if isinstance(names, list):
            names = dict(enumerate(names))
        if not isinstance(names, dict) or not names:
            raise InputError(f"{self.path}: names: a list of the classes' names, or names by number, are needed")
        found = {}
        for key, name in names.items():
            number = int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key
            if type(number) is not int or not 0 <= number < 2**31 or number in found:
                raise InputError(f"{self.path}: names: {key!r} is not the number of a class, from 0, each once")
            if isinstance(name, (list, dict)) or name is None:
                raise InputError(f"{self.path}: names: class {key} has the name {name!r}")
            found[number] = str(name)
        if count is not None and count != len(found):
            raise InputError(f"{self.path}: nc is {count!r}, but there are {len(found)} names")
        return sorted(found.items())

    def _places(self, key: str) -> list[Path]:
        value = self._values.get(key)
        if value is None and key == "val":
            value = self._values.get("validation")
        if value in (None, "", []):
            return []
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(x, str) and x and "\0" not in x for x in values):
            raise InputError(f"{self.path}: {key}: a directory, a text file or a list of them is needed, not {value!r}")
        return [self._place(x) for x in values]

    def _place(self, value: str) -> Path:
        """As Ultralytics: ``../`` at the start, which Roboflow writes, is left out where it leads nowhere."""
        place = _joined(self.root, value)
        inside = _joined(self.root, value.removeprefix("../"))
        return inside if not place.exists() and inside.exists() else place

    def _listed(self, file: Path) -> list[str]:
        """The images that a text file names, a line each; relative paths from the file's directory, or the root."""
        names = []
        for raw_line in read_bytes(file).removeprefix(BOM_UTF8).split(b"\n"):
            line = os.fsdecode(raw_line).strip()
            if not line or "\0" in line:
                continue
            beside = _joined(file.parent, line)
            names.append(str(beside if beside.exists() else _joined(self.root, line)))
        return names


def _yaml_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"data directory {path} does not exist")
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (path / name).is_file():
            return path / name
    others = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    if len(others) != 1:
        there = (
            f"only {', '.join(x.name for x in others)}: name one, yolo:FILE" if others else "nor any other YAML file"
        )
        raise InputError(f"no YOLO data in {path}: it has no data.yaml, {there}")
    return others[0]


def _is_larger(tree: Any, most: int) -> bool:
    """Whether a value has more values in it than that. Aliases of aliases make many of few lines."""
    waiting, seen = [tree], 0
    while waiting and seen <= most:
        value = waiting.pop()
        seen += 1
        if isinstance(value, (list, tuple, dict)):
            waiting += value.values() if isinstance(value, dict) else value
            seen += len(value)
    return seen > most


def _parse_yaml(path: Path) -> dict[Any, Any]:
    try:
        found = yaml.safe_load(read_bytes(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise InputError(f"broken YAML in {path}{place}: {' '.join(str(error.problem).split())}") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"broken YAML in {path}: {' '.join(str(error).split())[:200]}") from None
    if _is_larger(found, MOST_VALUES):
        raise InputError(f"{path}: more than {MOST_VALUES:,} values, aliases (*name) written out")
    if not isinstance(found, dict):
        raise InputError(f"{path}: the keys train, val and names are needed")
    return found


def _joined(base: Path, path: str) -> Path:
    """Without ``..`` in it, so that one image has one path."""
    return Path(os.path.normpath(base / Path(path).expanduser()))


def _walk(directory: Path) -> tuple[list[Path], list[str]]:
    """All directories below one, and the images in them."""
    directories, names = [], []
    for folder, files in walk(directory):
        directories.append(Path(folder))
        names += [f"{folder}{os.sep}{x}" for x in files if x.lower().endswith(IMAGE_SUFFIXES)]
    return directories, names


def _files(described: _DataYaml, parts: list[_Images]) -> list[Path]:
    """What the layout depends on: data.yaml, the directories and lists of images, label files and their directories."""
    labels = [label_path(path) for part in parts for path in part.paths]
    folders = dict.fromkeys(x.rpartition(os.sep)[0] for x in labels)
    return [described.path, *(x for part in parts for x in part.sources), *map(Path, folders), *map(Path, labels)]


def _raw_split(described: _DataYaml, part: _Images) -> RawSplit:
    folder = described.root
    if not all(path.startswith(f"{folder}{os.sep}") for path in part.paths):
        folder = Path(os.path.commonpath([path.rpartition(os.sep)[0] for path in part.paths]))
    raw = RawSplit(described.path, folder, [], [], described.categories, is_normalised=True)
    prefix = len(str(folder).rstrip(os.sep)) + 1
    for number, path in enumerate(part.paths, 1):
        raw.images.append({"_where": path, "id": number, "file_name": path[prefix:]})
    found = add_labels(raw, part.paths, boxes_only=described.has_keypoints)
    raw.problems += [
        Problem("noted", "label without image", path, f"no image of {part.key} has this name")
        for path in _unused_labels(part)
    ]
    if not found:
        raise InputError(
            f"{described.path}: {part.key}: none of the {len(part.paths)} images has a label file, such as"
            f" {label_path(part.paths[0])}"
        )
    return raw


def _unused_labels(part: _Images) -> list[str]:
    """Label files that belong to no image. Where a text file lists the images, it may leave some out on purpose."""
    if any(source.is_file() for source in part.sources):
        return []
    labels = {label_path(path) for path in part.paths}
    unused = []
    for folder in dict.fromkeys(x.rpartition(os.sep)[0] for x in labels):
        with suppress(OSError), os.scandir(folder) as entries:
            names = sorted(x.name for x in entries if x.name.endswith(".txt") and x.name != CLASSES_FILE)
            unused += [path for name in names if (path := f"{folder}{os.sep}{name}") not in labels]
    return unused
