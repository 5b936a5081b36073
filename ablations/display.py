"""The display of a running sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablations.trial_config import ERROR_FILE
from lgd.cli import format_duration
from lgd.config.grids import Trial
from lgd.results.record import Record

LINE_PERIOD = 15.0
"""Seconds between two lines about one trial where there is no terminal."""

UNKNOWN = {"loss": math.nan, "eta": math.nan}
"""A trial's progress before its first report."""


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _relative(path: Path) -> Path:
    """``path`` from here, where it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def shown_loss(loss: float) -> str:
    """``loss 0.910``, or a dash before the first that is known: a loss that is not finite ends a training."""
    return f"loss {loss:.3f}" if math.isfinite(loss) else "loss –"


def outcome(record: Record) -> str:
    """One phrase for how a run ended."""
    if record.status != "finished":
        return f"{record.status}: {next(iter(record.reason.splitlines()), 'no reason given')}"
    ap = "n/a" if record.student is None or record.student.AP is None else f"{record.student.AP:.1f}"
    return f"AP {ap}, {format_duration(record.seconds.get('training', 0))} training"


def seconds_until_all_end(ends: Sequence[float], waiting: int, each: float) -> float:
    """Seconds until the last trial ends, where a waiting one begins as soon as another has ended.

    ends: when each slot is free, seconds from now. each: seconds that a waiting trial takes. The number of operations
    does not grow with ``waiting``: the display asks at every report of every trial.
    """
    ends, longest = sorted(ends), 0.0
    if waiting <= 0 or each <= 0:
        return ends[-1]
    if math.isinf(each):
        return each
    # How many begin in each slot before the last one is free; where there are not so many, none begins in that.
    while waiting < sum(first := [math.ceil((ends[-1] - end) / each) for end in ends]) and len(ends) > 1:
        longest = max(longest, ends.pop())
    rounds, rest = divmod(waiting - sum(first), len(ends))
    ends = [end + (n + rounds) * each for end, n in zip(ends, first, strict=True)]
    heapq.heapify(ends)
    for _ in range(rest):
        heapq.heapreplace(ends, ends[0] + each)
    return max(longest, *ends)


class SweepDisplay:
    """Follows a sweep; use as a context manager around it.

    trials: those to run now. total, finished: of the whole sweep, so that a resumed one counts on.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        total: int,
        finished: int,
        max_concurrent: int,
        console: Console,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trials = {t.name: t for t in trials}
        self._total, self._done, self._max_concurrent = total, finished, max_concurrent
        self._console, self._now = console, now
        self._running: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, float] = {}
        self._took = 0.0
        self._timed = 0
        self._said: dict[str, float] = {}
        self._start = now()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
            self._refresh()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def add(self, trial: Trial) -> None:
        """A trial that nobody planned: a teacher's, or one that a search proposed."""
        if trial.name not in self._trials:
            self._trials[trial.name] = trial
            if trial.arm == "teacher":
                self._total += 1

    def progress(self, name: str, progress: dict[str, Any]) -> None:
        """A running trial is at ``progress`` (see lgd/training/progress.py)."""
        now = self._now()
        self._begun.setdefault(name, now)
        # A report after an evaluation knows neither loss nor pace: what was known before still holds.
        known = {key: x for key, x in progress.items() if not (isinstance(x, float) and math.isnan(x))}
        self._running[name] = progress = {**UNKNOWN, **self._running.get(name, {}), **known}
        if self._live:
            self._refresh()
        elif now - self._said.get(name, -math.inf) >= LINE_PERIOD:
            self._said[name] = now
            self._console.print(
                f"  {self._label(name)}: step {progress['step']}/{progress['steps']}, {shown_loss(progress['loss'])},"
                f" ETA {format_duration(progress['eta'])}; whole sweep ETA {format_duration(self._remaining())}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def restarted(self, name: str, cause: str) -> None:
        """A trial's worker is gone, and another one goes on with it. cause: in a phrase."""
        self._console.print(f"  {self._label(name)}: {cause}", markup=False, highlight=False, soft_wrap=True)

    def ended(self, name: str, record: Record) -> None:
        """A trial ended, one way or another."""
        now = self._now()
        self._running.pop(name, None)
        if name in self._begun:
            self._took += now - self._begun.pop(name)
            self._timed += 1
        self._done += 1
        colour = {"finished": "green", "diverged": "yellow", "failed": "red", "stopped": "cyan"}[record.status]
        line = Text(f"[{self._done}/{self._total}] ")
        label = f"{self._label(name)} ({record.ours})" if record.ours else self._label(name)
        line.append(label, style="bold").append(": ").append(outcome(record), style=colour)
        traceback = self._trials[name].directory / ERROR_FILE
        if record.status == "failed" and traceback.exists():
            line.append(f" (see {_relative(traceback)})")
        self._console.print(line, soft_wrap=True, highlight=False)
        self._refresh()

    def _label(self, name: str) -> str:
        trial = self._trials[name]
        return f"{trial.arm}, seed {trial.experiment.seed}"

    def _remaining(self) -> float:
        """Seconds until the sweep ends: each running trial by its own pace, each waiting one as long as those so far
        took, begun as soon as another has ended."""
        paces = [
            self._now() - self._begun[name] + p["eta"] for name, p in self._running.items() if not math.isnan(p["eta"])
        ]
        mean = self._took / self._timed if self._timed else sum(paces) / len(paces) if paces else math.inf
        # Of a trial whose pace is not known yet, the others' is the best guess.
        running = [mean if math.isnan(p["eta"]) else max(float(p["eta"]), 0.0) for p in self._running.values()]
        ends = [*running, *[0.0] * (self._max_concurrent - len(running))]
        return seconds_until_all_end(ends, self._total - self._done - len(running), mean)

    def _refresh(self) -> None:
        if not self._live:
            return
        table = Table(box=None, padding=(0, 1), show_header=False)
        for name, progress in sorted(self._running.items()):
            table.add_row(
                self._label(name),
                ProgressBar(total=progress["steps"], completed=progress["step"], width=24),
                f"{progress['step']}/{progress['steps']}",
                shown_loss(progress["loss"]),
                f"ETA {format_duration(progress['eta'])}",
            )
        head = Text(
            f"{self._done}/{self._total} trials, {format_duration(self._now() - self._start)} so far,"
            f" ETA {format_duration(self._remaining())}",
            style="bold",
        )
        self._live.update(Group(head, table))
