"""A training that is killed takes its data loaders with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from lgd.config.experiment import settings
from tests.helpers import quick_experiment, wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_killed_training_leaves_no_loader_processes(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "method.name": "baseline",
        "schedule.steps": 3000,
        "schedule.lr": 0.001,
        "data.workers": 2,
        "checkpoint.every": 0,
    }
    options = [
        f"--set={key}={'auto' if value is None else json.dumps(value)}"
        for key, value in settings(quick_experiment(**changes)).items()
        if key not in ("method.name", "seed")
    ]
    command = [sys.executable, "-m", "lgd.train", "retinanet_r50_2x_ms", "--method=baseline", f"--output={tmp_path}"]
    process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    loaders: list[psutil.Process] = []
    try:
        # Its first losses are written: it trains, and so loads.
        log = tmp_path / "metrics.json"
        wait_until(lambda: process.poll() is not None or (log.exists() and log.stat().st_size > 0))
        assert process.poll() is None, "it ended before it could be killed"
        loaders = psutil.Process(process.pid).children(recursive=True)
        assert len(loaders) >= 2
    finally:
        process.kill()
        process.wait()
    gone, alive = psutil.wait_procs(loaders, timeout=15)
    for left in alive:
        left.kill()
    assert not alive, [x.cmdline() for x in alive]
    assert len(gone) >= 2
