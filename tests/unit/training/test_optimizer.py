"""The optimiser of a training: SGD or AdamW, and AdamW for the teacher's modules where that is asked for."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from lgd.config.experiment import Experiment
from lgd.config.presets import Preset, preset
from lgd.training import run as training
from lgd.training.build import build, build_model
from lgd.training.disk_space import files_size
from lgd.training.optimizer import CombinedOptimizer, build_optimizer, match_state_layout, single_optimizers
from tests.helpers import quick_experiment

ADAMW: dict[str, Any] = {"method.teacher_optimizer": "adamw"}


def test_adamw_trains_the_teacher_alone_at_its_own_rate() -> None:
    experiment = quick_experiment(schedule__lr=0.02, method__lr_factor=0.5).override(ADAMW)
    built = build(experiment)
    names = {id(p): name for name, p in built.model.named_parameters()}
    assert isinstance(built.optimizer, CombinedOptimizer)
    sgd, adamw = single_optimizers(built.optimizer)
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adamw, torch.optim.AdamW)
    found = [
        {names[id(p)]: group["initial_lr"] for group in x.param_groups for p in group["params"]} for x in (sgd, adamw)
    ]
    assert found[0].keys() | found[1].keys() == {n for n, p in built.model.named_parameters() if p.requires_grad}
    assert all(name.startswith("teacher.") for name in found[1])
    assert set(found[1].values()) == {5e-4}
    rates = {name.partition(".")[0]: rate for name, rate in found[0].items()}
    assert rates == {"student": 0.02, "distance": 0.01}
    own = build(experiment.override({"method.teacher_lr": 1e-3})).optimizer
    assert {group["initial_lr"] for group in list(single_optimizers(own))[1].param_groups} == {1e-3}
    plain = build(quick_experiment(schedule__lr=0.02, method__teacher_lr=0.1, method__lr_factor=0.5))
    by_part = {
        name.partition(".")[0]: group["initial_lr"]
        for group in plain.optimizer.param_groups
        for name in (next(n for n, p in plain.model.named_parameters() if p is group["params"][0]),)
    }
    assert by_part == {"student": 0.02, "teacher": pytest.approx(0.1), "distance": 0.01}
    # AdamW keeps two numbers a parameter.
    assert (
        files_size(experiment, built.model, built.optimizer).total
        > files_size(experiment, plain.model, plain.optimizer).total
    )


@pytest.mark.parametrize("teachers", [{}, ADAMW], ids=str)
def test_adamw_trains_all_parts_where_the_schedule_says_so(teachers: dict[str, Any]) -> None:
    changes = {
        "schedule.optimizer": "adamw",
        "schedule.lr": 1e-4,
        "schedule.weight_decay": 0.05,
        "method.lr_factor": 2.0,
    }
    built = build(quick_experiment(method__lr_factor=2.0).override({**changes, **teachers}))
    (optimizer,) = single_optimizers(built.optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(p): name for name, p in built.model.named_parameters() if p.requires_grad}
    rates = {names[id(p)]: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    by_part = {name.partition(".")[0]: pytest.approx(rate) for name, rate in rates.items()}
    assert by_part == {"student": 1e-4, "teacher": 5e-4 if teachers else 2e-4, "distance": 2e-4}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05, 0.0}


NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)

FCOS: dict[str, Any] = {
    "detector.name": "fcos", "detector.channels": 32, "detector.head_convs": 1, "detector.backbone.name": "resnet18",
    "detector.backbone.weights": "none", "detector.backbone.width": 8, "detector.backbone.norm": "BN",
    "detector.backbone.freeze_at": 0,
}  # fmt: skip
"""A small one from scratch, whatever the preset: batch norms in the backbone, group norms in the head."""


def _decays(model: nn.Module, experiment: Experiment) -> tuple[set[float], dict[str, set[float]]]:
    """Weight decays of norm layers' weights and biases, and of the other parameters by the last part of their name."""
    groups = build_optimizer(model, experiment).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert set(decays) == {id(p) for p in model.parameters() if p.requires_grad}
    of_norms: set[float] = set()
    others: dict[str, set[float]] = defaultdict(set)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS):
                of_norms.add(decays[id(parameter)])
            elif parameter.requires_grad:
                others["bias" if name.endswith("bias") else "weight"].add(decays[id(parameter)])
    return of_norms, others


