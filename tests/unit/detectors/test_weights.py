"""Pretrained weights: every format a file can have, and every way in which it cannot be had."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from lgd.config.experiment import Backbone, Detector
from lgd.detectors import build_detector
from lgd.detectors.conventions import conventions
from lgd.detectors.weight_files import read_weights
from lgd.detectors.weights import LoadReport, load_weights
from lgd.errors import InputError
from lgd.training.export import export_student

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
PREFIX = "backbone.bottom_up."


def _detector(seed: int = 0, classes: int = 5, **backbone: Any) -> nn.Module:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"name": "resnet50", "width": 8, "weights": "file"} | backbone
    return build_detector(Detector(backbone=Backbone(**settings), channels=16, head_convs=1), classes)


def _bottom_up(detector: nn.Module) -> dict[str, Tensor]:
    return {n.removeprefix(PREFIX): x.clone() for n, x in detector.state_dict().items() if n.startswith(PREFIX)}


def _randomised(detector: nn.Module) -> nn.Module:
    """With every number its own, statistics of norms too."""
    for x in detector.state_dict().values():
        if x.is_floating_point():
            x.copy_(torch.rand_like(x) + 0.5)
    return detector


def _caffe2(names: dict[str, Tensor], fused: bool = False) -> dict[str, np.ndarray]:
    """As the MSRA and FAIR files name things; ``fused`` as Detectron1's do, without statistics."""
    found = {"pred_w": np.zeros((1000, 64), np.float32), "pred_b": np.zeros(1000, np.float32)}
    for name, x in names.items():
        if "conv2_offset" in name or (fused and "running" in name):
            continue
        key = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1").replace(".norm", "_bn")
        for ours, theirs in (
            ("conv1", "branch2a"),
            ("conv2", "branch2b"),
            ("conv3", "branch2c"),
            ("shortcut", "branch1"),
        ):
            key = re.sub(rf"^(res\d)\.(\d+)\.{ours}", rf"\1_\2_{theirs}", key)
        affine = {"weight": "s" if "bn" in key else "w", "bias": "b", "running_mean": "rm", "running_var": "riv"}
        stem, leaf = key.rsplit(".", 1)
        found[f"{stem}_{affine[leaf]}"] = x.numpy()
    return found


def _dump(path: Path, content: Any) -> str:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    return str(path)


def _refused(detector: nn.Module, source: str) -> str:
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(detector, source)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())
    return str(caught.value)


# Formats


def test_none_is_none() -> None:
    report = load_weights(_detector(), "none")
    assert report == LoadReport("none")
    assert str(report) == "no pretrained weights"


@pytest.mark.parametrize("wrapped", [False, True])
def test_caffe2_names(tmp_path: Path, wrapped: bool) -> None:
    theirs, ours = _randomised(_detector()), _detector(seed=1)
    blobs: Any = _caffe2(_bottom_up(theirs))
    source = _dump(tmp_path / "R-50.pkl", {"model": blobs, "__author__": "Caffe2"} if wrapped else blobs)
    head = {name: x.clone() for name, x in ours.state_dict().items() if not name.startswith(PREFIX)}
    report = load_weights(ours, source)
    expected = _bottom_up(theirs)
    assert report.format == "caffe2"
    assert (report.loaded, report.detector) == (len(expected), False)
    assert set(report.unused) == {"linear.weight", "linear.bias"}
    assert (report.initial, report.skipped) == ((), ())
    for name, x in _bottom_up(ours).items():
        assert torch.equal(x, expected[name]), name
    assert all(torch.equal(ours.state_dict()[name], x) for name, x in head.items())
    assert "265 tensors of a bottom-up network (caffe2 names)" in str(report)


def test_what_detectron2_reads_from_a_file_we_read(tmp_path: Path) -> None:
    source = _dump(tmp_path / "R-50.pkl", _caffe2(_bottom_up(_randomised(_detector()))))
    ours, theirs = _detector(seed=1), _detector(seed=1)
    load_weights(ours, source)
    DetectionCheckpointer(theirs).load(source)
    for name, x in theirs.state_dict().items():
        assert torch.equal(x, ours.state_dict()[name]), name


