"""The command ``lgd submit``: run a command of lgd as a job on a running Ray cluster. Loads Ray when it submits."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import lgd
from ablations.command import BENCHMARKS, COMMANDS
from ablations.search.study_place import study_place
from ablations.working_tree import sends
from lgd.cli import Parser, examples, exit_status
from lgd.distributed.ray_token import use_token
from lgd.errors import InputError
from lgd.signals import exit_on_interrupt

PROG = "lgd submit"

DESCRIPTION = """\
Run a command of lgd with this working tree on a running Ray cluster, and follow its log; Ctrl-C stops it.
Exit status: the command's own; 2 wrong input, 130 stopped."""

EXAMPLES = (
    "--address http://HEAD:8265 -- sweep run main --preset paper --data coco-json:/shared/coco --output s3://BUCKET/main",
    "--address http://HEAD:8265 -- train retinanet_r50_2x_ms --method lgd --workers 8 --output /shared/r50",
    "--address http://HEAD:8265 --no-wait -- sweep resume s3://BUCKET/main",
)

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Ray's own environment variable for what ``--address`` says."""

WRITES_RESULTS = ("sweep", "train", "pays", "eval")
"""Commands whose ``--output`` has a default: a directory of the job, which is gone after it."""

ROOT = Path(lgd.__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: that of the command on the cluster; 2 for wrong input, 130 stopped."""
    return exit_status(
        lambda: _run(parser(prog).parse_args(arguments)), "interrupted; ray job list shows whether the job began"
    )


def parser(prog: str = PROG) -> Parser:
    found = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    found.usage = f"{prog} --address URL [options] -- COMMAND ..."
    found.add_argument(
        "--address", metavar="URL", help=f"the cluster's dashboard, http://HEAD:8265 (default: ${ADDRESS_VARIABLE})"
    )
    found.add_argument(
        "--working-dir", type=Path, metavar="DIR",
        help="what is sent (default: the repository of this lgd; the current directory where lgd is installed)",
    )  # fmt: skip
    found.add_argument("--no-wait", action="store_true", help="end when the job is submitted; print how to follow it")
    found.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="as typed after lgd")
    return found


def _run(options: argparse.Namespace) -> int:
    address = checked_address(options.address or os.environ.get(ADDRESS_VARIABLE))
    directory = (options.working_dir or (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd())).resolve()
    command = checked_command(options.command[options.command[:1] == ["--"] :], directory)
    use_token()
    with exit_on_interrupt():
        from ablations.ray_job import submit
        from ablations.working_tree import pack
        from lgd.results.provenance import COMMIT, git_commit

    variables = {}
    if directory == ROOT and (commit := git_commit()) != "unknown":
        # The nodes get no .git.
        variables[COMMIT] = commit
    with tempfile.TemporaryDirectory() as made:
        archive = pack(directory, Path(made))
        size = archive.stat().st_size / 2**20
        entrypoint = shlex.join(["exec", "python", "-m", "ablations.command", *command])
        job = submit(address, entrypoint, archive, variables)
    print(f"{job.name}: lgd {shlex.join(command)} (with {directory}, {size:.1f} MiB)", flush=True)
    if options.no_wait:
        print(f"its log: {job.log_command}")
        return 0
    return job.follow()


def checked_address(address: str | None) -> str:
    """The dashboard's URL. Raises InputError for what is none."""
    if not address:
        raise InputError(f"say where the cluster is: --address http://HEAD:8265, or {ADDRESS_VARIABLE}")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, or half of an IPv6 address
        good = False
    if not good:
        raise InputError(f"--address {address}: the URL of the cluster's dashboard is needed, such as http://HEAD:8265")
    return address.rstrip("/")


def checked_command(command: Sequence[str], directory: Path) -> list[str]:
    """The command as the cluster runs it. Raises InputError for one that its own parser refuses, or whose results would
    lie in the job's directory, which Ray removes.

    directory: whose content is the job's directory.
    """
    if not command:
        raise InputError(f"say what to run: {PROG} --address URL -- sweep run components --output /shared/components")
    name = command[0]
    if name == "bench" and len(command) > 1 and command[1] in BENCHMARKS:
        module, words = BENCHMARKS[command[1]][0], 2
    elif name in COMMANDS and name != "submit":
        module, words = COMMANDS[name][0], 1
    else:
        known = ", ".join(x for x in COMMANDS if x != "submit")
        raise InputError(f"{shlex.join(command)}: no command for a cluster; {known} or bench NAME are")
    options = import_module(module).parser(shlex.join(["lgd", *command[:words]])).parse_args(command[words:])
    _check_paths(name, options, directory)
    # The job's process runs on the head node, which mostly has no GPU.
    without_address = "address" in options and options.address is None
    return [*command, *(["--address", "auto"] if without_address else [])]


def _check_paths(name: str, options: argparse.Namespace, directory: Path) -> None:
    if name in WRITES_RESULTS and options.__dict__.get("output", "") is None and not _only_prints(options):
        url = "" if name == "eval" else "s3://BUCKET/NAME, or "
        raise InputError(
            f"say --output: {url}an absolute path on a disk that all nodes share; "
            "the job's own directory is removed later"
        )
    study = options.__dict__.get("study")
    if study and study_place(study) != study.rstrip("/"):
        raise InputError(f"--study {study}: on the cluster an absolute path is needed, on storage that all nodes share")
    given = [(key, x) for key, value in vars(options).items() for x in (value if isinstance(value, list) else [value])]
    for option, value in given:
        # A URL has a scheme.
        relative = isinstance(value, Path) and not value.is_absolute() and ":/" not in str(value)
        written = option == "output" or (option == "directory" and options.__dict__.get("subcommand") == "resume")
        # What is sent is there under its relative path.
        if relative and (written or not sends(directory, value)):
            raise InputError(
                f"{value}: on the cluster a URL is needed, or an absolute path on a disk that all nodes share"
            )


def _only_prints(options: argparse.Namespace) -> bool:
    given = vars(options)
    return given.get("subcommand") == "plan" or any(given.get(x) for x in ("plan", "list", "show"))


if __name__ == "__main__":
    sys.exit(main())
