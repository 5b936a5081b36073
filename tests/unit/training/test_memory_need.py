"""The estimate of a step's memory, against what a forward pass keeps."""

from __future__ import annotations

import pytest
import torch
from detectron2.utils.events import EventStorage

from lgd.config.presets import preset
from lgd.training.build import build_model
from lgd.training.estimate import CLASSES, SIDES, _image
from lgd.training.memory_need import step_memory


@pytest.mark.parametrize("method", ["baseline", "lgd"])
@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_a_steps_memory_is_about_what_it_keeps(detector: str, method: str) -> None:
    experiment = preset("paper").override(
        [
            f"method.name={method}", f"detector.name={detector}", "detector.backbone.weights=none", "device=cpu",
            "schedule.batch=1", f"data.min_sizes=[{min(SIDES)}]", f"data.max_size={max(SIDES)}",
        ]
    )  # fmt: skip
    model = build_model(experiment, CLASSES, pretrained=False).train()
    parameters = {x.data_ptr() for x in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with EventStorage(0), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = model([_image(False)])
    assert losses
    three = sum(x.numel() * 4 * (3 if x.requires_grad else 1) for x in model.parameters())
    found = step_memory(experiment, model)
    assert found is not None
    # The image of the estimate is a little larger than the measured one.
    assert 1 / 1.5 < (found - three) / sum(kept.values()) < 1.5


def test_operators_without_shapes_alone_are_not_estimated() -> None:
    experiment = preset("paper").override({"detector.backbone.deformable": True, "detector.backbone.weights": "none"})
    assert step_memory(experiment, build_model(experiment, CLASSES, pretrained=False)) is None
