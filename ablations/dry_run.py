"""The plan of a sweep: its trials and their predicted cost, without training."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ablations.checks import Checked
from ablations.display import say
from ablations.limits import CostOptions
from ablations.plan import Sweep
from benchmarks.measure_cost import measure_missing
from benchmarks.predict_cost import predict
from lgd.config.grids import Trial
from lgd.config.settings import settings
from lgd.distributed.resources import Resources


def show_plan(
    sweep: Sweep, checked: Checked, resources: Resources, options: CostOptions, verbose: bool, console: Console
) -> None:
    """The cost, a line a trial, and with ``verbose`` the settings that the arms share."""
    say(console, f"{len(checked.missing)} of {len(sweep.trials)} trials to run, {resources.description}")
    _show_cost(checked, resources, options, console)
    for line in sweep.deferred:
        say(console, f"later: {line}")
    if checked.memory:
        say(console, checked.memory)
    for line in checked.detectors:
        say(console, line)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("trial", "steps", "to run", "fingerprint"):
        table.add_column(head)
    for trial in sweep.trials:
        needed = "yes" if trial in checked.missing else "has a record"
        table.add_row(trial.name, str(trial.experiment.schedule.steps), needed, checked.fingerprints.get(trial.arm, ""))
    console.print(table)
    if verbose:
        say(console, "settings shared by the arms:")
        each = [settings(trial.experiment) for trial in sweep.trials]
        for key, value in each[0].items() if each else ():
            if not key.startswith("method.") and all(x[key] == value for x in each):
                say(console, f"  {key} = {value!r}")


def _show_cost(checked: Checked, resources: Resources, options: CostOptions, console: Console) -> None:
    """Print the predicted cost of the sweep, from steps that were measured on this machine."""
    planned, search = list(checked.missing), checked.search
    samples = search.left() if search is not None else 0
    if search is not None and samples:
        # A search's trials are taken to cost what its method whole does; components that are off make some cheaper.
        say(console, f"and {samples} samples of a search")
        place = search.output / "trials"
        arm = f"{search.base.method.title} (search)"
        planned += [Trial(arm, search.base, place / f"search-{i}") for i in range(samples)]
    if options.measure:
        measure_missing(planned, resources, on_progress=lambda text: say(console, text))
    for line in predict(planned, resources).lines(options.price_per_gpu_hour):
        say(console, line)