def test_norms_fused_into_scale_and_shift_are_for_frozen_norms(tmp_path: Path) -> None:
    source = _dump(tmp_path / "fused.pkl", {"blobs": _caffe2(_bottom_up(_randomised(_detector())), fused=True)})
    frozen = _randomised(_detector(seed=1))
    load_weights(frozen, source)
    assert all((x == 0).all() for name, x in _bottom_up(frozen).items() if name.endswith("running_mean"))
    assert all((x == 1).all() for name, x in _bottom_up(frozen).items() if name.endswith("running_var"))
    assert "stem.conv1.norm.running_mean" in _refused(_detector(norm="BN", freeze_at=0), source)


def test_batch_norm_weights_do_not_go_into_group_norms(tmp_path: Path) -> None:
    source = _dump(tmp_path / "R-50.pkl", _caffe2(_bottom_up(_detector(width=32))))
    assert "batch-norm network's" in _refused(_detector(width=32, norm="GN"), source)


def test_a_whole_detector(tmp_path: Path) -> None:
    theirs = _randomised(_detector(deformable=True))
    export_student(theirs, tmp_path / "student.pth")
    same = _detector(seed=1, deformable=True)
    report = load_weights(same, str(tmp_path / "student.pth"))
    assert (report.format, report.detector) == ("detectron2", True)
    assert (report.initial, report.skipped, report.unused) == ((), (), ())
    for name, x in same.state_dict().items():
        assert torch.equal(x, theirs.state_dict()[name]), name

    # A model-zoo file is the same as arrays; of another number of classes, the classifier stays.
    zoo = {name: x.numpy() for name, x in theirs.state_dict().items()}
    source = _dump(tmp_path / "model_final.pkl", {"model": zoo, "__author__": "Detectron2 Model Zoo"})
    other = _detector(seed=1, classes=7, deformable=True)
    report = load_weights(other, source)
    assert report.skipped == ("head.cls_score.weight", "head.cls_score.bias")
    assert torch.equal(other.state_dict()["head.bbox_pred.weight"], theirs.state_dict()["head.bbox_pred.weight"])

    # Its offsets are part of it.
    plain = _randomised(_detector())
    export_student(plain, tmp_path / "plain.pth")
    assert "missing (res3.0.conv2_offset.weight" in _refused(same, str(tmp_path / "plain.pth"))
    assert "no place in this backbone (res3.0.conv2_offset" in _refused(plain, str(tmp_path / "student.pth"))


def test_a_classifiers_weights_leave_the_offsets_at_zero(tmp_path: Path) -> None:
    source = _dump(tmp_path / "R-50.pkl", _caffe2(_bottom_up(_randomised(_detector()))))
    report = load_weights(_detector(seed=1, deformable=True), source)
    assert len(report.initial) == 2 * (4 + 6 + 3)
    assert all(".conv2_offset." in x for x in report.initial)
    assert "26 keep their initial values" in str(report)


def _normalised(images_rgb: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images_rgb / 255 - mean[:, None, None]) / std[:, None, None]


def _ours(settings: Backbone, source: str, images_rgb: Tensor) -> dict[str, Tensor]:
    """Features of our network, which reads BGR, with the file's weights and the statistics that go with them."""
    detector = build_detector(Detector(backbone=settings, channels=16, head_convs=1), 5).eval()
    load_weights(detector, source)
    assumed = conventions(settings)
    mean, std = torch.tensor(assumed.pixel_mean), torch.tensor(assumed.pixel_std)
    found: dict[str, Tensor] = detector.backbone.bottom_up(  # type: ignore[union-attr, operator]
        (images_rgb.flip(1) - mean[:, None, None]) / std[:, None, None]
    )
    return found


