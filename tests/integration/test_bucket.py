"""A sweep in a bucket, by its command, under Ray: ended by its budget, and gone on with on another machine's disk.

There each trial has two workers. Two searches, on two machines, whose study is in the bucket. Faults.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalStorage

from ablations.command import main
from ablations.search.study_journal import StoreJournal
from lgd.results.record import Record
from lgd.storage.store import Store
from tests.helpers_emulators import azure, google
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


@pytest.mark.nightly
@pytest.mark.parametrize(("scheme", "emulator"), [("gs", google), ("az", azure)])
def test_a_sweep_in_a_bucket_of_another_service(
    scheme: str, emulator: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    url = f"{scheme}://{BUCKET}/{tmp_path.name}"
    with emulator():
        sweep = ["--grid", "components", "--arms", "baseline", *QUICK, "--cpus", "2", "--output", url]
        first = _run(tmp_path / "one", *sweep, "--search", "optuna", "--samples", "1", "--study", f"{url}-study")
        assert first.returncode == 0, first.stdout + first.stderr
        second = _run(tmp_path / "two", "--resume", url, "--cpus", "2", "--samples", "2")
        assert second.returncode == 0, second.stdout + second.stderr
        assert len(list(Store(f"{url}-study").entries())) > 2
        records = [x for x in Store(url).entries("trials") if x.endswith("record.json")]
        assert len(records) == 3


@pytest.mark.nightly
def test_searches_of_two_machines_share_a_study_in_a_bucket(faults: Faults, tmp_path: Path) -> None:
    """One has its results in the bucket, too, the other on its own disk; one ends early, and goes on."""
    place = f"s3://{BUCKET}/{tmp_path.name}-study"
    search = ["--grid", "components", "--arms", "baseline", *QUICK, "--cpus", "2"]
    search += ["--search", "optuna", "--study", place]
    one, two = f"s3://{BUCKET}/{tmp_path.name}", str(tmp_path / "out")
    first = _run(tmp_path / "one", *search, "--samples", "2", "--output", one)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"study: {place}" in first.stdout
    faults.inject("503", 5)
    second = _run(tmp_path / "two", *search, "--samples", "1", "--output", two)
    assert second.returncode == 0, second.stdout + second.stderr
    more = _run(tmp_path / "two", "--resume", two, "--cpus", "2", "--samples", "2")
    assert more.returncode == 0, more.stdout + more.stderr
    storage = JournalStorage(StoreJournal(place))
    trials = optuna.load_study(study_name="lgd", storage=storage).trials
    assert [x.state.name for x in trials] == ["COMPLETE"] * 4
    assert len({tuple(x.params.items()) for x in trials}) == 4
    names = {x.split("/")[1] for x in Store(one).entries("trials")} | {x.name for x in Path(two, "trials").iterdir()}
    assert names == {"baseline-seed0", *(f"search-{i:03}" for i in range(4))}
    assert _run(tmp_path / "three", "--status", one).returncode == 0


@pytest.mark.nightly
def test_faults_of_a_sweep_in_a_bucket_are_survived() -> None:
    """``lgd drill --bucket`` has all of them."""
    faults = "kill-driver-step,checkpoint-corrupted,store-503,store-upload-lost,store-away"
    assert main(["drill", "--bucket", "--faults", faults]) == 0
