"""How LGD's modules start in the released code, and our additions to it, each alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lgd.config.experiment import Experiment
from lgd.config.presets import FINETUNE, PAPER
from lgd.errors import InputError
from lgd.methods.label_guided.adapter import OWN_LABEL_START, RelationAdapter
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import RESIDUAL_SCALE, ImplicitTeacher
from lgd.methods.objects import Objects
from lgd.results.fingerprint import fingerprint
from tests.helpers import CLASSES, instances

SIZE = (64, 96)
SIZES = {"p3": (8, 12), "p4": (4, 6)}


def _features() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(2, 16, *size) for name, size in SIZES.items()}


def _objects(counts: tuple[int, int] = (3, 2)) -> Objects:
    return Objects.from_instances(instances(list(counts), SIZE), SIZE, context=True)


def test_the_reference_start_is_the_frameworks_default_but_for_attention() -> None:
    torch.manual_seed(0)
    parts = (ImplicitTeacher(64, CLASSES, start="reference"), DistillationDistance(64, "reference"))
    layers = [(n, x) for part in parts for n, x in part.named_modules() if isinstance(x, (nn.Linear, nn.Conv2d))]
    assert len(layers) > 25
    for name, layer in layers:
        assert layer.bias is not None
        fan_in = layer.weight[0].numel()
        bound = 1 / math.sqrt(fan_in)
        if name in ("relation_adapter.query", "relation_adapter.key_value"):
            # Xavier-uniform over the stacked matrix (3C, C).
            bound = math.sqrt(6 / (64 + 3 * 64))
        assert 0.9 * bound < layer.weight.abs().max() <= bound, name
        if name.startswith("relation_adapter."):
            assert not layer.bias.any()
        else:
            assert 0.5 / math.sqrt(fan_in) < layer.bias.abs().max() <= 1 / math.sqrt(fan_in), name


def test_the_paper_preset_starts_so_and_ours_do_not() -> None:
    assert PAPER.method.model_dump()["init"] == "reference"
    assert PAPER.method.additions == []
    assert PAPER.method.label == "lgd"
    ours = PAPER.override({"method.residual": True, "method.centred_labels": True}).method
    assert ours.label == "lgd (ours: residual teacher, centred labels)"
    assert FINETUNE.method.model_dump()["init"] == "informed"
    assert Experiment().method.model_dump()["init"] == "informed"
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    prints = {fingerprint(ImplicitTeacher(16, 3, start=x), optimizer) for x in ("informed", "reference")}
    assert len(prints) == 2, "arms that differ in their start only are not taken for the same"


@pytest.mark.parametrize("variant", ["appearance_queries", "label_queries"])
def test_own_label_start(variant: Any) -> None:
    """The bias raises the own entry's weight as exp(4) does, in the forward pass as in what is measured."""
    torch.manual_seed(0)
    adapter = RelationAdapter(16, variant, own_label_start=True)
    appearance, labels = torch.randn(2, 1, 4, 16), torch.randn(1, 4, 16)
    valid = torch.tensor([[True, True, True, False]])
    for linear in (adapter.query, adapter.key_value):
        nn.init.zeros_(linear.weight)
    expected = math.exp(OWN_LABEL_START) / (math.exp(OWN_LABEL_START) + 2)
    own = adapter.own_weights(appearance, labels, valid)
    assert own[..., :3].flatten().tolist() == pytest.approx([expected] * 6)
    nn.init.eye_(adapter.key_value.weight[16:])
    nn.init.eye_(adapter.output.weight)
    nn.init.zeros_(adapter.output.bias)
    values = (labels if variant == "appearance_queries" else appearance)[..., 0, :3, :] + adapter.key_value.bias[16:]
    mixed = expected * values + (1 - expected) / 2 * (values.sum(-2, keepdim=True) - values)
    result = adapter(appearance, labels, valid)[:, 0, :3]
    torch.testing.assert_close(result, mixed.expand_as(result), rtol=1e-4, atol=1e-5)
    result.sum().backward()
    assert adapter.own_bias is not None
    assert adapter.own_bias.grad is not None
    assert adapter.own_bias.grad != 0


def test_own_label_start_is_refused_where_it_has_no_effect() -> None:
    for changes in ({"adapter": False}, {"variant": "label_only"}, {"variant": "appearance_only"}):
        with pytest.raises(ValueError, match="no effect without attention"):
            ImplicitTeacher(16, CLASSES, own_label_start=True, **changes)
        dotted = {f"method.{key}": value for key, value in changes.items()}
        with pytest.raises(InputError, match="own_label_start has no effect"):
            Experiment().override({"method.own_label_start": True, **dotted})


