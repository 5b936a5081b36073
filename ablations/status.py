"""How far a results directory is, from its records alone. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ablations.begun_trials import begun_trials
from ablations.damaged import damage
from ablations.display import outcome, say
from ablations.plan import Sweep
from analysis.verdicts.sentences import summary
from lgd.config.grids import Trial
from lgd.results.record import FILE, Record
from lgd.results.sweep_spec import SEARCHED


def show_status(sweep: Sweep, records: Mapping[str, Record], resume: str, console: Console) -> None:
    """A line a trial, and how many are finished. records: by name of a trial. resume: the command that goes on."""
    finished, begun = 0, begun_trials(sweep.directory)
    table = Table(box=None, padding=(0, 2, 0, 0))
    # A trial's name, that of its directory, is one word.
    table.add_column("trial", no_wrap=True)
    table.add_column("state")
    for trial in sweep.trials:
        record = records.get(trial.name)
        if record is not None:
            finished += record.status == "finished"
            table.add_row(trial.name, f"{outcome(record)} ({record.ours})" if record.ours else outcome(record))
        else:
            at = f"begun, no record: {unfinished(trial, begun)}" if trial.name in begun else "not begun"
            table.add_row(trial.name, at)
    console.print(table)
    console.print(f"{finished} of {len(sweep.trials) + len(sweep.damaged)} trials finished", highlight=False)
    searched = searched_trials(sweep.directory)
    if searched:
        console.print(f"{len(searched)} trials of a search", highlight=False)
    show_damaged([*sweep.damaged, *filter(None, map(damage, searched))], resume, console)
    if finished:
        for line in summary(list(records.values()), sweep.directory).lines:
            say(console, f"so far: {line}" if not line.startswith("next:") else line)


def show_damaged(damaged: Sequence[str], resume: str, console: Console) -> None:
    """Print the damaged trials, and the command that trains them again."""
    for line in damaged:
        say(console, f"left out: {line}")
    if damaged:
        say(console, f"to train it again: {resume} --retrain-damaged")


def searched_trials(directory: Path) -> list[Path]:
    """The directories of a search's trials that have a record."""
    return sorted(path.parent for path in directory.glob(f"trials/{SEARCHED}*/{FILE}"))


def unfinished(trial: Trial, begun: Mapping[str, int | None]) -> str:
    """A trial without a record, and how far it is. begun: as :func:`begun_trials` returns it."""
    step = begun.get(trial.name)
    at = "" if step is None else f" (checkpoint after step {step})"
    return f"{trial.arm}, seed {trial.experiment.seed}{at}"
