"""Where weights come from: what is on this machine, what the server has, and what to do without a network."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from lgd.config.experiment import Backbone, Detector, Experiment
from lgd.config.presets import PAPER
from lgd.detectors import build_detector, weight_sources
from lgd.detectors.weight_sources import WeightSource, find_weights, local_path, probe, required_weights
from lgd.detectors.weights import check_weights, load_weights
from lgd.errors import InputError

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def _refused(act: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("[Errno -2]\nName or service not known")

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path


@pytest.mark.parametrize(
    ("source", "url", "file"),
    [
        (
            MSRA,
            "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
            "fvcore/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
        ),
        (
            "catalog://ImageNetPretrained/FAIR/R-50-GN",
            "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/47261647/R-50-GN.pkl",
            "fvcore/detectron/ImageNetPretrained/47261647/R-50-GN.pkl",
        ),
        (
            "torchvision://resnet50",
            "https://download.pytorch.org/models/resnet50-0676ba61.pth",
            "torch/hub/checkpoints/resnet50-0676ba61.pth",
        ),
        (
            "torchvision://Swin_T_Weights.IMAGENET1K_V1",
            "https://download.pytorch.org/models/swin_t-704ceda3.pth",
            "torch/hub/checkpoints/swin_t-704ceda3.pth",
        ),
        ("https://example.org/a/b.pth", "https://example.org/a/b.pth", "fvcore/https/example.org/a/b.pth"),
    ],
)
def test_without_a_network_the_error_says_what_to_put_where(offline: Path, source: str, url: str, file: str) -> None:
    said = _refused(local_path, source)
    assert source in said
    assert "[Errno -2] Name or service not known" in said
    assert said.endswith(f"get {url} elsewhere and put it at {offline / file}")
    # Put there, it is found.
    (offline / file).parent.mkdir(parents=True, exist_ok=True)
    (offline / file).touch()
    found = find_weights(source)
    assert (found.is_cached, found.path) == (True, offline / file)


def test_detectron2_finds_files_in_the_same_place(offline: Path) -> None:
    path = offline / "fvcore/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    path.parent.mkdir(parents=True)
    path.touch()
    assert PathManager.get_local_path(MSRA) == str(path)


# What a server has


CONTENT = b"weights" * 1000


class _Server(BaseHTTPRequestHandler):
    """/kept has a file, /get-only refuses HEAD, /moved redirects to /kept; nothing else is there."""

    def do_HEAD(self) -> None:
        self._answer(405 if "get-only" in self.path else None)

    def do_GET(self) -> None:
        if self._answer(None):
            self.wfile.write(CONTENT)

    def _answer(self, code: int | None) -> bool:
        there = "kept" in self.path or "get-only" in self.path
        moved = "moved" in self.path
        self.send_response(code or (302 if moved else 200 if there else 404))
        if moved:
            self.send_header("Location", "/kept.pth")
        self.send_header("Content-Length", str(len(CONTENT)) if there and not moved else "0")
        self.end_headers()
        return there and not moved

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    settings = Backbone(name="resnet18", width=8, weights="file", norm="BN", freeze_at=0)
    return build_detector(Detector(backbone=settings, channels=16, head_convs=1), 5)


@pytest.mark.parametrize("name", ["kept.pth", "get-only.pth", "moved.pth"])
def test_a_file_that_the_server_has_is_announced_with_its_size(name: str, server: str, cache: Path) -> None:
    found = probe(find_weights(f"{server}/{name}"))
    kept = cache / "fvcore/http" / server.removeprefix("http://") / name
    assert found == WeightSource(f"{server}/{name}", f"{server}/{name}", kept, is_cached=False, size=len(CONTENT))
    assert str(found).startswith(f"weights {server}/{name}: to be downloaded (0 MiB) from {server}/{name} to ")
    assert not found.path.exists()


@pytest.mark.parametrize("asked", ["server", "closed port", "no such host"])
def test_a_url_that_cannot_be_had_is_refused_before_anything_is_downloaded(
    asked: str, server: str, detector: nn.Module
) -> None:
    """The dry run used to accept it."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    url = {"server": server, "closed port": closed, "no such host": "http://nowhere.invalid"}[asked] + "/gone.pth"
    said = _refused(check_weights, detector, url)
    assert said.startswith(f"weights {url} are not on this machine and cannot be downloaded (")
    assert f"get {url} elsewhere and put it at " in said


