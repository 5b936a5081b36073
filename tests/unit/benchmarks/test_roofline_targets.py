"""What LGD's targets on a GPU would need, from counts and times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import gpu_results, roofline, speed_table
from benchmarks.performance_page import RESULTS
from benchmarks.roofline_targets import COUNTS, SETTING, allowed, markdown, shares
from benchmarks.speed import BASELINE, FGFI, LGD, TEACHER
from lgd.errors import InputError

TIMES = {BASELINE: 100.0, LGD: 150.0, FGFI: 140.0, TEACHER: 160.0}


def test_shares_and_what_meets_a_target() -> None:
    assert shares(TIMES) == {"extra": pytest.approx(0.5), "saved": pytest.approx(1 - 50 / 200)}
    for of, limit, most in (("extra", 0.45, 45.0), ("saved", 0.7, 60.0)):
        assert allowed(TIMES, of, limit) == pytest.approx(most)
        assert shares({**TIMES, LGD: TIMES[BASELINE] + most})[of] == pytest.approx(limit)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Counts and a session with round numbers at the limits of benchmarks/reference.yaml."""
    peak = speed_table.reference_file()["limits"]["tflops"]["bf16"]
    image: dict[str, Any] = {"detector": "retinanet", "backbone": "resnet50", "batch": 16, "height": 800, "width": 1067}
    described = {**image, "objects": 7.3, "torch": "2", "git_commit": "c" * 40, "started": "now", "command": "count"}
    at_peak: dict[str, dict[str, float]] = {
        BASELINE: {"head": 10.0},
        LGD: {"head": 10.0, "mapper": 9.0},
        FGFI: {"head": 12.0},
        TEACHER: {"head": 20.0},
    }
    for arm, parts in at_peak.items():
        rows = [{"part": x, "direction": "forward", "gflop": ms * peak, "gbyte": 0.0} for x, ms in parts.items()]
        frame = pd.DataFrame(rows).assign(method="any", **described)
        frame.to_csv(tmp_path / f"roofline_{COUNTS[arm]}_{SETTING}_2cores_2026-01-01.csv", index=False)
    session = tmp_path / "gpu-session_h100_2026-01-02"
    for name in ("speed-retinanet", "breakdown"):
        (session / name).mkdir(parents=True)
    (session / "session.json").write_text(json.dumps({"dry": False}))
    empty = dict.fromkeys([*speed_table.COLUMNS, "objects"], "")
    timed = [{**empty, **image, "arm": arm, "side": "ours bf16", "median_ms": ms} for arm, ms in TIMES.items()]
    # A slower form counts for nothing.
    timed.append({**timed[0], "side": "ours fp32", "median_ms": 900.0})
    pd.DataFrame(timed).to_csv(session / "speed-retinanet" / "speed.csv", index=False)
    found = [{"part": "head", "ms": 20.0, "gflop": 5 * peak}, {"part": "mapper", "ms": 30.0, "gflop": 3 * peak}]
    pd.DataFrame(found).assign(method="lgd", precision="bf16").to_csv(session / "breakdown" / "breakdown.csv")
    return tmp_path


def test_the_tables(results: Path) -> None:
    text = markdown(results)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    at_limits = {line[0]: line[1:] for line in lines if len(line) == 3}
    assert at_limits["baseline"] == ["10.0 ms", "10.0 ms"]
    assert at_limits["LGD's extra over the fastest baseline, at most 0.45"] == ["0.90", "0.90"]
    # FGFI's extra is 2 ms, its teacher's training 20 ms.
    assert at_limits["LGD's method-specific cost below FGFI's, at least 0.70"] == [f"{1 - 9 / 22:.2f}"] * 2
    needed = [line[2:] for line in lines if line[0] == "gpu-session_h100_2026-01-02"]
    assert needed == [["0.5", "50.0", "18%", "45.0", "20%"], ["0.75", "50.0", "18%", "60.0", "15%"]]
    assert "own parts took 30.0 ms, at 10% of the peak, the whole step was at 16%: head 25%, mapper 10%." in text


def test_a_missing_or_different_count_is_named(results: Path) -> None:
    path = next(results.glob("roofline_fgfi_*.csv"))
    frame = pd.read_csv(path)
    frame.assign(height=640).to_csv(path, index=False)
    with pytest.raises(InputError, match="height differs"):
        markdown(results)
    path.unlink()
    with pytest.raises(InputError, match="no results roofline_fgfi_"):
        markdown(results)


def test_the_committed_sessions_shares_are_those_of_their_targets() -> None:
    text = markdown(RESULTS)
    for session in gpu_results.sessions(RESULTS):
        for what, measured, _ in gpu_results.targets(session):
            if "extra" in what or "FGFI" in what:
                rows = [x for x in text.splitlines() if session.name in x and what in x]
                assert len(rows) == 1
                assert rows[0].split("|")[3].strip() == measured


def test_the_committed_counts_are_of_the_trainings_that_were_timed() -> None:
    found = {arm: roofline.read(next(RESULTS.glob(f"roofline_{name}_{SETTING}_*.csv"))) for arm, name in COUNTS.items()}
    described = {arm: (x["method"].iloc[0], x["backbone"].iloc[0]) for arm, x in found.items()}
    assert described == {
        BASELINE: ("baseline", "resnet50"),
        LGD: ("lgd", "resnet50"),
        FGFI: ("fgfi", "resnet50"),
        TEACHER: ("baseline", "resnet101"),
    }
