"""FGFI: masks by hand and against detectron2's IoU, its loss by hand, its teacher, and each detector taught by it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from lgd.config.experiment import Backbone
from lgd.config.phases import Phases
from lgd.detectors import build_detector
from lgd.detectors.conventions import conventions
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import capture_features
from lgd.methods.fgfi import LevelRule
from lgd.methods.fgfi.imitation import Anchors, ImitationDistance, anchors_of, imitation_masks
from lgd.methods.frozen_teacher import FrozenTeacher
from tests.helpers import CLASSES, DETECTORS, batch, detector_batch, instances, one_thread, tiny_settings

each_detector = pytest.mark.parametrize("name", DETECTORS)
each_rule = pytest.mark.parametrize("rule", get_args(LevelRule))


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    with one_thread(), EventStorage(0) as opened:
        yield opened


def _detector(name: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return build_detector(tiny_settings(name).model_copy(update=changes), CLASSES)


def _fgfi(name: str = "retinanet", phases: Phases | None = None, **options: Any) -> Any:
    """A student of 32 channels and a teacher of 40."""
    student, detector = _detector(name), _detector(name, seed=1, channels=40)
    distance = ImitationDistance(student, detector, **options)
    return Distiller(student, FrozenTeacher(detector, student), distance, phases=phases or Phases())


def _square(side: float, stride: int) -> Anchors:
    half = side / 2
    return Anchors(torch.tensor([[-half, -half, half, half]]), stride, 0.5)


def _drawn(mask: Tensor) -> list[str]:
    """One image's mask, a string of # and . for each row."""
    return ["".join("#" if x else "." for x in row) for row in mask.tolist()]


class _Backbone(nn.Module):
    def __init__(self, channels: int, strides: dict[str, int]) -> None:
        super().__init__()
        self.shapes = {name: ShapeSpec(channels=channels, stride=stride) for name, stride in strides.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.shapes


class _Dense(nn.Module):
    """What FGFI reads of a dense detector: one square anchor a cell, its side twice the level's stride."""

    def __init__(self, channels: int, strides: dict[str, int]) -> None:
        super().__init__()
        self.backbone = _Backbone(channels, strides)
        self.head_in_features = list(strides)
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[2.0 * x] for x in strides.values()],
            aspect_ratios=[1.0],
            strides=list(strides.values()),
            offset=0.5,
        )


# Masks


def test_one_anchor_by_hand() -> None:
    """A box of 16 x 16 pixels around the corner of four cells, whose anchors of its size it overlaps by 144 / 368.

    Their neighbours share 4 x 12 with it (48 / 464 = 0.10), those at the corners 4 x 4 (16 / 496 = 0.03).
    """
    box = torch.tensor([[[8.0, 8.0, 24.0, 24.0]]])
    wanted = {
        0.5: ["....", ".##.", ".##.", "...."],
        # 0.10 is more than a quarter of 0.39, and 0.03 is more than a twentieth.
        0.25: [".##.", "####", "####", ".##."],
        0.05: ["####", "####", "####", "####"],
    }
    for threshold, rows in wanted.items():
        masks = imitation_masks(box, {"p3": _square(16, 8)}, {"p3": (4, 4)}, threshold=threshold)
        assert masks["p3"].dtype == torch.bool
        assert _drawn(masks["p3"][0]) == rows


def test_a_cell_needs_one_of_its_anchors_only() -> None:
    """Anchors of 16 x 16 and of 32 x 8, and a box of 32 x 8 in the second row.

    The wide ones of that row overlap it by 224 / 288 = 0.78 in the middle and 160 / 352 = 0.45 at the ends; the squares
    by 128 / 384 = 0.33 at most, which is less than half of 0.78.
    """
    box = torch.tensor([[[0.0, 8.0, 32.0, 16.0]]])
    square, wide = [-8.0, -8.0, 8.0, 8.0], [-16.0, -4.0, 16.0, 4.0]
    both = Anchors(torch.tensor([square, wide]), 8, 0.5)
    assert _drawn(imitation_masks(box, {"p3": both}, {"p3": (3, 4)})["p3"][0]) == ["....", "####", "...."]
    # Above 0.7 * 0.78 = 0.54 only the middle is left; the squares' own best, 0.33, counts for nothing.
    masks = imitation_masks(box, {"p3": both}, {"p3": (3, 4)}, threshold=0.7)
    assert _drawn(masks["p3"][0]) == ["....", ".##.", "...."]


