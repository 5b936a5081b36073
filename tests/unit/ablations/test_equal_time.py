"""Steps that are measured: how they follow from records, and that a longer training sees the same pictures first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ablations.equal_time import steps_for_equal_time, with_steps
from lgd.config.grids import EVIDENCE, Trial, grid, plan
from lgd.config.presets import NANO, preset
from lgd.data.loaders import train_loader
from lgd.methods.distiller import student_of
from lgd.results.record import Record
from lgd.training.build import build
from lgd.training.teacher import train_with_teacher
from tests.helpers import quick_experiment

BASELINE, LGD, LONGER = "RetinaNet baseline", "RetinaNet LGD", "RetinaNet baseline in equal time"


@pytest.fixture
def trials(tmp_path: Path) -> dict[tuple[str, int], Trial]:
    return {(t.arm, t.experiment.seed): t for t in plan(grid(EVIDENCE, "nano"), NANO, 2, [], tmp_path)}


def _steps(output: Path, known: dict[str, int] | None = None, seeds: int = 2) -> dict[str, int]:
    return steps_for_equal_time(grid(EVIDENCE, "nano"), NANO, seeds, [], output, known or {})


def _save(trial: Trial, seconds: float, status: str = "finished", cpu: str = "") -> None:
    raw = {
        "status": status, "arm": trial.arm, "experiment": trial.experiment, "hardware": {"cpu": cpu},
        "device_seconds": {"training": seconds, "evaluation": 1000.0},
    }  # fmt: skip
    Record.model_validate(raw).save(trial.directory)


def test_steps_are_the_ratio_of_all_seeds_and_stay(trials: dict[tuple[str, int], Trial], tmp_path: Path) -> None:
    for seed, (base, lgd) in enumerate(((10.0, 19.0), (12.0, 25.0))):
        assert _steps(tmp_path) == {}
        _save(trials[BASELINE, seed], base)
        assert _steps(tmp_path) == {}
        _save(trials[LGD, seed], lgd)
    steps = round(500 * (19 / 10 + 25 / 12) / 2)
    assert _steps(tmp_path) == {LONGER: steps}
    _save(trials[LGD, 1], 50.0)
    assert _steps(tmp_path, {LONGER: steps}) == {LONGER: steps}
    # Another seed waits, what is known does not.
    assert _steps(tmp_path, seeds=3) == {}
    assert _steps(tmp_path, {LONGER: steps}, seeds=3) == {LONGER: steps}


@pytest.mark.parametrize(("alike", "ratio"), [(True, 2.0), (False, 1.5)])
def test_seeds_on_unlike_hardware_count_where_there_is_nothing_else(
    trials: dict[tuple[str, int], Trial], tmp_path: Path, alike: bool, ratio: float
) -> None:
    _save(trials[BASELINE, 0], 10.0, cpu="slow")
    _save(trials[LGD, 0], 20.0, cpu="slow" if alike else "fast")
    _save(trials[BASELINE, 1], 10.0, cpu="slow")
    _save(trials[LGD, 1], 10.0, cpu="fast")
    assert _steps(tmp_path) == {LONGER: round(NANO.schedule.steps * ratio)}


def test_a_training_without_a_result_does_not_count(trials: dict[tuple[str, int], Trial], tmp_path: Path) -> None:
    for seed in range(2):
        _save(trials[BASELINE, seed], 10.0)
    _save(trials[LGD, 0], 15.0)
    _save(trials[LGD, 1], 99.0, "failed")
    # It will be run again.
    assert _steps(tmp_path) == {}
    _save(trials[LGD, 1], 99.0, "diverged")
    assert _steps(tmp_path) == {LONGER: 750}
    _save(trials[LGD, 0], 15.0, "diverged")
    assert _steps(tmp_path) == {}


def test_the_longer_baseline_is_the_baseline_but_for_its_steps(tmp_path: Path) -> None:
    for size in ("nano", "small"):
        whole = grid(EVIDENCE, size)
        arms = {arm.name: arm for arm in whole.arms}
        for arm in (x for x in whole.arms if x.time_budget_from):
            longer, reference = with_steps(arm, {arm.name: 777}), arms[arm.steps_from]
            assert longer.setting == reference.setting
            assert longer.changes == {**reference.changes, "schedule.steps": 777}
            assert with_steps(arm, {}) == arm


def test_on_a_gpu_every_arm_gets_lgds_time(tmp_path: Path) -> None:
    whole, base = grid(EVIDENCE, "small"), preset("small")
    shared = {arm.name for arm in whole.arms if not arm.time_budget_from}
    assert {arm.steps_from for arm in whole.arms if arm.time_budget_from} == {
        x for x in shared if not x.endswith(" LGD")
    }
    chosen = replace(whole, arms=tuple(x for x in whole.arms if x.name.startswith("RetinaNet")))
    trials = {t.arm: t for t in plan(chosen, base, 1, [], tmp_path)}
    costs = {"RetinaNet baseline": 10.0, "RetinaNet LGD": 15.0, "RetinaNet FGFI": 20.0, "RetinaNet label only": 15.0}
    for name, trial in trials.items():
        _save(trial, costs.get(name, 300.0))
    steps = steps_for_equal_time(chosen, base, 1, [], tmp_path, {})
    assert steps["RetinaNet baseline in equal time"] == 3000
    assert steps["RetinaNet FGFI in equal time"] == 1500
    assert steps["RetinaNet label only in equal time"] == 2001
    # Too dear to train at all in that time: no schedule is shorter than its warm-up.
    assert steps["RetinaNet without mapper in equal time"] == 201


class _Seen:
    """Passes batches on, and notes what is in them."""

    def __init__(self, loader: Any, noted: list[Any]) -> None:
        self._loader, self._noted = loader, noted

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self._noted.append([(x["image_id"], x["image"].clone(), x["instances"].gt_boxes.tensor) for x in batch])
            yield batch


@pytest.mark.slow
def test_all_arms_of_a_seed_see_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one order, augmented alike, from the same weights: whatever the method, the steps and the evaluations."""
    noted: dict[str, list[Any]] = {}
    current = ""
    monkeypatch.setattr(
        "lgd.training.run.train_loader", lambda *a, **k: _Seen(train_loader(*a, **k), noted.setdefault(current, []))
    )
    base = quick_experiment(data__workers=0, schedule__steps=4, data__min_sizes=[48, 64])
    arms: dict[str, dict[str, Any]] = {
        "baseline": {"method.name": "baseline", "evaluation.every": 2},
        "longer": {"method.name": "baseline", "schedule.steps": 9},
        "lgd": {"evaluation.every": 3, "evaluation.teacher": True},
        "fgfi": {
            "method.name": "fgfi",
            "method.from_step": 1,
            "method.teacher.backbone.width": 8,
            "method.teacher.gate": False,
        },
        "label_only": {"method.variant": "label_only"},
    }
    students = {}
    for current, changes in arms.items():
        experiment = base.override(changes)
        students[current] = student_of(build(experiment).model).state_dict()
        assert train_with_teacher(experiment, tmp_path / current).status == "finished"
    # The teacher's own training comes first, under a seed of its own.
    noted["fgfi"] = noted["fgfi"][-len(noted["lgd"]) :]
    for name in arms:
        assert len(noted[name]) >= base.schedule.steps
        for here, there in zip(noted["baseline"], noted[name], strict=False):
            assert [x[0] for x in here] == [x[0] for x in there]
            assert all(torch.equal(a[i], b[i]) for a, b in zip(here, there, strict=True) for i in (1, 2))
        assert students[name].keys() == students["baseline"].keys()
        assert all(torch.equal(value, students["baseline"][key]) for key, value in students[name].items())
