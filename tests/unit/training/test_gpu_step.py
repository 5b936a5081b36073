"""What only a GPU can show of a training step: that it does not wait for the device, and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from lgd.config.presets import NANO
from lgd.methods.distiller import batch_to_device
from lgd.training.build import build_model
from lgd.training.device import move_to_device
from lgd.training.optimizer import build_optimizer
from tests.helpers import CLASSES, batch

pytestmark = pytest.mark.gpu


def _model(**changes: Any) -> tuple[Any, torch.optim.Optimizer]:
    experiment = NANO.override({"device": "cuda", "precision": "bf16", **changes})
    device = torch.device("cuda")
    model = move_to_device(build_model(experiment, CLASSES), experiment, device).train()
    return model, build_optimizer(model, experiment)


def _step(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> dict[str, torch.Tensor]:
    # As the trainer does.
    images = batch_to_device(batch([3, 0, 9], size=(128, 160), seed=seed), torch.device("cuda"))
    with torch.autocast("cuda", torch.bfloat16):
        losses: dict[str, torch.Tensor] = model(images)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses


@pytest.mark.parametrize("method", ["baseline", "lgd"])
def test_a_retinanet_step_never_waits_for_the_device(method: str) -> None:
    model, optimizer = _model(**{"method.name": method})
    with EventStorage(0) as storage:
        _step(model, optimizer, 0)
        storage.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for seed in range(1, 4):
                _step(model, optimizer, seed)
                storage.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_step_on_the_gpu_is_the_cpus() -> None:
    found = []
    for device in ("cpu", "cuda"):
        experiment = NANO.override({"device": device})
        model: Any = move_to_device(build_model(experiment, CLASSES), experiment, torch.device(device)).train()
        with EventStorage(0):
            found.append({k: float(v.detach()) for k, v in model(batch([3, 0, 9], size=(128, 160))).items()})
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_compiled_parts_give_the_same_losses() -> None:
    found = []
    for compiled in (False, True):
        model, _ = _model(compile=compiled)
        with EventStorage(0), torch.autocast("cuda", torch.bfloat16):
            found.append({k: float(v.detach()) for k, v in model(batch([3, 0, 9], size=(128, 160))).items()})
    assert found[1] == pytest.approx(found[0], rel=3e-2)
