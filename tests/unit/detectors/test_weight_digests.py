"""A file of weights is the one that its source names, and the one that was read before."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd.config.experiment import Backbone, Detector, Experiment
from lgd.detectors import build_detector
from lgd.detectors.weight_digests import SUFFIX
from lgd.detectors.weight_sources import digests, find_weights, local_path, without_query
from lgd.detectors.weights import check_weights
from lgd.errors import InputError
from lgd.results.record import load
from lgd.training import run as training
from tests.helpers import quick_experiment

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CHANGED = hashlib.sha256(b"poison").hexdigest()

SOURCES = (MSRA, "catalog://ImageNetPretrained/FAIR/R-50-GN", "https://example.org/a/b.pth", "timm://test_resnet")
"""Without a digest in their names."""


@pytest.fixture(autouse=True)
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that were downloaded; each has CONTENT."""
    asked: list[str] = []

    def serve(url: str, path: str, hash_prefix: str | None, **_: Any) -> None:
        asked.append(url)
        if not DIGEST.startswith(hash_prefix or ""):
            raise RuntimeError("invalid hash value")
        Path(path).write_bytes(CONTENT)

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", serve)
    return asked


def _refused(source: str) -> str:
    with pytest.raises(InputError) as caught:
        local_path(source)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"weights {source}: ")
    return str(caught.value)


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_that_changes_after_its_first_download_is_refused(source: str, served: list[str]) -> None:
    path = local_path(source)
    beside = path.with_name(path.name + SUFFIX)
    assert beside.read_text() == f"{DIGEST}  {path.name}\n"
    assert local_path(source) == path
    path.write_bytes(b"poison")
    said = _refused(source)
    assert f"{path} has changed since its first use here (SHA-256 {DIGEST} then, {CHANGED} now)" in said
    assert f"remove it to download it again, and {beside} too" in said
    path.unlink()
    assert local_path(source) == path
    assert len(served) == 2
    # A digest that the user names is the one that counts.
    path.write_bytes(b"poison")
    assert local_path(f"{source}#sha256={CHANGED}") == path
    assert local_path(source) == path


def test_what_was_put_there_is_compared_from_its_first_use_on(served: list[str]) -> None:
    path = find_weights(MSRA).path
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert local_path(MSRA) == path
    path.write_bytes(b"poison")
    assert "has changed since its first use" in _refused(MSRA)
    assert served == []


def test_a_dry_run_refuses_it_too() -> None:
    local_path(MSRA).write_bytes(b"poison")
    backbone = Backbone(name="resnet18", width=8, weights=MSRA, norm="FrozenBN", freeze_at=0)
    detector = build_detector(Detector(backbone=backbone, channels=16, head_convs=1), 5)
    with pytest.raises(InputError, match="has changed since its first use here"):
        check_weights(detector, MSRA)


def test_files_of_the_users_own_may_change(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    for content in (CONTENT, b"poison"):
        path.write_bytes(content)
        assert local_path(str(path)) == path
    assert [x.name for x in tmp_path.iterdir()] == ["mine.pth"]
    assert f"is another file, its SHA-256 is {CHANGED}" in _refused(f"{path}#sha256={DIGEST}")


def test_torchvisions_are_compared_with_their_name_each_time() -> None:
    path = find_weights("torchvision://resnet50").path
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert f"is another file, its SHA-256 is {DIGEST}" in _refused("torchvision://resnet50")


def test_what_the_hub_keeps_is_compared_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache has files under their SHA-256; nothing of ours is written there."""
    blobs = tmp_path / "models--timm--test_resnet.r160_in1k/blobs"
    blobs.mkdir(parents=True)
    (blobs / DIGEST).write_bytes(CONTENT)
    snapshot = blobs.parent / "snapshots/1234/model.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(blobs / DIGEST)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(snapshot))
    assert local_path("timm://test_resnet") == snapshot
    assert [x.name for x in snapshot.parent.iterdir()] == [snapshot.name]
    (blobs / DIGEST).write_bytes(b"poison")
    assert f"is another file, its SHA-256 is {CHANGED}" in _refused("timm://test_resnet")


def test_no_other_host_has_a_place_among_detectron2s_files(tmp_path: Path) -> None:
    ours = find_weights(MSRA).path
    assert find_weights("https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl").path == ours
    path = "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    others = (
        f"https://evil.example/{path}", f"http://evil.example/{path}", f"https://evil.example:8443/{path}",
        f"http://dl.fbaipublicfiles.com/{path}", f"https://dl.fbaipublicfiles.com@evil.example/{path}",
        f"https://dl.fbaipublicfiles.com.evil.example/{path}", f"https://{path}",
    )  # fmt: skip
    places = [find_weights(x).path for x in others]
    assert ours not in places
    assert places[4] == places[0]  # a user's name, that of none
    assert len(set(places)) == len(others) - 1
    assert all(x.is_relative_to(tmp_path / "fvcore") for x in places)
    local_path(others[0])
    assert not find_weights(MSRA).is_cached


@pytest.mark.parametrize("end", ["#sha256=12ab", f"#sha256={DIGEST}0", f"#SHA256={DIGEST}", f"#md5={DIGEST}", "#x"])
def test_a_mistyped_digest_is_not_passed_over(end: str, served: list[str]) -> None:
    for source in (MSRA, "https://example.org/a.pth"):
        assert "sha256= and 64 hexadecimal digits" in _refused(source + end)
    assert served == []


def test_a_digest_stays_when_the_query_goes(tmp_path: Path) -> None:
    source = f"{MSRA}?matching_heuristics=True#sha256={CHANGED}"
    assert without_query(source) == f"{MSRA}#sha256={CHANGED}"
    assert without_query(f"{MSRA}?matching_heuristics=True") == without_query(MSRA) == MSRA
    path = tmp_path / "fvcore/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert "is another file" in _refused(without_query(source))


def test_a_damaged_digest_is_named() -> None:
    path = local_path(MSRA)
    beside = path.with_name(path.name + SUFFIX)
    for content in (b"", b"\xff", b"1234  R-50.pkl\n"):
        beside.write_bytes(content)
        assert f"{beside} holds no SHA-256" in _refused(MSRA)
    beside.unlink()
    beside.mkdir()
    assert f"{beside} cannot be read" in _refused(MSRA)


def test_a_cache_of_others_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lgd.detectors.weight_digests.write_text", refuse)
    assert local_path(MSRA).read_bytes() == CONTENT
    assert "R-50.pkl.sha256 cannot be written (Permission denied)" in caplog.text


def test_a_trainings_files_are_told_by_source(tmp_path: Path) -> None:
    own = tmp_path / "mine.pth"
    path = local_path(MSRA)
    shutil.copy(path, own)
    experiment = Experiment().override({"detector.backbone.weights": MSRA, "detector.backbone.name": "resnet50"})
    assert digests(experiment) == {MSRA: DIGEST}
    assert digests(experiment.override({"detector.weights": str(own)})) == {str(own): DIGEST}


@pytest.mark.slow
def test_a_record_tells_which_files_were_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    experiment = quick_experiment(schedule__steps=3, data__shapes_val=2)
    torch.save(build_detector(experiment.detector, 5).state_dict(), path)
    record = training.run(experiment.override({"detector.backbone.weights": str(path)}), tmp_path / "run")
    assert record.weights == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert load(tmp_path / "run/record.json").weights == record.weights
