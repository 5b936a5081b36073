"""Detectors from detectron2's configs: yaml files, LazyConfig files, and those of its model zoo."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import detectron2.model_zoo
import torch
import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from lgd.config.detector_source import ZOO, kind_of
from lgd.errors import InputError, own_code
from lgd.logs import quiet_libraries

CONFIGS = Path(detectron2.model_zoo.__file__).parent / "configs"
"""The model zoo's configs, which are inside the package."""

CALLED = "_target_"
"""Key of a lazy config whose value, a dotted name, is imported and called. Overrides may come from a results directory,
and what that says is not run."""

NOT_THE_DETECTORS = ("backbone", "sem_seg_head", "SEM_SEG_HEAD", "BACKBONE")
"""Groups of a config whose number of classes is not the data's."""


class YamlConfig(CfgNode):
    """detectron2's config, which may name the model zoo's as its ``_BASE_`` and runs no code of a user's file.

    A ``_BASE_`` is a path relative to the file, ``zoo:Base-RetinaNet.yaml``, or, of a file that was copied out of the
    zoo, still ``../Base-RetinaNet.yaml``.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        return super()._open_cfg(str(_in_zoo(filename) or filename))

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """allow_unsafe: not read. Of the zoo's files some evaluate an expression; a user's file must not."""
        if "://" in filename:
            # It would be downloaded, each time that a worker builds the detector.
            raise InputError(f"_BASE_: {filename} is a URL: download it, and name the file")
        found = _in_zoo(filename)
        with _muted("fvcore.common.config"):
            loaded: dict[str, Any] = super().load_yaml_with_base(str(found or filename), allow_unsafe=found is not None)
        return loaded


@contextmanager
def _muted(name: str) -> Iterator[None]:
    """Inside, the logger of that name is silent: what it would warn of is known, or is raised as well."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _in_zoo(filename: str) -> Path | None:
    """The zoo's file that ``filename`` means: one there, one after ``zoo:``, or one that does not exist elsewhere."""
    path = Path(filename)
    if ZOO in filename:
        return _zoo_file(filename.rpartition(ZOO)[2])
    if path.exists():
        return _inside(path)
    # The path ends in the _BASE_ that the file names.
    names = [x for x in path.parts if x != ".."]
    return next((x for n in (1, 2) if (x := _inside(CONFIGS.joinpath(*names[-n:]))) and x.is_file()), None)


def _inside(path: Path) -> Path | None:
    """Where a path of the zoo really leads, None for one outside: a path that begins there may lead out of it."""
    real = path.resolve()
    return real if real.is_relative_to(CONFIGS.resolve()) else None


def _zoo_file(name: str) -> Path:
    path = _inside(CONFIGS / name)
    if path is None or not path.is_file():
        group = CONFIGS / Path(name).parent
        near = sorted(x.name for x in group.glob("*.*") if x.suffix in (".yaml", ".py")) if group.is_dir() else []
        there = f"{Path(name).parent} has {', '.join(near)}" if near else f"its groups are {', '.join(_groups())}"
        raise InputError(f"detector {ZOO}{name}: detectron2's model zoo has no such config; {there}")
    return path


def _groups() -> list[str]:
    return sorted(x.name for x in CONFIGS.iterdir() if x.is_dir() and list(x.glob("*.yaml")))


def file_of(source: str) -> Path:
    """The config file that a source names. Raises InputError, one line, where there is none."""
    if source.startswith(ZOO):
        return _zoo_file(source.removeprefix(ZOO))
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"detector {source}: there is no such file")
    return path


def load_config(source: str, overrides: Sequence[str]) -> Any:
    """The config of a yaml source (a CfgNode) or of a lazy one (a DictConfig), with ``overrides``.

    Raises InputError, one line, for what cannot be read, and for an override that names no key.
    """
    path = file_of(source)
    with _errors_of(source), quiet_libraries():
        return _load_yaml(path, overrides) if kind_of(source) == "yaml" else _load_lazy(path, source, overrides)


def _load_yaml(path: Path, overrides: Sequence[str]) -> CfgNode:
    config = YamlConfig(get_cfg())
    config.merge_from_file(str(path), allow_unsafe=False)
    for assignment in overrides:
        key, value = _split(assignment)
        config.merge_from_list([key, value])
    config.MODEL.DEVICE = "cpu"
    return config


