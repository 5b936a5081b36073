"""Whether the teacher uses the labels: what its objects attend to, and how far its features follow the classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from lgd.config.experiment import Evaluation
from lgd.data.catalog import load_dataset
from lgd.evaluation.evaluate import evaluate, evaluate_both
from lgd.methods.feature_capture import FeatureCapture
from lgd.methods.label_guided import label_use
from lgd.methods.label_guided.adapter import RelationAdapter
from lgd.methods.label_guided.label_use import LabelUse, OwnAttention, measure_label_use
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.methods.objects import Objects
from lgd.results.detections import STUDENTS, TEACHERS, load_detections
from lgd.training import run as training
from lgd.training.build import build_model
from tests.helpers import CLASSES, instances, quick_experiment

SIZE = (64, 96)
SIZES = {"p3": (8, 12), "p4": (4, 6)}


def test_by_hand() -> None:
    seen = OwnAttention(context=True)
    # Two objects and the context object; one object, a padding slot and the context object; the stand-in alone.
    valid = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    own = torch.tensor([[0.5, 1 / 3, 0.9], [1.0, 0.7, 0.9], [0.2, 0.2, 1.0]])
    seen.add(own[None], valid)
    # Of three entries 0.5 is a quarter of the way from 1/3 to 1.
    assert seen.totals() == pytest.approx((0.25 + 0.0 + 1.0, 3))


def test_without_the_context_object_an_object_alone_has_no_choice() -> None:
    seen = OwnAttention(context=False)
    seen.add(torch.tensor([[[1.0, 0.3], [0.0, 0.0]]]), torch.tensor([[True, False], [True, True]]))
    assert seen.totals() == pytest.approx((-2.0, 2))
    assert OwnAttention(context=False).totals() == (0.0, 0.0)


@pytest.mark.parametrize("variant", ["appearance_queries", "label_queries"])
def test_own_weights_are_those_of_the_forward_pass(variant: str) -> None:
    """With values that are all alike but one object's, the output says how much of that object is in it."""
    torch.manual_seed(0)
    adapter = RelationAdapter(16, variant)  # type: ignore[arg-type]
    appearance, labels = torch.randn(2, 1, 3, 16), torch.randn(1, 3, 16)
    valid = torch.tensor([[True, True, False]])
    weights = adapter.own_weights(appearance, labels, valid)
    assert weights.shape == (2, 1, 3)
    query, key, _, mask = adapter._projected(appearance, labels, valid)
    told = torch.eye(3).expand(*key.shape[:2], 3, 3)
    expected = nn.functional.scaled_dot_product_attention(query, key, told, attn_mask=mask).mean(1)
    torch.testing.assert_close(weights.flatten(0, 1), expected.diagonal(dim1=-2, dim2=-1), rtol=1e-5, atol=1e-6)


def test_equal_keys_are_zero_and_isolated_objects_are_not_watched() -> None:
    torch.manual_seed(0)
    features = {name: torch.randn(2, 16, *size) for name, size in SIZES.items()}
    objects = Objects.from_instances(instances([3, 2], SIZE), SIZE, context=True)
    teacher = ImplicitTeacher(16, CLASSES)
    nn.init.zeros_(teacher.relation_adapter.key_value.weight)
    with measure_label_use(teacher) as seen:
        teacher.instruct(features, objects)
    assert seen.attention is not None
    total, count = seen.attention.totals()
    assert total == pytest.approx(0, abs=1e-5)
    assert count == (3 + 2) * len(SIZES)
    teacher.instruct(features, objects)
    assert seen.attention.totals()[1] == count
    for switched in (
        *({"encoder": False}, {"adapter": False}, {"mapper": False}),
        *({"variant": "label_only"}, {"variant": "appearance_only"}, {"variant": "label_queries"}),
    ):
        with measure_label_use(ImplicitTeacher(16, CLASSES, **switched)) as nothing:
            assert nothing.attention is None, switched
    with measure_label_use(nn.Identity()) as nothing:
        assert nothing.totals() == {}


def _capture(features: dict[str, torch.Tensor]) -> FeatureCapture:
    capture = FeatureCapture()
    capture._fill(torch.zeros(len(features["p3"]), 3, *SIZE), features)
    return capture


