"""LabelEnc: its label map by hand and by brute force, its encoder, both stages, and what passes between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from lgd.config.experiment import Backbone, Detector, Experiment, Schedule
from lgd.config.method import make
from lgd.config.paper_recipes import define
from lgd.detectors import build_detector
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import capture_features
from lgd.methods.labelenc import stage1_detector
from lgd.methods.labelenc.distance import WholeMapDistance
from lgd.methods.labelenc.encoder import FrozenLabelEncoder, LabelEncodingFunction, LabelNetwork, build_encoder
from lgd.methods.labelenc.label_map import label_map
from lgd.methods.phases import FreezeDistance
from lgd.training.build import build_model
from lgd.training.export import export_student, export_teacher
from tests.helpers import (
    CLASSES,
    DETECTORS,
    batch,
    detector_batch,
    instances,
    one_thread,
    quick_experiment,
    tiny_settings,
)
from tests.helpers_memory import LargestFloat32


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    torch.manual_seed(0)
    with one_thread(), EventStorage(0) as opened:
        yield opened


def _map(boxes: list[list[float]], classes: list[int], size: tuple[int, int], **options: Any) -> Tensor:
    return label_map([torch.tensor(boxes).view(-1, 4)], [torch.tensor(classes, dtype=torch.long)], 2, size, **options)[
        0
    ]


# Label map


def test_one_object_by_hand() -> None:
    """A box 4 wide and 2 high around (3, 1): a quarter less for each pixel to the side, a half for each up or down."""
    found = _map([[1.0, 0.0, 5.0, 2.0]], [1], (3, 7))
    assert not found[0].any()
    assert found[1].tolist() == [
        [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0],
        [0, 0.5, 0.75, 1, 0.75, 0.5, 0],
        [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0],
    ]


def test_objects_of_one_class_leave_the_larger_value_and_those_of_another_nothing() -> None:
    boxes = [[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 6.0, 6.0]]
    together = _map(boxes, [0, 0, 1], (7, 7))
    apart = [_map([box], [label], (7, 7)) for box, label in zip(boxes, [0, 0, 1], strict=True)]
    assert torch.equal(together, torch.stack(apart).amax(dim=0))
    dimmed = _map(boxes, [0, 0, 1], (7, 7), dimming=torch.tensor([0.5, 0.25, 1.0]))
    assert torch.equal(dimmed[0], torch.maximum(apart[0][0] / 2, apart[1][0] / 4))
    assert torch.equal(dimmed[1], together[1])


def test_label_map_against_a_loop_over_pixels() -> None:
    found = instances([3, 0, 5], (9, 14), seed=2, classes=2)
    # Over the border, without width, without area.
    odd = torch.tensor([[-5.0, -3.5, 4.0, 20.0], [6, 1, 6, 8], [3, 3, 3, 3]])
    boxes = [x.gt_boxes.tensor for x in found] + [odd]
    classes = [x.gt_classes for x in found] + [torch.tensor([0, 1, 0])]
    maps = label_map(boxes, classes, 2, (9, 14))
    for image, (corners, labels) in enumerate(zip(boxes, classes, strict=True)):
        wanted = torch.zeros(2, 9, 14)
        for (x1, y1, x2, y2), label in zip(corners.tolist(), labels.tolist(), strict=True):
            for y in range(9):
                for x in range(14):
                    across, along = abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)
                    parts = [d / s if s else (0.0 if d == 0 else 9.0) for d, s in ((across, x2 - x1), (along, y2 - y1))]
                    value = 1 - max(parts)
                    wanted[label, y, x] = max(float(wanted[label, y, x]), value if value >= 0.5 else 0)
        torch.testing.assert_close(maps[image], wanted)


def test_the_label_map_does_not_wait_for_the_device() -> None:
    boxes, classes = torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.long, device="meta")
    assert label_map([boxes, boxes[:0]], [classes, classes[:0]], 5, (32, 48)).shape == (2, 5, 32, 48)


# Encoder


@pytest.mark.parametrize("name", DETECTORS)
def test_the_encoder_gives_maps_of_the_students_shapes(name: str) -> None:
    student: Any = build_detector(tiny_settings(name), CLASSES)
    encoder = LabelEncodingFunction(build_encoder(student, CLASSES), CLASSES)
    found = instances([2, 0], (64, 96))
    with capture_features(student.backbone) as capture:
        student.backbone(torch.rand(2, 3, 64, 96))
    features = encoder(capture, found)
    assert {k: x.shape for k, x in features.items()} == {k: x.shape for k, x in capture.features.items()}
    own = {k for k, _ in student.backbone.named_parameters() if not k.startswith("bottom_up.")}
    assert own == {k for k, _ in encoder.encoder.named_parameters() if not k.startswith("bottom_up.")}
    shared = {id(x) for x in student.parameters()} & {id(x) for x in encoder.parameters()}
    assert not shared
    # What it says differs between images: where objects are it is another than where there are none.
    assert all((x[0] - x[1]).abs().max() > 1e-3 for x in features.values())


def test_objects_are_dimmed_anew_in_each_step_of_stage_1_only() -> None:
    student: Any = build_detector(tiny_settings("retinanet"), CLASSES)
    with capture_features(student.backbone) as capture:
        student.backbone(torch.rand(1, 3, 64, 96))
    encoder, found = LabelEncodingFunction(build_encoder(student, CLASSES), CLASSES), instances([4], (64, 96))
    first, second = (encoder.train()(capture, found)["p3"] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (encoder.eval()(capture, found)["p3"] for _ in range(2))
    assert torch.equal(first, second)


def test_a_detector_without_an_fpn_is_refused() -> None:
    student = nn.Module()
    student.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(InputError, match="LabelEnc needs a detector with detectron2's FPN, not with a Conv2d"):
        build_encoder(student, CLASSES)


# Distance


def test_distance_by_hand() -> None:
    """Normalised over the whole map, (0, 2) and (0, 4) are both (-1, 1): equal; (2, 0) is 2 away at each element."""
    distance: Any = WholeMapDistance(2)
    distance.adapter = nn.Identity()
    student, teacher = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1), torch.tensor([0.0, 400.0]).view(1, 2, 1, 1)
    flat = torch.zeros(1, 2, 1, 2)
    assert distance({"p3": student}, {"p3": teacher}).item() == pytest.approx(0, abs=1e-8)
    assert distance({"p3": student}, {"p3": teacher.flip(1)}).item() == pytest.approx(4, rel=1e-4)
    # Over all elements of all levels: two elements of 4, four of 0.
    both = distance({"p3": student, "p4": flat}, {"p3": teacher.flip(1), "p4": flat})
    assert both.item() == pytest.approx(4 / 3, rel=1e-4)


def test_distance_of_bfloat16_maps_makes_no_float32_copy() -> None:
    distance = WholeMapDistance(8)
    student, teacher = (torch.randn(2, 8, 12, 20) for _ in range(2))
    exact = distance({"p3": student}, {"p3": teacher})
    maps = [{"p3": x.bfloat16()} for x in (student, teacher)]
    with torch.autocast("cpu", torch.bfloat16), LargestFloat32() as largest:
        loss = distance(*maps)
        loss.backward()
    # No more than a gradient of a convolution's weight.
    assert largest.elements <= 8 * 8 * 9 < student.numel()
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)


# Stages


def _experiment(stage: str, **changes: Any) -> Experiment:
    return quick_experiment(**{"method.name": stage, "schedule.steps": 8, **changes})


def test_stage_1_trains_encoder_and_detector_and_later_the_adapter(storage: EventStorage) -> None:
    model: Any = build_model(_experiment("labelenc_stage1"), CLASSES, pretrained=False).train()
    data = batch([3, 0])
    losses = model(data)
    assert {"loss_cls", "instructive/loss_cls", "loss_distill"} <= set(losses)
    assert losses["loss_distill"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not any(p.grad.any() for p in model.distance.parameters())
    # The published 30k of 120k iterations: from the third of 8 steps on.
    storage.iter = 2
    model.zero_grad()
    model(data)["loss_distill"].backward()
    assert model.student.backbone.fpn_output3.weight.grad.any()
    assert all(p.grad is None for p in model.teacher.parameters())


def test_stage_2_starts_from_stage_1_and_leaves_its_encoder_alone(tmp_path: Path, storage: EventStorage) -> None:
    first: Any = build_model(_experiment("labelenc_stage1"), CLASSES, pretrained=False)
    export_student(first, tmp_path / "student.pth")
    export_teacher(first, tmp_path / "teacher.pth")
    model: Any = build_model(_experiment("labelenc", seed=1), CLASSES, teacher=tmp_path / "student.pth").train()
    assert isinstance(model, Distiller)
    assert isinstance(model.teacher, FrozenLabelEncoder)
    encoder = model.teacher._unregistered[0]
    assert all(torch.equal(x, first.teacher.state_dict()[k]) for k, x in encoder.state_dict().items())
    for name, value in model.student.state_dict().items():
        if name.startswith("backbone.bottom_up."):
            assert "weight" not in name or "norm" in name or not torch.equal(value, first.student.state_dict()[name])
        elif name.startswith("backbone."):
            assert torch.equal(value, first.teacher.encoder.state_dict()[name.removeprefix("backbone.")])
        else:
            assert torch.equal(value, first.student.state_dict()[name])
    assert not any(name.startswith("teacher") for name in model.state_dict())
    losses = model(batch([2, 0]))
    assert losses["loss_distill"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in encoder.parameters())
    # The published 80k of 90k iterations: the last of 8 steps has no distance.
    storage.iter = 7
    assert model(batch([2, 0]))["loss_distill"] == 0


def test_stage_2_of_a_mask_rcnn(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"detector.name": "mask_rcnn", "detector.fc_dim": 16}
    first = build_model(_experiment("labelenc_stage1", **changes), CLASSES, pretrained=False)
    export_student(first, tmp_path / "student.pth")
    export_teacher(first, tmp_path / "teacher.pth")
    model = build_model(_experiment("labelenc", **changes), CLASSES, teacher=tmp_path / "student.pth").train()
    sum(model(detector_batch("mask_rcnn", [2, 3])).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_stage_1_is_trained_on() -> None:
    experiment = _experiment("labelenc", **{"schedule.steps": 9})
    first = experiment.teacher
    assert first is not None
    assert (first.method.name, first.schedule.steps, first.detector) == ("labelenc_stage1", 12, experiment.detector)
    assert _experiment("labelenc", **{"method.stage1_steps": 5}).teacher.schedule.steps == 5  # type: ignore[union-attr]
    # Always an R-50, where the FPN of its encoder fits the student.
    large = Detector(backbone=Backbone(name="resnet101", weights="some.pkl", deformable=True))
    assert stage1_detector(large).backbone == Backbone(
        name="resnet50", weights="detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    )
    swin = Detector(backbone=Backbone(name="swin_t"))
    assert stage1_detector(swin) == swin


def _stage1(experiment: Experiment) -> tuple[int, list[int]]:
    """Its steps, and those at which its learning rate drops."""
    wanted = experiment.method.teacher_training(experiment.detector, experiment.schedule)
    assert wanted is not None
    assert wanted.steps is not None
    assert wanted.milestones is not None
    return wanted.steps, [round(x * wanted.steps) for x in wanted.milestones]


@pytest.mark.parametrize("schedule", ["1x", "2x"])
def test_the_papers_stage_1_is_1x_after_a_warm_up(schedule: Any) -> None:
    """30k iterations before 1x, whose drops they move from 60k and 80k to 90k and 110k; after 2x the same."""
    experiment = define("retinanet", "r50", schedule, "ms").override({"method.name": "labelenc"})
    assert _stage1(experiment) == (120_000, [90_000, 110_000])
    assert make("labelenc_stage1").phases(Schedule(steps=120_000)).distill_from == 30_000
    # As many images, whatever the batch.
    halved = experiment.override({"schedule.batch": 8, "schedule.steps": 2 * experiment.schedule.steps})
    assert _stage1(halved) == (240_000, [180_000, 220_000])


def test_stage_1_is_trained_with_its_own_drops() -> None:
    first = _experiment("labelenc", **{"schedule.steps": 90, "schedule.milestones": [0.5, 0.9]}).teacher
    assert first is not None
    assert [round(x * first.schedule.steps) for x in first.schedule.milestones] == [75, 111]


def test_the_adapter_is_frozen_before_the_distance_begins() -> None:
    """Momentum and weight decay would move it."""
    model: Any = build_model(_experiment("labelenc_stage1"), CLASSES, pretrained=False).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
    weights = [model.distance.adapter[0].weight.detach().clone()]

    class Trainer(SimpleTrainer):
        def run_step(self) -> None:
            super().run_step()
            weights.append(model.distance.adapter[0].weight.detach().clone())

    trainer = Trainer(model, [batch([2, 1])] * 4, optimizer)
    freeze = FreezeDistance.of(model)
    assert freeze is not None
    trainer.register_hooks([freeze])
    trainer.train(0, 4)
    # The distance begins with the third of 8 steps.
    assert torch.equal(weights[2], weights[0])
    assert not torch.equal(weights[3], weights[2])
    assert FreezeDistance.of(build_model(_experiment("lgd"), CLASSES, pretrained=False)) is None


def test_drops_of_a_short_stage_1_are_moved_likewise() -> None:
    experiment = _experiment("labelenc", **{"schedule.steps": 90, "schedule.milestones": [0.5, 0.9]})
    assert _stage1(experiment) == (120, [45 + 30, 81 + 30])


def test_stages_that_nobody_reads_are_left_out() -> None:
    """Their parameters would have no gradient, for which several workers would wait."""
    network = LabelNetwork(CLASSES, {"res2": (8, 4), "res4": (32, 16)})
    assert list(network.stages) == ["stride4", "stride8", "stride16"]
    sum(x.sum() for x in network(torch.rand(1, CLASSES, 64, 64)).values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
