"""Where all arms were trained at one learning rate, a table says how to see whether that is fair."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.sweep_command import new_sweep
from ablations.sweep_command import parser as sweep_parser
from analysis.load import Run
from analysis.report.html_report import write_page
from analysis.table_builders.sweep_table import main_table, one_rate_note, sweep_of
from lgd.config.detector_options import detector_overrides
from lgd.config.grids import NAMES, TABLES
from lgd.config.presets import NANO
from lgd.results.record import Record
from tests.helpers_sweeps import whole_sweep, write_sweep

START = "one learning rate (0.05 for a batch of 8, 0.1 for 16 images); whether each arm is at its best there: "
COMMAND = "lgd sweep run learning-rate --preset nano"


def _records(name: str, *overrides: str) -> list[Record]:
    return [run.record for run in whole_sweep(name, overrides)]


def _noted(runs: list[Run], directory: Path) -> list[str]:
    table = main_table(runs, sweep_of(directory, [run.record for run in runs]))
    return [x for x in table.notes if x.startswith("one learning rate")]


def test_a_sweep_at_one_rate_says_so_once(tmp_path: Path) -> None:
    assert NANO.schedule.lr_per_16 == 0.1
    runs = write_sweep(tmp_path, "components", arms=["baseline", "LGD"])
    assert _noted(runs, tmp_path) == [START + COMMAND]
    page = write_page(tmp_path, sweep_of(tmp_path, [run.record for run in runs]), runs).read_text(encoding="utf-8")
    assert page.count("one learning rate (") == 1


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ([], ""),
        (["--detector", "fcos"], " --detector fcos"),
        # --detector also leaves out the context object.
        (["--set", "detector.name=fcos"], " --set detector.name=fcos"),
        (["--set", "detector.name=poto"], " --detector poto"),
        (["--detector", "faster_rcnn", "--set", "threads=1"], " --detector faster_rcnn"),
        (["--set", "schedule.steps=900"], " --set schedule.steps=900"),
        (["--set", "schedule.lr=0.05", "--set", "seed=3"], " --set schedule.lr=0.05"),
        (["--set", "data.source=coco-json:/a b"], " --set 'data.source=coco-json:/a b'"),
    ],
)
def test_the_command_trains_the_same_setting(given: list[str], options: str) -> None:
    parsed = sweep_parser().parse_args(["run", "components", "--preset", "nano", *given])
    overrides = detector_overrides(parsed, parsed.overrides, "nano")
    (line,) = one_rate_note(_records("noise-floor", *overrides), "noise-floor")
    command = line.rpartition(": lgd ")[2]
    assert f"lgd {command}" == COMMAND + options


def test_the_command_can_be_given(tmp_path: Path) -> None:
    (line,) = one_rate_note(_records("noise-floor", "detector.name=poto", "schedule.steps=900"), "noise-floor")
    words = line.rpartition("lgd sweep ")[2].split()
    options = sweep_parser().parse_args([*words, "--output", str(tmp_path)])
    options.overrides = detector_overrides(options, options.overrides, options.preset)
    spec, _ = new_sweep(options)
    assert (spec.grid, spec.preset) == ("learning-rate", "nano")
    assert set(spec.overrides) >= {'detector.name="poto"', "schedule.steps=900"}


def test_a_detector_of_the_users_own_is_named() -> None:
    record = Record(status="finished", preset="tiny", experiment=NANO, overrides=["detector.source=my.module:build"])
    assert one_rate_note([record], "components")[0].endswith("--preset tiny --detector my.module:build")
    broken = record.model_copy(update={"overrides": ["nonsense"]})
    assert one_rate_note([broken], "components")[0].endswith("--preset tiny")


@pytest.mark.parametrize("name", NAMES)
def test_where_there_is_such_a_line(name: str) -> None:
    """Of every grid but the paper's own at the paper's preset, whose rates are the paper's."""
    record = Record(status="finished", preset="paper", grid=name, experiment=NANO)
    assert bool(one_rate_note([record], name)) is (name not in TABLES)
    assert one_rate_note([record.model_copy(update={"preset": "tiny"})], name)


def test_several_rates_have_no_such_line(tmp_path: Path) -> None:
    records = _records("components")
    faster = records[0].model_copy(update={"experiment": NANO.override({"schedule.lr_per_16": 0.2})})
    assert one_rate_note([*records, faster], "components") == []
    failed = faster.model_copy(update={"status": "failed"})
    assert one_rate_note([*records, failed], "components")
    assert one_rate_note([failed], "components") == []
    assert _noted(write_sweep(tmp_path, "learning-rate", arms=["baseline", "LGD"]), tmp_path) == []
