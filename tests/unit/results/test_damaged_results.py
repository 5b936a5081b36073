"""Five hundred damaged records, sweeps and detections: read all the same, or named in one line; nothing is written."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablations import sweep_command
from analysis import tables
from lgd.cli import exit_status
from lgd.config.grids import grid, plan
from lgd.config.presets import NANO
from lgd.errors import InputError
from lgd.results.detections import load_detections, save_detections
from lgd.results.record import Record, Scores, load
from lgd.results.sweep_spec import SWEEP_FILE, SweepSpec
from tests.damage import damaged_bytes, damaged_tree

FILES = 250
ARMS = ("baseline", "LGD")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results directory with a description and a record of each of two arms."""
    directory = tmp_path_factory.mktemp("results")
    short = ("schedule.steps=6", "schedule.warmup_steps=2")
    SweepSpec(grid="components", preset="nano", overrides=short, arms=ARMS, seeds=1).write(directory)
    scores = Scores(AP=10, AP50=20, AP75=5, APs=None, APm=3, APl=12, per_class={"disc": 10})
    for trial in plan(grid("components", "nano"), NANO, 1, short, directory):
        if trial.arm in ARMS:
            Record(
                status="finished", grid="components", preset="nano", arm=trial.arm, experiment=trial.experiment,
                fingerprint=trial.arm, steps=6, student=scores, losses={"total_loss": [(3, 1.5), (6, 0.5)]},
                seconds={"setup": 1.0, "training": 5.0}, device_seconds={"setup": 1.0, "training": 5.0},
                hardware={"cpu": "A processor", "gpu": "none"}, versions={"torch": "2.11.0"},
                started="2025-01-02T03:04:05+00:00", finished="2025-01-02T03:05:06+00:00",
            ).save(trial.directory)  # fmt: skip
    return directory


def _damaged(rng: random.Random, whole: bytes) -> bytes:
    if rng.random() < 0.5:
        return damaged_bytes(rng, whole)
    return json.dumps(damaged_tree(rng, json.loads(whole))).encode()


def _status(directory: Path) -> int:
    return exit_status(lambda: sweep_command._status(argparse.Namespace(directory=directory)))


def _table(directory: Path) -> int:
    return tables.main([str(directory), "--table", "gpu-hours", "--resamples", "0"])


@pytest.mark.parametrize(
    ("name", "command"), [(SWEEP_FILE, _status), ("record.json", _status), ("record.json", _table)]
)
def test_a_command_ends_with_its_output_or_names_the_file(
    name: str, command: Callable[[Path], int], sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(f"{name} {command.__name__}")
    path = sweep / name if name == SWEEP_FILE else sorted(sweep.glob("trials/*/record.json"))[-1]
    whole, before, statuses = path.read_bytes(), _files(sweep), [0, 0, 0]
    assert command(sweep) == 0
    capsys.readouterr()
    try:
        for number in range(FILES // (1 if name == SWEEP_FILE else 2)):
            path.write_bytes(_damaged(rng, whole))
            statuses[command(sweep)] += 1
            said = capsys.readouterr().err.splitlines()
            assert len(said) <= 1, (number, said)
            assert all(line.startswith(("error: ", "warning: ")) for line in said), (number, said)
            assert all(str(path) in line for line in said), (number, said)
    finally:
        path.write_bytes(whole)
    assert statuses[0] > 0
    assert sum(statuses[1:]) > 10 or name != SWEEP_FILE
    assert _files(sweep) == before


def _with(name: str, value: Any) -> Callable[[Path], object]:
    """A file whose top-level ``name`` is that value."""

    def write(path: Path) -> None:
        whole = json.loads(path.read_bytes())
        path.write_text(json.dumps({**whole, name: value}))

    return write


def _replaced_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


BAD: dict[str, Callable[[Path], object]] = {
    # A pipe would be waited for, and /dev/zero read until there is no memory.
    "pipe": _replaced_by(os.mkfifo),
    "device": _replaced_by(lambda x: x.symlink_to("/dev/zero")),
    "link to itself": _replaced_by(lambda x: x.symlink_to(x)),
    "directory": _replaced_by(Path.mkdir),
    "half a surrogate pair": lambda x: x.write_bytes(x.read_bytes().replace(b'"components"', b'"\\ud800"')),
    "another encoding": lambda x: x.write_text(x.read_text(), encoding="utf-16"),
    "deep": lambda x: x.write_text("[" * 5000 + "]" * 5000),
}
BAD_RECORDS: dict[str, Callable[[Path], object]] = {
    "steps": _with("steps", 10**30),
    "devices": _with("devices", 10**400),
    "seconds": _with("device_seconds", {"setup": 1e308, "training": 1e308}),
    "escape": _with("arm", "\x1b[31mred"),
}
BAD_SWEEPS: dict[str, Callable[[Path], object]] = {
    "looks that fall": _with("looks", [5, 3]),
    "looks": _with("looks", [*range(2, 5000)]),
    "seeds": _with("seeds", 10**30),
    "samples": _with("search", {"samples": 10**30, "objectives": ["AP"], "early_stop": False}),
    "objectives": _with("search", {"samples": 3, "objectives": ["AP", "AP"], "early_stop": False}),
}


@pytest.mark.parametrize("kind", [*BAD, *BAD_RECORDS, *BAD_SWEEPS])
def test_bad_files_are_left_out_or_refused(kind: str, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record is left out with a line; without the sweep's description there is nothing to say but that."""
    record = min(sweep.glob("trials/*/record.json"))
    for path, kinds, command, expected in (
        (record, BAD | BAD_RECORDS, _table, 1),
        (sweep / SWEEP_FILE, BAD | BAD_SWEEPS, _status, 2),
    ):
        whole = path.read_bytes()
        if kind not in kinds:
            continue
        kinds[kind](path)
        try:
            status, said = command(sweep), capsys.readouterr().err
        finally:
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(whole)
        if kind == "link to itself" and path == record:
            # As one that is not there.
            assert (status, said) == (0, "")
            continue
        assert status == expected, said
        assert str(path) in said
        assert said.count("\n") == 1


def test_a_record_is_read_or_named(sweep: Path) -> None:
    rng, path = random.Random(1), sweep / "damaged.json"
    whole = next(iter(sweep.glob("trials/*/record.json"))).read_bytes()
    _read_or_named(path, load, lambda: _damaged(rng, whole))


def test_detections_are_read_or_named(tmp_path: Path) -> None:
    rng, path = random.Random(2), tmp_path / "detections.json.gz"
    save_detections([{"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}], path)
    whole = path.read_bytes()

    def content() -> bytes:
        kind = rng.random()
        return damaged_bytes(rng, whole) if kind < 0.5 else gzip.compress(_damaged(rng, gzip.decompress(whole)))

    _read_or_named(path, load_detections, content)


def _read_or_named(path: Path, read: Callable[[Path], Any], content: Callable[[], bytes]) -> None:
    said = []
    for _ in range(FILES):
        path.write_bytes(content())
        try:
            read(path)
        except InputError as error:
            said.append(str(error))
    path.unlink()
    assert [x for x in said if len(x.splitlines()) > 1 or str(path) not in x] == []
    assert FILES / 10 < len(said) < FILES


def _files(directory: Path) -> list[str]:
    return sorted(str(x) for x in directory.rglob("*"))
