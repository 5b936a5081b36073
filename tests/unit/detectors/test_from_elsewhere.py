"""Detectors of a function, what is asked for where it cannot be found, and weights under their own names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from lgd.config.experiment import Experiment
from lgd.detectors import build_detector
from lgd.detectors.model_layout import bottom_up_of, bottom_up_path, levels_of
from lgd.detectors.own_weights import check_own_weights, load_own_weights
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.training.build import build_model
from tests.helpers import CLASSES, batch
from tests.helpers_detectors import NARROW_RETINANET, ZOO_RETINANET, source

UNEVEN = "tests.helpers_detectors:uneven"


def test_levels_are_found_by_a_forward_pass_that_leaves_no_trace() -> None:
    detector: Any = build_detector(source(UNEVEN), CLASSES)
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    assert {name: (x.stride, x.channels) for name, x in levels_of(detector).items()} == {
        "fine": (8, 8), "coarse": (16, 12),
    }  # fmt: skip
    assert detector.training
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())


def test_the_part_to_freeze_is_asked_for_by_name() -> None:
    settings = source(UNEVEN)
    detector: Any = build_detector(settings, CLASSES)
    assert bottom_up_path(detector, settings) is None
    with pytest.raises(InputError, match=r"set detector\.bottom_up to its path, .*backbone, backbone\.fine"):
        bottom_up_of(detector, settings)
    assert bottom_up_of(detector, source(UNEVEN, bottom_up="backbone.fine")) is detector.backbone.fine
    with pytest.raises(InputError, match=r"detector\.bottom_up backbone\.body: no such module; there are backbone"):
        bottom_up_of(detector, source(UNEVEN, bottom_up="backbone.body"))


def _experiment(**settings: Any) -> Experiment:
    return Experiment().override({"detector.source": UNEVEN, **settings})


def test_levels_of_different_channels_are_refused_or_adapted() -> None:
    """Through convolutions that belong to the training: the student's own parameters stay what they were."""
    with pytest.raises(InputError, match=r"has fine 8, coarse 12: set detector\.adapt_channels=true"):
        build_model(_experiment(), CLASSES)
    experiment = _experiment(**{"detector.adapt_channels": True})
    model = build_model(experiment, CLASSES).train()
    assert isinstance(model, Distiller)
    assert list(model.student.state_dict()) == list(build_detector(experiment.detector, CLASSES).state_dict())
    with EventStorage(10**6):
        losses = model(batch([2, 1]))
        sum(losses.values()).backward()
    assert list(losses) == ["loss_score", "instructive/loss_score", "loss_distill"]
    # All of it trains: whatever DDP waits for gets a gradient.
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_adapters_of_a_level_that_the_head_does_not_read_have_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several workers would wait for it."""
    model: Any = build_model(_experiment(**{"detector.adapt_channels": True}), CLASSES).train()
    to_levels = model.channel_adapters.to_levels

    def one_unread(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = to_levels(features)
        return {**found, "coarse": found["coarse"].detach()}

    monkeypatch.setattr(model.channel_adapters, "to_levels", one_unread)
    with EventStorage(10**6):
        sum(model(batch([2, 1])).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_adapters_leave_levels_of_equal_channels_alone() -> None:
    narrow = {"detector.source": ZOO_RETINANET, "detector.overrides": NARROW_RETINANET, "detector.weights": "none"}
    model: Any = build_model(Experiment().override({**narrow, "detector.adapt_channels": True}), CLASSES)
    assert model.channel_adapters is None


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("tests.helpers_detectors:nothing", (), "cannot be imported: .*nothing"),
        ("no_such_package.detectors:build", (), "cannot be imported"),
        (UNEVEN, ("depth=3",), "TypeError: .*unexpected keyword argument 'depth'"),
        ("tests.helpers_detectors:source", (), "TypeError|ValidationError"),
        ("torch.nn:ReLU", (), "ReLU has no module named backbone"),
    ],
)
def test_functions_that_give_no_detector(name: str, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        build_detector(source(name, *overrides), CLASSES)
    assert "\n" not in str(refused.value)


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mydetector.py").write_text("from tests.helpers_detectors import uneven as build\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert build_detector(source("mydetector:build"), CLASSES).backbone


def _filled(module: nn.Module, value: float) -> dict[str, Any]:
    return {name: torch.full_like(x, value) for name, x in module.state_dict().items()}


def test_weights_of_a_backbone_and_of_a_detector(tmp_path: Path) -> None:
    settings = source(ZOO_RETINANET, *NARROW_RETINANET)
    detector: Any = build_detector(settings, CLASSES)
    # The bottom-up network's own names, as ImageNet's files have them.
    torch.save({"model": _filled(detector.backbone.bottom_up, 0.5), "__author__": "me"}, tmp_path / "bottom.pth")
    report = load_own_weights(detector, settings, str(tmp_path / "bottom.pth"))
    assert (report.detector, report.initial, report.unused) == (False, (), ())
    assert (detector.backbone.bottom_up.stem.conv1.weight == 0.5).all()
    assert not (detector.head.cls_score.weight == 0.5).any()
    # A detector for other classes: what depends on their number starts anew.
    other = build_detector(settings, CLASSES + 1)
    torch.save({"model": _filled(other, 0.25)}, tmp_path / "detector.pth")
    report = load_own_weights(detector, settings, str(tmp_path / "detector.pth"))
    assert report.detector
    assert report.skipped == ("head.cls_score.weight", "head.cls_score.bias")
    assert (detector.head.bbox_pred.weight == 0.25).all()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    settings = source(ZOO_RETINANET, *NARROW_RETINANET)
    detector = build_detector(settings, CLASSES)
    before = detector.state_dict()["backbone.bottom_up.stem.conv1.weight"].clone()
    torch.save(nn.Conv2d(3, 8, 7).state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"of \d+ tensors in backbone\.bottom_up the file has 0"):
        check_own_weights(detector, settings, str(tmp_path / "other.pth"))
    assert check_own_weights(detector, settings, "none") is None
    assert torch.equal(detector.state_dict()["backbone.bottom_up.stem.conv1.weight"], before)
