"""The implicit teacher on every shape of input and every combination of components."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lgd.config.components import AdapterVariant, component_conflict
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.encoder import AppearanceEncoder
from lgd.methods.label_guided.mapper import KnowledgeMapper
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.methods.norms import group_norm, instance_norm, layer_norm
from lgd.methods.objects import Objects
from tests.helpers import CLASSES, instances

SIZE = (64, 96)
SIZES = {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)}


def _features(batch: int, channels: int, sizes: dict[str, tuple[int, int]] = SIZES) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(batch, channels, *size).requires_grad_() for name, size in sizes.items()}


def _step(teacher: ImplicitTeacher, features: dict[str, Tensor], objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
    """Distillation loss plus a stand-in for the detection loss, with its gradients computed."""
    torch.manual_seed(2)
    distance = DistillationDistance(teacher.channels)
    instructive = teacher.instruct(features, objects)
    loss = distance(features, instructive) + sum(x.float().square().mean() for x in instructive.values())
    loss.backward()
    for name, parameter in (*teacher.named_parameters(), *distance.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert loss.isfinite()
    return loss, instructive


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize(
    "counts",
    [[0], [0, 0], [3, 0], [1, 40], [2, 5, 1]],
    ids=["empty", "all-empty", "one-empty", "uneven", "plain"],
)
def test_any_object_counts(counts: list[int], context: bool) -> None:
    teacher = ImplicitTeacher(16, CLASSES, context=context)
    objects = Objects.from_instances(instances(counts, SIZE), SIZE, context=context)
    features = _features(len(counts), 16)
    _, instructive = _step(teacher, features, objects)
    for name, x in features.items():
        assert instructive[name].shape == x.shape
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("channels", [6, 12, 40])
@pytest.mark.parametrize("classes", [1, 3, 90])
@pytest.mark.parametrize(
    "sizes",
    [{"only": (5, 7)}, {"p2": (16, 24), "p3": (8, 12), "p4": (4, 6)}, {"p7": (1, 1)}],
    ids=["1", "3", "1x1"],
)
def test_any_channels_classes_levels(channels: int, classes: int, sizes: dict[str, tuple[int, int]]) -> None:
    teacher = ImplicitTeacher(channels, classes)
    objects = Objects.from_instances(instances([2, 3], SIZE, classes=classes), SIZE, context=True)
    _step(teacher, _features(2, channels, sizes), objects)


def _possible() -> list[Any]:
    flags = itertools.product([True, False], repeat=4)
    return [
        pytest.param(e, a, m, c, v, id=f"encoder={e:d}-adapter={a:d}-mapper={m:d}-context={c:d}-{v}")
        for e, a, m, c in flags
        for v in get_args(AdapterVariant)
        if not component_conflict(encoder=e, adapter=a, mapper=m, variant=v, context=c)
    ]


@pytest.mark.parametrize(("encoder", "adapter", "mapper", "context", "variant"), _possible())
def test_every_component_combination_trains(
    encoder: bool, adapter: bool, mapper: bool, context: bool, variant: AdapterVariant
) -> None:
    teacher = ImplicitTeacher(
        16, CLASSES, encoder=encoder, adapter=adapter, mapper=mapper, context=context, variant=variant
    )
    objects = Objects.from_instances(instances([3, 0, 2], SIZE), SIZE, context=context)
    _step(teacher, _features(3, 16), objects)


@pytest.mark.parametrize(
    ("switched", "words"),
    [
        ({"mapper": False, "context": False}, "mapper off needs the context object"),
        ({"encoder": False, "adapter": False, "mapper": False}, "baseline"),
        ({"encoder": False, "variant": "label_queries"}, "needs label embeddings"),
        ({"encoder": False, "variant": "label_only"}, "needs label embeddings"),
        ({"encoder": False, "variant": "appearance_only"}, "would change nothing"),
        ({"adapter": False, "variant": "label_only"}, "no attention"),
        ({"variant": "sideways"}, "sideways"),
    ],
)
def test_impossible_combinations_are_refused(switched: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        ImplicitTeacher(16, CLASSES, **switched)
    assert "\n" not in str(caught.value)


def test_padding_does_not_reach_the_result() -> None:
    """An image's instructive features are the same alone and beside an image with many more objects."""
    torch.manual_seed(0)
    teacher = ImplicitTeacher(16, CLASSES)
    both = instances([2, 17], SIZE)
    features = {n: x.detach() for n, x in _features(2, 16).items()}
    together = teacher.instruct(features, Objects.from_instances(both, SIZE, context=True))
    alone = teacher.instruct(
        {n: x[:1] for n, x in features.items()}, Objects.from_instances(both[:1], SIZE, context=True)
    )
    for name, x in alone.items():
        torch.testing.assert_close(together[name][:1], x, rtol=1e-5, atol=1e-5)