def _load_lazy(path: Path, source: str, overrides: Sequence[str]) -> DictConfig:
    config = LazyConfig.load(str(path))
    if not isinstance(config, DictConfig) or "model" not in config:
        raise InputError(f"detector {source}: the file defines no `model`")
    for assignment in overrides:
        key, value = _split(assignment)
        if OmegaConf.select(config, key.rpartition(".")[0] or key, default=None) is None:
            raise InputError(f"detector {source}: its config has no key {key}")
        parsed = yaml.safe_load(value)
        if CALLED in key or _calls(parsed):
            raise InputError(
                f"detector {source}: {key}: {CALLED} and ${{resolver:...}} belong into the config file alone"
            )
        OmegaConf.update(config, key, parsed)
    return config


def _calls(value: Any) -> bool:
    """Whether a value names something to be called, or has one of OmegaConf's functions, which may make such a name."""
    if isinstance(value, dict):
        return any(_calls(x) for pair in value.items() for x in pair)
    if isinstance(value, str):
        return CALLED in value or ":" in value.partition("${")[2]
    return isinstance(value, (list, tuple)) and any(map(_calls, value))


def _split(assignment: str) -> tuple[str, str]:
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise InputError(f"detector.overrides: {assignment!r} is not of the form key=value")
    return key.strip(), value.strip()


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    """Whatever a config raises becomes an InputError, in one line."""
    instantiate, compat = (_muted(f"detectron2.config.{x}") for x in ("instantiate", "compat"))
    with instantiate, compat, own_code(f"detector {source}"):
        try:
            yield
        except yaml.constructor.ConstructorError as error:
            raise InputError(
                f"detector {source}: a Python tag would run code ({error.problem}): write plain values, or take them"
                f" from the zoo with _BASE_: {ZOO}Base-RetinaNet.yaml"
            ) from None


def weights_named_by(source: str, overrides: Sequence[str]) -> str:
    """The weights that a config starts from, "" for none: ``MODEL.WEIGHTS``, or ``train.init_checkpoint``."""
    config = load_config(source, overrides)
    if isinstance(config, CfgNode):
        return str(config.MODEL.WEIGHTS)
    return str(OmegaConf.select(config, "train.init_checkpoint", default=None) or "")


def build(source: str, overrides: Sequence[str], num_classes: int) -> nn.Module:
    """The detector of a config, on the CPU, with initial weights, for ``num_classes`` classes.

    Raises InputError, one line, where it cannot be built.
    """
    config = load_config(source, overrides)
    with _errors_of(source), quiet_libraries():
        if isinstance(config, CfgNode):
            set_classes(config.MODEL, "NUM_CLASSES", num_classes)
            detector: nn.Module = build_model(config)
        else:
            if not set_classes(config.model, "num_classes", num_classes):
                raise InputError(f"detector {source}: no key num_classes in its model says how many classes it has")
            detector = instantiate(config.model)
        if not isinstance(detector, nn.Module):
            raise InputError(f"detector {source}: its model is a {type(detector).__name__}, not a module")
        return detector.to(torch.device("cpu"))


def set_classes(config: Any, key: str, num_classes: int, *, of: int | None = None, inside: object = "") -> int:
    """Set every ``key`` that holds a number of its own; how many there are.

    of, inside: the number of classes of what ``config`` is in, and its name there: a mask head of one class in a
    detector of several is of no class in particular, and stays so.
    """
    count = 0
    if isinstance(config, ListConfig):
        parts = [x for x in config if isinstance(x, (DictConfig, ListConfig))]
        return sum(set_classes(x, key, num_classes, of=of, inside=inside) for x in parts)
    refers = isinstance(config, DictConfig) and key in config and OmegaConf.is_interpolation(config, key)
    own = config[key] if key in config and not refers else None
    for name in list(config):
        # What refers to another key follows it.
        if isinstance(config, DictConfig) and OmegaConf.is_interpolation(config, name):
            continue
        value = config[name]
        if name == key and isinstance(value, int):
            if not (inside == "mask_head" and value == 1 and of not in (None, 1)):
                config[name] = num_classes
                count += 1
        elif isinstance(value, (CfgNode, DictConfig, ListConfig)) and name not in NOT_THE_DETECTORS:
            count += set_classes(value, key, num_classes, of=own if isinstance(own, int) else of, inside=name)
    return count
