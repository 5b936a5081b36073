"""A trained detector that is given as the frozen teacher: its AP on this data, found once and kept."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lgd.config.experiment import Detector, Experiment
from lgd.data.dataset import DataSet
from lgd.detectors import build_detector
from lgd.detectors.initial_weights import initial_weights, load_initial_weights
from lgd.detectors.weight_sources import local_path, without_query
from lgd.distributed import ranks
from lgd.evaluation.evaluate import evaluate
from lgd.files import read_file, write_text
from lgd.logs import quiet_libraries
from lgd.results.record import Pretraining
from lgd.training.device import move_to_device, process_settings, resolve_device

EVALUATED = "evaluated.json"
"""In the directory of a given teacher: its AP and what finding it cost."""


def key_of(experiment: Experiment, dataset: DataSet) -> str:
    """Name of the directory of the teacher that ``experiment`` is given: a digest of its weights and of the data."""
    method = experiment.given_teacher
    assert method is not None
    settings = method.teacher_detector(experiment.detector)
    digest = hashlib.sha256()
    with local_path(without_query(initial_weights(settings))).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    data = experiment.data.model_dump(mode="json", include={"test_size", "max_size"})
    digest.update(json.dumps([settings.model_dump_json(), dataset.fingerprint, data], sort_keys=True).encode())
    return f"given-{digest.hexdigest()[:16]}"


def given_teacher(experiment: Experiment, dataset: DataSet, place: Path, *, share: float = 1.0) -> Pretraining:
    """What is known of the teacher that ``experiment`` is given. place: its directory, in which its AP is kept.

    share: the part of its device that each worker holds. Its AP is None where its classes are not the data's. All
    workers must call it.
    """
    path, method = place / EVALUATED, experiment.given_teacher
    assert method is not None
    found = ranks.run_on_all_ranks(lambda: _read(path), first_only=True)
    reused = bool(found)
    if not found:
        found = _evaluated(experiment, dataset, share)
        if ranks.is_main_process():
            place.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(found) + "\n")
    settings, hours = method.teacher_detector(experiment.detector), method.teacher.hours
    trained = {} if hours is None else {"training": 3600 * hours}
    return Pretraining(
        fingerprint=place.name,
        backbone=settings.backbone_label or settings.label,
        weights=method.teacher.weights,
        steps=0,
        AP=found["AP"],
        device_seconds={**trained, "evaluation": found["device_seconds"]},
        reused=reused,
        hours_known=hours is not None,
    )


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is none, or one that cannot be read: the AP is found again."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_file(path))
        if isinstance(found, dict) and found.keys() >= {"AP", "device_seconds"}:
            return found
    return {}


@torch.no_grad()
def _load(detector: nn.Module, settings: Detector) -> list[str]:
    """Load the teacher's weights; the layers that keep their own.

    Such is one whose shape follows the number of classes, when that is another one. Values do not tell: what builds the
    detector may have loaded the same ones, in layers that are frozen.
    """
    before = {name: x.clone() for name, x in detector.named_parameters()}
    for parameter in detector.parameters():
        parameter.fill_(torch.nan)
    load_initial_weights(detector, settings)
    left = [name for name, x in detector.named_parameters() if x.isnan().all()]
    for name in left:
        detector.get_parameter(name).copy_(before[name])
    return [name for name in left if before[name].dim() > 1]


def _evaluated(experiment: Experiment, dataset: DataSet, share: float) -> dict[str, Any]:
    """AP of the teacher, and device-seconds of the evaluation."""
    started, method = time.perf_counter(), experiment.given_teacher
    assert method is not None
    settings, device = method.teacher_detector(experiment.detector), resolve_device(experiment)
    with process_settings(experiment), quiet_libraries():
        torch.manual_seed(experiment.seed)
        detector = build_detector(settings, len(dataset.class_names), experiment.data)
        left = _load(detector, settings)
        score = None
        if not left:
            model = move_to_device(detector, experiment.model_copy(update={"compile": False}), device)
            score = evaluate(model.eval(), dataset, experiment.data).box.AP
    seconds = time.perf_counter() - started
    return {"AP": score, "device_seconds": round(seconds * ranks.world_size() * share, 3)}
