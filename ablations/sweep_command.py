"""The command ``lgd sweep``: its options, and what each subcommand does. Loads little before they are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lgd.cli import Parser, answer
from lgd.config.data_source import add_data_arguments, source_of
from lgd.errors import InputError

if TYPE_CHECKING:
    from ablations.sweep import RunOptions
    from lgd.results.sweep_spec import SearchSpec, SweepSpec

PROG = "lgd sweep"

EXAMPLES = {
    "run": """\
lgd sweep run components                       # tiny preset, this machine's CPU, minutes
lgd sweep run components --preset small        # one GPU
lgd sweep run main --preset paper --data coco-json:/data/coco --seeds 3""",
    "search": """\
lgd sweep search components --samples 30 --early-stop
lgd sweep search components --objectives AP,gpu_hours""",
    "plan": """\
lgd sweep plan components --seeds 3
lgd sweep plan main --preset paper --measure --price-per-gpu-hour 2.5
lgd sweep plan --resume results/components-tiny""",
    "resume": "lgd sweep resume results/components-tiny --max-time 8h",
    "status": "lgd sweep status results/components-tiny",
    "list": "lgd sweep list components",
}

USAGE = {
    "run": "GRID [options]",
    "search": "GRID [options]",
    "plan": "GRID | --resume DIR [options]",
    "resume": "DIR [options]",
    "status": "DIR",
    "list": "[GRID] [--preset PRESET]",
}


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 all trials finished, 1 some failed or diverged, 2 wrong input, 3 budget spent, 130 interrupted."""

    def command() -> int:
        options = parser(prog).parse_args(arguments)
        return run(options.subcommand, options)

    return answer(command, "interrupted before a trial began")


def parser(prog: str = PROG) -> Parser:
    """Of the command and its subcommands."""
    whole = Parser(prog=prog, description="Train the arms of a grid side by side, and compare them.")
    subcommands = whole.add_subparsers(dest="subcommand", required=True, metavar="COMMAND", title="commands")
    for name, (add_options, _, summary) in SUBCOMMANDS.items():
        examples = "\n".join(f"  {line}" for line in EXAMPLES[name].splitlines())
        part = subcommands.add_parser(name, help=summary, description=summary, epilog=f"examples:\n{examples}")
        add_options(part)
        # Without a list of options that is longer than their explanation.
        part.usage = f"{prog} {name} {USAGE[name]}"
    return whole


def run(subcommand: str, options: argparse.Namespace) -> int:
    """Do what the options of a subcommand say."""
    if "train_json" in options:
        options.data = source_of(options, options.data)
    return SUBCOMMANDS[subcommand][1](options)


# -- options


def add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", metavar="GRID", help="which grid (see: lgd sweep list)")