def test_object_order_does_not_matter() -> None:
    torch.manual_seed(0)
    teacher = ImplicitTeacher(16, CLASSES)
    (found,) = instances([5], SIZE)
    order = torch.tensor([3, 0, 4, 1, 2])
    features = {n: x.detach() for n, x in _features(1, 16).items()}
    one = teacher.instruct(features, Objects.from_instances([found], SIZE, context=True))
    other = teacher.instruct(features, Objects.from_instances([found[order]], SIZE, context=True))
    for name, x in one.items():
        torch.testing.assert_close(other[name], x, rtol=1e-5, atol=1e-5)


def test_adapter_off_isolates_objects() -> None:
    """With the adapter off, another object's appearance does not change what an object's box region holds."""
    torch.manual_seed(0)
    boxes = torch.tensor([[0.0, 0.0, 15.0, 15.0], [64.0, 32.0, 95.0, 63.0]])
    objects = Objects.from_lists([boxes], [torch.tensor([1, 2])], SIZE, context=False)
    appearance = torch.randn(1, 1, 2, 16)
    changed = appearance.clone()
    changed[0, 0, 1] += torch.randn(16)
    for exchange, equal in ((False, True), (True, False)):
        teacher = ImplicitTeacher(16, CLASSES, encoder=False, adapter=exchange, context=False)
        first = teacher.relation_adapter(appearance, None, objects.valid)[0, 0, 0]
        second = teacher.relation_adapter(changed, None, objects.valid)[0, 0, 0]
        assert torch.allclose(first, second) is equal


@pytest.mark.parametrize("classes", [3, 20, 80])
def test_objects_of_other_classes_start_far_apart(classes: int) -> None:
    """Their keys and values differ from the first step on: attention among equal ones could not learn whom to see."""
    torch.manual_seed(0)
    teacher = ImplicitTeacher(32, classes, context=False)
    labels = torch.arange(classes)
    objects = Objects.from_lists(
        [torch.tensor([[16.0, 16.0, 48.0, 48.0]]).expand(classes, 4)], [labels], SIZE, context=False
    )
    embedded = teacher.embed_labels(objects)
    assert embedded is not None
    assert teacher.label_projection is not None
    vectors = teacher.relation_adapter.key_value(teacher.label_projection(embedded))[0]
    for name, x in zip(("keys", "values"), vectors.chunk(2, dim=-1), strict=True):
        assert x.std(0).mean() > 0.4 * x.square().mean().sqrt(), name


def test_mapper_off_takes_the_context_object_alone() -> None:
    torch.manual_seed(0)
    mapper = KnowledgeMapper(16, write=False)
    vectors, regions = torch.randn(1, 3, 16), torch.ones(1, 3, 12, dtype=torch.bool)
    before = mapper(vectors, regions, (3, 4))
    vectors[0, :2] += 1
    assert torch.equal(mapper(vectors, ~regions, (3, 4)), before)
    vectors[0, 2] += 1
    assert not torch.allclose(mapper(vectors, regions, (3, 4)), before)


def test_detached_appearance_sends_no_gradient() -> None:
    objects = Objects.from_instances(instances([3], SIZE), SIZE, context=True)
    for detach in (True, False):
        features = _features(1, 16)
        instructive = ImplicitTeacher(16, CLASSES, detach_appearance=detach).instruct(features, objects)
        sum(x.sum() for x in instructive.values()).backward()  # type: ignore[union-attr]
        assert (features["p3"].grad is None) is detach