def test_label_use_by_hand() -> None:
    objects = Objects.from_lists([torch.tensor([[0.0, 0.0, 48.0, 64.0]])], [torch.tensor([1])], SIZE, context=True)
    left = objects.regions((8, 12))[0, 0].view(8, 12)
    assert 0 < left.sum() < left.numel()
    true, same, unlike = torch.randn(3, 1, 2, 8, 12).unbind()
    # Only what lies in the box counts: not in the context object's, which has no class.
    same = torch.where(left, true, same)
    for other, expected in ((true, 0.0), (same, 0.0), (torch.where(left, -true, unlike), 2.0)):
        meter = LabelUse()
        meter.add({"p3": true}, {"p3": other}, objects)
        total, count = meter.totals()
        assert total / count == pytest.approx(expected, abs=1e-6)
    meter = LabelUse()
    meter.add({"p3": true}, {"p3": unlike}, objects)
    total, count = meter.totals()
    a, b = true[..., left], unlike[..., left]
    assert total == pytest.approx((a - b).square().sum().item(), rel=1e-5)
    assert count == pytest.approx((a.square() + b.square()).sum().item(), rel=1e-5)
    assert LabelUse().totals() == (0.0, 0.0)


def test_label_use_follows_the_classes_and_leaves_attention_alone() -> None:
    torch.manual_seed(0)
    features = {name: torch.randn(2, 16, *size) for name, size in SIZES.items()}
    batch = instances([3, 2], SIZE)
    teacher = ImplicitTeacher(16, CLASSES)
    with torch.no_grad(), measure_label_use(teacher) as seen:
        teacher(_capture(features), batch)
    assert seen.attention is not None
    assert seen.labels is not None
    assert seen.attention.totals()[1] == (3 + 2) * len(SIZES)
    total, count = seen.labels.totals()
    assert 0.3 < (total / count) ** 0.5 < 1.5
    # A teacher whose features do not depend on the classes, and no other part of it.
    assert teacher.label_encoder is not None
    with torch.no_grad():
        for first in (teacher.label_encoder.stn_in.layers[0], teacher.label_encoder.conv1):
            assert isinstance(first, nn.Linear)
            first.weight[:, 4:] = 0
        teacher.label_encoder.stn_in.matrix.weight.zero_()
    with torch.no_grad(), measure_label_use(teacher) as seen:
        teacher(_capture(features), batch)
    assert seen.labels is not None
    total, count = seen.labels.totals()
    assert total / count < 1e-8
    assert count > 0
    with (
        measure_label_use(ImplicitTeacher(16, 1)) as one_class,
        measure_label_use(ImplicitTeacher(16, 2, encoder=False)) as no_labels,
    ):
        assert one_class.labels is None
        assert no_labels.labels is None


def test_images_without_objects_count_for_nothing() -> None:
    torch.manual_seed(0)
    features = {name: torch.randn(2, 16, *size) for name, size in SIZES.items()}
    for context in (True, False):
        teacher = ImplicitTeacher(16, CLASSES, context=context)
        with torch.no_grad(), measure_label_use(teacher) as seen:
            teacher(_capture(features), instances([0, 0], SIZE))
        assert seen.attention is not None
        assert seen.labels is not None
        assert seen.attention.totals() == seen.labels.totals() == (0.0, 0.0)


def test_an_evaluation_gives_the_root_of_the_whole_splits_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = quick_experiment()
    dataset = load_dataset(experiment.data)
    model = build_model(experiment, len(dataset.class_names)).eval()
    meters: list[LabelUse] = []

    class Kept(LabelUse):
        def __init__(self) -> None:
            super().__init__()
            meters.append(self)

    monkeypatch.setattr(label_use, "LabelUse", Kept)
    shares = []
    for images in (1, 8):
        monkeypatch.setattr("lgd.evaluation.evaluate.MOST_IMAGES", images)
        found = evaluate(model, dataset, experiment.data, teacher=True)
        total, count = meters[-1].totals()
        assert found.label_use == pytest.approx((total / count) ** 0.5)
        shares.append(total / count)
    # One sum a level and batch; however many images make a batch, the sums are the same.
    assert len(meters[0]._sums) == dataset.counts.val.images * len(meters[1]._sums)
    assert shares[1] == pytest.approx(shares[0], rel=1e-5)
    assert evaluate(model, dataset, experiment.data).label_use is None


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_both_in_one_pass_are_each_alone(detector: str, tmp_path: Path) -> None:
    experiment = quick_experiment().override({"detector.name": detector})
    dataset = load_dataset(experiment.data)
    model = cast(Any, build_model(experiment, len(dataset.class_names)).eval())
    # RetinaNet's scores are low before any training.
    model.student.test_score_thresh = 0.0
    keep = Evaluation(keep_detections=True)
    both = evaluate_both(model, dataset, experiment.data, evaluation=keep, directory=tmp_path / "both")
    student = evaluate(model.student, dataset, experiment.data, evaluation=keep, directory=tmp_path / "alone")
    teacher = evaluate(model, dataset, experiment.data, evaluation=keep, directory=tmp_path / "alone", teacher=True)
    assert both == (student, teacher)
    assert both[0].label_use is None
    for name in (STUDENTS, TEACHERS):
        found = load_detections(tmp_path / "both" / name)
        assert found
        assert found == load_detections(tmp_path / "alone" / name)


