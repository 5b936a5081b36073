"""Capturing features, injecting features and distilling on a real detector."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from lgd.config.phases import Phases
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import capture_features, inject_features, running_state, set_running_state
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.training.export import export_student
from lgd.training.state import _running_states
from tests.helpers import CLASSES, batch, tiny_detector


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with EventStorage(0) as opened:
        yield opened


def _distiller(phases: Phases | None = None, **options: Any) -> Any:
    student = tiny_detector()
    torch.manual_seed(1)
    teacher = ImplicitTeacher(16, CLASSES, **options)
    return Distiller(student, teacher, DistillationDistance(16), phases=phases or Phases())


def test_injecting_its_own_features_reproduces_the_losses_exactly() -> None:
    detector = tiny_detector().train()
    data = batch([3, 0, 5])
    for _ in range(2):
        # The second round starts with a loss normaliser that the first left behind.
        same = deepcopy(detector)
        with capture_features(detector.backbone) as capture:
            first = detector(data)
        with inject_features(same.backbone, capture.features):
            second = same(data)
        assert {k: v.item() for k, v in second.items()} == {k: v.item() for k, v in first.items()}
        assert running_state(same) == running_state(detector)
        assert "loss_normalizer" in running_state(same)


def test_injecting_leaves_the_detector_as_it_was() -> None:
    detector = tiny_detector().eval()
    data = batch([1])
    keys = list(detector.state_dict())
    before = detector(data)[0]["instances"].scores
    with capture_features(detector.backbone) as capture:
        detector(data)
    with pytest.raises(RuntimeError, match="boom"), inject_features(detector.backbone, capture.features):
        raise RuntimeError("boom")
    assert "forward" not in vars(detector.backbone)
    assert not detector.backbone._forward_hooks
    assert list(detector.state_dict()) == keys
    assert torch.equal(detector(data)[0]["instances"].scores, before)


def test_recording_says_when_the_backbone_did_not_run() -> None:
    with capture_features(tiny_detector().backbone) as capture:
        pass
    with pytest.raises(RuntimeError, match="did not call its backbone"):
        _ = capture.features


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = _distiller().train()
    losses = model(batch([3, 2]))
    assert set(losses) == {
        "loss_cls",
        "loss_box_reg",
        "instructive/loss_cls",
        "instructive/loss_box_reg",
        "loss_distill",
    }
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_student_losses_are_the_plain_detectors() -> None:
    plain = tiny_detector().train()(batch([3, 2]))
    losses = _distiller().train()(batch([3, 2]))
    for name, value in plain.items():
        assert torch.equal(losses[name], value)


@pytest.mark.parametrize("counts", [[0, 0], [0, 7]])
def test_images_without_objects(counts: list[int]) -> None:
    model = _distiller().train()
    losses = model(batch(counts))
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_before_its_phase_the_distillation_loss_trains_its_adapter_only(storage: EventStorage) -> None:
    model = _distiller(Phases(distill_from=5, distill_until=8)).train()
    for iteration, reaches in ((4, False), (5, True), (7, True), (8, False)):
        storage.iter = iteration
        model.zero_grad(set_to_none=True)
        model(batch([3]))["loss_distill"].backward()
        assert (model.student.backbone.fpn_output3.weight.grad is not None) is reaches
        assert model.distance.adapter[0].weight.grad.any()
        assert all(p.grad is None for p in model.teacher.parameters())


def test_a_detector_that_resizes_images_itself_is_told() -> None:
    """The boxes' cells would be elsewhere, without a word."""
    data = batch([1, 2])
    for x in data:
        large = Instances((640, 480))
        large.gt_boxes, large.gt_classes = x["instances"].gt_boxes, x["instances"].gt_classes
        x["instances"] = large
    with pytest.raises(InputError, match=r"got images of \d+x\d+ pixels.* in images of 640x480: .*prepare_batch"):
        _distiller().train()(data)