def add_arms(parser: argparse.ArgumentParser) -> None:
    """Options that say what a sweep is."""
    group = parser.add_argument_group("the sweep")
    group.add_argument("--preset", default="tiny", help="tiny (CPU, minutes), small (one GPU) or paper (default: tiny)")
    group.add_argument("--data", metavar="SOURCE", help="as docs/data.md lists, such as coco-json:DIR")
    group.add_argument("--seeds", type=int, metavar="N", help="trainings of each arm (default: the grid's, mostly 1)")
    group.add_argument("--arms", metavar="A,B", help="only these arms, e.g. baseline,LGD")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a setting of every arm, e.g. schedule.steps=100; may be given several times",
    )  # fmt: skip
    group.add_argument("--output", type=Path, metavar="DIR", help="results directory (default: results/GRID-PRESET)")
    add_data_arguments(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the search")
    group.add_argument("--samples", type=int, metavar="N", help="trials, all commands together (default: 20)")
    group.add_argument("--objectives", metavar="A,B", help="AP (default), or AP,gpu_hours for the Pareto front of both")
    group.add_argument("--early-stop", action="store_true", help="end trials that fall behind in AP (ASHA)")


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Options that say where trials run."""
    group = parser.add_argument_group("where trials run")
    group.add_argument("--cpus", type=int, metavar="N", help="CPU cores of a worker (default: 1, or a GPU's share)")
    group.add_argument("--gpus", type=float, metavar="X", help="GPUs of a worker, a fraction or 1 (default: 1 if any)")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="workers that share a trial's steps")
    group.add_argument("--spread", action="store_true", help="put a trial's workers on nodes of their own")
    group.add_argument("--address", help="a running Ray cluster, e.g. auto or host:6379 (default: this machine)")


def add_consents(parser: argparse.ArgumentParser) -> None:
    """Options that allow what is refused without."""
    group = parser.add_argument_group("what to go on with")
    group.add_argument(
        "--accept-other-code", action="store_true", help="a directory whose trials other code or versions ran"
    )
    group.add_argument(
        "--retrain-damaged", action="store_true", help="train again what has a record that cannot be read"
    )
    group.add_argument("--yes", action="store_true", help="train without a GPU even where that takes more than a day")


def add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how long")
    group.add_argument("--max-gpu-hours", type=float, metavar="X", help="end the sweep when this call has used them")
    group.add_argument("--max-time", metavar="T", help="end the sweep after this time, e.g. 90s, 45m, 8h")


def add_cost(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the cost")
    group.add_argument("--measure", action="store_true", help="measure the steps that were not measured here yet")
    group.add_argument("--price-per-gpu-hour", type=float, metavar="X", help="say the price, too")
    group.add_argument("--verbose", action="store_true", help="print the settings, too")


def add_moved(parser: argparse.ArgumentParser) -> None:
    """Options of a sweep that goes on."""
    parser.add_argument("--data", metavar="SOURCE", help="where its data lies now, if elsewhere")
    add_data_arguments(parser)
    parser.add_argument("--samples", type=int, metavar="N", help="trials of its search, all commands together")


def _run_options(parser: argparse.ArgumentParser) -> None:
    for add in (add_grid, add_arms, add_placement, add_budget, add_consents):
        add(parser)


def _search_options(parser: argparse.ArgumentParser) -> None:
    for add in (add_grid, add_arms, add_search, add_placement, add_budget, add_consents):
        add(parser)


def _plan_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("grid", nargs="?", metavar="GRID", help="which grid (see: lgd sweep list)")
    which.add_argument("--resume", type=Path, metavar="DIR", help="what this results directory still lacks")
    for add in (add_arms, add_search, add_placement, add_cost, add_consents):
        add(parser)


def _resume_options(parser: argparse.ArgumentParser) -> None:
    _directory_option(parser)
    for add in (add_moved, add_placement, add_budget, add_consents):
        add(parser)


def _directory_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="results directory")


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", nargs="?", metavar="GRID", help="the arms of this grid")
    parser.add_argument("--preset", default="tiny", help="at whose size (default: tiny)")


# -- what they do


FLAGS = {"overrides": "set", "early_stop": "early-stop", "train_json": "train-json", "val_json": "val-json"}
"""Options whose name is not that of their value."""

WHERE_DATA_LIES = ("data", "train_json", "val_json", "images")

OF_THE_SWEEP = (*WHERE_DATA_LIES, "preset", "seeds", "arms", "overrides", "output", "objectives", "early_stop")
"""Options that a results directory knows."""


def new_sweep(options: argparse.Namespace, search: SearchSpec | None = None) -> tuple[SweepSpec, Path]:
    """The sweep that the options describe, with what its results directory holds already, and that directory."""
    from ablations.plan import describe, merge, search_note

    spec = describe(
        options.grid,
        options.preset,
        overrides=options.overrides,
        data=options.data,
        arms=options.arms,
        seeds=options.seeds,
        search=search,
    )
    note = search_note(spec, options.arms)
    if note:
        print(note)
    directory: Path = options.output or Path("results") / spec.label
    return merge(spec, directory), directory


def search_options(options: argparse.Namespace) -> SearchSpec:
    """The search that the options describe."""
    from ablations.plan import search_spec

    objectives = [x.strip() for x in (options.objectives or "AP").split(",")]
    return search_spec(20 if options.samples is None else options.samples, objectives, options.early_stop)


def old_sweep(directory: Path, options: argparse.Namespace) -> SweepSpec:
    """The sweep of a results directory; its data may lie elsewhere now, and its search may go on."""
    from ablations.plan import with_data_at, with_samples
    from lgd.results.sweep_spec import SweepSpec

    spec = SweepSpec.read(directory)
    if options.data:
        spec = with_data_at(spec, options.data)
    if options.samples is not None:
        spec = with_samples(spec, options.samples, directory)
    return spec


def take_as_it_is(options: argparse.Namespace, *, but_for: Sequence[str] = ()) -> None:
    """Refuse options that describe a sweep where its directory does."""
    default = parser()
    ours = default.parse_args(["search", ""])
    for name in OF_THE_SWEEP:
        if getattr(options, name) != getattr(ours, name) and name not in but_for:
            flag = FLAGS.get(name, name)
            raise InputError(f"--resume and --status take the sweep as it is: leave out --{flag}")


def run_options(options: argparse.Namespace) -> RunOptions:
    from ablations.limits import Placement
    from ablations.sweep import RunOptions

    placement = Placement(options.cpus, options.gpus, options.workers, options.spread, options.address)
    return RunOptions(placement, options.accept_other_code, options.yes, options.retrain_damaged)


def _run(options: argparse.Namespace) -> int:
    return _train(*new_sweep(options), options)


def _search(options: argparse.Namespace) -> int:
    return _train(*new_sweep(options, search_options(options)), options)


def _resume(options: argparse.Namespace) -> int:
    return _train(old_sweep(options.directory, options), options.directory, options)


def _train(spec: SweepSpec, directory: Path, options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.limits import Budget

    budget = Budget(options.max_gpu_hours, options.max_time)
    from ablations import sweep

    return sweep.run(spec, directory, run_options(options), budget, Console())


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.limits import CostOptions

    if options.resume:
        take_as_it_is(options, but_for=("data",))
        directory = options.resume
        spec = old_sweep(directory, options)
    else:
        searched = options.samples is not None or options.objectives or options.early_stop
        spec, directory = new_sweep(options, search_options(options) if searched else None)
    cost = CostOptions(options.measure, options.price_per_gpu_hour)
    from ablations import sweep

    return sweep.dry_run(spec, directory, run_options(options), cost, Console(), verbose=options.verbose)


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.plan import trials_of
    from ablations.status import show_status
    from ablations.sweep import resume_command
    from lgd.results.sweep_spec import SweepSpec

    sweep = trials_of(SweepSpec.read(options.directory), options.directory)
    show_status(sweep, resume_command(options.directory), Console())
    return 0


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.listing import list_arms, list_grids

    if options.grid:
        list_arms(options.grid, options.preset, Console())
    else:
        list_grids(options.preset, Console())
    return 0


SUBCOMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int], str]] = {
    "run": (_run_options, _run, "train what a grid still lacks, and print its table"),
    "search": (_search_options, _search, "search LGD's weights and components around a grid's base (Optuna)"),
    "plan": (_plan_options, _plan, "print what would run and what it will cost, and check it, without training"),
    "resume": (_resume_options, _resume, "run what a results directory still lacks"),
    "status": (_directory_option, _status, "how far a results directory is"),
    "list": (_list_options, _list, "the grids, or a grid's arms"),
}
"""Options, action and summary by name."""