@pytest.mark.slow
def test_a_training_records_it(tmp_path: Path) -> None:
    quick = quick_experiment(evaluation__teacher=True, evaluation__every=3)
    through = ["label embedding", "projection"]
    for changes, attends, reads, signal in (
        ({}, True, True, [*through, "values", "attended"]),
        ({"method.variant": "label_only"}, False, True, through),
        ({"method.encoder": False}, False, False, []),
    ):
        record = training.run(quick.override(changes), tmp_path / "-".join(changes))
        assert record.evaluations
        # The next of its steps would be the fifth, after the first evaluation.
        assert [step for step, _ in record.label_signal] == ([0] if reads else [])
        for _, early in record.label_signal:
            assert list(early) == [*signal, "instructive features"]
            assert all(0 < x < 1.5 for x in early.values())
        for point in record.evaluations:
            assert (point.attention is not None) is attends
            assert point.attention is None or -1 < point.attention < 1
            assert (point.label_use is not None) is reads
            assert point.label_use is None or 0 < point.label_use < 1.5
            assert list(point.label_signal) == ([*signal, "instructive features"] if reads else [])
            assert point.label_signal.get("instructive features") == point.label_use
            assert all(0 < x < 1.5 for x in point.label_signal.values())


@pytest.mark.parametrize("variant", ["appearance_queries", "label_queries", "label_only"])
def test_the_labels_signal_is_measured_stage_by_stage(variant: str) -> None:
    torch.manual_seed(0)
    features = {name: torch.randn(2, 16, *size) for name, size in SIZES.items()}
    teacher = ImplicitTeacher(16, CLASSES, variant=variant)  # type: ignore[arg-type]
    batch = instances([3, 0], SIZE)
    with torch.no_grad(), measure_label_use(teacher) as seen:
        instructive = teacher(_capture(features), batch)
    expected = ["label embedding", "projection"]
    expected += {"appearance_queries": ["values", "attended"], "label_queries": ["attended"], "label_only": []}[variant]
    assert list(seen.signal) == expected
    assert list(seen.totals())[:2] == (["attention", "label_use"] if seen.attention else ["label_use", *expected[:1]])
    # By hand, from the modules themselves.
    objects = Objects.from_instances(batch, SIZE, context=True)
    others = replace(objects, classes=torch.where(objects.classes >= 0, (objects.classes + 1) % CLASSES, -1))
    with torch.no_grad():
        pair = [teacher.label_projection(teacher.embed_labels(x))[0, :3] for x in (objects, others)]  # type: ignore[misc]
        assert all(torch.equal(x, instructive[name]) for name, x in teacher.instruct(features, objects).items())
    total, count = seen.signal["projection"].totals()
    assert total == pytest.approx((pair[0] - pair[1]).square().sum().item(), rel=1e-4)
    assert count == pytest.approx(sum(x.square().sum().item() for x in pair), rel=1e-4)
    if variant == "appearance_queries":
        with torch.no_grad():
            one, other = (teacher.relation_adapter.key_value(x)[:, 16:] for x in pair)
        total, count = seen.signal["values"].totals()
        assert total == pytest.approx((one - other).square().sum().item(), rel=1e-4)
    # No label signal from one module on: the stages before it still have one.
    adapter = teacher.relation_adapter
    if variant == "appearance_queries":
        nn.init.zeros_(adapter.key_value.weight)
        nn.init.ones_(adapter.key_value.bias)
        with torch.no_grad(), measure_label_use(teacher) as seen:
            teacher(_capture(features), batch)
        parts = {name: total / count for name, (total, count) in seen.totals().items() if name != "attention"}
        assert parts["projection"] > 0.05
        assert max(parts["values"], parts["attended"], parts["label_use"]) < 1e-8
