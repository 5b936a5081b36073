"""Table 7 from measured steps, by hand, and what is no measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.table7 import check, costs, markdown, notes, read, reported
from lgd.config.paper import paper
from lgd.errors import InputError

STEPS = {
    # method, stage: steps of the schedule, milliseconds in two rounds
    ("baseline", "not distilling"): (3600, (1000.0, 2000.0)),
    ("fgfi", "not distilling"): (600, (1000.0, 2000.0)),
    ("fgfi", "distilling"): (3000, (1500.0, 3000.0)),
    ("fgfi teacher", "not distilling"): (3600, (1250.0, 2500.0)),
    ("lgd", "frozen"): (400, (500.0, 1000.0)),
    ("lgd", "distilling"): (3200, (2000.0, 4250.0)),
}


def measured(**changes: Any) -> pd.DataFrame:
    described = {
        "devices": 1, "schedule_steps": 3600, "memory": "host", "detector": "retinanet", "backbone": "resnet50",
        "teacher_backbone": "resnet101", "precision": "bf16", "gpu": "none", "cpu": "Somebody's", "cores": "2",
        "command": "python benchmarks/cost.py", "batch": 16, "height": 800, "width": 1067, "objects": 7.3,
        "torch": "2", "detectron2": "0", "git_commit": "0123456789abcdef+changes", "started": "2026-01-01",
    }  # fmt: skip
    rows = [
        {
            "method": method,
            "stage": stage,
            "stage_steps": steps,
            "round": turn,
            "median_ms": ms,
            "q25_ms": 0.9 * ms,
            "q75_ms": 1.1 * ms,
            "mean_ms": ms,
            "peak_mib": 100.0 + 10 * len(method) + turn,
            **described,
            **changes,
        }
        for (method, stage), (steps, times) in STEPS.items()
        for turn, ms in enumerate(times)
    ]
    return pd.DataFrame(rows)


def test_hours_ratios_and_the_reduction_by_hand() -> None:
    found = costs(measured())
    # Round 0, in hours: baseline 1; FGFI 600 s + 4500 s and its teacher 1.25; LGD 200 s + 6400 s. Round 1: twice as
    # much, but for LGD, whose distilling steps take 13600 s.
    fgfi, lgd, late = 5100 / 3600 + 1.25, 6600 / 3600, (400 + 13600) / 3600
    assert found["baseline"].overall.value == pytest.approx(1.5)
    assert (found["baseline"].overall.low, found["baseline"].overall.high) == pytest.approx((1, 2))
    assert found["fgfi"].overall.low == pytest.approx(fgfi)
    assert found["fgfi"].pretraining is not None
    assert found["fgfi"].pretraining.value == pytest.approx(1.875)
    assert found["fgfi"].ratio.low == found["fgfi"].ratio.high == pytest.approx(fgfi)
    assert found["fgfi"].specific is not None
    assert found["fgfi"].specific.low == pytest.approx(fgfi - 1)
    assert found["lgd"].specific is not None
    assert found["lgd"].specific.value == pytest.approx((lgd - 1 + late - 2) / 2)
    assert (found["lgd"].ratio.low, found["lgd"].ratio.high) == pytest.approx((lgd, late / 2))
    # Within each round, not of the medians.
    assert found["lgd"].reduction is not None
    wanted = (1 - (late - 2) / (2 * (fgfi - 1)), 1 - (lgd - 1) / (fgfi - 1))
    assert (found["lgd"].reduction.low, found["lgd"].reduction.high) == pytest.approx(wanted)
    assert found["fgfi"].reduction is found["baseline"].specific is found["lgd"].pretraining is None
    # FGFI's memory is the larger of its two trainings'.
    assert found["fgfi"].peak_mib == 100 + 120 + 1


def test_devices_multiply_hours_and_leave_ratios() -> None:
    one, eight = costs(measured()), costs(measured(devices=8))
    assert eight["lgd"].overall.value == pytest.approx(8 * one["lgd"].overall.value)
    assert eight["lgd"].ratio == one["lgd"].ratio
    assert "exchanging gradients is not included" in " ".join(notes(measured(devices=8)))
    assert "exchanging gradients" not in " ".join(notes(measured()))


def test_the_papers_rows_are_the_papers() -> None:
    rows = reported()
    assert list(rows) == ["baseline", "fgfi", "labelenc", "lgd"]
    claim = paper().tables["reduction"].cells[0].value
    assert rows["lgd"].reduction is not None
    assert round(100 * rows["lgd"].reduction) == claim
    assert rows["fgfi"].specific == pytest.approx(rows["fgfi"].overall - rows["baseline"].overall, abs=0.11)


def test_the_table_shows_both_and_prices() -> None:
    text = markdown(measured(), price=10)
    header, _, *rows = [[x.strip() for x in line.strip("|").split("|")] for line in text.split("\n\n")[0].splitlines()]
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["baseline"]["overall h"] == "1.5 [1, 2]"
    assert table["baseline"]["price"] == "15.00"
    assert table["LGD"]["overall / baseline"] == "1.89 [1.83, 1.94]"
    assert table["LGD"]["paper: less"] == "51%"
    assert table["LabelEnc"]["overall h"] == "–"
    assert table["FGFI"]["paper: pre-training h"] == "17"
    assert "price" not in markdown(measured())
    assert "| lgd" in text
    assert "400 of 3600" in text
    assert "0123456789ab+changes" in text


def test_contention_is_noted_where_it_was_measured() -> None:
    assert "other processes" not in markdown(measured())
    (note,) = [x for x in notes(measured(other_cores=1.0)) if "other processes" in x]
    assert note == (
        "Meanwhile other processes used 1.0 of 2 cores (median of 12 timings, at most 1.0); the middle half of a"
        " timing's steps spans 20% of their median: the machine was busy, and times may be too long."
    )
    assert "little contention" in markdown(measured(other_cores=0.1))


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    measured().to_csv(path, index=False)
    assert markdown(read(path)) == markdown(measured())


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda x: x.drop(columns="stage"), "it has no column 'stage'"),
        (lambda x: x.assign(median_ms=["1", "2", "much", *"4" * 9]), r"x.csv:4: median_ms is no number above 0"),
        (lambda x: x.assign(peak_mib=0.0), r"x.csv:2: peak_mib is no number above 0"),
        (lambda x: x[x["method"] != "fgfi teacher"], "nothing measured of 'fgfi teacher'"),
        (lambda x: x.drop(index=11), r"lgd \(distilling\) was not measured once in each of the 2 rounds"),
        (lambda x: x.iloc[:0], "x.csv: no rows"),
    ],
    ids=["column", "text", "zero", "method", "round", "empty"],
)
def test_what_is_no_measurement_is_refused_in_one_line(tmp_path: Path, spoil: Any, complaint: str) -> None:
    path = tmp_path / "x.csv"
    spoil(measured()).to_csv(path, index=False)
    with pytest.raises(InputError, match=complaint) as raised:
        read(path)
    assert "\n" not in str(raised.value)
    check(measured(), "whole")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "absent.csv")
    for content in (b"", b"\xff\xfe\x00", b'a,"b\n'):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(InputError, match="not a CSV of measurements"):
            read(tmp_path / "x.csv")
