"""The frozen teacher: it does not train, sees the student's images, and has the student's levels."""

from __future__ import annotations

import copy

import pytest
import torch

from lgd.config.experiment import Backbone
from lgd.config.phases import Phases
from lgd.config.presets import FINETUNE
from lgd.detectors.conventions import conventions
from lgd.errors import InputError
from lgd.methods.distiller import Distiller
from lgd.methods.feature_capture import capture_features
from lgd.methods.fgfi.imitation import ImitationDistance
from lgd.methods.frozen_teacher import FrozenTeacher
from lgd.methods.inherit import inherit
from tests.helpers import batch, tiny_detector
from tests.helpers_methods import DenseParts, seeded_detector

pytestmark = pytest.mark.usefixtures("storage")


def test_the_teacher_is_frozen_and_no_part_of_what_trains() -> None:
    student, detector = seeded_detector("retinanet"), seeded_detector("retinanet", seed=1)
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
    student, detector = seeded_detector("retinanet"), seeded_detector("retinanet", seed=1)
    teacher = FrozenTeacher(detector, student)
    with capture_features(student.backbone) as capture:
        student.train()(batch([2]))
    features = teacher(capture, [])
    assert not any(x.requires_grad for x in features.values())
    wanted = detector.backbone(capture.images)
    assert list(features) == list(capture.features)
    assert all(torch.equal(x, wanted[name]) for name, x in features.items())


def test_images_are_renormalised_where_the_pixel_statistics_differ() -> None:
    student = seeded_detector("retinanet")
    other = Backbone(name="resnet18", width=8, norm="BN", pixel_std="imagenet")
    detector = seeded_detector("retinanet", seed=1, backbone=other)
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
        FrozenTeacher(seeded_detector("faster_rcnn"), seeded_detector("retinanet"))
    assert str(raised.value) == (
        "the teacher's levels are p2 (stride 4), p3 (stride 8), p4 (stride 16), p5 (stride 32), p6 (stride 64):"
        " a frozen teacher needs the student's, p3 (stride 8), p4 (stride 16), p5 (stride 32), p6 (stride 64),"
        " p7 (stride 128)"
    )
    with pytest.raises(InputError, match="a frozen teacher needs the student's, p3 \\(stride 16\\)"):
        FrozenTeacher(seeded_detector("retinanet"), DenseParts(8, {"p3": 16}))
    # Levels that the student lacks are left out.
    student, detector = seeded_detector("fcos", coarse_levels=False), seeded_detector("fcos", seed=1)
    with capture_features(student.backbone) as capture:
        student.train()(batch([2]))
    assert list(FrozenTeacher(detector, student)(capture, [])) == ["p3", "p4", "p5"]


def test_a_teacher_that_is_the_students_equal_starts_where_the_student_does() -> None:
    """On one's own data that is a detector of MS-COCO: BAN's teacher is then trained as the baseline is."""
    start = FINETUNE.detector.weights
    own = FINETUNE.override({"method.name": "ban", "schedule.steps": 100, "schedule.epochs": None})
    assert own.teacher is not None
    assert own.teacher.detector.weights == start != "none"
    stage1 = FINETUNE.override({"method.name": "labelenc", "schedule.steps": 100, "schedule.epochs": None}).teacher
    assert stage1 is not None
    assert stage1.detector.weights == start
    # There is no such detector of another backbone.
    deeper = FINETUNE.override({"method.name": "pkd", "schedule.steps": 100, "schedule.epochs": None}).teacher
    assert deeper is not None
    assert deeper.detector.weights == "none"


def test_the_student_keeps_its_own_pixel_statistics() -> None:
    """Its bottom-up network was trained with them; buffers of somebody's own detector are saved with its weights."""
    student = tiny_detector()
    student._non_persistent_buffers_set.discard("pixel_mean")
    before = {k: x.clone() for k, x in student.state_dict().items()}
    assert "pixel_mean" in before
    inherit(student, {k: x + 1 for k, x in before.items()}, "fpn_and_head")
    changed = {k for k, x in student.state_dict().items() if not torch.equal(x, before[k])}
    assert "pixel_mean" not in changed
    assert {"head.cls_score.weight", "backbone.fpn_output3.weight"} <= changed