@torch.no_grad()
def test_torchvisions_resnet_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    for name, x in theirs.state_dict().items():
        if "running" in name:
            x.copy_(0.1 * torch.randn_like(x) if "mean" in name else torch.rand_like(x) + 0.5)
    source = "torchvision://" + _dump(tmp_path / "anything.pth", theirs.state_dict())
    images = 255 * torch.rand(1, 3, 64, 64)
    features = _ours(Backbone(weights=source), source, images)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(_normalised(images)))))
    x = theirs.layer2(theirs.layer1(x))
    torch.testing.assert_close(features["res3"], x, atol=1e-4, rtol=1e-3)
    x = theirs.layer4(theirs.layer3(x))
    torch.testing.assert_close(features["res5"], x, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_torchvisions_swin_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = SwinTransformer([4, 4], 8, [2, 2, 6, 2], [1, 2, 4, 8], [7, 7]).eval()
    for x in theirs.parameters():
        x.add_(0.1 * torch.randn_like(x))
    source = _dump(tmp_path / "swin_t-704ceda3.pth", theirs.state_dict())
    images = 255 * torch.rand(1, 3, 256, 320)
    features = _ours(Backbone(name="swin_t", width=8, weights=source), source, images)
    # Our output norm is new, a LayerNorm at its start: take the scale and shift of theirs out.
    x = theirs.features(_normalised(images))
    expected = torch.nn.functional.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)
    torch.testing.assert_close(features["res5"], expected, atol=1e-4, rtol=1e-3)


def test_swins_original_checkpoint(tmp_path: Path) -> None:
    theirs, ours = _randomised(_detector(name="swin_t")), _detector(seed=1, name="swin_t")
    names = {n: x for n, x in _bottom_up(theirs).items() if not re.match(r"norm\d", n)}
    rest = {"norm.weight": torch.ones(64), "head.bias": torch.ones(1000), "layers.0.blocks.1.attn_mask": torch.ones(4)}
    report = load_weights(ours, _dump(tmp_path / "swin_tiny_patch4_window7_224.pth", {"model": names | rest}))
    assert report.format == "swin"
    assert set(report.unused) == {"norm.weight", "head.bias"}
    assert {x.removeprefix(PREFIX) for x in report.initial} == {
        f"norm{i}.{leaf}" for i in (1, 2, 3) for leaf in ("weight", "bias")
    }
    for name, x in names.items():
        expected = x.flip(1) if name == "patch_embed.proj.weight" else x
        assert torch.equal(_bottom_up(ours)[name], expected), name


def test_torchvisions_weights_in_detectron2s_format(tmp_path: Path) -> None:
    theirs = _bottom_up(_randomised(_detector()))
    content = {"model": {n: x.numpy() for n, x in theirs.items()}, "__author__": "torchvision"}
    source = "torchvision://" + _dump(tmp_path / "r50.pkl", content | {"matching_heuristics": True})
    ours = _detector(seed=1, weights=source)
    assert load_weights(ours, source).format == "torchvision"
    assert torch.equal(_bottom_up(ours)["stem.conv1.weight"], theirs["stem.conv1.weight"].flip(1))


def test_names_of_a_parallel_model(tmp_path: Path) -> None:
    theirs = _randomised(_detector())
    names = OrderedDict((f"module.{n}", x) for n, x in theirs.state_dict().items())
    assert load_weights(_detector(seed=1), _dump(tmp_path / "x.pth", {"state_dict": names})).detector


# What does not fit


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    names = _bottom_up(_detector(width=16))
    for name in [x for x in names if x.startswith("res5.2.")][:4]:
        del names[name]
    said = _refused(_detector(), _dump(tmp_path / "R-50.pkl", _caffe2(names)))
    assert (
        "4 of 265 tensors missing (res5.2.conv1.weight, res5.2.conv1.norm.weight, res5.2.conv1.norm.bias, ...)" in said
    )
    assert "261 of another shape (stem.conv1.weight 16x3x7x7 for 8x3x7x7, " in said