def test_a_silent_server_is_not_waited_for(detector: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth"
        assert "timed out" in _refused(probe, find_weights(url), 0.2)


def test_a_download_whose_hash_is_wrong_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's file names hold the beginning of their SHA-256."""
    monkeypatch.setattr(weight_sources, "_torchvision_url", lambda *_: f"{server}/kept-0676ba61.pth")
    said = _refused(local_path, "torchvision://resnet50")
    assert "invalid hash value" in said
    assert not find_weights("torchvision://resnet50").is_cached


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org", "https://example.org/../../x.pth", "https://[::1/x.pth", "https:///x.pth",
        "https://../x.pth", "https://example.org:x/y.pth",
    ],
)  # fmt: skip
def test_urls_without_a_file_of_their_own(url: str) -> None:
    assert f"weights {url}: " in _refused(find_weights, url)


# What a dry run says


def test_a_file_is_compared_with_the_detector_without_a_change_to_it(detector: nn.Module, tmp_path: Path) -> None:
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({name: x + 1 for name, x in before.items()}, good)
    torch.save({name: x.repeat(2, *[1] * (x.ndim - 1)) if x.ndim else x for name, x in before.items()}, bad)
    found = check_weights(detector, str(good))
    assert found is not None
    assert (found.is_cached, found.size) == (True, good.stat().st_size)
    assert "of another shape (stem.conv1.weight 16x3x7x7 for 8x3x7x7" in _refused(check_weights, detector, str(bad))
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())
    assert check_weights(detector, "none") is None


def test_shapes_are_compared_on_the_meta_device_too(detector: nn.Module, tmp_path: Path) -> None:
    torch.save(detector.state_dict(), tmp_path / "x.pth")
    settings = Backbone(name="resnet18", width=8, weights="file", norm="BN", freeze_at=0)
    with torch.device("meta"):
        unbuilt = build_detector(Detector(backbone=settings, channels=16, head_convs=1), 5)
        wider = build_detector(Detector(backbone=settings.model_copy(update={"width": 16}), channels=16), 5)
    assert check_weights(unbuilt, str(tmp_path / "x.pth")) is not None
    assert "of another shape" in _refused(check_weights, wider, str(tmp_path / "x.pth"))


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/zero", "/", "/etc/passwd/x", "x" * 5000])
def test_paths_that_are_no_weights(path: str, detector: nn.Module) -> None:
    for act in (check_weights, load_weights):
        said = _refused(act, detector, path)
        assert said.startswith(f"weights {path}: ")
        assert "weights_only" not in said


def test_the_papers_weights_are_announced() -> None:
    """A dry run used to say nothing of them."""
    imitation = PAPER.override({"method.name": "fgfi"})
    r101 = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
    found = required_weights(PAPER, imitation)
    assert [(x.source, x.is_cached, x.size) for x in found] == [(MSRA, False, None), (r101, False, None)]
    url = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    assert str(found[0]) == f"weights {MSRA}: to be downloaded (unknown size) from {url} to {found[0].path}"
    found[0].path.parent.mkdir(parents=True)
    found[0].path.write_bytes(bytes(3 * 2**20))
    assert str(required_weights(PAPER)[0]) == f"weights {MSRA}: on this machine (3 MiB, {found[0].path})"
    scratch = Experiment().override({"detector.backbone.weights": "none", "detector.backbone.freeze_at": 0})
    assert required_weights(scratch) == []


def test_a_pretrained_detectors_file_takes_the_backbones_place() -> None:
    zoo = "detectron2://COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl"
    assert [x.source for x in required_weights(PAPER.override({"detector.weights": zoo}))] == [zoo]