def test_each_box_has_its_own_threshold() -> None:
    """A small box, 4 x 4 in a corner (0.06 at best, where the anchor covers it), beside one of 16 x 16 (0.39)."""
    boxes = torch.tensor([[[8.0, 8.0, 24.0, 24.0], [30.0, 0.0, 34.0, 4.0]]])
    masks = imitation_masks(boxes, {"p3": _square(16, 8)}, {"p3": (4, 5)})
    assert _drawn(masks["p3"][0]) == ["...##", ".##..", ".##..", "....."]


@pytest.mark.parametrize(
    ("rule", "side", "marked"),
    [
        # Anchors of 16 and 32 pixels: the finer overlaps boxes up to 22.6 = sqrt(16 * 32) pixels most.
        ("best", 22, {"p3"}),
        ("best", 23, {"p4"}),
        # floor(4 + log2(side / 224)) is 3 from 112 and 4 from 224 pixels; 0 becomes 3, the finest level, 6 becomes 4.
        ("fpn", 16, {"p3"}),
        ("fpn", 223, {"p3"}),
        ("fpn", 224, {"p4"}),
        ("fpn", 900, {"p4"}),
        ("all", 16, {"p3", "p4"}),
        ("all", 224, {"p3", "p4"}),
    ],
)
def test_level_rules_by_hand(rule: LevelRule, side: float, marked: set[str]) -> None:
    # In the middle of a cell of either level, so that both have an anchor around the box's centre.
    anchors = {"p3": Anchors(torch.tensor([[-8.0, -8.0, 8.0, 8.0]]), 8, 0.0), "p4": Anchors(_half(32), 16, 0.0)}
    corners = torch.tensor([[[512 - side / 2] * 2 + [512 + side / 2] * 2]])
    masks = imitation_masks(corners, anchors, {"p3": (128, 128), "p4": (64, 64)}, levels=rule)
    assert {name for name, x in masks.items() if x.any()} == marked


def _half(side: float) -> Tensor:
    return torch.tensor([[-side, -side, side, side]]) / 2


