"""The names of detectors, as ``--detector`` and ``detector.source`` take them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lgd.errors import InputError

BUILT_IN = "built-in"
"""The source of the detectors that ``detector.name`` chooses from."""

ZOO, TORCHVISION = "zoo:", "torchvision:"
"""Beginnings of a source: a config of detectron2's model zoo, and a model of torchvision's."""

Kind = Literal["built-in", "yaml", "lazy", "torchvision", "function"]

FORMS = (
    "a config file (.yaml, or .py with detectron2's LazyConfig), zoo:COCO-Detection/retinanet_R_50_FPN_1x.yaml,"
    " torchvision:retinanet_resnet50_fpn_v2, or package.module:function"
)
"""The kinds of a source, in words."""


def kind_of(source: str) -> Kind:
    """How a detector is built from ``source``. Raises InputError, one line, for what names none."""
    if source == BUILT_IN:
        return "built-in"
    if source.startswith(TORCHVISION):
        return "torchvision"
    name = source.removeprefix(ZOO)
    if name.endswith((".yaml", ".yml")):
        return "yaml"
    if name.endswith(".py"):
        return "lazy"
    if not source.startswith(ZOO) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        return "function"
    raise InputError(f"detector {source!r}: {FORMS} is needed")


def runs_code(source: str) -> bool:
    """Whether building the detector runs Python code from outside the installed detectron2 and torchvision.

    Of a yaml file it does not: only plain values are read from it, and its classes are detectron2's.
    """
    kind = kind_of(source)
    return kind == "function" or (kind == "lazy" and not source.startswith(ZOO))


def absolute_detector(source: str) -> str:
    """``source`` with the path of a file made absolute, so that it means the same wherever a training runs."""
    if kind_of(source) not in ("yaml", "lazy") or source.startswith(ZOO):
        return source
    return str(Path(source).expanduser().resolve())


def portable_detector(source: str) -> str:
    """``source`` with the last two parts of a file's path alone, as tables show it."""
    if kind_of(source) not in ("yaml", "lazy") or source.startswith(ZOO):
        return source
    return "/".join(Path(source).parts[-2:])


def check_named_again(sources: Sequence[str], named: str | None, where: object) -> None:
    """Raise InputError where a results directory names a detector that runs code and the command does not.

    Code is run only where the command's own options name it: a results directory may come from elsewhere, so what it
    says must not be enough. sources: those that the directory ``where`` names: a student's, and a teacher's where that
    is another. named: what --detector says, several with commas between them.
    """
    several = named is not None and "," in named and named not in sources and not Path(named).exists()
    given = [] if named is None else [absolute_detector(x) for x in (named.split(",") if several else [named])]
    for detector in given:
        if sources and detector not in sources:
            raise InputError(f"--detector {named}: {where} holds trainings of {', '.join(dict.fromkeys(sources))}")
    if any(runs_code(source) and source not in given for source in sources):
        code = code_among(sources)
        what = "the detector" if len(code) == 1 else "the detectors"
        raise InputError(
            f"{where} names {what} {' and '.join(code)}, which {'is' if len(code) == 1 else 'are'} Python code:"
            f" say --detector {','.join(code)} to run {'it' if len(code) == 1 else 'them'}"
        )


def code_among(sources: Sequence[str]) -> list[str]:
    """Those of the detectors that run code, once each."""
    return [x for x in dict.fromkeys(sources) if runs_code(x)]
