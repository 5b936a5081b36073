"""What Ray adds to a trial of a sweep: from its start to its training's beginning, and from its end to the next start.

Each trial is a real training of a few steps. Its record says what the run itself took (set-up, steps, evaluation). What
the sweep took beyond that, all slots together, is Ray's: coming up, placing, starting workers and importing torch in
them, reports, freeing, and a slot that stays empty because the last trials do not fill them all. ``overhead_s`` is the
part of it between a trial's start and its end, ``gap_s`` how long a slot stood empty between two trials.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.cli import Parser, examples, exit_status
from lgd.config.grids import Trial
from lgd.config.presets import NANO
from lgd.errors import InputError
from lgd.files import atomic_write
from lgd.results.record import FILE, load
from lgd.signals import exit_on_interrupt

if TYPE_CHECKING:
    import pandas as pd

PROG = "ablations/ray_overhead.py"

DESCRIPTION = "Measure what Ray adds to a trial of a sweep, with short trainings on this machine's CPU."

EXAMPLES = (
    "--cores 2  # single-worker trials; a few minutes",
    "--trials 12 --output benchmarks/results/ray-overhead.csv",
)

COLUMNS = ("trial", "worker", "trial_s", "run_s", "overhead_s", "gap_s")


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return exit_status(lambda: _run(parser(prog).parse_args(arguments)))


def parser(prog: str = PROG) -> Parser:
    parser = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    parser.add_argument("--trials", type=int, default=8, metavar="N", help="how many (default: 8)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="of each training (default: 20)")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="and trials side by side (default: 2)")
    parser.add_argument("--output", type=Path, metavar="CSV", help="write the table there, too")
    return parser


def _run(options: argparse.Namespace) -> int:
    for name, least in (("trials", 1), ("steps", 5), ("cores", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: at least {least}")
    table, whole = measure(options.trials, options.steps, options.cores)
    print(table.to_string(index=False, float_format="%.2f"))
    for worker, rows in table.groupby("worker"):
        print(f"{worker} worker: {rows['overhead_s'].median():.2f} s a trial (median of {len(rows)})")
    print(f"between two trials: {table['gap_s'].median():.2f} s (median)")
    each = (whole * options.cores - table["run_s"].sum()) / len(table)
    print(f"all in all: {each:.2f} s a trial ({len(table)} trials, {whole:.1f} s, {options.cores} side by side)")
    if options.output:
        from lgd.results import provenance

        with atomic_write(options.output) as temporary:
            described = {"sweep_s": whole, "all_in_all_s": each, **provenance.hardware()}
            table.assign(**described, commit=provenance.git_commit()).to_csv(temporary, index=False)
    return 0


def measure(trials: int, steps: int, cores: int) -> tuple[pd.DataFrame, float]:
    """A row a trial, seconds, and those of the whole sweep, Ray's coming and going included."""
    with exit_on_interrupt():
        # Here, not at the top: they take seconds to import. ray_sweep sets what ray.tune reads when it is imported.
        import pandas as pd

        from ablations.sweep_display import NoDisplay
        from ablations.trial_config import RecordLabels
        from ablations.tune.ray_sweep import run_sweep, trial_name
        from lgd.distributed import ray_train
        from lgd.distributed.resources import Resources
    from ray import tune

    class Clock(tune.Callback):
        def __init__(self) -> None:
            self.begun: dict[str, float] = {}
            self.ended: dict[str, float] = {}

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.begun[trial_name(trial)] = time.monotonic()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.ended[trial_name(trial)] = time.monotonic()

    quick = {"schedule.steps": steps, "schedule.warmup_steps": 2, "data.shapes_train": 64, "data.shapes_val": 16}
    base = NANO.override({**quick, "method.name": "baseline"})
    clock, begun = Clock(), time.monotonic()
    with tempfile.TemporaryDirectory() as directory, ray_train.cluster(None, cpus=cores):
        output = Path(directory)
        planned = [
            Trial(f"trial {i}", base.override({"seed": i}), output / "trials" / f"trial-{i}") for i in range(trials)
        ]
        run_sweep(
            planned, RecordLabels("overhead", "nano"), output, Resources(1, 0, cores), NoDisplay(), callbacks=[clock]
        )
        run = {t.name: sum(load(t.directory / FILE).seconds.values()) for t in planned}
    whole = time.monotonic() - begun
    order = sorted(clock.begun, key=lambda name: clock.begun[name])
    rows = []
    for i, name in enumerate(order):
        took = clock.ended[name] - clock.begun[name]
        # The slot that this trial took over was the one that had been free the longest.
        freed = sorted(clock.ended[x] for x in order[:i])
        gap = clock.begun[name] - freed[i - cores] if i >= cores else float("nan")
        worker = "new" if i < cores else "used"
        rows.append((name, worker, took, run[name], took - run[name], max(gap, 0.0) if gap == gap else gap))
    return pd.DataFrame(rows, columns=list(COLUMNS)), whole


if __name__ == "__main__":
    sys.exit(main())
