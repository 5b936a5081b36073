"""LGD on heads of somebody's own, whatever they return: what one run for both passes gives is what two give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from lgd.config.phases import Phases
from lgd.methods.distiller import Distiller
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher

CHANNELS, CLASSES = 16, 3

Returned = Callable[[list[Tensor]], Any]
"""What a head returns of its scores (B, K, H, W), a level each."""

RETURNED: dict[str, Returned] = {
    "levels": lambda x: x,
    "with None": lambda x: (x, None),
    "with numbers": lambda x: (x, [8, 16]),
    "with a loss": lambda x: {"scores": x, "loss": sum(y.square().mean() for y in x)},
    "levels first": lambda x: torch.stack([y.mean((2, 3)) for y in x]),
    "one for all images": lambda x: torch.cat([y.permute(0, 2, 3, 1).flatten(0, 2) for y in x]),
}


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, CHANNELS, 8, stride=8), nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.first(images).relu()
        return {"p3": fine, "p4": self.second(fine).relu()}


class _Head(nn.Module):
    def __init__(self, returned: Returned) -> None:
        super().__init__()
        self.scores, self.returned = nn.Conv2d(CHANNELS, CLASSES, 1), returned

    def forward(self, levels: list[Tensor]) -> Any:
        return self.returned([self.scores(x) for x in levels])


class _Detector(nn.Module):
    def __init__(self, returned: Returned, calls: Callable[[_Head, list[Tensor]], list[Any]]) -> None:
        super().__init__()
        self.backbone, self.head, self.calls = _Backbone(), _Head(returned), calls

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = ImageList.from_tensors([x["image"] for x in batch], size_divisibility=16)
        found = self.calls(self.head, list(self.backbone(images.tensor).values()))
        return {"loss": sum((x.square().mean() for x in _tensors(found)), torch.zeros(()))}


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, (list, tuple)) else ()
    return [x for part in parts for x in _tensors(part)]


CALLS: dict[str, Callable[[_Head, list[Tensor]], list[Any]]] = {
    "once": lambda head, levels: [head(levels)],
    "once a level": lambda head, levels: [head([x]) for x in levels],
    "twice": lambda head, levels: [head(levels), head(levels)],
}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    ("returned", "calls"), [*((x, "once") for x in RETURNED), *(("levels", x) for x in list(CALLS)[1:])]
)
def test_a_head_of_any_output_gives_what_it_gives_by_itself(returned: str, calls: str, images: int) -> None:
    """With one image and two levels, two sets of features have as many images as there are levels."""
    losses = []
    for joint in (True, False):
        torch.manual_seed(0)
        detector = _Detector(RETURNED[returned], CALLS[calls])
        model = Distiller(
            detector, ImplicitTeacher(CHANNELS, CLASSES), DistillationDistance(CHANNELS), phases=Phases(),
            joint_head=joint,
        ).train()  # fmt: skip
        objects = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[3.0, 4.0, 20.0, 30.0]])))
        objects.gt_classes = torch.tensor([1])
        batch = [{"image": torch.rand(3, 64, 64), "instances": objects} for _ in range(images)]
        with EventStorage():
            for _ in range(2):
                found = model(batch)
        losses.append({name: x.item() for name, x in found.items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0].keys() == {"loss", "instructive/loss", "loss_distill"}
