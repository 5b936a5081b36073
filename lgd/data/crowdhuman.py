"""CrowdHuman's layout: annotation_{train,val}.odgt, a JSON object a line, with the images in Images.

Full-body boxes (fbox) include parts that are hidden or outside the image; here they are clipped to the image, as in the
benchmark's own evaluation. What is tagged other than person, or ignored, is an ignored region.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lgd.data.coco import parse_json
from lgd.data.layout import CocoLayout, Problem, RawSplit, read_bytes
from lgd.data.split import HINT, ValSplit, takes_val_from_train
from lgd.data.validate import validated_layout
from lgd.errors import InputError

__all__ = ["PERSON", "find_crowdhuman_splits"]

PERSON = "person"


def find_crowdhuman_splits(
    directory: Path | str, problems: list[Problem] | None = None, split: ValSplit | None = None
) -> CocoLayout:
    """Train and val of a directory with CrowdHuman's files; images in ``Images`` or ``Images_{train,val}``.

    problems, split: see :func:`lgd.data.validate.validated_layout`. Raises InputError, one line, where a file is
    missing or all of it broken.
    """
    root = Path(directory).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"data directory {root} {'is not a directory' if root.exists() else 'does not exist'}")
    has_val = (root / "annotation_val.odgt").exists()
    from_train = takes_val_from_train(root, has_val, split)
    if not (has_val or from_train):
        raise InputError(f"no validation split: {root} has no annotation_val.odgt; {HINT}")
    names = ["train"] if from_train else ["train", "val"]
    files = [root / f"annotation_{name}.odgt" for name in names]
    folders = [_folder(root, name) for name in names]

    def read() -> tuple[RawSplit, RawSplit | None]:
        raws = [_raw_split(*x) for x in zip(files, folders, strict=True)]
        return raws[0], raws[1] if len(raws) > 1 else None

    return validated_layout(root, read, [*files, *folders], problems, split)


def _folder(root: Path, split: str) -> Path:
    for folder in (root / f"Images_{split}", root / "Images"):
        if folder.is_dir():
            return folder
    raise InputError(f"no images for CrowdHuman's {split} split: {root} has neither Images nor Images_{split}")


def _raw_split(path: Path, folder: Path) -> RawSplit:
    raw = RawSplit(path, folder, [], [], [(1, PERSON)])

    def broken(line: int, what: str) -> None:
        raw.problems.append(Problem("dropped", "broken line", f"{path}:{line}", what))

    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, f"{path}:{number}")
        except InputError as error:
            broken(number, str(error))
            continue
        if not isinstance(record, dict) or not isinstance(record.get("ID"), str):
            broken(number, "has no ID")
            continue
        boxes = record.get("gtboxes", [])
        if not isinstance(boxes, list):
            broken(number, "its gtboxes are not a list")
            continue
        where = f"{path}:{number}"
        raw.images.append({"_where": f"{where} ({record['ID']})", "id": number, "file_name": f"{record['ID']}.jpg"})
        for position, box in enumerate(boxes):
            place = f"{where} ({record['ID']}): gtboxes[{position}]"
            if not isinstance(box, dict):
                raw.problems.append(Problem("dropped", "broken entry", place, "is not an object"))
                continue
            raw.annotations.append(
                {
                    "_where": place,
                    "id": len(raw.annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": box.get("fbox"),
                    "iscrowd": int(_ignored(box)),
                }
            )
    return raw


def _ignored(box: dict[str, Any]) -> bool:
    extra = box.get("extra")
    return box.get("tag") != PERSON or (isinstance(extra, dict) and extra.get("ignore") == 1)
