"""The distances of PKD, CWD, MGD and FGD: by hand, at their edges, and without a wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from lgd.errors import InputError
from lgd.methods.cwd.distance import ChannelWiseDistance, cwd_loss
from lgd.methods.fgd.distance import FocalGlobal, FocalGlobalDistance, attention, background_mask, foreground_mask
from lgd.methods.fgd.weights import FGDWeights
from lgd.methods.mgd.distance import MaskedGeneration, MaskedGenerativeDistance
from lgd.methods.objects import pad_objects
from lgd.methods.pkd.distance import PearsonDistance, check_channels, pkd_loss, standardize
from tests.helpers import instances, one_thread, tiny_detector

LEVELS = {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2), "p7": (1, 1)}
"""Height and width of the levels of an image of 64 x 96 pixels."""

Channels = Mapping[str, tuple[int, int]]

MAKERS: dict[str, Callable[[Channels], nn.Module]] = {
    "pkd": lambda _: PearsonDistance(10.0),
    "cwd": ChannelWiseDistance,
    "mgd": MaskedGenerativeDistance,
    "fgd": FocalGlobalDistance,
}

each_method = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with one_thread():
        yield


def _distance(name: str, student: int = 6, teacher: int = 6) -> nn.Module:
    torch.manual_seed(1)
    return MAKERS[name](dict.fromkeys(LEVELS, (student, teacher)))


def _features(images: int, channels: int = 6, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(images, channels, *size, generator=generator) for k, size in LEVELS.items()}


def _loss(name: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], counts: list[int]) -> Tensor:
    channels = (student["p3"].shape[1], teacher["p3"].shape[1])
    distance = _distance(name, *channels)
    torch.manual_seed(2)
    loss: Tensor = distance(student, teacher, instances(counts, (64, 96)), (64, 96))
    return loss


@each_method
@pytest.mark.parametrize("counts", [[0], [3], [0, 9, 1]])
def test_losses_and_gradients_are_finite_on_maps_of_one_cell_and_without_objects(name: str, counts: list[int]) -> None:
    channels = 6 if name == "pkd" else 4
    student = {k: x.requires_grad_() for k, x in _features(len(counts), channels).items()}
    teacher = {k: x.requires_grad_() for k, x in _features(len(counts), seed=1).items()}
    loss = _loss(name, student, teacher, counts)
    assert loss.dtype is torch.float32
    assert loss.isfinite()
    assert loss > 0
    loss.backward()
    for level, x in student.items():
        # PKD leaves out the coarsest level.
        assert (x.grad is None) == (name == "pkd" and level == "p7")
        assert x.grad is None or x.grad.isfinite().all()
    assert all(x.grad is None for x in teacher.values())


@each_method
def test_autocast_keeps_the_loss_in_float32_and_near(name: str) -> None:
    student, teacher = _features(2), _features(2, seed=1)
    exact = _loss(name, student, teacher, [3, 2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = _loss(name, student, teacher, [3, 2])
        halved = _loss(name, {k: x.bfloat16() for k, x in student.items()}, teacher, [3, 2])
    assert loss.dtype is halved.dtype is torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
    torch.testing.assert_close(halved, exact, rtol=1e-2, atol=0)


@each_method
def test_no_loss_waits_for_the_device(name: str) -> None:
    # A meta tensor has no values: whatever asks for one fails.
    found = []
    for x in instances([3, 0], (64, 96)):
        boxes = Boxes(x.gt_boxes.tensor.to("meta"))
        found.append(Instances(x.image_size, gt_boxes=boxes, gt_classes=x.gt_classes.to("meta")))
    features = {k: x.to("meta") for k, x in _features(2).items()}
    assert _distance(name).to("meta")(features, features, found, (64, 96)).is_meta


# PKD


def test_pkd_is_one_minus_the_correlation_of_each_channel() -> None:
    student, teacher = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    values = 3 * 5 * 6
    correlations = [
        float(torch.corrcoef(torch.stack([student[:, c].flatten(), teacher[:, c].flatten()]))[0, 1]) for c in range(4)
    ]
    wanted = (1 - sum(correlations) / 4) * (values - 1) / values
    assert pkd_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-5)
    assert pkd_loss(3 * student - 7, teacher).item() == pytest.approx(wanted, rel=1e-4)


def test_pkd_of_channels_without_variance() -> None:
    constant = torch.full((2, 1, 3, 3), 4.0)
    assert torch.equal(standardize(constant), torch.zeros(2, 1, 3, 3))
    # A single value has no deviation: nothing to compare.
    single = torch.randn(1, 3, 1, 1, requires_grad=True)
    loss = pkd_loss(single, torch.randn(1, 3, 1, 1))
    loss.backward()
    assert loss == 0
    assert single.grad is not None
    assert single.grad.isfinite().all()


def test_pkd_refuses_other_channels() -> None:
    student = tiny_detector()
    check_channels(student, student)
    other = tiny_detector()
    for shape in ("p3", "p4", "p5", "p6", "p7"):
        other.backbone._out_feature_channels[shape] = 24
    with pytest.raises(InputError, match=r"PKD needs a teacher with the student's channels \[16\], not \[24\]"):
        check_channels(student, other)


# CWD


def test_cwd_by_hand() -> None:
    """Two cells: p = (1/2, 1/2) and q = (3/4, 1/4); KL = 1/2 log(2/3) + 1/2 log 2 = 0.1438, times 2 channels of 2."""
    teacher = torch.zeros(1, 2, 1, 2)
    student = torch.tensor([math.log(3.0), 0.0]).expand(1, 2, 1, 2)
    wanted = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert cwd_loss(student, teacher).item() == pytest.approx(wanted, rel=1e-6)
    assert cwd_loss(2 * student, teacher, temperature=2.0).item() == pytest.approx(4 * wanted, rel=1e-6)
    assert cwd_loss(student + 5, student).item() == pytest.approx(0, abs=1e-6)


# MGD


def test_mgd_hides_the_part_of_the_cells_that_it_says_the_same_for_all_channels() -> None:
    level = MaskedGeneration(3, 3, ratio=0.65)
    seen: list[Tensor] = []
    level.generation.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    features = torch.ones(4, 3, 40, 50)
    level(features, features)
    hidden = seen[0] == 0
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert hidden.float().mean().item() == pytest.approx(0.65, abs=0.02)


def test_mgd_draws_from_the_global_generator() -> None:
    level, features = MaskedGeneration(3, 3), torch.randn(2, 3, 8, 8)
    state = torch.get_rng_state()
    first, second = level(features, features), level(features, features)
    torch.set_rng_state(state)
    assert level(features, features) == first != second


@pytest.mark.parametrize(("ratio", "hidden"), [(0.0, [0, 0, 0]), (0.5, [0, 0, 1]), (1.0, [0, 1, 1])])
def test_mgd_hides_where_the_number_exceeds_one_minus_the_ratio(ratio: float, hidden: list[int]) -> None:
    level = MaskedGeneration(1, 1, ratio=ratio)
    seen: list[Tensor] = []
    level.generation.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    features = torch.ones(1, 1, 1, 3)
    level(features, features, torch.tensor([0.0, 0.5, 0.99]).view(1, 1, 1, 3))
    assert (seen[0].flatten() == 0).tolist() == [bool(x) for x in hidden]


# FGD


def _brute_force(boxes: Tensor, size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """The foreground mask of one image, cell by cell."""
    (h, w), (height, width) = size, image_size
    mask = torch.zeros(h, w)
    for x1, y1, x2, y2 in boxes.tolist():
        columns = range(math.floor(x1 / width * w), math.ceil(x2 / width * w) + 1)
        rows = range(math.floor(y1 / height * h), math.ceil(y2 / height * h) + 1)
        for i in set(rows) & set(range(h)):
            for j in set(columns) & set(range(w)):
                mask[i, j] = max(float(mask[i, j]), 1 / (len(rows) * len(columns)))
    return mask


def test_fgd_foreground_against_a_loop_over_objects_and_cells() -> None:
    found = [x.gt_boxes.tensor for x in instances([4, 0, 7], (60, 100), seed=3)]
    # Over the border, thinner than a cell, without area.
    found[0] = torch.cat([found[0], torch.tensor([[-9.0, 50, 20, 75], [33, 7, 33.5, 40], [48, 20, 48, 20]])])
    boxes, _, valid = pad_objects(found, [torch.zeros(len(x), dtype=torch.long) for x in found])
    for size in ((8, 13), (4, 7), (1, 1)):
        mask = foreground_mask(boxes, valid, size, (60, 100))
        wanted = torch.stack([_brute_force(x, size, (60, 100)) for x in found])
        torch.testing.assert_close(mask, wanted)
        background = background_mask(mask)
        for image, inside in zip(background, wanted > 0, strict=True):
            assert not image[inside].any()
            assert inside.all() or image.sum().item() == pytest.approx(1)


def test_fgd_attention_sums_to_the_number_of_cells_and_of_channels() -> None:
    features = torch.randn(2, 3, 4, 5)
    spatial, channel = attention(features, 0.5)
    torch.testing.assert_close(spatial.sum(dim=(1, 2)), torch.full((2,), 20.0))
    torch.testing.assert_close(channel.sum(dim=1), torch.full((2,), 3.0))
    by_hand = F.softmax(features[1].abs().mean(dim=0).flatten() / 0.5, dim=0) * 20
    torch.testing.assert_close(spatial[1].flatten(), by_hand)


def test_fgd_counts_foreground_and_background_apart() -> None:
    """With attention of 1 everywhere: 2 channels; an object of 2 cells, whose differences are 3, among 4 of them."""
    teacher = torch.ones(1, 2, 1, 4)
    student = teacher.clone()
    student[..., :2], student[..., 2:] = 4.0, 3.0
    foreground = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    alone: Any = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "lambda_": 0.0}
    for weights, wanted in (
        # 2 channels * 2 cells * 3^2 / 2 cells, and 2 channels * 2 cells * 2^2 / 2 cells.
        (FGDWeights(**{**alone, "alpha": 1.0}), 18.0),
        (FGDWeights(**{**alone, "beta": 1.0}), 8.0),
        # GcBlocks start as the identity: 2 * (2 * 3^2 + 2 * 2^2).
        (FGDWeights(**{**alone, "lambda_": 1.0}), 52.0),
        (FGDWeights(**alone), 0.0),
    ):
        assert FocalGlobal(2, 2, weights)(student, teacher, foreground).item() == pytest.approx(wanted, rel=1e-5)
