"""Workers that cannot run are refused before Ray starts, and a cluster that does not answer is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgd.distributed import ray_train
from lgd.distributed.ray_train import Node, Workers
from lgd.errors import InputError
from lgd.training.worker import train_on_workers
from tests.helpers import quick_experiment
from tests.unit.distributed.test_ranks import ALIKE


@pytest.mark.parametrize(
    ("workers", "changes", "words"),
    [
        (Workers(0), {}, "--workers 0"),
        (Workers(3), {}, "schedule.batch 4 does not split over 3 workers"),
        (Workers(2), {"schedule.accumulate": 4}, "does not split over 2 workers in 4 parts each"),
        (Workers(2, gpus=2), {}, "--gpus-per-worker 2"),
        (Workers(2, gpus=1), {}, "device cpu"),
        (Workers(2), {"device": "auto", "precision": "fp16"}, "precision fp16 needs a GPU"),
        (Workers(2, cpus=0), {}, "--cpus-per-worker 0"),
        (Workers(2, restarts=-1), {}, "--restarts -1"),
    ],
)
def test_what_cannot_run_is_refused_before_ray_starts(
    workers: Workers, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        train_on_workers(quick_experiment(**{**ALIKE, **changes}), tmp_path, workers)


def test_no_cluster_is_one_line() -> None:
    with pytest.raises(InputError, match="no Ray cluster at '127.0.0.1:1'") as caught, ray_train.cluster("127.0.0.1:1"):
        pass
    assert "\n" not in str(caught.value)


def test_workers_that_fit_no_cluster_of_these_nodes() -> None:
    two = [Node(1, 0), Node(1, 0)]
    with pytest.raises(InputError, match="3 workers .* on a node of its own can never run here: the nodes have 1 CPU"):
        Workers(3, spread=True).max_concurrent(two)
    assert Workers(2, spread=True).max_concurrent(two) == 1
    assert Workers(2, spread=True).max_concurrent([*two, *two]) == 2
    assert Workers(2).max_concurrent([Node(5, 0)]) == 2
    with pytest.raises(InputError, match="one worker of 2 CPU and 0 GPU can never run here"):
        Workers(1, cpus=2).max_concurrent(two)
