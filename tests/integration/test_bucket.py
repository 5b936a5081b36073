"""A sweep in a bucket, by its command, under Ray: ended by its budget, and gone on with on another machine's disk.

There each trial has two workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgd.results.record import Record
from lgd.storage.store import Store
from tests.helpers_storage import BUCKET, Faults
from tests.integration.commands import QUICK

pytestmark = pytest.mark.slow

RUN = Path(__file__).parents[2] / "ablations" / "run.py"


def _run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments],
        env={**os.environ, "LGD_CACHE": str(cache)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def test_a_sweep_in_a_bucket_goes_on_on_another_disk(faults: Faults, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    sweep = ["--grid", "components", "--arms", "baseline,LGD", *QUICK, "--cpus", "2", "--output", url]
    first = _run(tmp_path / "one", *sweep, "--max-gpu-hours", "0.000001")
    assert first.returncode == 3, first.stdout + first.stderr
    assert f"go on with: python ablations/run.py --resume {url} --cpus 2" in first.stdout
    # The store fails for a while: that is waited out.
    faults.inject("503", 5)
    second = _run(tmp_path / "two", "--resume", url, "--cpus", "1", "--workers", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"written:\n  {url}/records.csv" in second.stdout
    there = Store(url).entries()
    for trial in ("baseline-seed0", "lgd-seed0"):
        record = Record.model_validate_json(Store(url).read(f"trials/{trial}/record.json") or b"")
        assert record.status == "finished"
        # The first may have come to its end before the budget was looked at.
        assert record.devices == 2 or trial == "baseline-seed0"
        assert f"trials/{trial}/student.pth" in there
    assert {"sweep.json", "report.html", "table.md", "ray.log"} <= there.keys()
    assert f"--resume {url}" in (Store(url).read("report.html") or b"").decode()
    assert [x for x in there if "checkpoints/" in x or x in ("stop", "lock")] == []
