"""The lines of Python that make a plain detector, as far as possible without this suite."""

from __future__ import annotations

import copy
import keyword
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from omegaconf import DictConfig, ListConfig, OmegaConf

from lgd.config.detector_source import ZOO, kind_of
from lgd.config.experiment import Detector, split_assignment
from lgd.detectors.config_files import file_of, load_config, set_classes
from lgd.logs import quiet_libraries

__all__ = ["build_snippet"]


def build_snippet(settings: Detector, classes: int) -> list[str]:
    """Lines after which ``detector`` is what ``settings`` describe, for ``classes`` classes; not torchvision's.

    Raises InputError, one line, where its config cannot be read.
    """
    kind, source = kind_of(settings.source), settings.source
    if kind == "yaml":
        return _yaml_lines(source, settings.overrides, classes)
    if kind == "lazy":
        return _lazy_lines(source, settings.overrides, classes)
    if kind == "function":
        module, _, function = source.partition(":")
        arguments = _arguments(dict(split_assignment(x) for x in settings.overrides))
        return [f"from {module} import {function}", f"detector = {function}({', '.join([str(classes), *arguments])})"]
    return [
        "from lgd.config.experiment import Detector",
        "from lgd.detectors import build_detector",
        f"detector = build_detector(Detector.model_validate_json({settings.model_dump_json()!r}), {classes})",
    ]


def _arguments(given: dict[str, Any]) -> list[str]:
    if all(x.isidentifier() and not keyword.iskeyword(x) for x in given):
        return [f"{name}={value!r}" for name, value in given.items()]
    return [f"**{given!r}"]


def _yaml_lines(source: str, overrides: Sequence[str], classes: int) -> list[str]:
    if source.startswith(ZOO):
        lines = ["from detectron2 import model_zoo", f"cfg = model_zoo.get_config({source.removeprefix(ZOO)!r})"]
    else:
        path = str(file_of(source))
        lines = ["from detectron2.config import get_cfg"]
        if _detectron2_reads(path):
            lines += ["cfg = get_cfg()"]
        else:
            # It is based on a file of the model zoo in a way that only this suite finds.
            lines += ["from lgd.detectors.config_files import YamlConfig", "cfg = YamlConfig(get_cfg())"]
        # Else detectron2 runs what tags in the file name.
        lines += [f"cfg.merge_from_file({path!r}, allow_unsafe=False)"]
    if overrides:
        lines.append(f"cfg.merge_from_list({[part.strip() for x in overrides for part in x.split('=', 1)]!r})")
    lines += [f"cfg.{key} = {classes}" for key in _class_keys(load_config(source, overrides), classes)]
    return [
        *lines,
        'cfg.MODEL.DEVICE = "cpu"  # or "cuda"',
        "from detectron2.modeling import build_model",
        "detector = build_model(cfg)",
    ]


def _detectron2_reads(path: str) -> bool:
    with quiet_libraries():
        try:
            # Else a tag in the file would be run.
            get_cfg().merge_from_file(path, allow_unsafe=False)
        except Exception:  # a file that is missing, a tag, a key: this suite's own reader says what is wrong
            return False
    return True


def _lazy_lines(source: str, overrides: Sequence[str], classes: int) -> list[str]:
    if source.startswith(ZOO):
        lines = [
            "from detectron2 import model_zoo",
            "from detectron2.config import instantiate",
            f"cfg = model_zoo.get_config({source.removeprefix(ZOO)!r})",
        ]
    else:
        lines = [
            "from detectron2.config import LazyConfig, instantiate",
            f"cfg = LazyConfig.load({str(file_of(source))!r})",
        ]
    # A part of a key may be a number, which is no attribute.
    assigned = [(key.strip(), yaml.safe_load(value)) for key, _, value in (x.partition("=") for x in overrides)]
    assigned += [(key, classes) for key in _class_keys(load_config(source, overrides), classes)]
    if assigned:
        lines.append("from omegaconf import OmegaConf")
    lines += [f"OmegaConf.update(cfg, {key!r}, {value!r})" for key, value in assigned]
    return [*lines, "detector = instantiate(cfg.model)"]


def _class_keys(config: Any, classes: int) -> list[str]:
    """The keys that hold another number of classes than the detector was built with."""
    is_yaml = isinstance(config, CfgNode)
    top, key = ("MODEL", "NUM_CLASSES") if is_yaml else ("model", "num_classes")
    changed = copy.deepcopy(config[top])
    # The rule by which the detector itself was built.
    set_classes(changed, key, classes)
    return list(_changes(config[top], changed, key, top))


def _changes(before: Any, after: Any, key: str, path: str) -> Iterator[str]:
    for name in range(len(after)) if isinstance(after, ListConfig) else list(after):
        # What refers to another key follows it.
        if isinstance(after, DictConfig) and OmegaConf.is_interpolation(after, name):
            continue
        value = after[name]
        if isinstance(value, (CfgNode, DictConfig, ListConfig)):
            yield from _changes(before[name], value, key, f"{path}.{name}")
        elif name == key and value != before[name]:
            yield f"{path}.{name}"
