"""A training step's losses and gradients with the kernels, in Triton's interpreter, and with torch's operators.

Run as a script with TRITON_INTERPRET=1: prints, by detector, how far they are apart, as JSON, and which
kernels ran, as compiled.py takes them.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from benchmarks.synthetic_batches import calibrate_frozen_norms
from benchmarks.wait_counter import as_on_gpu
from lgd.config.presets import NANO
from lgd.detectors import resnet_fast
from lgd.kernels import usable
from lgd.training.build import build_model
from lgd.training.device import move_to_device
from tests.helpers import CLASSES, detector_batch
from tests.unit.kernels.compiled import described

CASES = ("retinanet", "faster_rcnn")


def main() -> None:
    usable.DEVICE, usable.MIN_ELEMENTS = "cpu", 0
    launched: set[str] = set()
    launch = InterpretedFunction.run

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        launched.add(described(self.fn, arguments, named))
        return launch(self, *arguments, **named)

    found = {}
    with mock.patch.object(InterpretedFunction, "run", counted):
        for detector in CASES:
            found[detector] = _difference(detector)
    print(json.dumps({"differences": found, "launched": sorted(launched)}))


def _difference(detector: str) -> float:
    """The largest relative difference of a loss, or of all gradients together."""
    experiment = NANO.override(
        {
            "detector.name": detector,
            "method.name": "lgd",
            "memory_format": "channels_last",
            "detector.backbone.width": 8,
            "detector.channels": 16,
            "detector.head_convs": 1,
            **({"detector.fc_dim": 32, "detector.regions": 8, "detector.proposals": 20} if "rcnn" in detector else {}),
        }
    )
    results = []
    for turn_off in (True, False):
        torch.manual_seed(0)
        model: Any = build_model(experiment, CLASSES, pretrained=False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(model.student.backbone)
        resnet_fast.use(model.student)
        model = move_to_device(model, experiment, torch.device("cpu"))
        data = detector_batch(detector, (2,))
        with mock.patch.object(usable, "_turned_off", turn_off):
            # Its hook has to see the norms of blocks with kernels, too.
            calibrate_frozen_norms(model, data)
        assert all(x.running_mean.any() for x in model.modules() if isinstance(x, FrozenBatchNorm2d))
        with mock.patch.object(usable, "_turned_off", turn_off), as_on_gpu():
            results.append(_step(model, data))
    (theirs, their_gradient), (ours, our_gradient) = results
    assert ours.keys() == theirs.keys()
    pairs = [(ours[name], theirs[name]) for name in ours] + [(our_gradient, their_gradient)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def _step(model: Any, data: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Losses, and all gradients in one vector, of a step that distils."""
    with EventStorage(1_000_000):
        losses = model(data)
    sum(losses.values()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return {name: x.detach() for name, x in losses.items()}, torch.cat(gradients)


if __name__ == "__main__":
    main()
