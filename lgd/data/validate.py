"""From annotation files as they are to COCO files without faults, with every problem on the way.

The readers (coco.py, voc.py, crowdhuman.py) put a split into COCO's terms without judging it; :func:`validated_layout`
drops what cannot be used, fixes what can, and says where the COCO files lie that training and evaluation read. A COCO
file without fault is read where it is; for all else one is written into the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from lgd.cache import cache_root
from lgd.data.layout import CLEANED, CocoLayout, Counts, Problem, RawSplit, dropped_note, read_bytes
from lgd.data.same_files import shared_digests
from lgd.data.split import ValSplit, split_raw
from lgd.data.validate_split import ValidatedSplit, first_dropped, validate_split
from lgd.errors import InputError
from lgd.files import write_text
from lgd.storage.object_path import AnyPath, file_state, local_file
from lgd.storage.store import StorageError

__all__ = ["validated_layout"]

_log = logging.getLogger(__name__)

FileStates = tuple[tuple[str, int | str, int], ...]
"""Path, modification time (in a store: version) and size of files and directories."""

_layouts: dict[tuple[FileStates, ValSplit | None], CocoLayout] = {}
"""By the state of what was read: full COCO's files take many seconds."""


def validated_layout(
    root: AnyPath,
    read: Callable[[], tuple[RawSplit, RawSplit | None]],
    files: Iterable[AnyPath],
    problems: list[Problem] | None = None,
    split: ValSplit | None = None,
) -> CocoLayout:
    """Read, validate and, where something had to change, write.

    read: reads train and val; None for a val that ``split`` takes from train. files: what it reads, with the
    directories of the images; as long as none of them changes, this process does not read again, unless ``problems`` is
    there to be filled: then every image is decoded too.

    Raises InputError, one line, where the splits' categories differ or no image is left.
    """
    key = (_file_states(files), split)
    if problems is None and key in _layouts:
        return _layouts[key]
    train, own_val = read()
    if own_val is None:
        assert split is not None
        raw = split_raw(train, split)
    else:
        raw = train, own_val
    _check_same_categories(*raw)
    splits = validate_split(raw[0], problems), validate_split(raw[1], problems)
    for source, validated in zip(raw, splits, strict=True):
        if not validated.contents["images"]:
            raise InputError(f"{source.path}: no image is left{dropped_note(validated.dropped, validated.first)}")
        if validated.dropped and problems is None:
            _log.warning("%s: dropped %s", source.path, validated.dropped)
        if validated.doubt and problems is None:
            _log.warning("%s: %s", source.path, validated.doubt)
    if problems is not None:
        problems += _notes(raw, splits, split)
    texts = [None if x.unchanged else json.dumps(x.contents, separators=(",", ":")) for x in splits]
    fingerprint = _fingerprint(raw, splits, texts)
    directory = cache_root() / "data" / f"{CLEANED}{fingerprint[:16]}"
    train_json, val_json = (
        local_file(source.path) if text is None else _write(directory / f"instances_{name}.json", text)
        for name, source, text in zip(("train", "val"), raw, texts, strict=True)
    )
    layout = CocoLayout(
        root=root,
        train_json=train_json,
        train_images=raw[0].folder,
        val_json=val_json,
        val_images=raw[1].folder,
        class_names=tuple(name for _, name in raw[0].categories),
        category_ids=tuple(number for number, _ in raw[0].categories),
        counts=Counts(splits[0].counts, splits[1].counts),
        fingerprint=fingerprint,
        sources=(str(raw[0].path), str(raw[1].path)),
        dropped=(splits[0].dropped, splits[1].dropped),
        first_dropped=(splits[0].first, splits[1].first),
    )
    _layouts[key] = layout
    return layout


def _notes(
    raw: tuple[RawSplit, RawSplit], splits: tuple[ValidatedSplit, ValidatedSplit], split: ValSplit | None
) -> list[Problem]:
    """What is worth a note about both splits together."""
    names = [{source.folder / name for name, _ in x.image_sizes} for source, x in zip(raw, splits, strict=True)]
    notes = []
    if split is not None:
        both = len(names[0]) + len(names[1])
        what = f"{len(names[1])} of {both} training images are validated on, chosen with split seed {split.seed}"
        notes.append(Problem("noted", "split", str(raw[0].path), what))
    if shared := names[0] & names[1]:
        what = f"{len(shared)} images are both trained and validated on, such as {min(shared).name}"
        notes.append(Problem("noted", "in both splits", str(raw[1].path), what))
    files = [
        [source.folder / name for name, _ in x.image_sizes if source.folder / name not in shared]
        for source, x in zip(raw, splits, strict=True)
    ]
    if copies := _copies(*files):
        what = f"{len(copies)} images are copies of training images, such as {copies[0][0]} of {copies[0][1]}"
        notes.append(Problem("noted", "in both splits", str(raw[1].path), what))
    return notes


def _copies(train: Iterable[AnyPath], val: Iterable[AnyPath]) -> list[tuple[Path, Path]]:
    """The images of val that are, byte for byte, images of train, and those. None of them where they lie in object
    storage, from which they would be fetched."""
    files = [(path, is_val) for is_val, paths in enumerate((train, val)) for path in paths if isinstance(path, Path)]
    trained: dict[bytes, Path] = {}
    copies = []
    # Train comes first.
    for (path, is_val), digest in shared_digests((x, x[1], x[0]) for x in files):
        if not is_val:
            trained.setdefault(digest, path)
        elif digest in trained:
            copies.append((path, trained[digest]))
    return copies


def _file_states(paths: Iterable[AnyPath]) -> FileStates:
    """Missing files are left out."""
    states = []
    for path in paths:
        try:
            states.append(file_state(path))
        except StorageError:
            raise
        except (OSError, ValueError):
            continue
    return tuple(states)


def _fingerprint(raw: Iterable[RawSplit], splits: Iterable[ValidatedSplit], texts: Iterable[str | None]) -> str:
    """Digest of the files that are read in the end, and of the images' names and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    for source, split, text in zip(raw, splits, texts, strict=True):
        data = read_bytes(source.path) if text is None else text.encode()
        digest.update(hashlib.blake2b(data).digest())
        for name, size in sorted(split.image_sizes):
            digest.update(f"{name}\0{size}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _write(path: Path, text: str) -> Path:
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"cannot write the cache {path.parent} ({error.strerror}): set LGD_CACHE") from error
    return path


def _check_same_categories(train: RawSplit, val: RawSplit) -> None:
    ours, theirs = dict(train.categories), dict(val.categories)
    if ours == theirs:
        return
    number = min(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    # A class that one file alone has is missing where that file cannot be read.
    unread = first_dropped(train) or first_dropped(val)
    raise InputError(
        f"train and val have different categories: id {number} is {ours.get(number, 'missing')!r} in"
        f" {train.path} and {theirs.get(number, 'missing')!r} in {val.path}"
        f"{f'; dropped: {unread}' if unread else ''}"
    )
