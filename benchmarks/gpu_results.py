"""What a session on a GPU found: the figures of each measurement, and the targets against them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from analysis.evidence.first_run import NOTE
from benchmarks.gpu_plan import COMPILED
from benchmarks.speed import ARMS, BASELINE, FGFI, LGD, TEACHER
from lgd.errors import InputError
from lgd.files import write_text

LARGEST_PARTS = 4
"""Parts of a step that are named in the session's table."""

SAME_LOSS = 0.05
"""Largest relative difference of two losses that may be half precision's."""

NOT_BEGUN = "no time left"
"""Status of a measurement that there was no time for."""


def figures(name: str, directory: Path) -> str:
    """The most important numbers of what a measurement wrote, in one line; empty where it wrote none."""
    readers: dict[str, Callable[[Path], str]] = {
        "gpu-tests": _tests,
        "loader": _training,
        "ray-train": _training,
        "two-trials": _sweep,
        "changes": partial(_speed, by="side"),
        "breakdown": _breakdown,
    }
    by_kind = {"train": _sweep, "speed": _speed}
    reader = readers.get(name) or by_kind.get(name.partition("-")[0])
    try:
        return reader(directory) if reader else ""
    except (OSError, ValueError, KeyError, InputError, ElementTree.ParseError):
        return ""


def _tests(directory: Path) -> str:
    """Numbers of tests, and the names of those that failed."""
    # Written by pytest just now.
    cases = list(ElementTree.parse(directory / "junit.xml").iter("testcase"))
    failed = [str(x.get("name")) for x in cases if x.find("failure") is not None or x.find("error") is not None]
    skipped = sum(x.find("skipped") is not None for x in cases)
    text = f"{len(cases) - len(failed) - skipped} passed, {len(failed)} failed, {skipped} skipped"
    return f"{text}: {', '.join(failed)}" if failed else text


def _training(directory: Path) -> str:
    from lgd.results.record import load

    record = load(directory / "run" / "record.json")
    steps = record.experiment.schedule.steps
    wait = "" if record.data_wait is None else f", {record.data_wait:.1%} of it waiting for data"
    return f"{record.seconds['training'] / steps * 1e3:.0f} ms a step{wait}"


def _sweep(directory: Path) -> str:
    from analysis.load import arm_of, load_records, score_of, seed_of

    scores = [(x, score_of(x.student, "AP")) for x in load_records(directory / "sweep")]
    return ", ".join(f"{arm_of(x)} seed {seed_of(x)} AP {'n/a' if ap is None else f'{ap:.1f}'}" for x, ap in scores)


def _speed(directory: Path, by: str = "arm") -> str:
    import pandas as pd

    frame = pd.read_csv(directory / "speed.csv")
    # Of the rounds the median, then of the forms that an arm was measured in the fastest.
    each = frame.groupby([by, *(["side"] if by != "side" and "side" in frame else [])])["median_ms"].median()
    medians = each.groupby(level=0).min()
    return ", ".join(f"{name} {ms:.0f} ms" for name, ms in medians.items())


def _breakdown(directory: Path) -> str:
    """A step's milliseconds, of that the largest parts, and the least that its FLOPs take on this GPU, if known."""
    from benchmarks import breakdown

    frame = breakdown.read(directory / "breakdown.csv")
    parts = frame.groupby("part")["ms"].sum().nlargest(LARGEST_PARTS)
    limit = breakdown.limit_ms(frame)
    least = "" if limit is None else f"; {limit.sum():.0f} ms at the FLOPs' limit"
    return f"{frame['ms'].sum():.0f} ms, of it {', '.join(f'{name} {ms:.0f}' for name, ms in parts.items())}{least}"


def provenance_columns(*, dry: bool, commit: str) -> dict[str, str]:
    """Hardware, driver, versions, commit and time."""
    from lgd.results import provenance

    hardware, versions = provenance.hardware(), provenance.versions()
    return {
        "device": "cpu" if dry else "cuda",
        "gpu": "none" if dry else hardware["gpu"],
        "driver": "none" if dry else _driver(),
        "cpu": hardware["cpu"],
        "cores": hardware["cores"],
        "python": versions["python"],
        "torch": versions["torch"],
        "detectron2": versions["detectron2"],
        "git_commit": commit or provenance.git_commit(),
        "started": provenance.now(),
    }


def _driver() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "unknown"


