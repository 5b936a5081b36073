"""Several data sets joined into one directory in COCO layout: ``lgd data join``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lgd.data.layout import CocoLayout, SplitCounts
from lgd.data.same_files import shared_digests
from lgd.data.shapes import ShapesSpec
from lgd.data.sources import find_dataset
from lgd.data.split import HINT, ValSplit
from lgd.errors import InputError
from lgd.files import write_text

__all__ = ["Joined", "join"]

SPLITS = ("train", "val")


@dataclass
class Joined:
    """What was written."""

    directory: Path
    class_names: tuple[str, ...]
    counts: dict[str, dict[str, SplitCounts]]
    """Of each split, by the name that a source has in the directory."""
    left_out: list[str]
    """A line for each image that another source has too."""


class _Image(NamedTuple):
    """An image of a source."""

    split: str
    source: str
    number: int
    """Its id there."""

    def shown(self, name: str) -> str:
        return f"{self.source}/{name} of {self.split}"


@dataclass
class _Part:
    """A split of one source, its entries as COCO has them."""

    name: str
    images: Path
    contents: Mapping[str, Any]
    class_names: Mapping[int, str]
    """By category id."""
    files: dict[int, str] = field(init=False)
    """Path of each image, by id, from ``images`` on."""

    def __post_init__(self) -> None:
        self.files = {x["id"]: self._file(x["file_name"]) for x in self.contents["images"]}

    def _file(self, name: str) -> str:
        path = Path(os.path.normpath(self.images / name))
        if not path.is_relative_to(self.images):
            raise InputError(f"{self.name}: the image {name} is not in {self.images}, so it cannot be joined")
        return str(path.relative_to(self.images))


def join(sources: Sequence[str], output: Path, *, any_classes: bool = False, split: ValSplit | None = None) -> Joined:
    """Write ``annotations/instances_{train,val}.json`` and links to the directories of the images into ``output``.

    Train is the sources' train, val their val; classes are the same where their names are. An image, byte for byte,
    that a source before has in the same split is left out, and so is one of train that another source has in val. Its
    objects of classes that the other source does not label go to the one that is kept.

    sources: as :func:`lgd.data.sources.find_dataset` takes them, at least two. any_classes: join sources of different
    classes; objects that a source shows and does not label are trained on as background then. split: for the sources
    that have no validation images.

    Raises InputError, one line, where a source cannot be used or lies in object storage, where classes differ, where no
    image is left of a split, and where ``output`` has something in it. Nothing is written then.
    """
    if len(sources) < 2:
        raise InputError("name at least two data sets to join")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} has something in it: name a new directory")
    layouts: dict[str, CocoLayout] = {}
    for source in sources:
        layout = _layout(source, split)
        layouts[_name(layout, layouts)] = layout
    names = list(dict.fromkeys(x for layout in layouts.values() for x in layout.class_names))
    if not any_classes:
        _check_classes(layouts, names)
    parts = {of: [_part(name, layout, of) for name, layout in layouts.items()] for of in SPLITS}
    twice = _same_images(parts)
    moved = _moved_objects(parts, twice)
    merged, counts = dict[str, dict[str, Any]](), dict[str, dict[str, SplitCounts]]()
    for name, found in parts.items():
        merged[name], counts[name] = _merged(name, found, names, twice, moved)
        if not merged[name]["images"]:
            raise InputError(f"no image is left of {name}: the others have all of them")
    _write(output, parts, merged)
    of = {
        _Image(s, p.name, number): file for s, found in parts.items() for p in found for number, file in p.files.items()
    }
    lines = [f"left out: {one.shown(of[one])} is {other.shown(of[other])}" for one, other in twice.items()]
    return Joined(output, tuple(names), counts, lines)


# ----------------------------------------------------------------------------------------------------- sources


def _layout(source: str, split: ValSplit | None) -> CocoLayout:
    """With a validation split of its own, or else with ``split``."""
    try:
        return find_dataset(source, shapes=ShapesSpec()).layout
    except InputError as error:
        if split is None or HINT not in str(error):
            raise
    return find_dataset(source, shapes=ShapesSpec(), split=split).layout


def _name(layout: CocoLayout, taken: Mapping[str, Any]) -> str:
    """The name of the data's directory, with a number where another source has it."""
    base = Path(str(layout.root)).resolve().name or "data"
    return next(x for x in (base, *(f"{base}-{i}" for i in range(2, len(taken) + 3))) if x not in taken)


def _check_classes(layouts: Mapping[str, CocoLayout], names: Sequence[str]) -> None:
    for name, layout in layouts.items():
        if lacking := [x for x in names if x not in layout.class_names]:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise InputError(
                f"{name} has no class {', '.join(map(repr, lacking[:3]))}{more}: what it shows of it would be trained"
                " on as background; --any-classes joins them all the same"
            )


