"""The command ``lgd sweep``: its options, and what each subcommand does. Loads little before they are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.search.options import add_search, print_space, search_options
from lgd.cli import Parser, examples, exit_status
from lgd.config.data_source import add_data_arguments, source_of, split_overrides
from lgd.config.detector_options import add_detector_arguments, detector_overrides
from lgd.config.detector_source import check_named_again
from lgd.errors import InputError
from lgd.storage.outputs import fetch_records, input_option, output_option

if TYPE_CHECKING:
    from ablations.sweep import RunOptions
    from lgd.config.extra_arms import EqualCost
    from lgd.results.record import Record
    from lgd.results.sweep_spec import SearchSpec, SweepSpec

PROG = "lgd sweep"

EXAMPLES = {
    "run": (
        "components                       # tiny preset, this machine's CPU, minutes",
        "components --preset small        # one GPU",
        "main --preset paper --seeds 3    # the paper's table, MS-COCO in datasets/coco",
    ),
    "search": (
        "components --samples 30 --early-stop",
        "components --objectives AP,gpu_hours --plan   # what it would cost",
    ),
    "plan": (
        "components --seeds 3",
        "main --preset paper --measure --price-per-gpu-hour 2.5",
    ),
    "resume": (
        "results/components-tiny --max-time 8h",
        "results/components-tiny --plan   # what is left, and its cost",
    ),
    "status": ("results/components-tiny",),
    "list": ("components",),
}
"""Arguments by subcommand; the first of each are the whole command's examples."""

USAGE = {
    **dict.fromkeys(("run", "search", "plan"), "GRID [options]"),
    "resume": "DIR [options]",
    "status": "DIR",
    "list": "[GRID] [--preset PRESET]",
}


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 all trials finished, 1 some failed or diverged, 2 wrong input, 3 budget spent, 130 interrupted."""

    def command() -> int:
        options = parser(prog).parse_args(arguments)
        return run(options.subcommand, options)

    return exit_status(command, "interrupted before a trial began")


def parser(prog: str = PROG) -> Parser:
    """Parser of the command and its subcommands."""
    whole = Parser(
        prog=prog,
        description="Train the arms of a grid side by side, or search around its base, and compare them in one table.",
        epilog=examples(prog, *(f"{name} {lines[0]}" for name, lines in EXAMPLES.items())),
    )
    subcommands = whole.add_subparsers(dest="subcommand", required=True, metavar="COMMAND", title="commands")
    for name, (add_options, _, summary) in SUBCOMMANDS.items():
        epilog = examples(f"{prog} {name}", *EXAMPLES[name])
        part = subcommands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=epilog
        )
        add_options(part)
        # Without a list of options that is longer than their explanation.
        part.usage = f"{prog} {name} {USAGE[name]}"
    return whole


def run(subcommand: str, options: argparse.Namespace) -> int:
    """Do what the options of a subcommand say."""
    if "train_json" in options:
        options.data = source_of(options, options.data)
        if split := split_overrides(options):
            if subcommand == "resume":
                raise InputError("--val-fraction: resuming takes the sweep's own split")
            options.overrides = [*options.overrides, *split]
    if "detector_set" in options and subcommand != "resume":
        options.overrides = detector_overrides(options, options.overrides, options.preset)
    return SUBCOMMANDS[subcommand][1](options)


# -- options


def add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", metavar="GRID", help="which grid (see: lgd sweep list)")


def add_arms(parser: argparse.ArgumentParser) -> None:
    """Options that say what a sweep is."""
    group = parser.add_argument_group("the sweep")
    group.add_argument(
        "--preset", default="tiny", metavar="PRESET",
        help="tiny (CPU, minutes), small (one GPU), paper, finetune for your data, or nano for tests (default: tiny)"
    )  # fmt: skip
    group.add_argument("--data", metavar="SOURCE", help="as docs/data.md lists, such as coco-json:DIR")
    add_detector_arguments(group)
    group.add_argument("--seeds", type=int, metavar="N", help="trainings of each arm (default: the grid's, mostly 1)")
    group.add_argument("--arms", metavar="A,B", help="only these arms, e.g. baseline,LGD")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a setting, e.g. schedule.steps=100 (repeatable)",
    )  # fmt: skip
    where = "directory or URL (default: results/GRID-PRESET)"
    group.add_argument("--output", type=output_option, metavar="DIR", help=where)
    add_data_arguments(parser)


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Options that say what a sweep is to decide."""
    group = parser.add_argument_group("the verdict")
    group.add_argument(
        "--equal-cost", nargs="?", const="longer", metavar="KINDS", type=_equal_cost, default=(),
        help="train the baseline as long as the method cost, too; longer,bigger: also on the next larger backbone",
    )  # fmt: skip
    group.add_argument("--a-a", action="store_true", help="train the baseline twice: what no difference looks like")
    group.add_argument("--min-gain", type=float, metavar="AP", help="the smallest gain that matters (default: 0.5)")
    # Its name in older commands.
    group.add_argument("--detect", dest="min_gain", type=float, help=argparse.SUPPRESS)
    group.add_argument(
        "--until-decided", action="store_true",
        help="add seeds, by the spread measured, until an interval excludes zero, or a difference that matters",
    )  # fmt: skip
    group.add_argument("--max-seeds", type=int, metavar="N", help="with --until-decided: at most (default: 15)")


