"""Damage to what lies beside a record (examples, evaluations, log): commands print what they did, the page says what is
wrong in a line. Figures are left out: they are of the records."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import analysis.__main__ as report
from ablations import sweep_command
from analysis import tables
from analysis.load import load_runs
from analysis.report import examples as drawn
from analysis.report.examples import CACHE, examples
from analysis.report.html_report import PAGE
from lgd.cli import exit_status
from lgd.config.grids import grid, plan
from lgd.config.presets import NANO
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import EvaluationPoint, Record, Scores
from lgd.results.sweep_spec import SweepSpec
from lgd.training.hooks import cut_log
from lgd.training.progress import EVALUATIONS_FILE
from tests.damage import damaged_bytes, damaged_tree
from tests.helpers_data import write_coco

FILES = 125
ARMS = ("baseline", "LGD")
LOG = "metrics.json"
BOX = {"bbox": [5.0, 5.0, 15.0, 15.0], "category_id": 7, "score": 0.5}

NONE_SHOWN = "There are no example detections: "


def _detect(run: Any, images: list[int]) -> dict[int, list[dict[str, Any]]]:
    """In the place of a student that is run."""
    return {x: [BOX, {**BOX, "category_id": 3, "score": 0.25}] for x in images}


@pytest.fixture(autouse=True)
def without_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.write.draw", lambda *_: [])
    monkeypatch.setattr("analysis.report.write.arms_figure", lambda *_: [])
    monkeypatch.setattr("analysis.report.html_report.figures", lambda *_: [])
    monkeypatch.setattr(drawn, "_detect", _detect)
    # Writing through to the disk is not what is tested.
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's directory after a report: records, and beside each its evaluations, its log and its examples."""
    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "cache"))
    directory, data = tmp_path / "results", write_coco(tmp_path / "data")
    settings = ("schedule.steps=6", "schedule.warmup_steps=2", f"data.source=coco-json:{data}")
    SweepSpec(grid="components", preset="nano", overrides=settings, arms=ARMS, seeds=1).write(directory)
    scores = Scores(AP=10, AP50=20, AP75=5, APs=None, APm=3, APl=12, per_class={"seven": 10})
    points = [EvaluationPoint(step=x, student=scores, teacher=scores) for x in (3, 6)]
    for trial in plan(grid("components", "nano"), NANO, 1, settings, directory):
        if trial.arm not in ARMS:
            continue
        Record(
            status="finished", grid="components", preset="nano", arm=trial.arm, experiment=trial.experiment,
            fingerprint=trial.arm, steps=6, student=scores, evaluations=points, finished="2025-01-02T03:05:06+00:00",
            seconds={"training": 5.0}, device_seconds={"training": 5.0},
        ).save(trial.directory)  # fmt: skip
        (trial.directory / "student.pth").touch()
        lines = [x.model_dump_json() for x in points]
        write_text(trial.directory / EVALUATIONS_FILE, "".join(f"{x}\n" for x in lines))
        log = [json.dumps({"iteration": x, "total_loss": 1.5 - x / 10}) for x in range(6)]
        write_text(trial.directory / LOG, "".join(f"{x}\n" for x in log))
    assert report.main([str(directory)]) == 0
    return directory


def _status(directory: Path) -> int:
    return exit_status(lambda: sweep_command._status(argparse.Namespace(directory=directory)))


def _table(directory: Path) -> int:
    return tables.main([str(directory), "--table", "gpu-hours", "--resamples", "0"])


def _report(directory: Path) -> int:
    return report.main([str(directory)])


COMMANDS = (_status, _table, _report)


def _damaged(rng: random.Random, whole: bytes) -> bytes:
    """One line of the file, or its bytes, changed."""
    if rng.random() < 0.5:
        return damaged_bytes(rng, whole)
    lines = [json.loads(x) for x in whole.splitlines()]
    place = rng.randrange(len(lines))
    lines[place] = damaged_tree(rng, lines[place])
    return "".join(f"{json.dumps(x)}\n" for x in lines).encode()