@each_detector
@each_rule
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_masks_against_detectron2s_overlaps(name: str, rule: LevelRule, threshold: float) -> None:
    student = _detector(name, anchor_scale="auto")
    distance = ImitationDistance(student, student, levels=rule, threshold=threshold)
    shapes = student.backbone.output_shape()
    # No multiples of the coarser strides: levels have cells beyond the image.
    features = {k: torch.zeros(4, 32, -(-136 // x.stride), -(-200 // x.stride)) for k, x in shapes.items()}
    found = instances([3, 0, 12, 1], (136, 200), seed=3)
    found[2].gt_boxes.tensor[:6, 2:] = found[2].gt_boxes.tensor[:6, :2] + torch.linspace(3, 40, 6)[:, None]
    masks = distance.masks(features, found)
    assert list(masks) == list(features)
    for image, objects in enumerate(found):
        wanted = _brute_force(student, features, objects.gt_boxes, rule, threshold)
        for level, mask in masks.items():
            assert torch.equal(mask[image], wanted[level]), (image, level)
    total = sum(int(x.sum()) for x in masks.values())
    assert 0 < total < sum(x.numel() for x in masks.values()) / 2


def _brute_force(
    detector: Any, features: dict[str, Tensor], boxes: Boxes, rule: LevelRule, threshold: float
) -> dict[str, Tensor]:
    """Section 3.1 written out for one image."""
    generator = detector.proposal_generator.anchor_generator if hasattr(detector, "proposal_generator") else None
    if generator is None:
        generator = detector.anchor_generator
    strides = [x.stride for x in detector.backbone.output_shape().values()]
    if type(detector).__name__ in ("FCOS", "POTO"):
        generator = DefaultAnchorGenerator(sizes=[[8.0 * x] for x in strides], aspect_ratios=[1.0], strides=strides)
    overlaps = [pairwise_iou(boxes, x) for x in generator(list(features.values()))]
    masks = {name: torch.zeros(x.shape[-2:], dtype=torch.bool) for name, x in features.items()}
    for g, box in enumerate(boxes):
        peaks = [float(x[g].max()) for x in overlaps]
        side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        numbers = [round(math.log2(x)) for x in strides]
        level = min(max(math.floor(4 + math.log2(side / 224)), numbers[0]), numbers[-1])
        allowed = {"best": [peaks.index(max(peaks))], "fpn": [numbers.index(level)], "all": range(len(strides))}[rule]
        for i, mask in enumerate(masks.values()):
            if i in allowed:
                mask |= (overlaps[i][g].view(*mask.shape, -1) > threshold * peaks[i]).any(dim=-1)
    return masks


def test_padding_slots_and_images_without_objects_mark_nothing() -> None:
    distance = ImitationDistance(_detector("retinanet"), _detector("retinanet"))
    found = instances([1, 0, 9], (64, 96))
    sizes = {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)}
    together = distance.masks({k: torch.zeros(3, 1, *x) for k, x in sizes.items()}, found)
    alone = [distance.masks({k: torch.zeros(1, 1, *x) for k, x in sizes.items()}, [x]) for x in found]
    for name, mask in together.items():
        assert torch.equal(mask, torch.cat([x[name] for x in alone]))
        assert not mask[1].any()
    assert together["p3"][0].any()
    nothing = distance.masks({k: torch.zeros(2, 1, *x) for k, x in sizes.items()}, [found[1]] * 2)
    assert not any(x.any() for x in nothing.values())


def test_which_anchors() -> None:
    # One square of eight strides for each of FCOS's points, as ATSS has it.
    for name in ("fcos", "poto", "atss"):
        anchors = anchors_of(_detector(name, anchor_scale="auto"))
        assert list(anchors) == ["p3", "p4", "p5", "p6", "p7"]
        for x in anchors.values():
            assert x.offset == 0.5
            assert x.cells.tolist() == [[-4.0 * x.stride] * 2 + [4.0 * x.stride] * 2]
    # ATSS's own scale is respected.
    assert anchors_of(_detector("atss"))["p3"].cells.tolist() == [[-8.0, -8.0, 8.0, 8.0]]
    assert [len(x.cells) for x in anchors_of(_detector("retinanet")).values()] == [9] * 5
    assert list(anchors_of(_detector("mask_rcnn"))) == ["p2", "p3", "p4", "p5", "p6"]


def test_a_detector_without_upright_anchors_is_refused() -> None:
    plain = _Dense(8, {"p3": 8})
    del plain.anchor_generator
    with pytest.raises(InputError, match="FGFI needs anchors, and _Dense has no generator of upright ones"):
        anchors_of(plain)
    plain.anchor_generator = RotatedAnchorGenerator(sizes=[[8]], aspect_ratios=[1.0], strides=[8], angles=[0.0])
    with pytest.raises(InputError, match="FGFI needs anchors"):
        anchors_of(plain)
    without = _detector("faster_rcnn")
    without.proposal_generator = None
    with pytest.raises(InputError, match="FGFI needs anchors, and GeneralizedRCNN"):
        ImitationDistance(without, without)


@each_rule
def test_neither_masks_nor_loss_wait_for_the_device(rule: LevelRule) -> None:
    # A meta tensor has no values: whatever asks for one fails.
    student = _detector("retinanet")
    distance = ImitationDistance(student, student, levels=rule).to("meta")
    features = {f"p{i}": torch.empty(3, 32, 2 ** (8 - i), 2 ** (8 - i), device="meta") for i in range(3, 8)}
    assert distance(features, features, [_on("meta", x) for x in instances([4, 0, 2], (256, 256))]).is_meta


@pytest.mark.gpu
@each_detector
def test_no_part_waits_for_a_gpu(name: str) -> None:
    student, detector = _detector(name), _detector(name, seed=1)
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
    student = _Dense(2, {"p3": 8, "p4": 16})
    distance = _identity(ImitationDistance(student, student))
    p3 = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 2, 4, 4)
    p4 = torch.full((2, 2, 2, 2), 5.0)
    teacher_features = {"p3": torch.ones(2, 2, 4, 4), "p4": torch.full((2, 2, 2, 2), 2.0)}
    # The second box fits p4's anchors: 24 x 24 of 32 x 32 at each of its four cells.
    found = [_boxes((32, 32), (8, 8, 24, 24), (0, 0, 32, 32)), _boxes((32, 32))]
    masks = distance.masks({"p3": p3, "p4": p4}, found)
    assert _drawn(masks["p3"][0]) == ["....", ".##.", ".##.", "...."]
    assert masks["p4"].sum(dim=(1, 2)).tolist() == [4, 0]
    loss = distance({"p3": p3, "p4": p4}, teacher_features, found)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.2775)
    distance.weight = 0.1
    assert distance({"p3": p3, "p4": p4}, teacher_features, found).item() == pytest.approx(2.775)


