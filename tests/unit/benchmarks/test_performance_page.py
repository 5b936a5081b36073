"""The tables in docs/performance.md are those of the committed measurements."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from benchmarks import load_table
from benchmarks.gpu_results import newest_session, targets
from benchmarks.performance_page import (
    COST_PAGE,
    DOCS,
    DRILL_BLOCKS,
    DRILL_PAGE,
    LOAD_PAGE,
    METHOD_BLOCKS,
    METHOD_PAGE,
    PAGE,
    RESULTS,
    TABLES_PAGE,
    begin_marker,
    newest_load,
    with_fast_losses,
    with_load,
    with_paper_hours,
    with_roofline_targets,
    with_session,
    with_tables,
)
from lgd.config.paper import COCO_BATCH_ASPECT
from lgd.errors import InputError


def test_the_committed_page_is_what_the_command_writes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_session(with_roofline_targets(with_fast_losses(with_tables(page))), PAGE, details=True) == page
    for detector in ("retinanet", "fcos", "faster_rcnn", "mask_rcnn"):
        assert re.search(rf"^\| {detector} +\| +\d+ \| +\d+ \| [\d.]+x \[", page, flags=re.MULTILINE)
    assert "#### speed-retinanet" in page
    assert page.index("### gpu-session_h100_2026-11-27") < page.index("### gpu-session_h100_2026-11-26")
    assert "norms of the rows *ours*" in page
    method = METHOD_PAGE.read_text(encoding="utf-8")
    assert with_tables(method, METHOD_BLOCKS, METHOD_PAGE) == method
    drill = DRILL_PAGE.read_text(encoding="utf-8")
    assert with_tables(drill, DRILL_BLOCKS, DRILL_PAGE) == drill
    load = LOAD_PAGE.read_text(encoding="utf-8")
    assert with_load(load) == load
    cost = COST_PAGE.read_text(encoding="utf-8")
    assert with_session(cost, COST_PAGE) == cost
    tables = TABLES_PAGE.read_text(encoding="utf-8")
    assert with_paper_hours(tables) == tables


def test_hours_of_the_papers_grids_are_steps_times_what_a_step_takes() -> None:
    """Of those alone that were measured: of table7 LabelEnc was not, and FGFI in bfloat16 only."""
    session = newest_session(RESULTS)
    assert session is not None
    frame = pd.read_csv(session / "speed-retinanet" / "speed.csv")
    ms = frame.groupby(["arm", "side"])["median_ms"].median()
    fp32 = [ms[arm, "ours fp32"] for arm in ("baseline", "LGD")]
    bf16 = [ms[arm, "ours bf16"] for arm in ("baseline", "LGD", "FGFI", "FGFI's teacher in training")]
    hours = [f"{sum(x) * 180_000 / 3.6e6:.0f}" for x in (fp32, bf16)]
    row = next(x for x in TABLES_PAGE.read_text(encoding="utf-8").splitlines() if x.startswith("| table7 "))
    assert [x.strip() for x in row.strip("|").split("|")] == [
        *("table7", "4", "0.72", f"{hours[0]} (2)", f"{hours[1]} (3)")
    ]


def test_the_load_page_shows_every_curve() -> None:
    """A measurement at one size has none."""
    page, found = LOAD_PAGE.read_text(encoding="utf-8"), newest_load()
    figures = {part: path.with_suffix(".png") for part, path in found.items()}
    shown = {part for part, figure in figures.items() if f"](../benchmarks/results/{figure.name})" in page}
    assert shown == {part for part, path in found.items() if load_table.read(path)["size"].nunique() > 1}
    assert all(figure.is_file() for figure in figures.values())
    assert page.count("](../benchmarks/results/load_") == len(shown) > 0


def test_the_readme_has_the_newest_sessions_numbers() -> None:
    session = newest_session(RESULTS)
    assert session is not None
    frame = pd.read_csv(session / "speed-retinanet" / "speed.csv")
    ms = frame.groupby(["arm", "side"])["median_ms"].median().groupby("arm").min()
    saved = next(measured for what, measured, _ in targets(session) if "FGFI" in what)
    text = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    assert f"RetinaNet's step takes {ms['baseline']:.0f} ms, with LGD {ms['LGD']:.0f} ms," in text
    height, width = (int(frame[x].iloc[0]) for x in ("height", "width"))
    pixels = f"about {COCO_BATCH_ASPECT * height / width:.2f} times as many"
    assert f"for 16 images of {height} x {width} pixels (batches of MS-COCO are padded to {pixels})" in text
    assert pixels in " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"method-specific cost is {float(saved):.0%} below FGFI's" in text
    of_rcnn = re.search(
        r"LGD's is \*\*([\d.]+)", (session / "speed-faster-rcnn" / "speed.md").read_text(encoding="utf-8")
    )
    assert of_rcnn is not None
    assert f"On Faster R-CNN it is {float(of_rcnn[1]):.0%} (" in text


def test_an_old_table_is_replaced_and_a_missing_block_named() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page.replace("| baseline        | naive  |", "| baseline        | old    |")) == page
    with pytest.raises(InputError, match="roofline:begin"):
        with_tables(page.replace(begin_marker("roofline"), ""))
