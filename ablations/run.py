"""Run a grid of ablations, or a search around it, and print its table: the original entry point of ``lgd sweep``.

python ablations/run.py --grid components                  # tiny preset, this machine's CPU, minutes
python ablations/run.py --grid components --preset small   # one GPU
python ablations/run.py --grid components --search optuna --samples 30 --early-stop
python ablations/run.py --list
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from ablations import sweep_command
    from ablations.search.options import add_search
    from lgd.cli import Parser, exit_status
    from lgd.errors import InputError
    from lgd.storage.outputs import input_option, output_option

# One parser has the options of all subcommands here, so which of them go together has to be checked by hand;
# with ``lgd sweep`` argparse does it.

FLAGS = {"overrides": "set"}
"""Options whose name is not that of their value with hyphens."""

DATA_OPTIONS = ("data", "train_json", "val_json", "images")
"""They say where data lies, which may have changed since a sweep began."""

SWEEP_OPTIONS = (
    *DATA_OPTIONS, "detector", "detector_set", "val_fraction", "split_seed", "resplit", "preset", "seeds", "arms",
    "overrides", "output",
    "objectives", "early_stop", "search_space", "study", "study_name", "equal_cost", "a_a", "min_gain", "until_decided",
    "max_seeds",
)  # fmt: skip
"""Options that a results directory knows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all trials finished, 1 some failed or diverged, 2 wrong input, 3 budget spent, 130 interrupted."""

    def command() -> int:
        options = parser().parse_args(arguments)
        return sweep_command.run(subcommand_of(options), options)

    return exit_status(command, "interrupted before a trial began")


def parser() -> Parser:
    """Parser of all options of ``lgd sweep``'s subcommands, and of those that select one of them."""
    lines = (__doc__ or "").splitlines()
    whole = Parser(prog="ablations/run.py", description=lines[0], epilog="\n".join(["examples:", *lines[2:]]))
    which = whole.add_argument_group("what to do")
    which.add_argument("--grid", metavar="GRID", help="train what this grid still lacks (see --list)")
    which.add_argument("--search", choices=("optuna",), help="with --grid: search around its base instead")
    which.add_argument(
        "--dry-run", action="store_true", dest="plan", help="print what would run and what it will cost, and check it"
    )
    which.add_argument("--resume", type=output_option, metavar="DIR", help="run what a results directory still lacks")
    which.add_argument(
        "--method", metavar="NAME",
        help="with --search: whose settings are searched (default: lgd); with --resume: the sweep's own again, where"
        " that is Python code",
    )  # fmt: skip
    which.add_argument("--status", type=input_option, metavar="DIR", help="how far a results directory is")
    which.add_argument("--list", action="store_true", help="the grids; with --grid, its arms")
    for add in (
        sweep_command.add_arms, sweep_command.add_questions, partial(add_search, of_method=False),
        sweep_command.add_placement, sweep_command.add_budget, sweep_command.add_cost, sweep_command.add_confirmations,
    ):  # fmt: skip
        add(whole)
    return whole


def subcommand_of(options: argparse.Namespace) -> str:
    """The subcommand that the options are meant for. Raises InputError for options that another one has."""
    if sum(map(bool, (options.list, options.status, options.resume))) > 1:
        raise InputError("--list, --status and --resume are commands of their own: give one of them")
    if (options.status or options.resume) and (options.grid or options.search):
        given = "--grid" if options.grid else "--search"
        raise InputError(f"--resume and --status take the sweep as it is: leave out {given}")
    if options.method and not (options.resume or options.search):
        raise InputError(
            f"--method {options.method} is for --search and --resume: name a sweep's method by --set method.name=NAME"
        )
    if options.list:
        return "list"
    directory = options.status or options.resume
    if directory is not None:
        reject_sweep_options(options, but_for=(*DATA_OPTIONS, "detector", "study") if options.resume else ())
        options.directory = directory
    elif options.grid is None:
        raise InputError("say which grid: --grid NAME (see --list)")
    elif not options.search and any(
        (options.samples is not None, options.objectives, options.early_stop, options.search_space, options.study,
         options.study_name)
    ):  # fmt: skip
        raise InputError(
            "--samples, --objectives, --early-stop, --search-space and --study need --search optuna: a grid runs whole"
        )
    if options.status:
        return "status"
    if not options.plan:
        if options.measure or options.price_per_gpu_hour is not None:
            raise InputError("--measure and --price-per-gpu-hour need --dry-run")
        # Accepted without --dry-run here, where it does not ask for a plan.
        options.verbose = False
    if options.resume:
        return "resume"
    if options.search:
        return "search"
    return "plan" if options.plan else "run"


def reject_sweep_options(options: argparse.Namespace, *, but_for: Sequence[str] = ()) -> None:
    """Raise InputError for options that describe a sweep where its directory does."""
    known = parser()
    for name in SWEEP_OPTIONS:
        if getattr(options, name) != known.get_default(name) and name not in but_for:
            raise InputError(
                f"--resume and --status take the sweep as it is: leave out --{FLAGS.get(name, name.replace('_', '-'))}"
            )


if __name__ == "__main__":
    sys.exit(main())