def _part(name: str, layout: CocoLayout, split: str) -> _Part:
    path, images = (
        (layout.train_json, layout.train_images) if split == "train" else (layout.val_json, layout.val_images)
    )
    if not isinstance(images, Path):
        raise InputError(f"{images}: images in object storage cannot be joined")
    classes = dict(zip(layout.category_ids, layout.class_names, strict=True))
    return _Part(name, Path(os.path.normpath(images)), json.loads(path.read_bytes()), classes)


# ------------------------------------------------------------------------------------------ images that two have


def _same_images(parts: Mapping[str, Sequence[_Part]]) -> dict[_Image, _Image]:
    """The images that are left out, each with the one of another source, byte for byte the same, that is kept."""
    seen: dict[bytes, _Image] = {}
    found: dict[_Image, _Image] = {}
    # Val first: what is evaluated on is not trained on.
    files = sorted(_files(parts), key=lambda x: x[0].split != "val")
    for image, digest in shared_digests((image, image.source, path) for image, path in files):
        kept = seen.setdefault(digest, image)
        if kept.source != image.source:
            found[image] = kept
    return found


def _files(parts: Mapping[str, Sequence[_Part]]) -> Iterator[tuple[_Image, Path]]:
    for split, found in parts.items():
        for part in found:
            for number, file in part.files.items():
                yield _Image(split, part.name, number), part.images / file


def _moved_objects(
    parts: Mapping[str, Sequence[_Part]], twice: Mapping[_Image, _Image]
) -> dict[_Image, list[tuple[str, dict[str, Any]]]]:
    """By kept image: class name and entry of the objects that only the source of the one left out labels.

    Where several left out label one class, they label the same objects: the first one's are taken.
    """
    classes = {part.name: set(part.class_names.values()) for part in parts["train"]}
    found: dict[_Image, list[tuple[str, dict[str, Any]]]] = {}
    first: dict[tuple[_Image, str], _Image] = {}
    for split, of in parts.items():
        for part in of:
            for entry in part.contents["annotations"]:
                own = _Image(split, part.name, entry["image_id"])
                kept, name = twice.get(own), part.class_names[entry["category_id"]]
                if kept is None or name in classes[kept.source]:
                    continue
                if first.setdefault((kept, name), own) == own:
                    found.setdefault(kept, []).append((name, entry))
    return found


# ----------------------------------------------------------------------------------------------------- output


def _merged(
    split: str,
    parts: Sequence[_Part],
    names: Sequence[str],
    twice: Mapping[_Image, _Image],
    moved: Mapping[_Image, Sequence[tuple[str, dict[str, Any]]]],
) -> tuple[dict[str, Any], dict[str, SplitCounts]]:
    """A COCO file's contents, with ids from 1, and how much of it is each source's."""
    category = {name: number for number, name in enumerate(names, start=1)}
    images, annotations, counts = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, SplitCounts]()
    for part in parts:
        numbers: dict[int, int] = {}
        own: list[tuple[int, str, dict[str, Any]]] = []
        for image in part.contents["images"]:
            here = _Image(split, part.name, image["id"])
            if here not in twice:
                number = numbers[image["id"]] = len(images) + 1
                images.append({**image, "id": number, "file_name": f"{part.name}/{part.files[image['id']]}"})
                own += [(number, name, entry) for name, entry in moved.get(here, ())]
        own += [
            (numbers[x["image_id"]], part.class_names[x["category_id"]], x)
            for x in part.contents["annotations"]
            if x["image_id"] in numbers
        ]
        annotations += [
            {**x, "id": number, "image_id": image, "category_id": category[name]}
            for number, (image, name, x) in enumerate(own, start=len(annotations) + 1)
        ]
        objects = [image for image, _, x in own if not x["iscrowd"]]
        empty = len(numbers) - len(set(objects))
        counts[part.name] = SplitCounts(len(numbers), len(objects), len(own) - len(objects), empty)
    categories = [{"id": number, "name": name} for name, number in category.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, counts


def _write(output: Path, parts: Mapping[str, Sequence[_Part]], merged: Mapping[str, Any]) -> None:
    """All of it or nothing: it is renamed when it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        made.chmod(0o755)
        (made / "annotations").mkdir()
        for split, found in parts.items():
            (made / split).mkdir()
            for part in found:
                (made / split / part.name).symlink_to(part.images, target_is_directory=True)
            write_text(made / "annotations" / f"instances_{split}.json", json.dumps(merged[split]))
        made.replace(output)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
