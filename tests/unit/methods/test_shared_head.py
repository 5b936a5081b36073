"""Two passes that share their work give what two passes by themselves give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from lgd.config.paper_recipes import paper_defaults
from lgd.config.presets import NANO
from lgd.methods.feature_capture import capture_features
from lgd.methods.shared_head import TwoForwardPasses, cacheable_methods, head_of
from lgd.training.build import build_model
from tests.helpers import CLASSES, DETECTORS, detector_batch, tiny_settings


def _model(name: str, **options: bool) -> Any:
    rules = paper_defaults(name, "resnet18")
    changes = {key: value for key, value in rules.items() if key.startswith("method.")}
    experiment = NANO.override({"detector.name": name, **changes})
    experiment = experiment.model_copy(update={"detector": tiny_settings(name)})
    model: Any = build_model(experiment, CLASSES)
    for option, value in options.items():
        setattr(model, option, value)
    return model.train()


def _losses(model: Any, name: str) -> tuple[dict[str, float], Tensor]:
    """Losses and all gradients of a batch, sampled alike."""
    torch.manual_seed(0)
    with EventStorage():
        losses = model(detector_batch(name, [3, 0, 6]))
    sum(losses.values()).backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {key: x.item() for key, x in losses.items()}, gradients


@pytest.mark.parametrize("name", DETECTORS)
def test_shared_work_changes_nothing(name: str) -> None:
    losses, gradients = _losses(_model(name), name)
    apart, apart_gradients = _losses(_model(name, joint_head=False, cache_targets=False), name)
    assert losses == pytest.approx(apart, rel=1e-4)
    assert (gradients - apart_gradients).norm() < 1e-3 * apart_gradients.norm()


@pytest.mark.parametrize("name", DETECTORS)
def test_the_head_runs_once(name: str) -> None:
    for joint in (True, False):
        model = _model(name, joint_head=joint)
        head = head_of(model.student)
        assert head is not None
        seen: list[int] = []
        head.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0][0])))
        before = {id(x): dict(vars(x)) for x in (model.student, head, model.student.backbone)}
        _losses(model, name)
        # A hook sees what the detector gave.
        assert seen == [3, 3]
        for owner in (model.student, head, model.student.backbone):
            assert vars(owner).keys() - {"loss_normalizer"} == before[id(owner)].keys() - {"loss_normalizer"}


def test_labels_and_images_are_worked_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("retinanet")
    assert cacheable_methods(model.student) == ["preprocess_image", "label_anchors"]
    calls: list[str] = []
    for name in cacheable_methods(model.student):
        method = getattr(model.student, name)

        def counted(*arguments: Any, name: str = name, method: Any = method) -> Any:
            calls.append(name)
            return method(*arguments)

        monkeypatch.setattr(model.student, name, counted)
    _losses(model, "retinanet")
    assert calls == ["preprocess_image", "label_anchors"]
    model.cache_targets = False
    _losses(model, "retinanet")
    assert sorted(calls[2:]) == sorted(calls[:2] * 2)


@pytest.mark.parametrize("cached", [True, False])
def test_the_instructive_features_have_the_locations_that_poto_gave_the_student(
    cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else is done twice: of the predictions on them others might be the best."""
    model = _model("poto", cache_targets=cached)
    assign, matched = model.student.assign, list[Tensor]()

    def counted(*arguments: Any) -> Any:
        matched.append(assign(*arguments))
        return matched[-1]

    monkeypatch.setattr(model.student, "assign", counted)
    losses, _ = _losses(model, "poto")
    assert len(matched) == 1
    # Where there are no objects, nothing is assigned.
    assert [int((x >= 0).sum()) for x in matched[0]] == [3, 0, 6]
    assert losses["instructive/loss_box_reg"] != losses["loss_box_reg"]


def test_a_batch_norm_in_the_head_sees_each_pass_by_itself() -> None:
    model = _model("retinanet")
    conv = model.student.head.cls_subnet[0]
    model.student.head.cls_subnet = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU())
    assert head_of(model.student) is None
    losses, _ = _losses(model, "retinanet")
    assert losses.keys() > {"loss_cls", "instructive/loss_cls"}


def test_a_head_that_is_given_something_else_runs_in_each_pass() -> None:
    """Features that are no longer the backbone's are not put together with the instructive ones."""
    model = _model("retinanet")
    joint, gradients = _losses(model, "retinanet")
    model.zero_grad()
    del model.student.loss_normalizer
    ran: list[int] = []
    model.student.head.cls_score.register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
    model.student.head.register_forward_pre_hook(lambda _, inputs: ([x * 1 for x in inputs[0]],))
    apart, apart_gradients = _losses(model, "retinanet")
    assert set(ran) == {3}
    assert apart == pytest.approx(joint, rel=1e-4)
    assert (gradients - apart_gradients).norm() < 1e-3 * apart_gradients.norm()


class _ImageByImage(nn.Module):
    """Prepares its images one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()

    def preprocess_image(self, image: torch.Tensor) -> torch.Tensor:
        return image + 0

    def forward(self, images: list[torch.Tensor]) -> list[torch.Size]:
        prepared = [self.preprocess_image(x) for x in images]
        self.backbone(prepared[0])
        return [x.shape for x in prepared]


def test_what_was_prepared_image_by_image_comes_back_in_order() -> None:
    detector, images = _ImageByImage(), [torch.zeros(3, 4, 4), torch.zeros(3, 8, 8)]
    with capture_features(detector.backbone) as capture:
        passes = TwoForwardPasses(detector, capture, dict)
        with passes.first_pass():
            first = detector(images)
    with passes.second_pass():
        assert detector(images) == first == [x.shape for x in images]
        # More calls than there were are computed.
        assert detector(images) == first