def _equal_cost(text: str) -> tuple[EqualCost, ...]:
    from lgd.config.extra_arms import EQUAL_COST

    wanted = [x.strip() for x in text.split(",")]
    if not set(wanted) <= set(EQUAL_COST):
        raise argparse.ArgumentTypeError(f"{text}: {', '.join(EQUAL_COST)}, or both with a comma between")
    return tuple(x for x in EQUAL_COST if x in wanted)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Options that say where trials run."""
    group = parser.add_argument_group("where trials run")
    group.add_argument("--cpus", type=int, metavar="N", help="CPU cores of a worker (default: 1, or a GPU's share)")
    group.add_argument("--gpus", type=float, metavar="X", help="GPUs of a worker, a fraction or 1 (default: 1 if any)")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="workers that share a trial's steps")
    group.add_argument("--spread", action="store_true", help="put a trial's workers on nodes of their own")
    group.add_argument("--address", help="Ray cluster: auto or host:6379 (default: this machine)")


def add_confirmations(parser: argparse.ArgumentParser) -> None:
    """Options that allow what is refused without."""
    group = parser.add_argument_group("confirmations")
    group.add_argument(
        "--accept-other-code", action="store_true", help="a directory whose trials other code or versions ran"
    )
    group.add_argument(
        "--retrain-damaged", action="store_true", help="train again what has a record that cannot be read"
    )
    group.add_argument("--yes", action="store_true", help="train without a GPU even if it takes over a day")


def add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("budget")
    group.add_argument("--max-gpu-hours", type=float, metavar="X", help="end the sweep when this call has used them")
    group.add_argument("--max-time", metavar="T", help="end the sweep after this time, e.g. 90s, 45m, 8h")


def add_cost(parser: argparse.ArgumentParser) -> None:
    _add_cost(parser.add_argument_group("the cost"))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """The options of a plan, for a subcommand that trains without them."""
    group = parser.add_argument_group("plan (with any of these nothing is trained)")
    group.add_argument("--plan", action="store_true", help="print what would run and its cost, and check it")
    _add_cost(group)


def _add_cost(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--measure", action="store_true", help="measure the steps that were not measured here yet")
    group.add_argument("--price-per-gpu-hour", type=float, metavar="X", help="say the price, too")
    group.add_argument("--verbose", action="store_true", help="print the settings, too")


def add_resume_options(parser: argparse.ArgumentParser) -> None:
    """Options of a sweep that goes on."""
    parser.add_argument("--data", metavar="SOURCE", help="where its data lies now, if elsewhere")
    parser.add_argument("--detector", metavar="SPEC", help="its own detectors (A,B) again, where they are Python code")
    parser.add_argument("--method", metavar="NAME", help="the sweep's own method again, where that is Python code")
    add_data_arguments(parser)
    parser.add_argument("--samples", type=int, metavar="N", help="trials of its search in the results directory")
    parser.add_argument("--study", metavar="URL", help="its search's own again, where that is a database elsewhere")


def _run_options(parser: argparse.ArgumentParser) -> None:
    for add in (add_grid, add_arms, add_questions, add_placement, add_budget, add_confirmations):
        add(parser)


def _search_options(parser: argparse.ArgumentParser) -> None:
    for add in (add_grid, add_arms, add_search, add_placement, add_budget, _add_plan, add_confirmations):
        add(parser)


def _plan_options(parser: argparse.ArgumentParser) -> None:
    for add in (add_grid, add_arms, add_questions, add_placement, add_cost, add_confirmations):
        add(parser)


def _resume_options(parser: argparse.ArgumentParser) -> None:
    _add_directory(parser, output_option)
    for add in (add_resume_options, add_placement, add_budget, _add_plan, add_confirmations):
        add(parser)


def _add_directory(parser: argparse.ArgumentParser, kind: Callable[[str], Path]) -> None:
    parser.add_argument("directory", type=kind, metavar="DIR", help="results directory, or its URL")


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", nargs="?", metavar="GRID", help="the arms of this grid")
    parser.add_argument("--preset", default="tiny", help="at whose size (default: tiny)")


# -- what they do


def new_sweep(options: argparse.Namespace, search: SearchSpec | None = None) -> tuple[SweepSpec, Path]:
    """The sweep that the options describe, with what its results directory holds already, and that directory."""
    from ablations.named_code import detector_note
    from ablations.plan import describe, merge, search_note

    spec = describe(
        options.grid,
        options.preset,
        overrides=options.overrides,
        data=options.data,
        arms=options.arms,
        seeds=options.seeds,
        search=search,
        **_questions_of(options, search=search is not None),
    )
    for note in (search_note(spec, options.arms), detector_note(spec, options.arms)):
        if note:
            print(note)
    print_space(spec)
    directory: Path = options.output or Path("results") / spec.label
    fetch_records(directory)
    return merge(spec, directory), directory


def _questions_of(options: argparse.Namespace, *, search: bool) -> dict[str, Any]:
    """What the options of :func:`add_questions` say, as :func:`ablations.plan.describe` takes it."""
    from ablations.rounds import looks
    from lgd.config.extra_arms import ExtraArms

    if "equal_cost" not in options:
        return {}
    if search and (options.equal_cost or options.a_a or options.until_decided):
        raise InputError("--equal-cost, --a-a and --until-decided are for a grid, not for a search")
    if options.max_seeds is not None and not options.until_decided:
        raise InputError("--max-seeds needs --until-decided")
    return {
        "extra": ExtraArms(equal_cost=options.equal_cost, again=options.a_a),
        "min_gain": options.min_gain,
        "looks": looks(options.seeds, options.max_seeds) if options.until_decided else (),
    }


def old_sweep(directory: Path, options: argparse.Namespace) -> SweepSpec:
    """The sweep of a results directory. Its data may lie elsewhere now, and its search go on.

    Its method and detector, where these are Python code, run only where the options name them too, and a database
    elsewhere gets no password that they do not name.
    """
    from ablations.named_code import detector_sources, method_names
    from ablations.plan import read_sweep, with_data_at, with_samples
    from ablations.search.study_place import check_study_named_again
    from lgd.config.method import check_method_named_again, import_named

    import_named([], method := getattr(options, "method", None))
    fetch_records(directory, must_exist=True)
    spec = read_sweep(directory)
    check_method_named_again(method_names(spec), method, directory)
    # Its method is imported by now, and says what it is taught by.
    check_named_again(detector_sources(spec), options.detector, directory)
    study = spec.search.study if spec.search else ""
    check_study_named_again(study, getattr(options, "study", None), directory)
    if options.data:
        spec = with_data_at(spec, options.data)
    if options.samples is not None:
        spec = with_samples(spec, options.samples, directory)
    print_space(spec)
    return spec


def run_options(options: argparse.Namespace) -> RunOptions:
    from ablations.limits import Placement
    from ablations.sweep import RunOptions

    placement = Placement(options.cpus, options.gpus, options.workers, options.spread, options.address)
    return RunOptions(placement, options.accept_other_code, options.yes, options.retrain_damaged)


def _run(options: argparse.Namespace) -> int:
    return _train(*new_sweep(options), options)


def _search(options: argparse.Namespace) -> int:
    return _train_or_plan(*new_sweep(options, search_options(options)), options)


def _resume(options: argparse.Namespace) -> int:
    return _train_or_plan(old_sweep(options.directory, options), options.directory, options)


def _train_or_plan(spec: SweepSpec, directory: Path, options: argparse.Namespace) -> int:
    asked = options.plan or options.measure or options.price_per_gpu_hour is not None or options.verbose
    return (_dry_run if asked else _train)(spec, directory, options)


def _train(spec: SweepSpec, directory: Path, options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.limits import Budget

    budget = Budget(options.max_gpu_hours, options.max_time)
    from ablations import sweep

    return sweep.run(spec, directory, run_options(options), budget, Console())


def _plan(options: argparse.Namespace) -> int:
    return _dry_run(*new_sweep(options), options)


def _dry_run(spec: SweepSpec, directory: Path, options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.limits import CostOptions

    cost = CostOptions(options.measure, options.price_per_gpu_hour)
    from ablations import sweep

    return sweep.dry_run(spec, directory, run_options(options), cost, Console(), verbose=options.verbose)


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ablations.plan import read_sweep, trials_of
    from ablations.status import show_status
    from ablations.sweep import resume_command

    fetch_records(options.directory, must_exist=True)
    records: dict[str, Record] = {}
    sweep = trials_of(read_sweep(options.directory), options.directory, records)
    show_status(sweep, records, resume_command(options.directory, sweep.spec), Console())
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
    "search": (_search_options, _search, "search a method's settings (default: LGD's) around a grid's base (Optuna)"),
    "plan": (_plan_options, _plan, "print what would run and what it will cost, and check it, without training"),
    "resume": (_resume_options, _resume, "run what a results directory still lacks"),
    "status": (lambda parser: _add_directory(parser, input_option), _status, "how far a results directory is"),
    "list": (_list_options, _list, "the grids, or a grid's arms"),
}
"""Options, action and summary by name."""
