"""What LGD's targets on a GPU would need: the counts of roofline.py against the times of the committed GPU sessions.

The counts of four trainings give lower bounds of their steps. A ratio of lower bounds is no bound of the steps' ratio:
so the second table asks how fast LGD's extra operators would have to run beside a step as it was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.evidence.first_run import NOTE
from analysis.render import pipe_table
from benchmarks import roofline, speed_table
from benchmarks.gpu_results import sessions
from benchmarks.options import read_results
from benchmarks.speed import BASELINE, FGFI, LGD, TEACHER
from lgd.errors import InputError

COUNTS = {BASELINE: "baseline", LGD: "lgd", FGFI: "fgfi", TEACHER: "fgfi-teacher"}
"""By arm: its count is ``roofline_COUNT_SETTING_HARDWARE_DATE.csv``."""

MEASUREMENT, PRECISION, SETTING = "speed-retinanet", "bf16", "paper-retinanet-bf16"

SAME = ("detector", "batch", "height", "width")
"""Columns in which counts and times must agree."""


def shares(times: Mapping[str, float]) -> dict[str, float]:
    """By kind of target, from a time of each arm: LGD's extra over the baseline, and what it saves over FGFI."""
    extra = times[LGD] - times[BASELINE]
    return {"extra": extra / times[BASELINE], "saved": 1 - extra / _fgfi_cost(times)}


def allowed(times: Mapping[str, float], of: str, limit: float) -> float:
    """Longest time of LGD's extra that meets a target, the other arms' times as they are."""
    return limit * times[BASELINE] if of == "extra" else (1 - limit) * _fgfi_cost(times)


def _fgfi_cost(times: Mapping[str, float]) -> float:
    """FGFI's method-specific cost, if its teacher takes as many steps."""
    return times[FGFI] - times[BASELINE] + times[TEACHER]


def markdown(results: Path) -> str:
    """Both tables and their notes. Raises InputError without the counts, or where they are not of the same images."""
    reference = speed_table.reference_file()
    limits = reference["limits"]
    targets = [x for x in reference["targets"] if x["measurement"] == MEASUREMENT and x["of"] in ("extra", "saved")]
    paths = {arm: _newest(results, name) for arm, name in COUNTS.items()}
    counts = {arm: roofline.read(path) for arm, path in paths.items()}
    _check_alike([*counts.values()], [*SAME, "objects"])
    bounds = {arm: roofline.bounds(x, limits, PRECISION) for arm, x in counts.items()}
    by = {column: {arm: float(x[column].sum()) for arm, x in bounds.items()} for column in ("bound_ms", "compute_ms")}
    rows = [[arm, *(f"{x[arm]:.1f} ms" for x in by.values())] for arm in COUNTS]
    rows += [[x["what"], *(f"{shares(times)[x['of']]:.2f}" for times in by.values())] for x in targets]
    header = ["at the data sheet's limits", "longer of FLOPs and bytes", "FLOPs alone"]
    # 1 TFLOP/s is 1 GFLOP a millisecond.
    extra = sum(bounds[LGD]["gflop"]) - sum(bounds[BASELINE]["gflop"])
    needed = ["GPU session", "target", "measured", "ms of LGD's extra", "part of peak", "ms allowed", "part needed"]
    timed = _timed(results, counts[BASELINE])
    cells = [_needed(*x, target, extra / limits["tflops"][PRECISION]) for x in timed.items() for target in targets]
    own = set(bounds[LGD]["part"]) - set(bounds[BASELINE]["part"])
    notes = [
        *_notes(paths, counts[BASELINE].iloc[0], limits, extra),
        *_breakdown(results, own, limits["tflops"][PRECISION]),
    ]
    return "\n".join([pipe_table(header, rows), "", pipe_table(needed, cells, left=2), "", *(f"- {x}" for x in notes)])


def _needed(session: Path, times: Mapping[str, float], target: Mapping[str, Any], at_peak: float) -> list[str]:
    """A target against a session. at_peak: milliseconds that the FLOPs of LGD's extra take at the peak."""
    extra, most = times[LGD] - times[BASELINE], allowed(times, target["of"], target["limit"])
    cells = [f"{shares(times)[target['of']]:.3g}", f"{extra:.1f}", f"{at_peak / extra:.0%}"]
    name = f"{session.name}, with its note" if (session / NOTE).is_file() else session.name
    return [name, str(target["what"]), *cells, f"{most:.1f}", f"{at_peak / most:.0%}"]


def _timed(results: Path, count: pd.DataFrame) -> dict[Path, dict[str, float]]:
    """By session with all arms, the newest first: milliseconds of each arm's fastest form."""
    found = {}
    for session in sessions(results):
        path = session / MEASUREMENT / "speed.csv"
        if path.is_file():
            frame = speed_table.read(path)
            _check_alike([count, frame], SAME)
            ms = frame.groupby(["arm", "side"])["median_ms"].median().groupby("arm").min()
            if set(COUNTS) <= set(ms.index):
                found[session] = {arm: float(ms[arm]) for arm in COUNTS}
    return found


def _notes(paths: Mapping[str, Path], first: pd.Series[Any], limits: Mapping[str, Any], extra: float) -> list[str]:
    """first: a row of the baseline's count."""
    files = ", ".join(f"{arm} `{path.name}`" for arm, path in paths.items())
    return [
        "FLOPs alone: as if fusion saved all reading and writing. Both columns are lower bounds of a step, so their"
        " ratios bound no measured ratio.",
        f"Part of peak: the {extra / 1e3:.1f} TFLOP of LGD's extra in that time, of {limits['tflops'][PRECISION]:g}"
        f" TFLOP/s ({limits['source']}). Part needed: in the ms allowed, which meet the target if the baseline, FGFI"
        " and its teacher take as long as measured.",
        f"Counted with {first['objects']:g} boxes an image: {files}.",
    ]


def _breakdown(results: Path, own: set[str], peak: float) -> list[str]:
    """The part of the peak in the newest breakdown of LGD's step: of its own parts, together and alone."""
    for session in sessions(results):
        path = session / "breakdown" / "breakdown.csv"
        if path.is_file():
            frame = read_results(path, ("part", "ms", "gflop", "method", "precision"))
            if set(frame["method"]) != {"lgd"} or set(frame["precision"]) != {PRECISION}:
                continue
            parts = frame.groupby("part", sort=False)[["gflop", "ms"]].sum()
            each = (parts["gflop"] / parts["ms"] / peak)[parts["gflop"] > 0]
            lgd, whole = parts[parts.index.isin(own)].sum(), parts.sum()
            return [
                f"In the breakdown of {session.name} LGD's own parts took {lgd['ms']:.1f} ms, at"
                f" {lgd['gflop'] / lgd['ms'] / peak:.0%} of the peak, the whole step was at"
                f" {whole['gflop'] / whole['ms'] / peak:.0%}:"
                f" {', '.join(f'{part} {value:.0%}' for part, value in each.items())}."
            ]
    return []


def _newest(results: Path, name: str) -> Path:
    pattern = f"roofline_{name}_{SETTING}_*.csv"
    # Names end with the date.
    found = sorted(results.glob(pattern), key=lambda path: path.stem.rsplit("_", 1)[-1])
    if not found:
        raise InputError(f"{results}: no results {pattern}")
    return found[-1]


def _check_alike(frames: list[pd.DataFrame], columns: list[str] | tuple[str, ...]) -> None:
    for column in columns:
        values = {str(value) for frame in frames for value in frame[column]}
        if len(values) > 1:
            raise InputError(f"roofline counts and GPU times: {column} differs ({', '.join(sorted(values))})")