@pytest.mark.parametrize("context", [True, False])
def test_runs_under_autocast_and_channels_last(context: bool) -> None:
    """bf16 autocast changes the loss by bf16's own rounding (8 bits of mantissa) and no more."""
    torch.manual_seed(0)
    teacher = ImplicitTeacher(32, CLASSES, context=context)
    objects = Objects.from_instances(instances([3, 0, 6], SIZE), SIZE, context=context)
    features = _features(3, 32)
    exact, _ = _step(teacher, features, objects)
    teacher.zero_grad()
    packed = {n: x.detach().to(memory_format=torch.channels_last).requires_grad_() for n, x in features.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, instructive = _step(teacher.to(memory_format=torch.channels_last), packed, objects)
    assert rough.dtype == torch.float32
    assert instructive["p3"].dtype == torch.bfloat16
    torch.testing.assert_close(rough, exact, rtol=0.03, atol=0)


def test_norm_statistics_are_float32() -> None:
    """A large mean with a small spread is lost in bf16 statistics, not in float32 ones."""
    torch.manual_seed(0)
    x = (torch.randn(2, 4, 8, 8) + 40).bfloat16()
    for norm in (group_norm, instance_norm, lambda x: layer_norm(x.flatten(1))):
        torch.testing.assert_close(norm(x).float(), norm(x.double().float()), rtol=0.01, atol=0.01)
    flat = torch.full((1, 3, 1, 1), 7.0, requires_grad=True)
    result = instance_norm(flat)
    result.sum().backward()
    assert result.eq(0).all()
    assert flat.grad is not None
    assert flat.grad.eq(0).all()


def test_stand_in_takes_the_context_objects_place() -> None:
    objects = Objects.from_instances(instances([0, 2], SIZE), SIZE, context=True)
    assert objects.boxes.shape == (2, 3, 4)
    assert objects.valid.tolist() == [[False, False, True], [True, True, True]]
    assert objects.boxes[0, -1].tolist() == [0, 0, 1, 1]
    assert objects.boxes[1, -1].tolist() == [0, 0, 96, 64]
    assert objects.descriptors(CLASSES)[0, -1, 4:].eq(-1).all()

    without = Objects.from_instances(instances([0, 2], SIZE), SIZE, context=False)
    assert without.valid.tolist() == [[True, False], [True, True]]
    assert without.boxes[0, 0].tolist() == [0, 0, 1, 1]
    assert without.regions((8, 12))[0, 0].nonzero().tolist() == [[0]]


def test_descriptor_by_hand() -> None:
    boxes = torch.tensor([[-3.0, 8.0, 96.0, 32.0]])
    objects = Objects.from_lists([boxes], [torch.tensor([1])], SIZE, context=False)
    expected = torch.tensor([0.0, 8 / 64, 95 / 96, 32 / 64, 0, 1, 0]) * 2 - 1
    torch.testing.assert_close(objects.descriptors(3)[0, 0], expected)


def test_region_by_hand() -> None:
    """A box of 16..48 x 8..24 pixels on an 8 x 12 level of a 64 x 96 image: rows 1..3, columns 2..6."""
    objects = Objects.from_lists([torch.tensor([[16.0, 8.0, 48.0, 24.0]])], [torch.tensor([0])], SIZE, context=False)
    region = objects.regions((8, 12)).reshape(8, 12)
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[1:4, 2:7] = True
    assert torch.equal(region, expected)


def test_overlapping_objects_add_up_in_the_mapper() -> None:
    torch.manual_seed(0)
    teacher = ImplicitTeacher(16, CLASSES, context=False)
    mapper = teacher.knowledge_mapper
    vectors = torch.randn(1, 2, 16)
    regions = torch.ones(1, 2, 12, dtype=torch.bool)
    merged = vectors.sum(1, keepdim=True)
    with torch.no_grad():
        mapper.object_linear.bias.zero_()
    torch.testing.assert_close(
        mapper(vectors, regions, (3, 4)), mapper(merged, regions[:, :1], (3, 4)), rtol=1e-4, atol=1e-5
    )


def test_a_region_of_many_cells_stays_in_fp16s_range() -> None:
    """A sum over 67,200 cells is beyond 65,504, fp16's largest number; their mean is not."""
    encoder = AppearanceEncoder(8).half()
    features = torch.full((1, 8, 200, 336), 0.5, dtype=torch.float16)
    features[:, :, ::2] = 2.0
    regions = torch.ones(1, 1, 200 * 336, dtype=torch.bool)
    mean = encoder(features, regions)
    assert mean.dtype == torch.float16
    assert mean.isfinite().all()
    projected = group_norm(encoder.conv(features)).relu().float().mean((2, 3))
    torch.testing.assert_close(mean[:, 0].float(), projected, rtol=5e-3, atol=1e-3)


def test_more_padding_changes_nothing() -> None:
    """As on a GPU, where slots come in multiples."""
    found = instances([3, 0, 2], (64, 96))
    boxes, classes = [x.gt_boxes.tensor for x in found], [x.gt_classes for x in found]
    features = {"p3": torch.randn(3, 16, 8, 12), "p4": torch.randn(3, 16, 4, 6)}
    for context in (True, False):
        torch.manual_seed(0)
        teacher = ImplicitTeacher(16, CLASSES, context=context)
        few, many = (
            teacher.instruct(features, Objects.from_lists(boxes, classes, (64, 96), context=context, slots=slots))
            for slots in (1, 8)
        )
        assert Objects.from_lists(boxes, classes, (64, 96), context=context, slots=8).boxes.shape[1] == 8 + context
        for level in features:
            torch.testing.assert_close(few[level], many[level])
