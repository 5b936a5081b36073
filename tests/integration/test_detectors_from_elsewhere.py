"""Detectors that the suite does not know: planned, trained arm by arm, evaluated, exported, and detected with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from lgd.config.component_arms import COMPONENTS
from lgd.config.experiment import Experiment
from lgd.config.grids import experiment_of
from lgd.detectors import build_detector
from lgd.errors import InputError
from lgd.results.record import Record, load
from lgd.training.export import TrainedStudent
from lgd.training.teacher import train_with_teacher
from tests.helpers import quick_experiment
from tests.helpers_detectors import NARROW_MASK_RCNN, NARROW_RETINANET, ZOO_MASK_RCNN, ZOO_RETINANET, vitdet
from tests.integration.commands import ONE_BY_ONE, QUICK, run

RESIZED = "torchvision:retinanet_resnet50_fpn_v2"
MOBILE = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"

PAIRS = zip(QUICK[::2], QUICK[1::2], strict=True)
OPTIONS = [x for pair in PAIRS if not pair[1].startswith("detector.") for x in pair]
"""QUICK without the settings of a built-in detector."""


def _quick(name: str, *overrides: str, **settings: Any) -> Experiment:
    """Two real steps on a few small pictures."""
    base = quick_experiment().override({"detector.source": name, "detector.overrides": overrides})
    short = {"schedule.steps": 2, "schedule.warmup_steps": 1, "evaluation.teacher": False, "data.shapes_val": 3}
    return base.override({"detector.weights": "none", **short, **settings})


def _trained(experiment: Experiment, directory: Path) -> Record:
    record = train_with_teacher(experiment, directory)
    assert (record.status, record.steps) == ("finished", 2)
    assert record.student is not None
    return record


def _detects(directory: Path, **source: Any) -> Any:
    student = TrainedStudent(directory, **source)
    found = student.detect(np.full((48, 64, 3), 100, np.uint8))
    assert found.image_size == (48, 64)
    return student


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [(ZOO_RETINANET, NARROW_RETINANET), (ZOO_MASK_RCNN, NARROW_MASK_RCNN)],
    ids=["boxes", "masks"],
)
def test_the_components_grid_on_configs_of_the_zoo(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Every arm trains, and no two of them are the same; the student is detectron2's own."""
    base = _quick(name, *overrides)
    records = {}
    for arm in COMPONENTS.arms:
        experiment = experiment_of(arm, base, [])
        records[arm.name] = _trained(experiment, tmp_path / arm.slug)
    assert len({x.fingerprint for x in records.values()}) == len(COMPONENTS.arms)
    assert {x.parameters["teacher"] for x in records.values()} != {0}
    assert all((x.student_mask is not None) == (name == ZOO_MASK_RCNN) for x in records.values())
    student = _detects(tmp_path / "lgd")
    plain = build_detector(base.detector, len(student.description.class_names))
    plain.load_state_dict(torch.load(tmp_path / "lgd" / "student.pth")["model"], strict=True)


@pytest.mark.slow
def test_a_frozen_teacher_of_another_width(tmp_path: Path) -> None:
    """FGFI: by the anchors that the model has, from a teacher that was trained before."""
    experiment = _quick(
        ZOO_RETINANET, *NARROW_RETINANET,
        **{"method.name": "fgfi", "method.from_step": 0, "method.teacher.gate": False,
           "method.teacher.overrides": ["MODEL.FPN.OUT_CHANNELS=24"]},
    )  # fmt: skip
    assert experiment.teacher is not None
    assert experiment.teacher.detector.overrides == (*NARROW_RETINANET, "MODEL.FPN.OUT_CHANNELS=24")
    record = _trained(experiment, tmp_path / "fgfi")
    assert record.pretraining is not None
    assert "loss_distill" in record.losses


