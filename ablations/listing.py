"""The grids and their arms, as ``lgd sweep list`` shows them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ablations.display import say
from lgd.config.arms import Arm
from lgd.config.grids import grid, names_at
from lgd.config.paper import paper


def list_grids(size: str, console: Console) -> None:
    """A line a grid: its name, how many arms it has, and what it is about."""
    for each in (grid(name, size) for name in names_at(size)):
        arms = sum(not (arm.skipped or arm.on_request) for arm in each.arms)
        line = f"{each.name:<14} {arms:>3} arm{'s' if arms != 1 else ' '}  {each.title}"
        say(console, line if len(line) <= console.width else f"{line[: console.width - 1]}…")
    say(console, "the arms of one: lgd sweep list GRID")


def list_arms(name: str, size: str, console: Console) -> None:
    """The arms of the grid ``name`` at a preset's size."""
    each = grid(name, size)
    table = Table(title=f"{each.name}: {each.title}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for head in ("arm", "changes", "question"):
        table.add_column(head)
    for arm in each.arms:
        # The rest of a table's row is in its name.
        changes = ", ".join(f"{k}={v}" for k, v in arm.changes.items() if not k.startswith("method.teacher.backbone."))
        table.add_row(arm.name, changes or "(none)", _question(each.name, arm))
    console.print(table)


def _question(table: str, arm: Arm) -> str:
    """The arm's question, or why it is skipped, or what the paper reports for it."""
    if arm.on_request:
        return f"with --arms: {arm.question}"
    if arm.skipped or arm.training is None:
        return f"skipped: {arm.skipped}" if arm.skipped else arm.question
    known, metrics = paper().tables[table], paper().metrics
    cells = ((metrics[x], known.value(arm.training, x)) for x in known.metrics)
    said = ", ".join(f"{metric.title} {value:.1f} {metric.unit}" for metric, value in cells if value is not None)
    return f"the paper: {said}" if said else "the paper: not reported"