def test_a_residual_teacher_starts_close_to_its_student_and_sends_it_no_gradient_directly() -> None:
    torch.manual_seed(0)
    plain = ImplicitTeacher(16, CLASSES, detach_appearance=True)
    torch.manual_seed(0)
    teacher = ImplicitTeacher(16, CLASSES, detach_appearance=True, residual=True)
    features = {name: x.requires_grad_() for name, x in _features().items()}
    instructive = teacher.instruct(features, _objects())
    mapped = plain.instruct(features, _objects())
    for name, x in features.items():
        torch.testing.assert_close(instructive[name], x + RESIDUAL_SCALE * mapped[name])
    sum(x.square().sum() for x in instructive.values()).backward()  # type: ignore[union-attr]
    assert all(x.grad is None for x in features.values())
    assert teacher.residual_scale is not None
    assert teacher.residual_scale.grad is not None
    assert all(p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize("counts", [(0, 0), (5, 0)])
def test_both_additions_in_bf16_and_without_objects(counts: tuple[int, int]) -> None:
    torch.manual_seed(0)
    teacher = ImplicitTeacher(16, CLASSES, own_label_start=True, residual=True)
    objects = Objects.from_instances(instances(list(counts), SIZE), SIZE, context=True)
    exact = teacher.instruct(_features(), objects)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = teacher.instruct({n: x.bfloat16() for n, x in _features().items()}, objects)
    for name, x in exact.items():
        assert x.isfinite().all()
        assert rough[name].dtype == torch.bfloat16
        torch.testing.assert_close(rough[name].float(), x, rtol=0.1, atol=0.1)


def _centred(train: bool, **options: Any) -> ImplicitTeacher:
    torch.manual_seed(0)
    return ImplicitTeacher(16, CLASSES, centred_labels=True, **options).train(train)


def _shared_part(vectors: torch.Tensor, valid: torch.Tensor) -> float:
    """The length of the mean over the objects, as a part of the objects' own."""
    rows = vectors[valid]
    return float(rows.mean(0).norm() / rows.norm(dim=-1).mean())


def test_centred_labels_take_away_what_all_objects_share() -> None:
    """However far the biases, the same for every object, have moved."""
    teacher, plain = _centred(True), _centred(True)
    objects = _objects((8, 7))
    for parts in (plain, teacher):
        assert parts.label_encoder is not None
        assert parts.label_projection is not None
        for linear in (parts.label_encoder.conv4, parts.label_projection.linear, parts.relation_adapter.key_value):
            nn.init.constant_(linear.bias, 50.0)
    plain.label_encoder.centres = plain.label_projection.centre = plain.relation_adapter.centre = None  # type: ignore[union-attr]
    with torch.no_grad():
        projected = [x.label_projection(x.embed_labels(objects), objects.valid) for x in (teacher, plain)]  # type: ignore[misc]
    ours, theirs = (
        _shared_part(x.relation_adapter.values(y, objects.valid), objects.valid)
        for x, y in zip((teacher, plain), projected, strict=True)
    )
    assert ours < 1e-4
    assert theirs > 0.9


def test_evaluation_uses_the_running_mean_of_training() -> None:
    teacher = _centred(True)
    centre = teacher.relation_adapter.centre
    assert centre is not None
    values, valid = torch.randn(3, 2, 4, 16), torch.tensor([[True, True, False, False], [True, True, True, True]])
    means = [x[valid].mean(0) for x in values]
    for x, mean in zip(values, means, strict=True):
        torch.testing.assert_close(centre(x, valid)[valid], (x - mean)[valid])
    torch.testing.assert_close(centre.mean, sum(means) / 3)  # the mean of all batches, as long as there are few
    centre.eval()
    torch.testing.assert_close(centre(values[0], valid), values[0] - centre.mean)
    assert centre.batches == 3
    alone = torch.tensor([[True, False, False, False], [False] * 4])
    assert torch.equal(centre.train()(values[0], alone), values[0])
    assert sorted(k for k in teacher.state_dict() if k.endswith(".mean")) == sorted(
        [
            *(f"label_encoder.centres.{i}.mean" for i in range(5)),
            "label_projection.centre.mean",
            "relation_adapter.centre.mean",
        ]
    )


def test_a_centred_teacher_trains_and_more_padding_changes_nothing() -> None:
    found = instances([3, 0, 2], SIZE)
    boxes, classes = [x.gt_boxes.tensor for x in found], [x.gt_classes for x in found]
    torch.manual_seed(3)
    features = {"p3": torch.randn(3, 16, 8, 12), "p4": torch.randn(3, 16, 4, 6)}
    for train in (True, False):
        made = []
        for slots in (1, 8):
            objects = Objects.from_lists(boxes, classes, SIZE, context=True, slots=slots)
            made.append(_centred(train).instruct(features, objects))
        for level in features:
            torch.testing.assert_close(made[0][level], made[1][level], rtol=1e-4, atol=1e-5)
    teacher = _centred(True, variant="label_only")
    instructive = teacher.instruct(features, Objects.from_lists(boxes, classes, SIZE, context=True))
    sum(x.square().sum() for x in instructive.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in teacher.parameters())


def test_centring_is_refused_without_label_embeddings() -> None:
    for changes in ({"encoder": False}, {"variant": "appearance_only"}):
        with pytest.raises(ValueError, match="centred_labels has no effect"):
            ImplicitTeacher(16, CLASSES, centred_labels=True, **changes)
        dotted = {f"method.{key}": value for key, value in changes.items()}
        with pytest.raises(InputError, match="centred_labels has no effect"):
            Experiment().override({"method.centred_labels": True, **dotted})
