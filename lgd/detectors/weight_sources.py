"""Where pretrained weights come from and where they are kept.

A source is one of
- ``none``;
- ``detectron2://...`` (also ``catalog://...``), kept where detectron2 keeps it: ``$FVCORE_CACHE``, or
  ``~/.torch/iopath_cache``;
- ``https://...``, kept there too, those of another host than detectron2's under the host's name;
- ``torchvision://resnet50`` (its IMAGENET1K_V1 weights, the ones torchvision's own detectors start from) or
  ``torchvision://ResNet50_Weights.IMAGENET1K_V2``, kept in torch hub's ``checkpoints``;
- ``torchvision://FILE.pth``, a local file of torchvision's weights;
- ``timm://convnext_tiny``, what timm downloads for a model, and ``package:efficientnet-lite0``, a file in a
  package that is installed; see lgd/detectors/timm_weights.py;
- a local file; see lgd/detectors/weight_files.py for the formats.

``#sha256=HEX`` at the end, as pip takes it, has the file checked each time. What is downloaded is checked against the
part of the digest in its name, where it has one as torchvision's do, and against its first use on this machine
(lgd/detectors/weight_digests.py).
"""

from __future__ import annotations

import functools
import logging
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
import torchvision
from detectron2.checkpoint.catalog import ModelCatalog
from iopath.common.file_io import get_cache_dir

from lgd.config.detector import PACKAGE, TIMM_SCHEME
from lgd.config.experiment import Experiment
from lgd.detectors.conventions import TORCHVISION
from lgd.detectors.from_elsewhere import initial_weights
from lgd.detectors.timm_weights import locate_in_timm, locate_package
from lgd.detectors.weight_digests import check_digest, expected, pinned
from lgd.errors import InputError

__all__ = ["WeightSource", "digests", "find_weights", "local_path", "probe", "required_weights", "without_query"]

DOWNLOAD_TIMEOUT = 30.0
"""Seconds that a connection may be silent before a download counts as failed."""

PROBE_TIMEOUT = 5.0
"""The same for a look whether there is something to download."""

_DETECTRON2_HOST = "https://dl.fbaipublicfiles.com/"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightSource:
    """A source of weights that exists on this machine or has a URL."""

    source: str
    url: str
    """Empty for a local file."""
    path: Path
    """Where the file is, or will be kept."""
    is_cached: bool
    """Whether it is there already."""
    size: int | None = None
    """Bytes, None where it is not known."""

    def __str__(self) -> str:
        size = "unknown size" if self.size is None else f"{self.size / 2**20:.0f} MiB"
        if self.is_cached:
            return f"weights {self.source}: on this machine ({size}, {self.path})"
        return f"weights {self.source}: to be downloaded ({size}) from {self.url} to {self.path}"


def find_weights(source: str) -> WeightSource:
    """Where the weights ``source`` are, without asking the network.

    Raises InputError, one line, for a source that does not exist, ``none`` included.
    """
    url, path = _locate(source.rpartition("#")[0] if pinned(source) else source)
    try:
        is_file = path.is_file()
        size = path.stat().st_size if is_file else None
    except OSError as error:
        raise InputError(f"weights {source}: {path} cannot be read ({error.strerror})") from None
    if not url and not is_file:
        raise InputError(f"weights {source}: there is no file {path}{', but a directory' if path.is_dir() else ''}")
    return WeightSource(source, url, path, is_file, size)


def required_weights(*experiments: Experiment) -> list[WeightSource]:
    """The pretrained weights of ``experiments`` and of their frozen teachers, each file once; without network.

    Raises InputError, one line, for a source that does not exist.
    """
    each = [x for experiment in experiments for x in (experiment, experiment.teacher) if x is not None]
    return [find_weights(source) for source in dict.fromkeys(y for x in each for y in _sources(x))]


def _sources(experiment: Experiment) -> list[str]:
    """The weights that this training reads: its detector's, and those of a teacher that it is given."""
    given = experiment.given_teacher
    each = [experiment.detector, *([] if given is None else [given.teacher_detector(experiment.detector)])]
    return [source for x in each if (source := without_query(initial_weights(x))) != "none"]


def digests(experiment: Experiment) -> dict[str, str]:
    """SHA-256 of each file of weights that this training reads, by its source; the files are on this machine."""
    found = [find_weights(source) for source in _sources(experiment)]
    return {x.source: check_digest(x.source, x.path, downloaded=bool(x.url)) for x in found}


def without_query(source: str) -> str:
    """Without what detectron2's own checkpointer reads (``?matching_heuristics=True``); a digest at the end stays."""
    return re.sub(r"\?[^#]*", "", source)


