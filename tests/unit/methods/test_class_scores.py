"""Class scores of training passes and their divergences; BAN, DML and tf-KD, which compare them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from lgd.config.phases import Phases
from lgd.detectors import build_detector
from lgd.detectors.fast_losses import use_fast_losses
from lgd.errors import InputError
from lgd.methods.ban.model import BornAgain
from lgd.methods.class_scores import (
    BinaryDivergence,
    DenseScores,
    RegionScores,
    ScoreCapture,
    capture_scores,
    check_scores,
    divergence,
    other_logits,
)
from lgd.methods.dml.model import MutualLearning, check_differ
from lgd.methods.feature_capture import capture_features
from lgd.methods.tf_kd.model import TeacherFree, virtual_teacher_divergence
from lgd.training.build import build_model
from lgd.training.uninitialized import Uninitialized
from tests.helpers import CLASSES, DETECTORS, detector_batch, one_thread, quick_experiment, tiny_settings

DENSE = ("retinanet", "fcos", "atss", "poto")
RCNN = ("faster_rcnn", "mask_rcnn")


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    torch.manual_seed(0)
    with one_thread(), EventStorage(0) as opened:
        yield opened


def _detector(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    detector: Any = use_fast_losses(build_detector(tiny_settings(name), CLASSES)).train()
    # The usual start, scores of 0.01 everywhere, hides what differs.
    for parameter in (
        detector.head.cls_score if hasattr(detector, "head") else detector.roi_heads.box_predictor
    ).parameters():
        nn.init.normal_(parameter, std=0.3)
    return detector


def _pass(detector: Any, name: str, counts: list[int]) -> tuple[dict[str, Tensor], ScoreCapture, dict[str, Tensor]]:
    """Losses, scores and features of a training pass."""
    torch.manual_seed(5)
    with capture_features(detector.backbone) as features, capture_scores(detector) as scores:
        losses = detector(detector_batch(name, counts))
    return losses, scores, features.features


@pytest.mark.parametrize("name", DETECTORS)
def test_capturing_changes_no_loss_and_reads_what_the_detector_classified(name: str) -> None:
    detector, counts = _detector(name), [3, 0]
    torch.manual_seed(5)
    plain = detector(detector_batch(name, counts))
    losses, scores, features = _pass(_detector(name), name, counts)
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in plain.items()}
    # The detector's own head gives the same scores again, of the same anchors or regions.
    again = other_logits(detector, features, scores)
    captured = [scores.regions.logits] if scores.regions else scores.dense.logits if scores.dense else []
    assert [x.shape for x in again] == [x.shape for x in captured]
    assert divergence(scores, [x.detach() for x in captured]).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", DENSE)
def test_positives_are_those_of_the_detectors_own_labels(name: str, storage: EventStorage) -> None:
    for counts in ([3, 2], [0, 0]):
        _, scores, _ = _pass(_detector(name), name, counts)
        assert scores.dense is not None
        assert scores.dense.positives is not None
        # detectron2 logs their number an image.
        logged = storage.latest()["num_pos_anchors"][0]
        assert scores.dense.positives.item() == pytest.approx(2 * logged)
        assert (logged > 0) == (counts != [0, 0])


def test_regions_are_those_that_were_sampled() -> None:
    _, scores, _ = _pass(_detector("faster_rcnn"), "faster_rcnn", [3, 2])
    assert scores.regions is not None
    assert sum(len(x) for x in scores.regions.boxes) == len(scores.regions.logits) == len(scores.regions.classes)
    assert 0 < (scores.regions.classes < CLASSES).sum() < len(scores.regions.classes)


# Divergences


def _dense(logits: Tensor, positives: float) -> ScoreCapture:
    scores = ScoreCapture()
    scores.dense = DenseScores([logits], torch.tensor(positives))
    return scores


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_dense_divergence_and_its_gradient_against_the_formula(temperature: float) -> None:
    own, theirs = (torch.randn(2, 6, 3, 4, dtype=torch.float64) * 2 for _ in range(2))
    reference = own.clone().requires_grad_()
    p, q = ((x / temperature).sigmoid() for x in (theirs, reference))
    wanted = temperature**2 * _bernoulli_kl(p, q).sum() / 7
    wanted.backward()
    logits = own.float().requires_grad_()
    found = divergence(_dense(logits, 7.0), [theirs.float()], temperature)
    found.backward()
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), reference.grad, rtol=1e-5, atol=1e-7)


def test_without_positives_the_divergence_is_not_divided_by_zero() -> None:
    logits = torch.zeros(1, 1, 1, 1)
    other = torch.full((1, 1, 1, 1), 2.0)
    assert torch.equal(divergence(_dense(logits, 0.0), [other]), divergence(_dense(logits, 1.0), [other]))


def test_large_logits_give_no_infinity_and_half_precision_sums_in_float32() -> None:
    logits = torch.tensor([200.0, -200.0, 30.0]).view(1, 3, 1, 1).requires_grad_()
    found = divergence(_dense(logits, 1.0), [torch.tensor([-200.0, 200.0, 30.0]).view(1, 3, 1, 1)])
    found.backward()
    assert found.item() == pytest.approx(400)
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([1, -1, 0], abs=1e-6)
    many = torch.zeros(1, 1, 100, 100, dtype=torch.bfloat16)
    total = BinaryDivergence.apply(many, torch.full_like(many, 1.0), 1.0)
    assert total.dtype is torch.float32
    exact = 10000 * _bernoulli_kl(torch.tensor(1.0).sigmoid(), torch.tensor(0.5))
    torch.testing.assert_close(total, exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_region_divergence_against_the_formula(temperature: float) -> None:
    own, theirs = torch.randn(9, 4), torch.randn(9, 4)
    scores = ScoreCapture()
    scores.regions = RegionScores(own, torch.zeros(9, dtype=torch.long), [])
    p, q = (F.softmax(x / temperature, dim=1) for x in (theirs, own))
    wanted = temperature**2 * (p * (p / q).log()).sum() / 9
    torch.testing.assert_close(divergence(scores, [theirs], temperature), wanted)


def test_detectors_whose_scores_are_of_another_kind_are_refused() -> None:
    for name in DETECTORS:
        check_scores(_detector(name), "BAN")
    with pytest.raises(InputError, match="BAN compares class scores, .* it does not know those of a? ?Linear"):
        check_scores(nn.Linear(1, 1), "BAN")
    cascade = _detector("faster_rcnn")
    cascade.roi_heads.__class__ = CascadeROIHeads
    cascade.roi_heads.box_predictor = nn.ModuleList([cascade.roi_heads.box_predictor])
    with pytest.raises(InputError, match="DML compares class scores"):
        check_scores(cascade, "DML")
    sigmoids = _detector("faster_rcnn")
    sigmoids.roi_heads.box_predictor.use_sigmoid_ce = True
    with pytest.raises(InputError, match="tf-KD compares class scores"):
        TeacherFree(sigmoids, phases=Phases())


# BAN


@pytest.mark.parametrize("name", DETECTORS)
def test_ban_adds_the_divergence_from_the_frozen_teachers_scores(name: str) -> None:
    counts = [3, 0]
    plain, scores, _ = _pass(_detector(name), name, counts)
    teacher = _detector(name, seed=1)
    model = BornAgain(_detector(name), teacher, phases=Phases(), weight=2.0).train()
    torch.manual_seed(5)
    losses = model(detector_batch(name, counts))
    assert {k: losses[k].item() for k in plain} == {k: v.item() for k, v in plain.items()}
    with torch.no_grad():
        features = teacher.backbone(teacher.preprocess_image(detector_batch(name, counts)).tensor)
    wanted = 2 * divergence(scores, other_logits(teacher, features, scores))
    torch.testing.assert_close(losses["loss_distill"], wanted, rtol=1e-4, atol=1e-6)
    losses["loss_distill"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.student.backbone.parameters())  # type: ignore[union-attr]
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert list(model.state_dict()) == [f"student.{x}" for x in model.student.state_dict()]


def test_ban_refuses_a_teacher_of_another_kind() -> None:
    student = _detector("retinanet")
    with pytest.raises(
        InputError, match="those of the student are a RetinaNet's, 45 at a location of p3, .*a FCOS's, 5"
    ):
        BornAgain(student, _detector("fcos"), phases=Phases())
    coarser = tiny_settings("retinanet").model_copy(update={"coarse_levels": False})
    with pytest.raises(InputError, match="of the teacher a RetinaNet's, 45 at a location of p3, p4, p5$"):
        BornAgain(student, build_detector(coarser, CLASSES), phases=Phases())
    with pytest.raises(
        InputError, match="a GeneralizedRCNN's, 5 classes, of the teacher a GeneralizedRCNN's, 7 classes"
    ):
        BornAgain(_detector("faster_rcnn"), build_detector(tiny_settings("faster_rcnn"), 7), phases=Phases())


# DML


@pytest.mark.parametrize("name", ["retinanet", "poto", "faster_rcnn"])
def test_dml_teaches_each_student_by_the_other(name: str, storage: EventStorage) -> None:
    counts = [3, 2]
    model = MutualLearning(_detector(name), _detector(name, seed=1), phases=Phases()).train()
    torch.manual_seed(5)
    losses = model(detector_batch(name, counts))
    plain, _, _ = _pass(_detector(name), name, counts)
    assert {k: losses[k].item() for k in plain} == {k: v.item() for k, v in plain.items()}
    assert {f"peer/{k}" for k in plain} | {"loss_distill", "peer/loss_distill"} <= set(losses)
    # Each divergence reaches its own student alone.
    for loss, reached, other in (
        ("loss_distill", model.student, model.peer),
        ("peer/loss_distill", model.peer, model.student),
    ):
        model.zero_grad(set_to_none=True)
        losses[loss].backward(retain_graph=True)
        assert any(p.grad is not None and p.grad.any() for p in reached.parameters())
        assert all(p.grad is None for p in other.parameters())
    assert model.detectors == (model.student, model.peer)
    data = detector_batch(name, [1])
    assert len(model.eval()(data)[0]["instances"]) == len(model.student.eval()(data)[0]["instances"])


def test_dml_of_two_equal_students_has_no_divergence() -> None:
    model = MutualLearning(_detector("retinanet"), _detector("retinanet"), phases=Phases()).train()
    losses = model(detector_batch("retinanet", [3]))
    assert losses["loss_distill"].item() == losses["peer/loss_distill"].item() == pytest.approx(0, abs=1e-6)


def test_dml_refuses_two_students_that_start_alike(tmp_path: Path) -> None:
    experiment = quick_experiment(method__name="dml")
    build_model(experiment, CLASSES)
    with pytest.raises(InputError, match=r"^method\.peer_seed=0 makes DML's two students equal: set it to 1 or more$"):
        build_model(experiment.override({"method.peer_seed": 0}), CLASSES, pretrained=False)
    # One file has all weights, whatever the seeds.
    whole = tmp_path / "student.pth"
    torch.save({"model": build_detector(experiment.detector, CLASSES).state_dict()}, whole)
    with pytest.raises(InputError, match=r"start from the same weights.*\(detector\.weights=none, [^\n]*\)$"):
        build_model(experiment.override({"detector.weights": str(whole)}), CLASSES)
    # Any difference will do.
    student, peer = nn.Linear(2, 2), nn.Linear(2, 2)
    peer.load_state_dict(student.state_dict())
    nn.init.ones_(peer.bias)
    state = torch.get_rng_state()
    check_differ(student, peer)
    # What is drawn later is what it was without the check.
    assert torch.equal(state, torch.get_rng_state())


def test_a_dry_build_compares_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in their memory may be equal."""
    same = nn.Linear(2, 2)
    with pytest.raises(InputError, match="start from the same weights"):
        check_differ(same, same)
    experiment = quick_experiment(method__name="dml")
    with monkeypatch.context() as patch, Uninitialized():
        patch.setattr(torch, "equal", lambda *_: True)
        build_model(experiment, CLASSES, pretrained=False)
        with pytest.raises(InputError, match="start from the same weights"):
            build_model(experiment, CLASSES)


