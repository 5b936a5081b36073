"""The end of a sweep: its tables, the trials that are missing, and an exit status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.console import Console

from ablations.begun_trials import begun_trials
from ablations.display import say
from ablations.limits import INTERRUPTED
from ablations.plan import Sweep
from ablations.search.optuna_search import Search
from ablations.search.search_results import show_search
from ablations.status import show_damaged, unfinished
from analysis.render import MOST_LISTED, print_table
from analysis.report.write import write_report
from lgd.results.record import FILE, load
from lgd.results.sweep_spec import SWEEP_FILE, SweepEnd
from lgd.storage.outputs import shown


def finish(sweep: Sweep, search: Search | None, why: str, resume: str, console: Console) -> int:
    """Write and show what there is; the exit status. why: the sweep ended early. resume: the command that goes on."""
    directory = sweep.directory
    left = [t for t in sweep.trials if not (t.directory / FILE).exists()]
    searched = search.records() if search else []
    samples = search.left() if search else 0
    # Those that failed are told as such, unless others have replaced them.
    failed = min(sum(record.status == "failed" for record in searched), samples)
    samples -= failed
    begun = begun_trials(directory) if left else {}
    not_run = [unfinished(trial, begun) for trial in left]
    not_run += [*sweep.deferred, *([f"{samples} samples of the search"] if samples else [])]
    # A line of an arm whose steps are not known yet stands for all of its seeds.
    deferred = len(sweep.deferred) * sweep.spec.seeds
    trials, missing = len(sweep.trials) + deferred + (search.samples if search else 0), len(left) + deferred + samples
    if why != INTERRUPTED and not not_run and sweep.spec.seeds == max(sweep.spec.looks, default=sweep.spec.seeds):
        # A budget that the last trial used up left nothing out.
        why = ""
    sweep.spec = sweep.spec.model_copy(update={"ended": SweepEnd(why=why, not_run=tuple(not_run))})
    sweep.spec.write(directory)
    if len(left) < len(sweep.trials) or searched:
        table, said, written = write_report(directory, [])
        print_table(table, console)
        for line in said.lines:
            say(console, line)
        if search:
            written += show_search(sweep.spec, search, console)
        say(console, "\n  ".join(["written:", *map(shown, written)]))
    for line in not_run[:MOST_LISTED]:
        say(console, f"not run: {line}")
    if len(not_run) > MOST_LISTED:
        say(console, f"not run: {len(not_run) - MOST_LISTED:,} more ({SWEEP_FILE} has a line for each)")
    damaged = [*sweep.damaged, *(search.damaged() if search else [])]
    show_damaged(damaged, resume, console)
    if why:
        say(console, f"{why} after {trials - missing} of {trials} trials; go on with: {resume}")
        return 130 if why == INTERRUPTED else 3
    not_trained = {t.name for t in left}
    statuses: Counter[str] = Counter(load(t.directory / FILE).status for t in sweep.trials if t.name not in not_trained)
    _show_unsuccessful(statuses + Counter(failed=failed), trials, missing, resume, console)
    all_finished = statuses["finished"] == len(sweep.trials)
    return 0 if all_finished and not failed and not samples and not sweep.deferred and not damaged else 1


def _show_unsuccessful(statuses: Mapping[str, int], trials: int, not_run: int, resume: str, console: Console) -> None:
    """Print how many trials failed, were not run and diverged, and the command that trains them."""
    failed, diverged = statuses.get("failed", 0), statuses.get("diverged", 0)
    again = [f"{failed} of {trials} trials failed"] if failed else []
    again += [f"{not_run} of {trials} trials not run"] if not_run else []
    if again:
        say(console, f"{', '.join(again)}; go on with: {resume}")
    if diverged:
        say(
            console,
            f"{diverged} of {trials} trials diverged, and would again: to train one of them all the same, remove its"
            f" {FILE} and go on with: {resume}",
        )
