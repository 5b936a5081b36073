"""Freezing the backbone, and when."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from lgd.config.phases import Phases
from lgd.methods.phases import FreezeBackbone


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bottom_up = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)
        # Frozen for good, as detectron2's freeze_at does.
        self.bottom_up[0].requires_grad_(False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.head(self.bottom_up(x)).square().mean()}


def test_the_backbone_stands_still_until_its_phase_ends() -> None:
    torch.manual_seed(0)
    model: Any = _Model()
    # Momentum and weight decay would move it if it were not left out altogether.
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    weights: list[torch.Tensor] = []

    class Trainer(SimpleTrainer):
        def run_step(self) -> None:
            super().run_step()
            weights.append(model.bottom_up[1].weight.detach().clone())

    trainer = Trainer(model, [torch.randn(4, 2)] * 6, optimizer)
    trainer.register_hooks([FreezeBackbone(model.bottom_up, Phases(frozen_until=3))])
    start = model.bottom_up[1].weight.detach().clone()
    head = model.head.weight.detach().clone()
    always = model.bottom_up[0].weight.detach().clone()
    trainer.train(0, 6)
    assert all(torch.equal(x, start) for x in weights[:3])
    assert not torch.equal(weights[3], start)
    assert not torch.equal(model.head.weight, head)
    assert torch.equal(model.bottom_up[0].weight, always)
    assert not model.bottom_up[0].weight.requires_grad


def test_distilling_window() -> None:
    phases = Phases(distill_from=2, distill_until=4)
    assert [phases.distills_student(i) for i in range(6)] == [False, False, True, True, False, False]
    assert Phases().distills_student(0)
