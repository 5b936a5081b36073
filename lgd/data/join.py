"""Several data sets joined into one directory in COCO layout: ``lgd data join``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lgd.data.layout import CocoLayout, SplitCounts
from lgd.data.shapes import ShapesSpec
from lgd.data.sources import find_dataset
from lgd.errors import InputError
from lgd.files import write_text

__all__ = ["Joined", "join"]

SPLITS = ("train", "val")


@dataclass
class Joined:
    """What was written."""

    directory: Path
    class_names: tuple[str, ...]
    counts: dict[str, dict[str, SplitCounts]] = field(default_factory=dict)
    """Of each split, by the name that a source has in the directory."""
    left_out: list[str] = field(default_factory=list)
    """A line for each image that another source has too."""


@dataclass(frozen=True)
class _Part:
    """A split of one source, its entries as COCO has them."""

    name: str
    images: Path
    contents: Mapping[str, Any]
    class_names: Mapping[int, str]
    """By category id."""


def join(sources: Sequence[str], output: Path, any_classes: bool = False) -> Joined:
    """Write ``annotations/instances_{train,val}.json`` and links to the directories of the images into ``output``.

    Train is the sources' train, val their val; classes are the same where their names are. An image, byte for byte,
    that a source before has in the same split is left out, and so is one of train that another source has in val.

    sources: as :func:`lgd.data.sources.find_dataset` takes them, at least two. any_classes: join sources of different
    classes; objects that a source shows and does not label are trained on as background then.

    Raises InputError, one line, where a source cannot be used or lies in object storage, where classes differ, and
    where ``output`` has something in it.
    """
    if len(sources) < 2:
        raise InputError("name at least two data sets to join")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} has something in it: name a new directory")
    layouts: dict[str, CocoLayout] = {}
    for source in sources:
        layout = find_dataset(source, shapes=ShapesSpec()).layout
        layouts[_name(layout, layouts)] = layout
    names = list(dict.fromkeys(x for layout in layouts.values() for x in layout.class_names))
    if not any_classes:
        _check_classes(layouts, names)
    parts = {split: [_part(name, layout, split) for name, layout in layouts.items()] for split in SPLITS}
    joined = Joined(output, tuple(names))
    left_out = _left_out(parts, joined.left_out)
    (output / "annotations").mkdir(parents=True, exist_ok=True)
    for split, found in parts.items():
        contents, joined.counts[split] = _merged(found, names, left_out[split])
        (output / split).mkdir(exist_ok=True)
        for part in found:
            (output / split / part.name).symlink_to(part.images, target_is_directory=True)
        write_text(output / "annotations" / f"instances_{split}.json", json.dumps(contents))
    return joined


def _name(layout: CocoLayout, taken: Mapping[str, Any]) -> str:
    """The name of the data's directory, with a number where another source has it."""
    name, number = layout.root.name or "data", 2
    while name in taken:
        name, number = f"{layout.root.name}-{number}", number + 1
    return name


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
    return _Part(name, images, json.loads(path.read_bytes()), classes)


def _left_out(parts: Mapping[str, Sequence[_Part]], lines: list[str]) -> dict[str, set[tuple[str, int]]]:
    """Of each split the images, by source and id, that another source has too; ``lines`` gets a line for each."""
    sizes: dict[int, int] = {}
    for _, path, _ in _files(parts):
        sizes[path.stat().st_size] = sizes.get(path.stat().st_size, 0) + 1
    seen: dict[str, tuple[str, str, Path]] = {}
    found: dict[str, set[tuple[str, int]]] = {split: set() for split in parts}
    # Val first: what is evaluated on is not trained on.
    for (split, name, number), path, shown in sorted(_files(parts), key=lambda x: x[0][0] != "val"):
        if sizes[path.stat().st_size] == 1:
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        other_split, other, other_path = seen.setdefault(digest, (split, name, path))
        if other != name:
            found[split].add((name, number))
            lines.append(f"left out of {split}: {name}/{shown} is {other}/{other_path.name} of {other_split}")
    return found


def _files(parts: Mapping[str, Sequence[_Part]]) -> Iterator[tuple[tuple[str, str, int], Path, str]]:
    """Split, source and id of every image, its file, and its name in the annotations."""
    for split, found in parts.items():
        for part in found:
            for image in part.contents["images"]:
                yield (split, part.name, image["id"]), part.images / image["file_name"], image["file_name"]


def _merged(
    parts: Sequence[_Part], names: Sequence[str], left_out: set[tuple[str, int]]
) -> tuple[dict[str, Any], dict[str, SplitCounts]]:
    """A COCO file's contents, with ids from 1, and how much of it is each source's."""
    category = {name: number for number, name in enumerate(names, start=1)}
    images, annotations, counts = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, SplitCounts]()
    for part in parts:
        numbers: dict[int, int] = {}
        for image in part.contents["images"]:
            if (part.name, image["id"]) not in left_out:
                numbers[image["id"]] = len(images) + 1
                images.append({**image, "id": len(images) + 1, "file_name": f"{part.name}/{image['file_name']}"})
        own = [x for x in part.contents["annotations"] if x["image_id"] in numbers]
        annotations += [
            {
                **x,
                "id": number,
                "image_id": numbers[x["image_id"]],
                "category_id": category[part.class_names[x["category_id"]]],
            }
            for number, x in enumerate(own, start=len(annotations) + 1)
        ]
        objects = [x for x in own if not x["iscrowd"]]
        empty = len(numbers) - len({x["image_id"] for x in objects})
        counts[part.name] = SplitCounts(len(numbers), len(objects), len(own) - len(objects), empty)
    categories = [{"id": number, "name": name} for name, number in category.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, counts
