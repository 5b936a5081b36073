"""FGFI's loss by hand, and each detector taught by it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from lgd.config.phases import Phases
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import capture_features
from lgd.methods.fgfi.imitation import ImitationDistance
from lgd.methods.fgfi.levels import LevelRule
from lgd.methods.frozen_teacher import FrozenTeacher
from tests.helpers import DETECTORS, batch, detector_batch, instances
from tests.helpers_methods import DenseParts, drawn, seeded_detector

pytestmark = pytest.mark.usefixtures("storage")

each_detector = pytest.mark.parametrize("name", DETECTORS)
each_rule = pytest.mark.parametrize("rule", get_args(LevelRule))


def _fgfi(name: str = "retinanet", phases: Phases | None = None, **options: Any) -> Any:
    """A student of 32 channels and a teacher of 40."""
    student, detector = seeded_detector(name), seeded_detector(name, seed=1, channels=40)
    distance = ImitationDistance(student, detector, **options)
    return Distiller(student, FrozenTeacher(detector, student), distance, phases=phases or Phases())


@each_rule
def test_neither_masks_nor_loss_wait_for_the_device(rule: LevelRule) -> None:
    # A meta tensor has no values: whatever asks for one fails.
    student = seeded_detector("retinanet")
    distance = ImitationDistance(student, student, levels=rule).to("meta")
    features = {f"p{i}": torch.empty(3, 32, 2 ** (8 - i), 2 ** (8 - i), device="meta") for i in range(3, 8)}
    assert distance(features, features, [_on("meta", x) for x in instances([4, 0, 2], (256, 256))]).is_meta


@pytest.mark.gpu
@each_detector
def test_no_part_waits_for_a_gpu(name: str) -> None:
    student, detector = seeded_detector(name), seeded_detector(name, seed=1)
    detector.pixel_std = torch.tensor([57.375, 57.12, 58.395]).view(-1, 1, 1)
    teacher = FrozenTeacher(detector, student).cuda()
    distance = ImitationDistance(student, detector).cuda()
    student.cuda()
    found = [_on("cuda", x) for x in instances([4, 0, 2], (128, 160))]
    with capture_features(student.backbone) as capture:
        student.backbone(torch.rand(3, 3, 128, 160).cuda())
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = distance(capture.features, teacher(capture, found), found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss > 0


def _on(device: str, found: Instances) -> Instances:
    return Instances(
        found.image_size, gt_boxes=Boxes(found.gt_boxes.tensor.to(device)), gt_classes=found.gt_classes.to(device)
    )


# Loss


def _identity(distance: ImitationDistance) -> ImitationDistance:
    """Let the adapter's convolution pass everything on as it is."""
    convolution: Any = distance.adapter[0]
    nn.init.dirac_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return distance


def _boxes(size: tuple[int, int], *corners: Sequence[float]) -> Instances:
    return Instances(size, gt_boxes=Boxes(torch.tensor(corners).view(-1, 4)))


def test_loss_by_hand() -> None:
    """Two images, two levels, two channels; four cells are marked in the first image's p3 and four in its p4.

    p3, whose cells 5, 6, 9 and 10 are marked: ((5 - 1)² + (6 - 1)² + (9 - 1)² + (10 - 1)²) * 2 = 372. In p4 the
    difference is 3: 4 * 3² * 2 = 72. The second image has no objects. 0.01 / (2 * 8) * (372 + 72) = 0.2775.
    """
    student = DenseParts(2, {"p3": 8, "p4": 16})
    distance = _identity(ImitationDistance(student, student))
    p3 = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 2, 4, 4)
    p4 = torch.full((2, 2, 2, 2), 5.0)
    teacher_features = {"p3": torch.ones(2, 2, 4, 4), "p4": torch.full((2, 2, 2, 2), 2.0)}
    # The second box fits p4's anchors: 24 x 24 of 32 x 32 at each of its four cells.
    found = [_boxes((32, 32), (8, 8, 24, 24), (0, 0, 32, 32)), _boxes((32, 32))]
    masks = distance.masks({"p3": p3, "p4": p4}, found)
    assert drawn(masks["p3"][0]) == ["....", ".##.", ".##.", "...."]
    assert masks["p4"].sum(dim=(1, 2)).tolist() == [4, 0]
    loss = distance({"p3": p3, "p4": p4}, teacher_features, found)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.2775)
    distance.weight = 0.1
    assert distance({"p3": p3, "p4": p4}, teacher_features, found).item() == pytest.approx(2.775)