def test_the_adapter_ends_in_a_relu_unless_told_otherwise() -> None:
    student = _Dense(2, {"p3": 8})
    features, teacher_features = {"p3": torch.full((1, 2, 4, 4), -1.0)}, {"p3": torch.ones(1, 2, 4, 4)}
    found = [_boxes((32, 32), (8, 8, 24, 24))]
    for relu, difference in ((True, 1), (False, 2)):
        distance = _identity(ImitationDistance(student, student, relu=relu))
        # Over the mean of the cells: half the squares of two channels.
        assert distance(features, teacher_features, found).item() == pytest.approx(0.01 / 2 * 2 * difference**2)


def test_gradients_reach_the_student_where_the_mask_is_and_the_adapter_but_not_the_teacher() -> None:
    student, teacher = _Dense(2, {"p3": 8}), _Dense(3, {"p3": 8})
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
    assert _drawn(reached[0].abs().sum(dim=0) > 0) == [
        "####....",
        "####....",
        "####....",
        "####....",
        *["........"] * 4,
    ]


def test_without_objects_the_loss_is_zero_and_so_is_each_gradient() -> None:
    student = _Dense(2, {"p3": 8, "p4": 16})
    distance = ImitationDistance(student, student)
    features = {"p3": torch.randn(2, 2, 4, 4, requires_grad=True), "p4": torch.randn(2, 2, 2, 2, requires_grad=True)}
    loss = distance(features, {k: x.detach() + 1 for k, x in features.items()}, [_boxes((32, 32))] * 2)
    loss.backward()
    assert loss == 0
    for parameter in (*distance.parameters(), *features.values()):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_levels_of_unequal_channels_are_refused() -> None:
    student = _Dense(2, {"p3": 8, "p4": 16})
    uneven = copy.deepcopy(student)
    uneven.backbone.shapes["p4"] = ShapeSpec(channels=3, stride=16)
    with pytest.raises(InputError, match=r"on every level, the teacher has \[2, 3\]"):
        ImitationDistance(student, uneven)


# Teacher