def test_the_running_normaliser_moves_in_both_passes() -> None:
    """As in the released code; each pass divides by the value after its own move (docs/method.md, "The losses")."""
    plain, model = tiny_detector().train(), _distiller().train()
    data = batch([3, 2])
    for _ in range(2):
        first = plain(data)
        after_first = running_state(plain)
        losses = model(data)
        assert losses["loss_cls"].item() == first["loss_cls"].item()
        plain(data)
        assert running_state(model.student) == running_state(plain) != after_first


def test_weights_scale_their_losses() -> None:
    data = batch([3])
    once = _distiller().train()(data)
    model = _distiller().train()
    model.distill_weight, model.instructive_weight = 0.5, 3.0
    losses = model(data)
    torch.testing.assert_close(losses["loss_distill"], once["loss_distill"] * 0.5)
    torch.testing.assert_close(losses["instructive/loss_cls"], once["instructive/loss_cls"] * 3)
    torch.testing.assert_close(losses["loss_cls"], once["loss_cls"])


def test_evaluation_is_the_student_alone() -> None:
    model = _distiller().eval()
    nn.init.constant_(model.student.head.cls_score.bias, 0.0)
    data = batch([2])
    ours, plain = model(data)[0]["instances"], model.student(data)[0]["instances"]
    assert len(plain) > 0
    assert torch.equal(ours.pred_boxes.tensor, plain.pred_boxes.tensor)
    with model.teacher_inference(), torch.no_grad():
        teacher_features = model.student(data)[0]["instances"]
    assert not torch.equal(teacher_features.scores[:10], plain.scores[:10])
    assert torch.equal(model(data)[0]["instances"].scores, plain.scores)


def test_exported_student_loads_strictly_into_stock_detectron2_and_detects_the_same(tmp_path: Path) -> None:
    model = _distiller().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for seed in range(3):
        optimizer.zero_grad()
        sum(model(batch([3, 4], seed=seed)).values()).backward()
        optimizer.step()
    # Detections with something to compare: scores above the threshold.
    nn.init.constant_(model.student.head.cls_score.bias, 0.0)
    export_student(model, tmp_path / "student.pth")

    plain = tiny_detector(seed=9)
    stored = torch.load(tmp_path / "student.pth", weights_only=True)["model"]
    assert list(stored) == list(plain.state_dict())
    plain.load_state_dict(stored, strict=True)
    found = DetectionCheckpointer(tiny_detector(seed=8)).load(str(tmp_path / "student.pth"))
    assert "__author__" not in found

    data = batch([1, 1], seed=5)
    for ours, theirs in zip(model.eval()(data), plain.eval()(data), strict=True):
        assert len(ours["instances"]) > 0
        assert torch.equal(ours["instances"].pred_boxes.tensor, theirs["instances"].pred_boxes.tensor)
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores)
        assert torch.equal(ours["instances"].pred_classes, theirs["instances"].pred_classes)


def test_numbers_of_a_detectors_modules_are_part_of_its_state() -> None:
    """Also where their names begin with an underscore; not switches."""
    detector, other = tiny_detector(), tiny_detector()
    head: Any = detector.head
    head._normalizer, head.count = torch.tensor(3.0), 7
    state = running_state(detector)
    assert (state["head._normalizer"].item(), state["head.count"]) == (3.0, 7)
    assert "training" not in state
    set_running_state(other, state)
    assert running_state(other) == state


def test_numbers_of_a_distance_are_part_of_a_trainings_state() -> None:
    """Such as a weight that follows the losses: a training that goes on would begin with the first one again."""
    model = _distiller()
    model.distance.scale = 7.0
    of_student, others = _running_states(model)
    assert others["distance.scale"] == 7.0
    assert not any(name.startswith("student.") for name in others)
    assert of_student.keys() == running_state(model.student).keys()
    assert _running_states(model.student) == [of_student]