def test_the_adapter_ends_in_a_relu_unless_told_otherwise() -> None:
    student = DenseParts(2, {"p3": 8})
    features, teacher_features = {"p3": torch.full((1, 2, 4, 4), -1.0)}, {"p3": torch.ones(1, 2, 4, 4)}
    found = [_boxes((32, 32), (8, 8, 24, 24))]
    for relu, difference in ((True, 1), (False, 2)):
        distance = _identity(ImitationDistance(student, student, relu=relu))
        # Over the mean of the cells: half the squares of two channels.
        assert distance(features, teacher_features, found).item() == pytest.approx(0.01 / 2 * 2 * difference**2)


def test_gradients_reach_the_student_where_the_mask_is_and_the_adapter_but_not_the_teacher() -> None:
    student, teacher = DenseParts(2, {"p3": 8}), DenseParts(3, {"p3": 8})
    torch.manual_seed(0)
    distance = ImitationDistance(student, teacher, relu=False)
    features = {"p3": torch.randn(1, 2, 8, 8, requires_grad=True)}
    teacher_features = {"p3": torch.randn(1, 3, 8, 8, requires_grad=True)}
    distance(features, teacher_features, [_boxes((64, 64), (8, 8, 24, 24))]).backward()
    assert teacher_features["p3"].grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distance.parameters())
    reached = features["p3"].grad
    assert reached is not None
    # The four marked cells and, through the convolution, those around them.
    assert drawn(reached[0].abs().sum(dim=0) > 0) == [
        "####....",
        "####....",
        "####....",
        "####....",
        *["........"] * 4,
    ]


def test_without_objects_the_loss_is_zero_and_so_is_each_gradient() -> None:
    student = DenseParts(2, {"p3": 8, "p4": 16})
    distance = ImitationDistance(student, student)
    features = {"p3": torch.randn(2, 2, 4, 4, requires_grad=True), "p4": torch.randn(2, 2, 2, 2, requires_grad=True)}
    loss = distance(features, {k: x.detach() + 1 for k, x in features.items()}, [_boxes((32, 32))] * 2)
    loss.backward()
    assert loss == 0
    for parameter in (*distance.parameters(), *features.values()):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_levels_of_unequal_channels_are_refused() -> None:
    student = DenseParts(2, {"p3": 8, "p4": 16})
    uneven = copy.deepcopy(student)
    uneven.backbone.shapes["p4"] = ShapeSpec(channels=3, stride=16)
    with pytest.raises(InputError, match=r"on every level, the teacher has \[2, 3\]"):
        ImitationDistance(student, uneven)


# In the distiller


@each_detector
@pytest.mark.parametrize("counts", [[3, 0], [0, 0]], ids=["one image empty", "all images empty"])
def test_every_trainable_parameter_gets_a_gradient(name: str, counts: list[int]) -> None:
    model, detector = _fgfi(name).train(), seeded_detector(name).train()
    data = detector_batch(name, counts)
    # R-CNN draws its samples of anchors and proposals.
    torch.manual_seed(0)
    losses = model(data)
    torch.manual_seed(0)
    plain = detector(data)
    assert set(losses) == {*plain, "loss_distill"}
    assert all(torch.equal(losses[k], x) for k, x in plain.items())
    assert (losses["loss_distill"] > 0) == any(counts)
    sum(losses.values()).backward()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@each_detector
def test_the_losses_are_finite_in_bfloat16(name: str) -> None:
    model = _fgfi(name).train()
    data = detector_batch(name, [3, 0])
    exact = model(data)["loss_distill"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(data)
    assert losses["loss_distill"].dtype == torch.float32
    torch.testing.assert_close(losses["loss_distill"], exact, rtol=0.1, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_imitating_brings_the_student_nearer_to_its_teacher() -> None:
    # Without the ReLU, as an FPN's features have either sign.
    model = _fgfi(relu=False).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    data, losses = batch([3, 2]), []
    for _ in range(25):
        optimizer.zero_grad()
        losses.append(model(data)["loss_distill"])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_outside_its_phase_there_is_no_imitation(storage: EventStorage) -> None:
    """The first 400 iterations, and those from ``distill_until`` on."""
    model = _fgfi(phases=Phases(distill_from=400, distill_until=500)).train()
    data, ran = batch([3]), list[int]()
    model.teacher.register_forward_hook(lambda *_: ran.append(storage.iter))
    for iteration, imitates in ((0, False), (399, False), (400, True), (499, True), (500, False)):
        storage.iter = iteration
        model.zero_grad(set_to_none=True)
        loss = model(data)["loss_distill"]
        assert (loss > 0) == imitates
        loss.backward()
        assert (model.student.backbone.fpn_output3.weight.grad is not None) is imitates
        for parameter in model.distance.parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) is imitates
        if not imitates:
            assert loss == 0
    assert ran == [400, 499]


def test_its_teacher_cannot_be_evaluated() -> None:
    model = _fgfi().eval()
    with (
        pytest.raises(ValueError, match="cannot detect from the features of a FrozenTeacher"),
        model.teacher_inference(),
    ):
        pass
    assert "forward" not in vars(model.student)