def _output(directory: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the three commands print; they end with exit status 0 and say nothing else."""
    printed = []
    for command in COMMANDS:
        assert command(directory) == 0
        said = capsys.readouterr()
        assert said.err == ""
        printed.append(said.out)
    return printed


@pytest.mark.slow
def test_commands_print_what_they_printed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all three files damaged at once; the page is without examples where theirs cannot be read."""
    rng, before = random.Random(0), _output(results, capsys)
    paths = [max(results.glob(f"trials/*/{name}")) for name in (CACHE, EVALUATIONS_FILE, LOG)]
    whole = [x.read_bytes() for x in paths]
    page, refused, made = (results / PAGE).read_text(), 0, 0
    assert page.count("<figcaption>") == 6
    for number in range(FILES):
        damaged = [_damaged(rng, x) for x in whole]
        for path, content in zip(paths, damaged, strict=True):
            path.write_bytes(content)
        assert _output(results, capsys) == before, number
        text, left = (results / PAGE).read_text(), [x.read_bytes() for x in paths]
        assert left[1:] == damaged[1:], number
        made += left[0] != damaged[0]
        refused += NONE_SHOWN in text
        if NONE_SHOWN in text:
            (line,) = (x for x in text.splitlines() if NONE_SHOWN in x)
            assert f"{NONE_SHOWN}{paths[0]}: " in line, number
        assert text.count("<figcaption>") == (0 if NONE_SHOWN in text else 6), number
    # Damage that is named, that makes the examples another training's, and that changes nothing.
    assert min(refused, made, FILES - refused - made) > FILES / 50


BAD_CACHES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no keys": (lambda x: x["detections"].update({"100": [{}]}), "image 100: a list of bbox, category_id and score"),
    "unknown category": (lambda x: x["detections"]["100"][0].update(category_id=99), "detections of category 99"),
    "a number as text": (lambda x: x["detections"]["100"][0].update(score="1"), "image 100: a list of"),
    "no finite number": (
        lambda x: x["detections"]["100"][0].update(bbox=[0, 0, float("nan"), 1]),
        "image 100: a list of",
    ),
    "three numbers": (lambda x: x["detections"]["100"][0].update(bbox=[0, 0, 1]), "image 100: a list of"),
    "no list": (lambda x: x["detections"].update({"100": {"bbox": []}}), "image 100: a list of"),
    "an image less": (lambda x: x["detections"].pop("100"), "detections of images 100, 101 are needed"),
    "another image": (lambda x: x["detections"].update({"9": []}), "detections of images 100, 101 are needed"),
    "no detections": (lambda x: x.pop("detections"), "detections of images 100, 101 are needed"),
}


@pytest.mark.parametrize("kind", BAD_CACHES)
def test_a_broken_cache_of_examples_is_named(kind: str, results: Path) -> None:
    edit, said = BAD_CACHES[kind]
    path = max(results.glob(f"trials/*/{CACHE}"))
    contents = json.loads(path.read_bytes())
    edit(contents)
    path.write_text(json.dumps(contents))
    with pytest.raises(InputError) as caught:
        examples(load_runs(results))
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make", [lambda x: x.write_text("{"), lambda x: x.write_text("[" * 9**5), lambda x: x.write_text("[]"), Path.mkdir,
             lambda x: x.write_bytes(b"\\xff"), os.mkfifo],
    ids=["cut off", "deep", "list", "directory", "bytes", "pipe"],
)  # fmt: skip
def test_what_is_no_cache_of_examples_is_named(make: Callable[[Path], object], results: Path) -> None:
    path = max(results.glob(f"trials/*/{CACHE}"))
    path.unlink()
    make(path)
    with pytest.raises(InputError, match="remove it, and it is made again") as caught:
        examples(load_runs(results))
    assert str(caught.value).startswith(f"{path}: ")


def test_kept_detections_of_an_unknown_category_are_named(results: Path) -> None:
    from lgd.results.detections import STUDENTS, save_detections

    path = max(results.glob("trials/*/record.json")).parent / STUDENTS
    save_detections([{**BOX, "image_id": 100, "category_id": 99}], path)
    with pytest.raises(InputError, match="has detections of category 99") as caught:
        examples(load_runs(results))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "box", [[-1e14, -1e14, 2e14, 2e14], [20, 20, -30, -10], [1e14, 5, 1, 1], [0, 0, 0, 0], [1, 1, 1e14, 1]]
)
def test_a_box_anywhere_is_drawn(box: list[float], results: Path) -> None:
    """A dashed line of 1e14 pixels would be drawn for years."""
    path = max(results.glob(f"trials/*/{CACHE}"))
    contents = json.loads(path.read_bytes())
    for boxes in contents["detections"].values():
        boxes[0]["bbox"] = box
    path.write_text(json.dumps(contents))
    assert len(examples(load_runs(results))) == 2


def test_a_damaged_log_is_cut_to_lines_that_can_be_read(results: Path) -> None:
    """What a training that goes on reads."""
    rng, path = random.Random(0), max(results.glob(f"trials/*/{LOG}"))
    whole, whole_left = path.read_bytes(), 0
    for _ in range(FILES):
        path.write_bytes(_damaged(rng, whole))
        cut_log(path, 4)
        kept = [json.loads(x) for x in path.read_text().splitlines()]
        assert all(x["iteration"] < 4 for x in kept)
        whole_left += len(kept) == 4
    assert FILES / 25 < whole_left < FILES
