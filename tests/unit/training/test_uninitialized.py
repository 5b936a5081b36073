"""A dry build knows what would be trained, without the values of the parameters."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from lgd.config.experiment import Experiment
from lgd.config.presets import preset
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


def test_it_saves_most_of_the_time(tmp_path: Path) -> None:
    """Held against the CPU's clock: a large network, in half the time at most."""
    small = ["data.source=shapes", "data.shapes_train=8", "data.shapes_val=4", "data.shapes_side=64"]
    experiment = preset("paper").override([*small, "detector.backbone.weights=none", "method.name=baseline"])
    dry_build(experiment)
    begun = time.process_time()
    dry_build(experiment)
    dry = time.process_time() - begun
    build(experiment, pretrained=False, device=torch.device("cpu"))
    assert dry < (time.process_time() - begun - dry) / 2