def write_session(directory: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """session.csv, a row for each measurement with the provenance of its own call, and session.md, its table."""
    import pandas as pd

    rows = [
        {
            "measurement": name,
            "status": x["status"],
            "seconds": x["seconds"],
            "estimate_s": x["estimate"],
            "figures": x.get("figures", ""),
            "command": x.get("command", ""),
            **x.get("provenance", {}),
        }
        for name, x in results.items()
    ]
    write_text(directory / "session.csv", pd.DataFrame(rows).to_csv(index=False))
    write_text(directory / "session.md", page(directory))


def page(directory: Path) -> str:
    """The table of a session, the targets against what it measured, and where that was. Raises InputError without."""
    import pandas as pd

    from analysis.render import pipe_table

    path = directory / "session.csv"
    if not path.is_file():
        raise InputError(f"{path}: no session")
    frame = pd.read_csv(path, keep_default_na=False)
    cells = frame[["measurement", "status", "seconds", "figures"]].astype(str).to_numpy().tolist()
    lines = [pipe_table(["measurement", "status", "s", "figures"], cells, left=2), ""]
    if frame["device"].iloc[0] == "cpu":
        lines.append("- A dry run on the CPU at toy sizes: no number of it means anything.")
    else:
        lines += [pipe_table(["target", "measured", "met"], targets(directory)), ""]
    lines += _where(frame)
    note = directory / NOTE
    if note.is_file():
        lines = [note.read_text(encoding="utf-8").rstrip(), "", *lines]
    return "\n".join([*lines, ""])


def _where(frame: Any) -> list[str]:
    """Machine, versions, commit and time; a line for each that differ, since a session may go on with other code."""
    begun = frame[frame["status"] != NOT_BEGUN]
    same = ["gpu", "cpu", "driver", "python", "torch", "git_commit"]
    groups = list((frame if begun.empty else begun).groupby(same, sort=False))
    lines = []
    for (gpu, cpu, driver, python, torch, commit), rows in groups:
        # Of a measurement from before this was kept it is not known.
        times = sorted(filter(None, rows["started"])) or ["time unknown"]
        span = times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"
        names = f": {', '.join(rows['measurement'])}" if len(groups) > 1 else ""
        lines.append(
            f"- {gpu if gpu != 'none' else cpu}, driver {driver}; Python {python}, torch {torch}, commit {commit[:12]};"
            f" {span}{names}."
        )
    return lines


def session_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The measurements for a terminal."""
    return "\n".join(
        f"{name:26} {x['status']:13} {x['seconds']:6.0f} s  {x.get('figures', '')}" for name, x in results.items()
    )


def targets(directory: Path) -> list[list[str]]:
    """Each target of benchmarks/reference.yaml, what was measured, and whether that is enough.

    Nothing is said of that where ours and the naive implementation did not compute the same losses, on another GPU, and
    where it is enough on images smaller than those that the target is of.
    """
    import pandas as pd

    from benchmarks.speed_table import is_padded_less, reference_file

    rows, reference = [], reference_file()
    for target in reference["targets"]:
        # Measurements of the same steps compiled may stand beside it.
        names = [target["measurement"], *(f"{target['measurement']}-compiled-{arms[0].lower()}" for arms in COMPILED)]
        paths = [directory / name / "speed.csv" for name in names]
        found = [pd.read_csv(path) for path in paths if path.is_file()]
        value = _measured(pd.concat(found), target["of"]) if found else None
        limit, at_most = float(target["limit"]), target.get("at_most", True)
        met = "" if value is None else "yes" if (value <= limit if at_most else value >= limit) else "no"
        if any("loss_difference" in x and (x["loss_difference"] > SAME_LOSS).any() for x in found):
            met = "losses differ"
        elif met and any(not x["gpu"].astype(str).str.contains(reference["gpu"]).all() for x in found):
            met = f"not on {reference['gpu']}"
        elif any(is_padded_less(x) for x in found):
            # Missed on these is missed.
            met = "no, on smaller images" if met == "no" else "smaller images"
        rows.append([target["what"], "not measured" if value is None else f"{value:.3g}", met])
    return rows


def _measured(frame: Any, of: str) -> float | None:
    """A number of the rows of speed.py: the fastest form's ms or GiB of LGD, its extra, or what it saves over FGFI.

    The last is of the fastest form that baseline, LGD, FGFI and its teacher all have: one of them compiled and another
    not is no comparison.
    """
    medians = frame.groupby(["arm", "side"])["median_ms"].median()
    if LGD not in medians.index.get_level_values("arm"):
        return None
    fastest = {arm: medians[arm].idxmin() for arm in (BASELINE, LGD)}
    lgd, baseline = float(medians[LGD].min()), float(medians[BASELINE].min())
    if of == "ms":
        return lgd
    if of == "gib":
        rows = frame[(frame["arm"] == LGD) & (frame["side"] == fastest[LGD])]
        return float(rows["peak_mib"].max()) / 1024
    if of == "extra":
        return lgd / baseline - 1
    of_all = medians.unstack("arm").reindex(columns=list(ARMS)).dropna()
    if of_all.empty:
        return None
    row = of_all.loc[of_all[LGD].idxmin()]
    extra = row[LGD] - row[BASELINE]
    return float(1 - extra / (row[FGFI] - row[BASELINE] + row[TEACHER]))


def sessions(results: Path) -> list[Path]:
    """The committed sessions that were measured on a GPU, the newest first."""
    found = [x.parent for x in results.glob("gpu-session_*/session.json") if not json.loads(x.read_text())["dry"]]
    return sorted(found, key=lambda x: x.name.rsplit("_", 1)[-1], reverse=True)


def newer_sessions(results: Path) -> list[Path]:
    """Those of :func:`sessions` that are newer than :func:`newest_session`: their numbers need a note."""
    found = sessions(results)
    shown = newest_session(results)
    return found[: found.index(shown)] if shown else found


def newest_session(results: Path) -> Path | None:
    """The newest of :func:`sessions` whose numbers need no note; None without one."""
    return next((x for x in sessions(results) if not (x / NOTE).is_file()), None)
