"""The command ``lgd pays``: does distillation pay on this data? Plans, trains and answers. Loads little at first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablations import sweep_command
from lgd.cli import Parser, examples, exit_status
from lgd.config.data_source import add_data_arguments, source_of, split_overrides
from lgd.config.detector_options import add_detector_arguments, detector_overrides
from lgd.config.experiment import split_assignment
from lgd.errors import InputError
from lgd.storage.outputs import fetch_records, output_option

if TYPE_CHECKING:
    from lgd.results.sweep_spec import SweepSpec

PROG = "lgd pays"

DESCRIPTION = """\
Answer whether distillation pays on your data, with a verdict (docs/verdict.md)."""

EXAMPLES = (
    "--data coco-json:/data/mine --budget 8h",
    "--data voc:/data/voc --methods lgd,pkd --min-gain 1.0",
    "--data shapes --preset tiny --budget 30m    # on a laptop",
    "--data coco-json:/data/mine --plan          # what it would run and cost",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 all trials finished, 1 some failed or diverged, 2 wrong input, 3 budget spent, 130 interrupted."""
    return exit_status(lambda: _run(parser(prog).parse_args(arguments)), "interrupted before a trial began")


def parser(prog: str = PROG) -> Parser:
    found = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    group = found.add_argument_group("the question")
    group.add_argument("--data", metavar="SOURCE", help="as docs/data.md lists, such as coco-json:DIR")
    group.add_argument("--methods", default="lgd", metavar="A,B", help="methods to try (default: lgd; docs/method.md)")
    group.add_argument("--min-gain", type=float, metavar="AP", help="the smallest gain that matters (default: 0.5 AP)")
    # Its name in older commands.
    group.add_argument("--detect", dest="min_gain", type=float, help=argparse.SUPPRESS)
    group.add_argument(
        "--budget", "--max-time", metavar="T", help="end after this time, e.g. 45m, 8h; the same command goes on"
    )
    group.add_argument("--max-seeds", type=int, metavar="N", help="trainings of each arm at most (default: 15)")
    group.add_argument("--bigger", action="store_true", help="try the plain detector on a larger backbone, too")
    group.add_argument(
        "--a-a", action="store_true", help="train the plain detector twice: what no difference looks like"
    )
    group = found.add_argument_group("how it is trained")
    group.add_argument(
        "--preset",
        metavar="PRESET",
        help="tiny (CPU), small, paper or finetune (default: finetune with a GPU, else tiny)",
    )
    add_detector_arguments(group)
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a setting of every arm; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--output", type=output_option, metavar="DIR", help="results directory, or a URL (default: results/pays-PRESET)"
    )
    group.add_argument("--plan", action="store_true", help="print what would run first and its cost, without training")
    group.add_argument(
        "--measure", action="store_true", help="the same, with times: of some steps where none are known"
    )
    add_data_arguments(found)
    sweep_command.add_placement(found)
    sweep_command.add_confirmations(found)
    return found


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.display import say
    from ablations.limits import Budget, CostOptions

    budget = Budget(max_time=options.budget, option="--budget")
    spec, directory = described(options)
    # Here, not at the top: it loads Ray.
    from ablations import sweep

    run_options, console = sweep_command.run_options(options), Console()
    say(console, plan_text(spec, options.budget))
    if options.plan or options.measure:
        return sweep.dry_run(spec, directory, run_options, CostOptions(options.measure), console)
    return sweep.run(spec, directory, run_options, budget, console)


def plan_text(spec: SweepSpec, budget: str | None) -> str:
    """What will be trained, until when, in a line."""
    first, last = spec.looks[0], spec.looks[-1]
    until = f", or {budget} are over" if budget else ""
    return (
        f"preset {spec.preset}: {', '.join(spec.arms)}; {first} seeds of each, then more, {last} at most, until a"
        f" difference of {spec.min_gain:g} AP can be ruled in or out{until}"
    )


def described(options: argparse.Namespace) -> tuple[SweepSpec, Path]:
    """The sweep that answers the question, with what its results directory holds already, and that directory."""
    from ablations.plan import describe, merge
    from ablations.rounds import looks
    from lgd.config.extra_arms import ExtraArms
    from lgd.config.pays_grid import PAYS

    source = source_of(options, options.data)
    if source is None:
        raise InputError("say on which data: --data SOURCE (docs/data.md), or --train-json, --val-json and --images")
    preset = options.preset or ("finetune" if _has_gpu() else "tiny")
    arms = ["baseline", *arms_of(options.methods)]
    overrides = [*detector_overrides(options, options.overrides, preset), *split_overrides(options)]
    for assignment in overrides:
        if split_assignment(assignment)[0] == "method.name":
            raise InputError(f"--set {assignment}: say --methods")
    spec = describe(
        PAYS,
        preset,
        overrides=overrides,
        data=source,
        arms=",".join(arms),
        extra=ExtraArms(equal_cost=("longer", "bigger") if options.bigger else ("longer",), again=options.a_a),
        min_gain=options.min_gain,
        looks=looks(None, options.max_seeds),
    )
    directory: Path = options.output or Path("results") / spec.label
    fetch_records(directory)
    return merge(spec, directory), directory


def arms_of(methods: str) -> list[str]:
    """The arms of methods given by name, with commas between. Raises InputError for one that is not known."""
    from lgd.config.pays_grid import FIRST_STAGES, arm_of_method

    names = [x.strip() for x in methods.split(",")]
    for name in names:
        if name == "baseline" or name in FIRST_STAGES:
            raise InputError(f"--methods {name}: it is what methods are compared with, or prepares one")
    return [arm_of_method(name) for name in names]


def _has_gpu() -> bool:
    from lgd.signals import exit_on_interrupt

    with exit_on_interrupt():
        import torch
    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
