"""The command ``lgd drill``: injects faults into a small sweep, counts what it survives. Loads little at first."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lgd.cli import Parser, examples, exit_status
from lgd.errors import InputError

if TYPE_CHECKING:
    from ablations.drill.drill import Fault, Result

PROG = "lgd drill"

DESCRIPTION = """\
Inject faults into a small sweep on this machine, and check that nothing is lost (docs/drill.md)."""

EXAMPLES = (
    "--list",
    "--faults sigterm-step,kill-driver-step   # minutes",
    "--repeats 10 --output results/drill      # the nightly form: hours",
    "--output /shared/drill                   # on the storage that a cluster's nodes share",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 all checks passed, 1 some failed, 2 wrong input, 130 interrupted."""
    return exit_status(lambda: _run(parser(prog).parse_args(arguments)))


def parser(prog: str = PROG) -> Parser:
    found = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    found.add_argument("--list", action="store_true", help="the faults, and which of them this machine cannot inject")
    found.add_argument("--faults", metavar="A,B", help="only these (default: all that this machine can inject)")
    found.add_argument("--repeats", type=int, default=1, metavar="N", help="drills of each fault (default: 1)")
    found.add_argument("--seed", type=int, default=0, metavar="N", help="of the random moments (default: 0)")
    found.add_argument(
        "--output", type=Path, metavar="DIR",
        help="where the sweeps run and the table is written (default: a temporary directory, and no table)",
    )  # fmt: skip
    return found


def _run(options: argparse.Namespace) -> int:
    # Not at the top: help is to come at once.
    from ablations.drill.registry import FAULTS

    if options.list:
        width = max(map(len, FAULTS))
        for fault in FAULTS.values():
            missing = fault.missing()
            print(f"{fault.name:{width}}  {fault.summary}{f' [not here: {missing}]' if missing else ''}")
        return 0
    if options.repeats < 1:
        raise InputError(f"--repeats {options.repeats}: at least 1")
    faults = _chosen(FAULTS, options.faults)
    with ExitStack() as stack:
        directory = options.output
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lgd-drill-")))
        results = _drill_all(faults, options.repeats, options.seed, directory)
        from ablations.drill.table import markdown, write

        table = markdown(results)
        print(table)
        if options.output:
            command = f"lgd drill --repeats {options.repeats} --seed {options.seed}"
            command += f" --faults {options.faults}" if options.faults else ""
            print("\n  ".join(["written:", *map(str, write(results, directory, command))]))
    return int(any(result.failures for result in results))


def _chosen(known: dict[str, Fault], names: str | None) -> list[Fault]:
    """The faults of these names; without names all that can be injected here, the others told of."""
    if names is None:
        for fault in known.values():
            if fault.missing():
                print(f"left out: {fault.name}: {fault.missing()}")
        return [fault for fault in known.values() if not fault.missing()]
    wanted = [x.strip() for x in names.split(",")]
    for name in wanted:
        if name not in known:
            raise InputError(f"--faults {name}: no such fault (see: lgd drill --list)")
        if known[name].missing():
            raise InputError(f"--faults {name}: {known[name].missing()}")
    return [known[name] for name in dict.fromkeys(wanted)]


def _drill_all(faults: Sequence[Fault], repeats: int, seed: int, directory: Path) -> list[Result]:
    """Drill each fault ``repeats`` times, with a line for each drill; sweeps that passed are removed."""
    from ablations.drill.drill import run_drill, run_reference

    sweeps = directory / "sweeps"
    shutil.rmtree(sweeps, ignore_errors=True)
    print("the undisturbed sweep ...", flush=True)
    reference = run_reference(sweeps / "undisturbed")
    results: list[Result] = []
    for repeat in range(repeats):
        for fault in faults:
            output = sweeps / f"{fault.name}-{repeat}"
            result = run_drill(fault, repeat, seed, reference, output)
            results.append(result)
            state = "FAILED" if result.failures else "passed"
            count = f"[{len(results)}/{repeats * len(faults)}]"
            print(f"{count} {fault.name} ({result.moment}): {state}, {result.seconds:.0f} s", flush=True)
            for failure in result.failures:
                print(f"    {failure}", flush=True)
            if not result.failures:
                for left in sweeps.glob(f"{output.name}*"):
                    shutil.rmtree(left)
    if not any(result.failures for result in results):
        shutil.rmtree(sweeps)
    return results


if __name__ == "__main__":
    sys.exit(main())
