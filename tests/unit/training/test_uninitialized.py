"""A dry build knows what would be trained, without the values of the parameters."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lgd.config.experiment import Experiment
from lgd.training.build import build, dry_build
from lgd.training.uninitialized import Uninitialized
from tests.helpers import DETECTORS, quick_experiment, tiny_settings


def _experiment(detector: str, method: str) -> Experiment:
    settings = {"detector": tiny_settings(detector)}
    return quick_experiment(method__name=method).model_copy(update=settings)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("method", ["baseline", "lgd"])
def test_a_dry_build_is_of_what_would_be_trained(detector: str, method: str) -> None:
    experiment = _experiment(detector, method)
    assert dry_build(experiment) == build(experiment).fingerprint


def test_values_are_left_alone_inside_and_set_outside() -> None:
    weight = torch.full((3,), 7.0)
    with Uninitialized():
        torch.nn.init.normal_(weight)
        weight.uniform_()
    assert weight.tolist() == [7.0] * 3
    assert torch.nn.init.zeros_(weight).tolist() == [0.0] * 3


def test_a_draw_within_bounds_ends_whatever_is_in_the_memory() -> None:
    """As torch draws, it would do so until the memory happens to be within the bounds; minutes of Python then."""

    def late(*_: object) -> None:
        raise TimeoutError("still drawing")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    try:
        for mean in (0.0, 4.0):
            weight = torch.full((3,), 100.0)
            with Uninitialized():
                torch.nn.init.trunc_normal_(weight, mean=mean)
            assert weight.tolist() == [100.0] * 3
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert float(torch.nn.init.trunc_normal_(weight).abs().max()) <= 2


class _Drawn(TorchDispatchMode):
    """Counts the random numbers that are drawn into parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_):
            self.numbers += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_it_draws_no_values() -> None:
    """Drawing them is most of the time that a large network takes to build."""
    experiment = _experiment("retinanet", "lgd")
    with _Drawn() as built:
        build(experiment, pretrained=False, device=torch.device("cpu"))
    with _Drawn() as dry:
        dry_build(experiment)
    assert built.numbers > 10_000
    assert dry.numbers == 0
