"""The label signal in a training's first steps: when it is measured, and that the training does not notice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lgd.evaluation.label_signal import label_signal, signal_images
from lgd.methods.distiller import Distiller
from lgd.results.record import Record
from lgd.training import run as training
from lgd.training.build import build
from lgd.training.hooks import MeasureLabelSignal
from lgd.training.progress import Stopped
from tests.helpers import quick_experiment


@pytest.mark.parametrize(
    ("start", "steps", "before", "expected"),
    [(0, 100, 80, [0, 5, 10, 20, 40]), (0, 3, 3, [0]), (7, 30, 30, [10, 20]), (0, 200, 20, [0, 5, 10])],
)
def test_it_is_measured_more_and_more_seldom_until_the_first_evaluation(
    start: int, steps: int, before: int, expected: list[int]
) -> None:
    at: list[int] = []
    hook = MeasureLabelSignal(at.append, before)
    hook.trainer = trainer = SimpleNamespace(start_iter=start, iter=start)
    hook.before_train()
    for trainer.iter in range(start, steps):
        hook.after_step()
    assert at == expected


def test_measuring_changes_neither_the_models_mode_nor_the_random_state() -> None:
    built = build(quick_experiment())
    model = built.model
    assert isinstance(model, Distiller)
    few = signal_images(built.dataset, quick_experiment().data)
    assert sum(map(len, few)) == 6  # as many as there are
    for mode in (True, False):
        model.train(mode)
        before = torch.get_rng_state()
        first, again = label_signal(model, few), label_signal(model, few)
        assert first == again
        assert list(first)[-1] == "instructive features"
        assert torch.equal(before, torch.get_rng_state())
        assert all(x.training is mode for x in model.modules())
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.fill_(torch.nan)
    assert label_signal(model, few) == {}


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_a_training_has_it_and_is_the_same_without(
    detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"detector__fc_dim": 16, "detector__regions": 16, "detector__proposals": 50} if "rcnn" in detector else {}
    experiment = quick_experiment(
        detector__name=detector, evaluation__teacher=True, evaluation__every=0, checkpoint__every=2, **small
    )

    def run(name: str, **options: Any) -> Record:
        return training.run(experiment, tmp_path / name, **options)

    whole = run("whole")
    assert [step for step, _ in whole.label_signal] == [0, 5]
    # Its cost is an evaluation's.
    assert whole.device_seconds["evaluation"] > 0
    asked = iter([False] * 5 + [True])
    with pytest.raises(Stopped):
        run("parts", should_stop=lambda: next(asked, False))
    parts = run("parts")
    assert parts.attempts == 2
    assert parts.label_signal == whole.label_signal
    monkeypatch.setattr(MeasureLabelSignal, "before_train", lambda _: None)
    monkeypatch.setattr(MeasureLabelSignal, "after_step", lambda _: None)
    without = run("without")
    assert without.label_signal == []
    assert without.losses == whole.losses == parts.losses
    assert without.student == whole.student