@pytest.mark.parametrize("name", get_args(Preset))
@pytest.mark.parametrize("changes", [{}, ADAMW, {"method.name": "baseline"}, {"schedule.optimizer": "adamw"}], ids=str)
def test_norms_are_decayed_at_the_papers_preset_alone_and_biases_at_each(name: str, changes: dict[str, Any]) -> None:
    experiment = preset(name).override({**FCOS, **changes})
    decay = experiment.schedule.weight_decay
    model = build_model(experiment, 4, pretrained=False)
    of_norms = {decay} if name == "paper" else {0.0}
    assert _decays(model, experiment) == (of_norms, {"weight": {decay}, "bias": {decay}})
    other = experiment.override({"schedule.decay_norms": name != "paper"})
    assert _decays(model, other)[0] == {decay, 0.0} - of_norms


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_of_every_part_are_decayed_by_the_same_rule(optimizer: str) -> None:
    """LGD's own modules have norms without parameters; this holds for a method's that has others."""
    parts = ("student", "teacher", "distance")
    model = nn.ModuleDict({part: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for part in parts})
    experiment = quick_experiment(method__lr_factor=0.5, method__teacher_optimizer=optimizer)
    decay = experiment.schedule.weight_decay
    for decay_norms, expected in ((False, 0.0), (True, decay)):
        found = _decays(model, experiment.override({"schedule.decay_norms": decay_norms}))
        assert found == ({expected}, {"weight": {decay}, "bias": {decay}})


def test_schedule_and_loading_reach_both_parts() -> None:
    one, other = (build(quick_experiment().override(ADAMW)) for _ in range(2))
    for p in one.model.parameters():
        p.grad = torch.ones_like(p)
    one.optimizer.step()
    one.scheduler.step()
    other.optimizer.load_state_dict(one.optimizer.state_dict())
    match_state_layout(other.optimizer)
    for mine, theirs in zip(single_optimizers(other.optimizer), single_optimizers(one.optimizer), strict=True):
        assert [x["lr"] for x in mine.param_groups] == [x["lr"] for x in theirs.param_groups]
        for ours, there in zip(mine.state.values(), theirs.state.values(), strict=True):
            assert ours.keys() == there.keys()
            assert all(torch.equal(ours[key], there[key]) for key in ours)
    other.scheduler.load_state_dict(one.scheduler.state_dict())
    other.scheduler.step()
    rates = {
        group["lr"] / group["initial_lr"] for part in single_optimizers(other.optimizer) for group in part.param_groups
    }
    assert len({round(x, 9) for x in rates}) == 1, "the parts' groups are the ones that the schedule sets"


@pytest.mark.parametrize("adamw", [ADAMW, {"schedule.optimizer": "adamw", "schedule.lr": 1e-3}], ids=str)
def test_a_stopped_training_with_adamw_and_a_watched_teacher_goes_on_bit_for_bit(
    adamw: dict[str, Any], tmp_path: Path
) -> None:
    experiment = quick_experiment(schedule__steps=8, schedule__distill_from="auto", checkpoint__every=0).override(
        {**adamw, "method.residual": True, "method.own_label_start": True, "evaluation.teacher": False}
    )
    whole = training.run(experiment, tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path / "parts", should_stop=lambda: next(calls) == 4)
    record = training.run(experiment, tmp_path / "parts")
    assert record.losses == whole.losses
    assert (record.teacher_lead, record.distilled) == (whole.teacher_lead, whole.distilled)
    ours, theirs = (torch.load(tmp_path / x / "student.pth", weights_only=True)["model"] for x in ("parts", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