def test_the_teacher_is_frozen_and_no_part_of_what_trains() -> None:
    student, detector = _detector("retinanet"), _detector("retinanet", seed=1)
    teacher = FrozenTeacher(detector, student)
    model = Distiller(student, teacher, ImitationDistance(student, detector), phases=Phases()).train()
    kept = copy.deepcopy(detector.backbone.state_dict())
    sum(model(batch([2, 3])).values()).backward()
    assert not any(x.training for x in detector.backbone.modules())
    assert not any(p.requires_grad or p.grad is not None for p in detector.backbone.parameters())
    # Neither its weights nor its batch norms' statistics have moved.
    assert all(torch.equal(x, kept[name]) for name, x in detector.backbone.state_dict().items())
    assert list(teacher.parameters()) == list(teacher.state_dict()) == []
    assert not any(name.startswith("teacher") for name in model.state_dict())
    model.load_state_dict(model.state_dict(), strict=True)
    # Yet it goes where the module goes.
    model.to(torch.float64)
    assert {x.dtype for x in detector.backbone.parameters()} == {torch.float64}
    copied = copy.deepcopy(teacher).to("meta")
    assert not any(x.is_meta for x in detector.backbone.parameters())
    assert all(x.is_meta for x in copied._unregistered[0].parameters())


def test_with_equal_pixel_statistics_the_teacher_sees_the_students_very_images() -> None:
    student, detector = _detector("retinanet"), _detector("retinanet", seed=1)
    teacher = FrozenTeacher(detector, student)
    with capture_features(student.backbone) as capture:
        student.train()(batch([2]))
    features = teacher(capture, [])
    assert not any(x.requires_grad for x in features.values())
    wanted = detector.backbone(capture.images)
    assert list(features) == list(capture.features)
    assert all(torch.equal(x, wanted[name]) for name, x in features.items())


def test_images_are_renormalised_where_the_pixel_statistics_differ() -> None:
    student = _detector("retinanet")
    other = Backbone(name="resnet18", width=8, norm="BN", pixel_std="imagenet")
    detector = _detector("retinanet", seed=1, backbone=other)
    detector.pixel_mean = detector.pixel_mean + 10
    assert conventions(other).pixel_std != student.pixel_std.flatten().tolist()
    # Of unequal sizes: either has padding, which is zero whatever the statistics.
    data = [*batch([2], size=(64, 80)), *batch([1], size=(48, 96))]
    with capture_features(student.backbone) as capture:
        student.train()(data)
    found = FrozenTeacher(detector, student)(capture, [x["instances"] for x in data])
    wanted = detector.backbone(detector.preprocess_image(data).tensor)
    for name, x in found.items():
        torch.testing.assert_close(x, wanted[name], rtol=1e-4, atol=1e-5)
        unchanged = detector.backbone(capture.images)[name]
        assert (unchanged - wanted[name]).abs().max() > 0.01


def test_the_teacher_needs_the_students_levels() -> None:
    with pytest.raises(InputError) as raised:
        FrozenTeacher(_detector("faster_rcnn"), _detector("retinanet"))
    assert str(raised.value) == (
        "the teacher's levels are p2 (stride 4), p3 (stride 8), p4 (stride 16), p5 (stride 32), p6 (stride 64):"
        " FGFI needs the student's, p3 (stride 8), p4 (stride 16), p5 (stride 32), p6 (stride 64), p7 (stride 128)"
    )
    with pytest.raises(InputError, match="FGFI needs the student's, p3 \\(stride 16\\)"):
        FrozenTeacher(_detector("retinanet"), _Dense(8, {"p3": 16}))
    # Levels that the student lacks are left out.
    student, detector = _detector("fcos", coarse_levels=False), _detector("fcos", seed=1)
    with capture_features(student.backbone) as capture:
        student.train()(batch([2]))
    assert list(FrozenTeacher(detector, student)(capture, [])) == ["p3", "p4", "p5"]


# In the distiller


@each_detector
@pytest.mark.parametrize("counts", [[3, 0], [0, 0]], ids=["one image empty", "all images empty"])
def test_every_trainable_parameter_gets_a_gradient(name: str, counts: list[int]) -> None:
    model, detector = _fgfi(name).train(), _detector(name).train()
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