# tf-KD


def test_made_divergence_by_hand() -> None:
    """Three classes and the background: 0.99 on the true one, 0.01 / 3 on each other; T 2."""
    logits, classes = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 3])
    wanted = torch.zeros(())
    for z, label in zip(logits, classes.tolist(), strict=True):
        made = torch.full((4,), 0.01 / 3)
        made[label] = 0.99
        p, q = F.softmax(made / 2, dim=0), F.softmax(z / 2, dim=0)
        wanted = wanted + (p * (p / q).log()).sum() / 5
    torch.testing.assert_close(virtual_teacher_divergence(logits, classes, 2.0), wanted)


@pytest.mark.parametrize("classes", [20, 80])
@pytest.mark.parametrize("margin", [0.0, 8.0])
def test_tf_kd_pulls_less_than_the_released_code(classes: int, margin: float) -> None:
    """There the student's softmax has no temperature, and the mean is over regions and classes (docs/method.md)."""
    logits, labels = torch.randn(64, classes + 1), torch.randint(classes + 1, (64,))
    logits[torch.arange(64), labels] += margin
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    virtual_teacher_divergence(ours, labels, 20.0).backward()
    made = torch.full_like(logits, 0.01 / classes)
    made[torch.arange(64), labels] = 0.99
    nn.KLDivLoss(reduction="mean")(F.log_softmax(theirs, dim=1), F.softmax(made / 20.0, dim=1)).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert 0 < ours.grad.norm() < 0.2 * theirs.grad.norm()


@pytest.mark.parametrize("name", RCNN)
def test_tf_kd_takes_its_part_of_the_classification_loss(name: str) -> None:
    plain, scores, _ = _pass(_detector(name), name, [3, 0])
    model = TeacherFree(_detector(name), phases=Phases(), alpha=0.2, temperature=5.0, multiplier=10.0).train()
    torch.manual_seed(5)
    losses = model(detector_batch(name, [3, 0]))
    assert scores.regions is not None
    made = virtual_teacher_divergence(scores.regions.logits, scores.regions.classes, 5.0)
    torch.testing.assert_close(losses["loss_distill"], 0.2 * 10 * made)
    torch.testing.assert_close(losses["loss_cls"], 0.8 * plain["loss_cls"])
    assert all(losses[k].item() == v.item() for k, v in plain.items() if k != "loss_cls")


def test_tf_kd_refuses_a_detector_without_a_softmax() -> None:
    with pytest.raises(InputError, match="method tfkd needs a softmax over classes, which a RetinaNet has not"):
        TeacherFree(_detector("retinanet"), phases=Phases())