@pytest.mark.slow
def test_a_lazy_config_is_run_where_a_command_names_it(tmp_path: Path) -> None:
    """ViTDet's SimpleFeaturePyramid; what its results say is not run again by itself."""
    pytest.importorskip("timm", reason="detectron2's ViT takes its layers from timm")
    path = vitdet(tmp_path)
    _trained(_quick(path, **{"method.name": "lgd", "schedule.frozen": 0.5}), tmp_path / "run")
    with pytest.raises(InputError, match=r"names the detector .*vitdet\.py, which is Python code"):
        TrainedStudent(tmp_path / "run")
    _detects(tmp_path / "run", source=path)
    # The file may lie elsewhere by then.
    moved = shutil.move(path, tmp_path / "moved.py")
    _detects(tmp_path / "run", source=str(moved))


@pytest.mark.slow
@pytest.mark.parametrize("name", [RESIZED, MOBILE])
def test_torchvisions_models(name: str, tmp_path: Path) -> None:
    """With LGD and evaluated from the teacher's features; the stock model takes the student and detects the same."""
    experiment = _quick(name, **{"method.name": "lgd", "evaluation.teacher": True, "schedule.steps": 2})
    record = _trained(experiment, tmp_path)
    assert record.teacher is not None
    student = _detects(tmp_path)
    classes = len(student.description.class_names)
    stock: Any = torchvision.models.get_model(
        name.partition(":")[2], weights=None, weights_backbone=None, num_classes=classes + 1, min_size=64, max_size=64
    )
    stock.load_state_dict(torch.load(tmp_path / "student.pth")["model"], strict=True)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    for x in (stock, student.detector):
        _keep_all(x.eval())
    with torch.no_grad():
        (ours,) = student.detector([{"image": image, "height": 64, "width": 64}])
        (theirs,) = stock([image.flip(0) / 255])
    real = theirs["labels"] > 0
    assert real.any()
    assert torch.equal(ours["instances"].pred_boxes.tensor, theirs["boxes"][real])
    assert torch.equal(ours["instances"].scores, theirs["scores"][real])


def _keep_all(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0


def test_a_plan_says_what_was_found(tmp_path: Path) -> None:
    options = ["--grid", "components", *OPTIONS, "--arms", "baseline,LGD", "--output", str(tmp_path / "sweep")]
    narrow = [x for each in NARROW_RETINANET for x in ("--detector-set", each)]
    said = run(*options, "--dry-run", "--detector", ZOO_RETINANET, *narrow, "--set", "detector.weights=none").out
    line = " ".join(said.split())
    assert f"detector {ZOO_RETINANET}: RetinaNet, predicts boxes; levels p3 (stride 8), p4 (stride 16)" in line
    assert "bottom-up network backbone.bottom_up; images BGR" in line
    assert "ready" in said
    fast_rcnn = ["--detector", "zoo:COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "--set", "detector.weights=none"]
    refused = run(*options, "--dry-run", *fast_rcnn, status=2).err
    assert "trains on proposals that were computed before, which no data set here has" in refused
    assert len(refused.splitlines()) == 1


@pytest.mark.slow
def test_a_sweep_and_its_table(tmp_path: Path, ray_session: None) -> None:
    """Under Ray, with a file of code: its workers build it; going on with the sweep wants it named again."""
    pytest.importorskip("timm", reason="detectron2's ViT takes its layers from timm")
    path, output = vitdet(tmp_path), tmp_path / "sweep"
    run("--grid", "components", *OPTIONS, *ONE_BY_ONE, "--set", "schedule.warmup_steps=1", "--arms", "baseline,LGD",
        "--set", "detector.weights=none", "--output", str(output), "--detector", path)  # fmt: skip
    frame = pd.read_csv(output / "records.csv")
    assert set(frame["detector"]) == {"/".join(Path(path).parts[-2:])}
    assert set(frame["status"]) == {"finished"}
    record = load(output / "trials" / "lgd-seed0" / "record.json")
    assert f"detector.source={path}" in record.overrides
    assert json.loads((output / "sweep.json").read_text())["overrides"][0] == f"detector.source={path}"
    refused = run("--resume", str(output), status=2).err
    assert f"which is Python code: say --detector {path} to run it" in refused
    run("--resume", str(output), "--detector", path)
