"""How far the teacher's objects attend to their own label."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lgd import train
from lgd.adapter import RelationAdapter
from lgd.attention import OwnAttention, watching
from lgd.objects import Objects
from lgd.teacher import ImplicitTeacher
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
    with watching(teacher) as seen:
        assert seen is not None
        teacher.instruct(features, objects)
    total, count = seen.totals()
    assert total == pytest.approx(0, abs=1e-5)
    assert count == (3 + 2) * len(SIZES)
    teacher.instruct(features, objects)
    assert seen.totals()[1] == count
    for switched in (
        *({"encoder": False}, {"adapter": False}, {"mapper": False}),
        *({"variant": "label_only"}, {"variant": "appearance_only"}, {"variant": "label_queries"}),
    ):
        with watching(ImplicitTeacher(16, CLASSES, **switched)) as nothing:
            assert nothing is None, switched
    with watching(nn.Identity()) as nothing:
        assert nothing is None


def test_a_training_records_it(tmp_path: Path) -> None:
    quick = quick_experiment(evaluation__teacher=True, evaluation__every=3)
    for experiment, measured in ((quick, True), (quick.override({"method.variant": "label_only"}), False)):
        record = train.run(experiment, tmp_path / str(measured))
        assert record.evaluations
        for point in record.evaluations:
            assert (point.attention is not None) is measured
            assert point.attention is None or -1 < point.attention < 1
