"""An Experiment becomes a Record: real trainings of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog

from lgd import train
from lgd.errors import InputError
from lgd.evaluate import evaluate
from lgd.record import load
from tests.helpers import quick_experiment

GOLDEN = Path(__file__).parent / "golden_trace.json"


def _losses(record: Any) -> dict[str, list[float]]:
    return {name: [value for _, value in curve] for name, curve in record.losses.items()}


def test_a_run_leaves_a_whole_record(tmp_path: Path) -> None:
    told: list[train.Progress] = []
    experiment = quick_experiment(evaluation__teacher=True, evaluation__every=3)
    record = train.run(experiment, tmp_path, grid="g", preset="tiny", arm="LGD", tell=told.append)
    assert load(tmp_path / "record.json") == record
    assert (record.status, record.steps, record.arm) == ("finished", 6, "LGD")
    assert record.experiment == experiment
    assert [point.step for point in record.evaluations] == [3, 6]
    assert record.student == record.evaluations[-1].student
    assert record.teacher is not None
    assert record.teacher.AP is not None
    assert [step for step, _ in record.losses["loss_distill"]] == [1, 2, 3, 4, 5, 6]
    assert all(record.seconds[phase] > 0 for phase in ("setup", "training", "evaluation"))
    assert record.step_ms is not None
    assert record.step_ms > 0
    assert record.peak_memory_mib["host"] > 0
    assert record.parameters["student"] > 0
    assert record.parameters["teacher"] > 0
    assert record.data["train_images"] == 12
    assert len(record.fingerprint) == 16
    assert record.versions["torch"] == torch.__version__.split("+")[0] or "+" in record.versions["torch"]
    assert told
    assert told[-1]["steps"] == 6


def test_equal_runs_are_equal_and_seeds_differ(tmp_path: Path) -> None:
    first = _losses(train.run(quick_experiment(), tmp_path / "a"))
    # Whatever else drew random numbers before.
    torch.rand(7)
    again = _losses(train.run(quick_experiment(), tmp_path / "b"))
    other = _losses(train.run(quick_experiment(seed=1), tmp_path / "c"))
    assert again == first
    assert other != first


def test_arms_of_one_seed_share_their_students_start_and_their_images(tmp_path: Path) -> None:
    plain = _losses(train.run(quick_experiment(method__name="baseline"), tmp_path / "a"))
    taught = _losses(train.run(quick_experiment(), tmp_path / "b"))
    for name, values in plain.items():
        if name != "total_loss":
            assert taught[name][0] == values[0]


def test_a_diverged_loss_ends_the_run_with_a_record(tmp_path: Path) -> None:
    record = train.run(quick_experiment(schedule__lr=1e12, schedule__clip=0, schedule__steps=40), tmp_path)
    assert record.status == "diverged"
    assert "NaN" in record.reason
    assert "\n" not in record.reason
    assert record.student is None
    assert record.steps < 40
    assert load(tmp_path / "record.json") == record
    assert not (tmp_path / "student.pth").exists()


def test_bf16_trains(tmp_path: Path) -> None:
    record = train.run(quick_experiment(precision="bf16"), tmp_path)
    exact = train.run(quick_experiment(), tmp_path / "fp32")
    assert record.status == "finished"
    ours, theirs = _losses(record)["total_loss"][0], _losses(exact)["total_loss"][0]
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.05)


def test_the_exported_student_scores_what_the_record_says(tmp_path: Path) -> None:
    experiment = quick_experiment(schedule__steps=30)
    record = train.run(experiment, tmp_path)
    plain = train.build(experiment.override({"method.name": "baseline", "seed": 5}))
    weights = torch.load(tmp_path / "student.pth", weights_only=True)["model"]
    plain.model.load_state_dict(weights, strict=True)
    assert evaluate(plain.model, plain.dataset, experiment.data) == record.student


def test_a_frozen_backbone_keeps_its_weights(tmp_path: Path) -> None:
    experiment = quick_experiment(schedule__frozen=1.0)
    train.run(experiment, tmp_path)
    start = train.build(experiment).model.student.state_dict()
    end = torch.load(tmp_path / "student.pth", weights_only=True)["model"]
    moved = {
        n.split(".")[1] for n in end if "running" not in n and "tracked" not in n and not torch.equal(end[n], start[n])
    }
    assert "bottom_up" not in moved
    assert "fpn_output3" in moved


def test_coco_layout_data_trains_and_is_scored(tmp_path: Path) -> None:
    """Someone's own directory in COCO layout, here the made one read as such."""
    made = train.dataset_of(quick_experiment().data).root
    record = train.run(quick_experiment(data__source=f"coco-json:{made}"), tmp_path)
    assert record.status == "finished"
    assert record.student is not None
    assert record.student.AP is not None
    assert all(len(DatasetCatalog.get(name)) > 0 for name in DatasetCatalog.list() if str(made) in name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__source": "coco-json:/nowhere"}, "/nowhere"),
        ({"data__source": "voc2031"}, "voc2031"),
        ({"device": "cuda"}, "no GPU"),
    ],
)
def test_what_cannot_be_met_is_one_line_before_training(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=words) as caught:
        train.run(quick_experiment(**changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_golden_trace(tmp_path: Path) -> None:
    """Ten steps of LGD give the losses they always gave: the numerics did not move.

    Made by ``python -m tests.golden``; run that again when a change of the numerics is meant, and say so.
    """
    golden = json.loads(GOLDEN.read_text())
    found = _losses(train.run(quick_experiment(schedule__steps=10, schedule__distill_from=0.3), tmp_path))
    assert set(found) == set(golden)
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=2e-3), name
