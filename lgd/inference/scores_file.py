"""What ``lgd eval`` leaves and prints: the scores of a detector, what was scored, and the paper's numbers beside them.

``scores.json`` is not a training's record, and ``python -m analysis`` does not read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from lgd.config.data_source import COCO_2017_COUNTS
from lgd.config.experiment import Settings, explain
from lgd.config.paper_recipes import Reported
from lgd.errors import InputError
from lgd.files import read_file
from lgd.results.record import Scores

FILE = "scores.json"

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Of COCO's AP; see :class:`lgd.results.record.Scores`."""

MORE = {
    "mMR": "log-average miss rate",
    "VOC_AP": "Pascal VOC's AP",
    "VOC": "Pascal VOC's AP50",
    "VOC75": "Pascal VOC's AP75",
}
"""Measures that some data sets have besides, with their names in the table."""


class Seconds(Settings):
    """Wall-clock seconds."""

    detection: float
    """Of loading the images and detecting on them."""
    scoring: float
    """Of scoring what was detected."""


class Weights(Settings):
    """The weights that were scored."""

    source: str
    """As --weights takes them; "" for a detector that its function returns as it is to be."""
    sha256: str
    """Of the file; "" without one."""
    tensors: int
    """Of the detector, all from the file."""


class ScoresFile(Settings):
    """``scores.json``."""

    format: Literal[1] = 1
    """Version of this file's format."""
    name: str
    """The paper's training, the detector, or the training's directory."""
    box: Scores
    mask: Scores | None
    """None for a detector without masks."""
    weights: Weights
    settings: dict[str, Any]
    """Those that scores depend on, by dotted key: of the detector, the images' sizes, the precision and the scorer."""
    data: dict[str, Any]
    """As in a record: source, fingerprint, counts of classes, images and objects, and what was dropped."""
    batch: int
    """Images that were detected on at once, at most."""
    seconds: Seconds
    images_per_second: float
    """Loading included, scoring not."""
    paper: tuple[str, ...]
    """The paper's numbers beside these, a line each."""
    device: str
    """As torch names it."""
    versions: dict[str, str]
    """Of the libraries, as in a record, as are ``hardware`` and ``git_commit``."""
    hardware: dict[str, str]
    git_commit: str
    finished: str
    """UTC, ISO 8601."""
    command: str


def load_scores(path: Path) -> ScoresFile:
    """Raises InputError, one line, where ``path`` is no such file."""
    try:
        return ScoresFile.model_validate_json(read_file(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise InputError(f"{path}: not the scores of lgd eval ({explain(error)})") from None


def table(box: Scores, mask: Scores | None) -> list[str]:
    """The scores in percent, a line each under one of their names; "-" where a number is undefined."""
    rows = [("box", box), *([("mask", mask)] if mask else [])]
    lines = [f"{'':<6}" + "".join(f"{name:>7}" for name in COLUMNS)]
    lines += [f"{what:<6}" + "".join(f"{_percent(getattr(x, name)):>7}" for name in COLUMNS) for what, x in rows]
    more = {title: getattr(box, key) for key, title in MORE.items()}
    return [*lines, *(f"{title} {value:.1f}" for title, value in more.items() if value is not None)]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def beside_the_paper(
    reported: Sequence[Reported], box: Scores, mask: Scores | None, *, classes: int, images: int
) -> list[str]:
    """A line for each figure that the paper reports of this training, with the difference of the scores to it.

    classes, images: of the validation split. Without a difference where it is not MS-COCO's.
    """
    lines = []
    is_coco = (classes, images) == (COCO_2017_COUNTS["classes"], COCO_2017_COUNTS["val_images"])
    for x in reported:
        scores = box if x.metric == "box" else mask
        ours = scores.AP if scores else None
        pairs = [(name, value) for name, value in (("baseline", x.baseline), ("LGD", x.lgd)) if value is not None]
        if not is_coco or ours is None:
            lines.append(f"the paper reports {x} on MS-COCO val2017, which this data is not")
            continue
        said = ", ".join(f"{name} {value:.1f} ({ours - value:+.1f} here)" for name, value in pairs)
        lines.append(f"the paper's {x.metric} AP: {said} ({x.location})")
    return lines
