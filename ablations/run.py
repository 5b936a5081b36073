"""Run a grid of ablations and print its table.

python ablations/run.py --grid components                  # tiny preset, this machine's CPU, minutes
python ablations/run.py --grid components --preset small   # one GPU
python ablations/run.py --list
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ablations.display import SweepDisplay, outcome
from ablations.grids import NAMES, Arm, Grid, Trial, absolute, grid, plan
from ablations.presets import preset
from lgd.errors import InputError
from lgd.experiment import settings
from lgd.files import write_text
from lgd.paper import paper

SWEEP_FILE = "sweep.json"
SWEEP_SCHEMA = 1
FLAGS = {"overrides": "set"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all trials finished, 1 some failed or diverged, 2 wrong input, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console(stderr=False)
    try:
        return _run(options, parser, console)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before a trial began", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ablations/run.py", description="Train the arms of a grid side by side and print its table."
    )
    parser.add_argument("--grid", help=f"which grid: {', '.join(NAMES)}")
    parser.add_argument(
        "--preset", default="tiny", help="tiny (CPU, minutes), small (one GPU) or paper (default: tiny)"
    )
    parser.add_argument("--data", metavar="SOURCE", help="shapes, or coco-json:DIR for a COCO-layout directory")
    parser.add_argument("--seeds", type=int, metavar="N", help="trainings of each arm (default: 1, noise-floor: 10)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="results directory (default: results/GRID-PRESET)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a setting of every arm, e.g. schedule.steps=100; may be given several times",
    )  # fmt: skip
    parser.add_argument("--arms", metavar="A,B", help="only these arms, e.g. baseline,LGD")
    parser.add_argument("--cpus", type=int, metavar="N", help="CPU cores a trial (default: 1, or a GPU's share)")
    parser.add_argument("--gpus", type=float, metavar="X", help="GPUs a trial, fractions allowed (default: 1 if any)")
    parser.add_argument("--list", action="store_true", help="list the grids and their arms")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and check it, without training")
    parser.add_argument("--status", type=Path, metavar="DIR", help="how far a results directory is")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="run what a results directory still lacks")
    return parser


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser, console: Console) -> int:
    if options.list:
        _list(options, console)
        return 0
    directory: Path | None = options.status or options.resume
    if directory is not None:
        for flag in ("grid", "data", "output", "arms", "overrides", "seeds", "preset"):
            if getattr(options, flag) != parser.get_default(flag):
                raise InputError(f"--resume and --status take the sweep as it is: leave out --{FLAGS.get(flag, flag)}")
        described = _read_sweep(directory)
    elif options.grid is None:
        parser.error("say which grid: --grid NAME (see --list)")
    else:
        if options.seeds is not None and options.seeds < 1:
            raise InputError(f"--seeds {options.seeds}: at least one")
        overrides = list(options.overrides)
        if options.data:
            overrides.append(f"data.source={absolute(options.data)}")
        chosen = grid(options.grid, options.preset)
        described = {
            "schema_version": SWEEP_SCHEMA,
            "grid": chosen.name,
            "preset": options.preset,
            "overrides": overrides,
            "arms": _arms(chosen, options.arms),
            "reference": chosen.reference,
            "seeds": options.seeds or chosen.seeds,
        }
        directory = options.output or Path("results") / f"{chosen.name}-{options.preset}"
        _check_same(directory, described)
    trials = _plan(described, directory)
    if options.status:
        return _status(trials, console)
    from ablations.sweep import done, resources_for

    missing = [t for t in trials if done(t) is None]
    resources = resources_for(missing, options.cpus, options.gpus)
    fingerprints = _check_built(trials)
    _check_still_same(trials, fingerprints)
    for arm in grid(described["grid"], described["preset"]).arms:
        if arm.skipped:
            console.print(f"skipped: {arm.name}: {arm.skipped}", markup=False, highlight=False, soft_wrap=True)
    if options.dry_run:
        _show_plan(trials, fingerprints, missing, resources, console)
        return 0
    write_text(directory / SWEEP_FILE, json.dumps(described, indent=1) + "\n")
    console.print(
        f"{described['grid']} grid, preset {described['preset']}: {len(trials)} trials, {len(missing)} to run,"
        f" {resources.side_by_side} side by side; results in {directory}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    interrupted = bool(missing) and _train(missing, len(trials), described, directory, resources, console)
    return _finish(trials, described, directory, interrupted, console)


def _train(
    missing: list[Trial],
    total: int,
    described: dict[str, Any],
    directory: Path,
    resources: Any,
    console: Console,
) -> bool:
    """Run the sweep; True when it was interrupted."""
    from ablations.sweep import run_sweep

    display = SweepDisplay(
        missing,
        total=total,
        finished=total - len(missing),
        side_by_side=resources.side_by_side,
        console=console,
    )
    try:
        with display:
            run_sweep(missing, described["grid"], described["preset"], directory, resources, display)
    except KeyboardInterrupt:
        # A second Ctrl-C would cut the tables short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return True
    return False


def _finish(
    trials: list[Trial], described: dict[str, Any], directory: Path, interrupted: bool, console: Console
) -> int:
    from analysis.page import write_page
    from analysis.records import load_runs
    from analysis.report import Sweep, main_table, write_outputs
    from analysis.tables import print_shown

    sweep = Sweep(described["arms"], described["reference"], described["grid"])
    runs = load_runs(directory)
    if runs:
        written = [*write_outputs(directory, sweep), write_page(directory, sweep)]
        print_shown(main_table(runs, sweep), console)
        console.print(f"written: {', '.join(str(x) for x in written)}", markup=False, highlight=False, soft_wrap=True)
    # The directory may hold other grids' trials, too.
    planned = {trial.directory for trial in trials}
    ended = [run.record.status for run in runs if run.directory.resolve() in planned]
    if interrupted:
        console.print(
            f"interrupted after {len(ended)} of {len(trials)} trials;"
            f" go on with: python ablations/run.py --resume {directory}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 130
    return 0 if ended.count("finished") == len(trials) else 1


def _plan(described: dict[str, Any], directory: Path) -> list[Trial]:
    whole = grid(described["grid"], described["preset"])
    chosen = replace(whole, arms=tuple(arm for arm in whole.arms if arm.name in described["arms"]))
    return plan(chosen, preset(described["preset"]), described["seeds"], described["overrides"], directory)


def _arms(chosen: Grid, names: str | None) -> list[str]:
    skipped = {arm.name: arm.skipped for arm in chosen.arms if arm.skipped}
    known = [arm.name for arm in chosen.arms if arm.name not in skipped]
    if names is None:
        return known
    wanted = [x.strip() for x in names.split(",")]
    for name in wanted:
        if name in skipped:
            raise InputError(f"arm {name!r} {skipped[name]}")
        if name not in known:
            raise InputError(f"grid {chosen.name} has no arm {name!r}: it has {', '.join(known)}")
    return [x for x in known if x in wanted]


def _read_sweep(directory: Path) -> dict[str, Any]:
    path = directory / SWEEP_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: no sweep to read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not a sweep's description ({error})") from None
    if not isinstance(described, dict) or described.get("schema_version") != SWEEP_SCHEMA:
        raise InputError(f"{path}: written by another version of this suite")
    return described


def _check_same(directory: Path, described: dict[str, Any]) -> None:
    """A results directory holds sweeps of one preset; more seeds, arms and grids may be added to it.

    Its sweep.json is of the grid that ran last. What two grids share is trained once.
    """
    if not (directory / SWEEP_FILE).exists():
        return
    there = _read_sweep(directory)
    for key in ("preset", "overrides"):
        if there[key] != described[key]:
            raise InputError(
                f"{directory} holds a sweep with {key} {there[key]!r}, not {described[key]!r}:"
                " choose another --output or remove it"
            )
    if there["grid"] != described["grid"]:
        return
    order = [arm.name for arm in grid(described["grid"], described["preset"]).arms]
    described["arms"] = [x for x in order if x in there["arms"] or x in described["arms"]]
    described["seeds"] = max(there["seeds"], described["seeds"])


def _check_built(trials: Sequence[Trial]) -> dict[str, str]:
    """Build every arm once: what cannot be built is refused now, and so are two arms that are the same."""
    from lgd.train import build

    found: dict[str, str] = {}
    names: dict[str, str] = {}
    first_seed = trials[0].experiment.seed
    for trial in trials:
        if trial.experiment.seed != first_seed:
            continue
        try:
            shown = build(trial.experiment.override({"device": "cpu"}), pretrained=False).fingerprint
        except InputError as error:
            raise InputError(f"arm {trial.arm!r}: {error}") from None
        if shown in names:
            raise InputError(f"arms {names[shown]!r} and {trial.arm!r} would train the same thing ({shown})")
        names[shown] = trial.arm
        found[trial.arm] = shown
    return found


def _check_still_same(trials: Sequence[Trial], fingerprints: dict[str, str]) -> None:
    """Refuse to put new trials beside records of what the code or the data no longer build."""
    from ablations.sweep import done

    first_seed = trials[0].experiment.seed
    for trial in trials:
        record = done(trial) if trial.experiment.seed == first_seed else None
        if record is not None and record.fingerprint != fingerprints[trial.arm]:
            raise InputError(
                f"{trial.directory}: its record was made from other data or code (fingerprint {record.fingerprint},"
                f" now {fingerprints[trial.arm]}; commit {record.git_commit[:12]}): choose another --output"
            )


def _list(options: argparse.Namespace, console: Console) -> None:
    """The grids and their arms at a preset's size, or those of ``--grid`` alone."""
    for name in [options.grid] if options.grid else NAMES:
        each = grid(name, options.preset)
        table = Table(title=f"{each.name}: {each.title}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for head in ("arm", "changes", "asks"):
            table.add_column(head)
        for arm in each.arms:
            # The rest of a table's row is in its name.
            changes = ", ".join(f"{k}={v}" for k, v in arm.changes.items() if not k.startswith("method.fgfi."))
            table.add_row(arm.name, changes or "(none)", _asks(each.name, arm))
        console.print(table)


def _asks(table: str, arm: Arm) -> str:
    """The arm's question, or why it is skipped, or what the paper reports for it."""
    if arm.skipped or arm.training is None:
        return f"skipped: {arm.skipped}" if arm.skipped else arm.question
    known, metrics = paper().tables[table], paper().metrics
    cells = ((metrics[x], known.value(arm.training, x)) for x in known.metrics)
    said = ", ".join(f"{metric.title} {value:.1f} {metric.unit}" for metric, value in cells if value is not None)
    return f"the paper: {said}" if said else "the paper: not reported"


def _show_plan(
    trials: list[Trial], fingerprints: dict[str, str], missing: list[Trial], resources: Any, console: Console
) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("trial", "steps", "to run", "fingerprint"):
        table.add_column(head)
    for trial in trials:
        needed = "yes" if trial in missing else "has a record"
        table.add_row(trial.name, str(trial.experiment.schedule.steps), needed, fingerprints.get(trial.arm, ""))
    console.print(table)
    each = [settings(trial.experiment) for trial in trials]
    console.print("settings shared by the arms:", highlight=False)
    for key, value in each[0].items():
        if not key.startswith("method.") and all(x[key] == value for x in each):
            console.print(f"  {key} = {value!r}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{len(missing)} of {len(trials)} trials to run, {resources.side_by_side} side by side,"
        f" {resources.cpus} CPU and {resources.gpus:g} GPU each",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _status(trials: list[Trial], console: Console) -> int:
    from lgd.record import FILE, load

    finished = 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("trial", "state"):
        table.add_column(head)
    for trial in trials:
        path = trial.directory / FILE
        if path.exists():
            record = load(path)
            finished += record.status == "finished"
            table.add_row(trial.name, outcome(record))
        else:
            table.add_row(trial.name, "begun, no record" if trial.directory.exists() else "not begun")
    console.print(table)
    console.print(f"{finished} of {len(trials)} trials finished", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
