"""How far the predicted cost of a sweep is from its recorded cost.

A small sweep is predicted from steps measured before it, runs, and is predicted again from steps measured after it.
Where the two predictions differ by more than STEADY, other work changed the speed of the machine meanwhile and the
comparison says nothing about the prediction: it is tried again. The error is that of the two predictions' mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lgd.cli import Parser, examples, exit_status
from lgd.errors import InputError
from lgd.signals import exit_on_interrupt

if TYPE_CHECKING:
    from lgd.config.experiment import Experiment
    from lgd.config.grids import Trial
    from lgd.distributed.resources import Resources

PROG = "ablations/prediction_error.py"

DESCRIPTION = "Predict the cost of a small sweep on this machine's CPU, run it, and compare (docs/cost.md)."

EXAMPLES = (" # a few minutes", "--steps 300 --tries 5")

STEADY = 0.1
"""Largest relative difference between the predictions before and after a sweep."""

TOLERANCE = 0.15
"""Largest relative error for exit status 0."""

ARMS: dict[str, dict[str, object]] = {
    "baseline": {"method.name": "baseline"},
    "LGD": {"method.name": "lgd"},
    # Its student is trained however little the teacher has learnt.
    "FGFI": {"method.name": "fgfi", "method.from_step": 10, "method.teacher.gate": False},
}
"""Changes by arm; FGFI's teacher is trained first."""


@dataclass(frozen=True)
class Comparison:
    """Device-seconds of one sweep: predicted before it, predicted after it, recorded, and predicted from its
    records."""

    before: float
    after: float
    recorded: float
    from_records: float
    """The prediction from what the sweep's own trainings took, which shows an error of the arithmetic alone."""

    @property
    def is_steady(self) -> bool:
        return abs(self.after / self.before - 1) <= STEADY

    @property
    def error(self) -> float:
        """Relative error of the predictions' mean."""
        return (self.before + self.after) / 2 / self.recorded - 1

    def line(self) -> str:
        line = (
            f"predicted {self.before:.1f} device-s before and {self.after:.1f} after, recorded {self.recorded:.1f}:"
            f" {self.error:+.1%}"
        )
        return line if self.is_steady else f"{line}; not counted, the machine's speed changed"


def summary(comparisons: Sequence[Comparison]) -> tuple[str, int]:
    """The result in one line, and the exit status: 0 within TOLERANCE, 1 beyond it or without a steady comparison."""
    steady = [x.error for x in comparisons if x.is_steady]
    if not steady:
        return f"no result: the machine's speed changed during each of {len(comparisons)} sweeps", 1
    best = min(steady, key=abs)
    within = abs(best) <= TOLERANCE
    return f"error {best:+.1%}, {'within' if within else 'beyond'} {TOLERANCE:.0%}", 0 if within else 1


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 within TOLERANCE, 1 not, 2 wrong input, 130 interrupted."""
    return exit_status(lambda: _run(parser(prog).parse_args(arguments)))


def parser(prog: str = PROG) -> Parser:
    parser = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="of each training (default: 150)")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="sweeps at most (default: 3)")
    return parser


def _run(options: argparse.Namespace) -> int:
    for name, least in (("steps", 11), ("tries", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: at least {least}")
    with exit_on_interrupt():
        from lgd.config.presets import preset
    sizes: dict[str, object] = {"data.min_sizes": [96], "data.max_size": 96, "data.test_size": 96}
    sizes |= {"data.shapes_side": 96, "data.shapes_train": 60, "data.shapes_val": 30, "evaluation.every": 0}
    schedule = {"schedule.steps": options.steps, "schedule.batch": 4, "schedule.warmup_steps": 10}
    line, status = summary(repeat(preset("nano").override({**sizes, **schedule}), options.tries, print))
    print(line)
    return status


def repeat(base: Experiment, tries: int, on_progress: Callable[[str], None]) -> list[Comparison]:
    """Comparisons until one is steady and within TOLERANCE, at most ``tries``. on_progress: gets a line for each."""
    found: list[Comparison] = []
    while len(found) < tries and (not found or summary(found)[1]):
        with tempfile.TemporaryDirectory() as directory:
            found.append(compare(base, Path(directory)))
        on_progress(found[-1].line())
    return found


def compare(base: Experiment, directory: Path) -> Comparison:
    """One sweep of ARMS of the training ``base``, one trial at a time on the CPU, in ``directory``."""
    with exit_on_interrupt():
        # Here, not at the top: they take seconds to import.
        from ablations.sweep_display import NoDisplay
        from ablations.trial_config import RecordLabels
        from ablations.tune.ray_sweep import run_sweep
        from benchmarks.measure_cost import update_from_records
        from benchmarks.measured_costs import MeasurementFile
        from benchmarks.predict_cost import predict
        from lgd.config.grids import Trial
        from lgd.distributed import ray_train
        from lgd.distributed.resources import Resources
        from lgd.results.record import FILE, load

    one = Resources(1, 0.0, 1)
    trials, again = (
        [Trial(arm, base.override(changes), root / "trials" / arm) for arm, changes in ARMS.items()]
        for root in (directory, directory / "again")
    )
    before = _predicted(again, one, directory / "before.json")
    with ray_train.cluster(None):
        run_sweep(trials, RecordLabels("prediction", "nano"), directory, one, NoDisplay())
    after = _predicted(again, one, directory / "after.json")
    records = [load(path) for path in directory.glob(f"t*/*/{FILE}")]
    if any(x.status != "finished" for x in records):
        raise RuntimeError(next(x.reason for x in records if x.status != "finished"))
    measurements = MeasurementFile(directory / "records.json")
    update_from_records(trials, one, measurements)
    from_records = predict(again, one, measurements).device_seconds
    return Comparison(before, after, sum(sum(x.device_seconds.values()) for x in records), from_records)


def _predicted(trials: Sequence[Trial], resources: Resources, path: Path) -> float:
    """Device-seconds of ``trials``, from steps that are measured now."""
    from benchmarks.measure_cost import measure_missing
    from benchmarks.measured_costs import MeasurementFile
    from benchmarks.predict_cost import predict

    measurements = MeasurementFile(path)
    measure_missing(trials, resources, measurements)
    found = predict(trials, resources, measurements)
    if found.missing:
        raise RuntimeError(f"not measured: {', '.join(found.missing)}")
    return found.device_seconds


if __name__ == "__main__":
    sys.exit(main())