def probe(weights: WeightSource, timeout: float = PROBE_TIMEOUT) -> WeightSource:
    """The same with its size, after asking the server whether it has the file; a file on this machine is not asked for.

    Raises InputError, one line that says where to put the file, when it cannot be had.
    """
    if weights.is_cached:
        return weights
    try:
        length = _content_length(weights.url, timeout)
    except (OSError, ValueError, HTTPException) as error:
        raise _unavailable(weights, error) from None
    return replace(weights, size=length)


@functools.cache
def _content_length(url: str, timeout: float) -> int | None:
    """Content-Length of ``url``, None where the server does not send it; cached for the many trials of a sweep.

    Raises OSError, ValueError or HTTPException where the server does not answer with the file."""
    for method in ("HEAD", "GET"):
        try:
            # The body of an answer to GET is left unread.
            with urlopen(Request(url, method=method), timeout=timeout) as answer:
                length = answer.headers.get("Content-Length", "")
                return int(length) if length.isdecimal() else None
        except HTTPError as error:
            if method == "GET" or error.code not in (403, 405, 501):
                raise
    raise AssertionError(url)


def local_path(source: str) -> Path:
    """The file that ``source`` names, downloaded where it has to be.

    Raises InputError with one line: which file, where to get it, where to put it; or that it is another file than it
    should be (lgd/detectors/weight_digests.py).
    """
    weights = find_weights(source)
    if not weights.is_cached:
        _download(weights)
    check_digest(source, weights.path, downloaded=bool(weights.url))
    return weights.path


def _download(weights: WeightSource) -> None:
    log.info("downloading %s to %s", weights.url, weights.path)
    try:
        weights.path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            # It writes a temporary file first: an interrupted download leaves nothing under the name.
            torch.hub.download_url_to_file(
                weights.url,
                str(weights.path),
                hash_prefix=expected(weights.source, weights.path) or None,
                progress=sys.stderr.isatty(),
            )
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise _unavailable(weights, error) from None


def _unavailable(weights: WeightSource, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"weights {weights.source} are not on this machine and cannot be downloaded ({reason}):"
        f" get {weights.url} elsewhere and put it at {weights.path}"
    )


def _locate(source: str) -> tuple[str, Path]:
    """Where ``source`` comes from (empty for a local file) and where it is kept."""
    if source.startswith(TORCHVISION):
        name = source.removeprefix(TORCHVISION)
        if name.endswith((".pth", ".pt", ".pkl")):
            return "", Path(name).expanduser()
        url = _torchvision_url(name, source)
        return url, Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if source.startswith(PACKAGE):
        return "", locate_package(source)
    if source.startswith(TIMM_SCHEME):
        return locate_in_timm(source)
    url = source
    if source.startswith("detectron2://"):
        url = f"{_DETECTRON2_HOST}detectron2/{source.removeprefix('detectron2://')}"
    elif source.startswith("catalog://"):
        try:
            url = ModelCatalog.get(source.removeprefix("catalog://"))
        except (KeyError, RuntimeError):
            raise InputError(f"weights {source}: detectron2's catalog has no such model") from None
    if url.startswith(("https://", "http://")):
        return url, _url_path(url, source)
    if "://" in source:
        raise InputError(
            f"weights {source}: use none, a file, or one of detectron2://, torchvision://, timm://, https://"
        )
    return "", Path(source).expanduser()


def _url_path(url: str, source: str) -> Path:
    """Of detectron2's host, the layout of its own cache, so that either finds what the other has.

    That layout leaves the host out; of another one, a file of the same path must not be taken for detectron2's.
    """
    try:
        found = urlparse(url)
        host = f"{found.hostname}:{found.port}" if found.port else found.hostname or ""
    except ValueError as error:
        raise InputError(f"weights {source}: no URL ({error})") from None
    parts = Path(found.path.lstrip("/")).parts
    if not host or not parts or ".." in (host, *parts):
        raise InputError(f"weights {source}: the URL names no file")
    if found.fragment:
        # A digest that was mistyped would else not be looked at.
        raise InputError(f"weights {source}: after the # sha256= and 64 hexadecimal digits are expected")
    return Path(get_cache_dir(), *([] if url.startswith(_DETECTRON2_HOST) else [found.scheme, host]), *parts)


def _torchvision_url(name: str, source: str) -> str:
    try:
        if "." in name:
            weights: Any = torchvision.models.get_weight(name)
        else:
            weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        raise InputError(
            f"weights {source}: torchvision has no such weights; write torchvision://resnet50,"
            " torchvision://ResNet50_Weights.IMAGENET1K_V2 or torchvision://FILE.pth"
        ) from None
    return str(weights.url)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
