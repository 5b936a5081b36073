"""The command ``lgd drill``: injects faults into a small sweep, counts what it survives. Loads little at first."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from lgd.cli import Parser, examples, exit_status
from lgd.errors import InputError

if TYPE_CHECKING:
    from ablations.drill.bucket import Bucket
    from ablations.drill.drill import Fault
    from ablations.drill.table import Row

PROG = "lgd drill"

DESCRIPTION = """\
Inject faults into a small sweep on this machine, and check that nothing is lost (docs/drill.md)."""

EXAMPLES = (
    "--list",
    "--faults sigterm-step,kill-driver-step   # minutes",
    "--repeats 10 --output results/drill      # the nightly form: hours",
    "--repeats 10 --resume results/drill      # goes on with it",
    "--output /shared/drill                   # on the storage that a cluster's nodes share",
    "--bucket                                 # in object storage: an S3 server that it starts",
    "--bucket s3://BUCKET/drill               # or your own",
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
    place = found.add_mutually_exclusive_group()
    place.add_argument(
        "--output", type=Path, metavar="DIR",
        help="where the sweeps run and the table is written, after every drill (default: a temporary directory)",
    )  # fmt: skip
    place.add_argument(
        "--resume", type=Path, metavar="DIR",
        help="go on with an earlier --output: drills that are not in its table, or failed there with another commit",
    )  # fmt: skip
    found.add_argument(
        "--bucket", nargs="?", const="", metavar="URL",
        help="run the sweeps in object storage: there, or in an S3 server that the drill starts (needs moto)",
    )  # fmt: skip
    found.add_argument("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier drill, no more")
    return found


def _run(options: argparse.Namespace) -> int:
    # Not at the top: help is to come at once.
    from ablations.drill.bucket import Bucket, opened
    from ablations.drill.registry import FAULTS
    from ablations.drill.s3_server import Faults

    if options.list:
        width = max(map(len, FAULTS))
        own = None if options.bucket is None else Bucket("", None if options.bucket else Faults())
        for fault in FAULTS.values():
            missing = fault.left_out(own)
            print(f"{fault.name:{width}}  {fault.summary}{f' [not here: {missing}]' if missing else ''}")
        return 0
    from ablations.drill.table import ROWS, page, read, source, write

    if options.table:
        print(page(read(options.table)))
        return 0
    if options.repeats < 1:
        raise InputError(f"--repeats {options.repeats}: at least 1")
    directory = options.resume or options.output
    earlier = read(options.resume / ROWS) if options.resume else []
    if options.output and (options.output / ROWS).exists():
        raise InputError(f"--output {options.output}: there is a drill already: --resume goes on with it")
    if any(("--bucket" in row.source.get("command", "")) is (options.bucket is None) for row in earlier):
        raise InputError(
            f"--resume {options.resume}: its drills were {'in' if options.bucket is None else 'not in'} a bucket"
        )
    command = f"lgd drill --repeats {options.repeats} --seed {options.seed}"
    command += f" --faults {options.faults}" if options.faults else ""
    command += "" if options.bucket is None else f" --bucket {options.bucket}".rstrip()
    with ExitStack() as stack:
        bucket = None if options.bucket is None else stack.enter_context(opened(options.bucket))
        faults = _chosen(FAULTS, options.faults, bucket)
        place = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lgd-drill-")))
        wanted = [(fault, repeat) for repeat in range(options.repeats) for fault in faults]
        about = source(command)
        rows = _drill_all(wanted, options.seed, place, bucket, earlier, about, lambda rows: write(rows, place))
        print(page(rows))
        if directory:
            print("\n  ".join(["written:", *map(str, write(rows, directory))]))
    return int(any(row.result.failures for row in rows))


def _chosen(known: dict[str, Fault], names: str | None, bucket: Bucket | None) -> list[Fault]:
    """The faults of these names; without names all that can be injected here, the others are printed."""
    if names is None:
        for fault in known.values():
            if fault.left_out(bucket):
                print(f"left out: {fault.name}: {fault.left_out(bucket)}")
        return [fault for fault in known.values() if not fault.left_out(bucket)]
    wanted = [x.strip() for x in names.split(",")]
    for name in wanted:
        if name not in known:
            raise InputError(f"--faults {name}: no such fault (see: lgd drill --list)")
        if known[name].left_out(bucket):
            raise InputError(f"--faults {name}: {known[name].left_out(bucket)}")
    return [known[name] for name in dict.fromkeys(wanted)]


def _drill_all(
    wanted: Sequence[tuple[Fault, int]],
    seed: int,
    directory: Path,
    bucket: Bucket | None,
    earlier: Sequence[Row],
    source: dict[str, str],
    save: Callable[[Sequence[Row]], object],
) -> list[Row]:
    """Drill each fault and repeat, with a line for each drill; sweeps that passed are removed.

    earlier: rows that stay, and are not drilled again unless they failed with another commit. save: called with all
    rows after each drill.
    """
    from ablations.drill.drill import run_drill, run_reference
    from ablations.drill.table import Row
    from lgd.results import provenance

    sweeps = directory / "sweeps"
    rows = [x for x in earlier if not (x.result.failures and x.source.get("commit") != source["commit"])]
    done = {(x.result.fault, x.result.repeat, x.seed) for x in rows}
    left = [(fault, repeat) for fault, repeat in wanted if (fault.name, repeat, seed) not in done]
    if rows:
        print(f"{len(rows)} drills are in the table already, {len(left)} are left", flush=True)
    if not left:
        return rows
    # Of the code as it is now. Sweeps that failed stay.
    shutil.rmtree(sweeps / "undisturbed", ignore_errors=True)
    print("the undisturbed sweep ...", flush=True)

    def within(name: str) -> Bucket | None:
        return bucket.within(name) if bucket else None

    reference = run_reference(sweeps / "undisturbed", within("undisturbed"))
    for number, (fault, repeat) in enumerate(left, 1):
        output = sweeps / f"{fault.name}-{repeat}"
        result = run_drill(fault, repeat, seed, reference, output, within(output.name))
        rows.append(Row(result, seed, {**source, "date": provenance.now()}))
        save(rows)
        state = "FAILED" if result.failures else "passed"
        print(f"[{number}/{len(left)}] {fault.name} ({result.moment}): {state}, {result.seconds:.0f} s", flush=True)
        for failure in result.failures:
            print(f"    {failure}", flush=True)
        if not result.failures:
            for place in sweeps.glob(f"{output.name}*"):
                shutil.rmtree(place)
            if bucket:
                bucket.within(output.name).clear()
    if bucket:
        bucket.within("undisturbed").clear()
    if not any(row.result.failures for row in rows):
        shutil.rmtree(sweeps, ignore_errors=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