def test_another_networks_weights(tmp_path: Path) -> None:
    source = _dump(tmp_path / "R-101.pkl", _caffe2(_bottom_up(_detector(name="resnet101"))))
    said = _refused(_detector(), source)
    assert "another network's: 255 tensors have no place in this backbone (res4." in said
    said = _refused(_detector(name="swin_t"), source)
    assert "missing (patch_embed.proj.weight" in said
    short = _dump(tmp_path / "R-50.pkl", _caffe2(_bottom_up(_detector())))
    assert "missing (res4.6.conv1.weight" in _refused(_detector(name="resnet101"), short)


def test_torchvisions_weights_need_their_own_strides_and_deviation(tmp_path: Path) -> None:
    names = {"layer1.0.conv1.weight": torch.zeros(1)}
    for name, x in _bottom_up(_detector()).items():
        key = re.sub(r"^res(\d)", lambda found: f"layer{int(found[1]) - 1}", name).removeprefix("stem.")
        key = re.sub(r"conv(\d)\.norm", r"bn\1", key).replace("shortcut.norm", "downsample.1")
        names[key.replace("shortcut", "downsample.0")] = x
    source = _dump(tmp_path / "mine.pth", names)
    said = _refused(_detector(weights=source), source)
    assert (
        f"divided by ImageNet's deviation, which this detector was not built with: set weights to torchvision://{source}"
        in said
    )
    assert "strides in the 3x3" in _refused(_detector(weights=source, pixel_std="imagenet"), source)
    good = f"torchvision://{source}"
    assert load_weights(_detector(weights=good), good).format == "torchvision"
    assert "deviation" in _refused(_detector(weights=good, pixel_std="unit"), good)
    other = _dump(tmp_path / "R-50.pkl", _caffe2(_bottom_up(_detector())))
    assert "not hold torchvision's weights, but caffe2's" in _refused(_detector(), f"torchvision://{other}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.pkl", "there is no file missing.pkl"),
        ("torchvision://missing.pth", "there is no file missing.pth"),
        ("torchvision://resnet5000", "torchvision has no such weights; write torchvision://resnet50,"),
        ("torchvision://ResNet50_Weights.V9", "torchvision has no such weights"),
        ("catalog://ImageNetPretrained/Nobody/R-50", "catalog has no such model"),
        ("s3://bucket/R-50.pkl", "use none, a file, or one of detectron2://"),
    ],
)
def test_sources_that_do_not_exist(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in _refused(_detector(), source)


@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
def test_files_that_are_no_checkpoints(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for content in (b"", b"<html>\n404 not found</html>", pickle.dumps(["a", "list"])):
        path.write_bytes(content)
        assert f"{path}" in _refused(_detector(), str(path))
    assert "holds no weights by name" in _refused(_detector(), _dump(path, {"model": {}, "epoch": 3}))


@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_damaged_files_are_one_line(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    """Whatever bytes are lost or changed, the file is read, or one line names it."""
    path = tmp_path / f"x{suffix}"
    tensors = {"stem.conv1.weight": torch.ones(8, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(3)}
    _dump(path, {"model": {k: x.numpy() for k, x in tensors.items()} if suffix == ".pkl" else tensors})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(content)
    said = f"weights {path}: {path} "
    try:
        assert read_weights(path, str(path)).tensors
    except InputError as error:
        said = str(error)
    assert said.startswith(f"weights {path}: {path} ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
def test_a_file_cannot_run_code(name: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (touched,)

    assert "damaged or no checkpoint" in _refused(_detector(), _dump(tmp_path / name, {"model": Evil()}))
    assert not touched.exists()


def test_a_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    blobs = _caffe2(_bottom_up(_randomised(_detector())))
    asked = []

    def serve(url: str, path: str, **_: Any) -> None:
        asked.append(url)
        _dump(Path(path), blobs)

    monkeypatch.setattr(torch.hub, "download_url_to_file", serve)
    for seed in (1, 2):
        assert load_weights(_detector(seed=seed, weights=MSRA), MSRA).loaded == 265
    assert asked == ["https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"]
