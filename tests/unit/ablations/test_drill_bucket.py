"""A drill in object storage: what it reads and changes there, and its server. Without a sweep."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.command import main
from ablations.drill.bucket import Bucket, opened
from ablations.drill.checks import check_cost
from ablations.drill.commands import Sandbox
from ablations.drill.drill import Drill, Fault, Result, write_attempts
from ablations.drill.hooks import Attempt
from ablations.drill.registry import FAULTS
from ablations.drill.store_faults import STORE
from lgd.errors import InputError
from lgd.results.record import FILE
from lgd.storage.lease import Lease
from lgd.storage.store import Store
from lgd.training.run import failed_record
from tests.helpers import quick_experiment
from tests.helpers_storage import BUCKET, Faults


@pytest.fixture
def bucket(faults: Faults, tmp_path: Path) -> Bucket:
    return Bucket(f"s3://{BUCKET}/{tmp_path.name}", faults)


def test_what_is_changed_in_the_copy_is_changed_in_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    reference = tmp_path / "reference" / "out"
    for name in ("trials/a/record.json", "sweep.json", ".published.json"):
        (reference / name).parent.mkdir(parents=True, exist_ok=True)
        (reference / name).write_text(name)
    write_attempts(reference, [Attempt("a", 1.0, True)])
    with Sandbox(tmp_path / "out", bucket) as place:
        drill = Drill(place, reference, random.Random(0))
        assert drill.arguments[-2:] == ["--output", bucket.url]
        drill.copy_reference()
        assert set(bucket.store.entries()) == {"trials/a/record.json", "sweep.json"}
        assert drill.attempts() == [Attempt("a", 1.0, True)]
        with Lease(bucket.store).acquire():
            assert [x.evidence for x in bucket.check_lease()] == [f"{bucket.url}/lease/000001.json is held"]
        assert bucket.check_lease() == []
        with place.files() as output:
            assert output == tmp_path / "out"
            (output / "sweep.json").unlink()
            os.truncate(output / "trials" / "a" / "record.json", 5)
        assert not place.exists("sweep.json")
        assert bucket.store.read("trials/a/record.json") == b"trial"
        bucket.store.write("stop", b"")
        with place.files() as output:
            assert (output / "stop").exists()
        # Each command works on another disk.
        disks = [place.disk()["LGD_CACHE"] for _ in range(2)]
        assert len(set(disks)) == 2
    assert not any(Path(x).exists() for x in disks)
    bucket.clear()
    assert bucket.store.entries() == {}


def test_what_a_killed_process_had_not_published_is_allowed_for(tmp_path: Path) -> None:
    directory = tmp_path / "trials" / "a"
    record = failed_record(quick_experiment(), "", arm="a")

    def found(counted: float, attempts: int, *, unpublished: float) -> list[str]:
        record.model_copy(update={"device_seconds": {"training": counted}, "attempts": attempts}).save(directory)
        own = [Attempt("a", 2.0, False), Attempt("a", 10.0, True)]
        return [str(x) for x in check_cost(tmp_path, own, unpublished)]

    assert found(10.2, 1, unpublished=3.0) == []
    assert len(found(10.2, 1, unpublished=0.0)) == 2
    assert len(found(7.0, 1, unpublished=3.0)) == 1
    assert len(found(12.0, 3, unpublished=3.0)) == 1
    shutil.rmtree(directory)


def test_faults_are_where_they_make_sense(bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    own, theirs = bucket, Bucket(bucket.url)
    for fault in STORE:
        assert "needs the drill's own S3 server" in fault.left_out(None)
        assert "needs the drill's own S3 server" in fault.left_out(theirs)
        assert fault.left_out(own) == ""
    for name in ("moved", "study-db-missing"):
        assert FAULTS[name].left_out(own) == FAULTS[name].left_out(None) == ""
    assert main(["drill", "--faults", "store-503", "--bucket", bucket.url]) == 2
    assert capsys.readouterr().err.startswith("error: --faults store-503: needs the drill's own S3 server")
    assert main(["drill", "--list", "--bucket", bucket.url]) == 0
    assert capsys.readouterr().out.count("[not here: needs the drill's own") == len(STORE)


def test_results_are_moved_within_a_bucket(bucket: Bucket) -> None:
    bucket.store.write("sweep.json", b"{}")
    bucket.store.write("trials/x/record.json", b"1")
    moved = bucket.moved()
    assert bucket.store.entries() == {}
    assert moved.url == f"{bucket.url}-elsewhere"
    assert {name: moved.store.read(name) for name in moved.store.entries()} == {
        "sweep.json": b"{}",
        "trials/x/record.json": b"1",
    }
    moved.clear()


def test_sweeps_that_passed_are_removed_from_the_bucket(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drilled: list[str] = []

    def run(fault: Fault, repeat: int, _: int, reference: Path, output: Path, bucket: Bucket) -> Result:
        bucket.store.write("sweep.json", b"{}")
        drilled.append(bucket.url)
        return Result(fault.name, repeat, "", (), 1.0)

    def reference(directory: Path, bucket: Bucket) -> Path:
        bucket.store.write("sweep.json", b"{}")
        return directory

    monkeypatch.setattr("ablations.drill.drill.run_drill", run)
    monkeypatch.setattr("ablations.drill.drill.run_reference", reference)
    arguments = ["drill", "--faults", "nan", "--repeats", "2", "--output", str(tmp_path / "drill")]
    assert main([*arguments, "--bucket", bucket.url]) == 0
    assert drilled == [f"{bucket.url}/nan-0", f"{bucket.url}/nan-1"]
    assert bucket.store.entries() == {}
    assert f"--bucket {bucket.url}" in (tmp_path / "drill" / "drill.md").read_text()


def test_its_own_server_is_there_for_what_it_starts_and_no_longer() -> None:
    before = dict(os.environ)
    with opened("") as bucket:
        code = "import sys; from lgd.storage.store import Store; Store(sys.argv[1]).write('x', b'1')"
        subprocess.run([sys.executable, "-c", code, bucket.url], check=True)
        assert bucket.store.read("x") == b"1"
        assert bucket.faults is not None
        bucket.faults.inject("503", 10**6)
        with pytest.raises(InputError, match="no answer for 0 s"):
            Store(bucket.url, 0.2).read("x")
    assert dict(os.environ) == before


def test_without_moto_its_own_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.drill.bucket.find_spec", lambda name: None if name == "moto" else True)
    with pytest.raises(InputError, match="^--bucket without a URL: needs the package moto: make setup-dev$"):
        opened("").__enter__()


def test_a_record_is_damaged_in_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    from ablations.drill.damages import damage

    bucket.store.write(f"trials/a/{FILE}", json.dumps({"a": "b" * 200}).encode())
    with Sandbox(tmp_path / "out", bucket) as place:
        drill = Drill(place, tmp_path, random.Random(0))
        with place.files() as output:
            damage(drill, output / "trials" / "a" / FILE, "corrupted")
        with pytest.raises(UnicodeDecodeError):
            (bucket.store.read(f"trials/a/{FILE}") or b"").decode()
