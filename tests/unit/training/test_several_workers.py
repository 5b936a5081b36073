"""What one of several workers finds alone, without starting any."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lgd.errors import InputError
from lgd.training import run as training
from lgd.training.trainer import Trainer
from tests.helpers import quick_experiment


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": self.used(torch.ones(1, 1)).sum()}


@pytest.mark.parametrize("frozen", [False, True])
def test_a_parameter_without_a_gradient_is_named(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP would end the second step with numbers of parameters."""
    monkeypatch.setattr("lgd.distributed.ranks.world_size", lambda: 2)
    monkeypatch.setattr("lgd.distributed.ranks.wrap_ddp", lambda model: model)
    monkeypatch.setattr("lgd.distributed.ranks.broadcast", lambda value: value)
    model = _Model()
    model.unused.requires_grad_(not frozen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, itertools.repeat([None]), optimizer, quick_experiment(), torch.device("cpu"))
    if frozen:
        trainer.train(0, 2)
        return
    with pytest.raises(InputError, match=r"^parameters without a gradient: unused\.weight, unused\.bias: with several"):
        trainer.train(0, 2)


def test_a_worker_that_diverges_alone_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it in the backward pass, as long as Ray lets them unless it ends them."""

    def train(self: Trainer, *_: Any) -> None:
        monkeypatch.setattr("lgd.distributed.ranks.world_size", lambda: 2)
        raise FloatingPointError("Predicted boxes\ncontain NaN")

    monkeypatch.setattr(Trainer, "train", train)
    with pytest.raises(
        InputError, match=r"^training diverged on one worker \(Predicted boxes contain NaN\): try a lower"
    ):
        training.run(quick_experiment(), tmp_path)
