"""Run a grid of ablations, or a search around it, and print its table.

python ablations/run.py --grid components                  # tiny preset, this machine's CPU, minutes
python ablations/run.py --grid components --preset small   # one GPU
python ablations/run.py --grid components --search optuna --samples 30 --early-stop
python ablations/run.py --list
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, PositiveInt, ValidationError
from rich.console import Console
from rich.table import Table

from ablations.display import SweepDisplay, outcome
from ablations.equal_time import steps_for_equal_time, with_steps
from lgd.cli import Parser, answer
from lgd.config.data_source import absolute_source
from lgd.config.experiment import explain, settings
from lgd.config.grids import NAMES, Arm, Grid, Trial, grid, plan
from lgd.config.paper import paper
from lgd.config.presets import preset
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import FILE, load
from lgd.signals import on_signal

SWEEP_FILE = "sweep.json"
SWEEP_SCHEMA = 1
FLAGS = {"overrides": "set", "early_stop": "early-stop"}
KEPT = ("grid", "data", "output", "arms", "overrides", "seeds", "preset", "search", "objectives", "early_stop")
"""Options that a results directory knows."""
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all trials finished, 1 some failed or diverged, 2 wrong input, 3 budget spent, 130 interrupted."""
    return answer(lambda: _run(arguments, Console(stderr=False)), "interrupted before a trial began")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ablations/run.py", description="Train the arms of a grid side by side and print its table.")
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
    parser.add_argument("--cpus", type=int, metavar="N", help="CPU cores of a worker (default: 1, or a GPU's share)")
    parser.add_argument("--gpus", type=float, metavar="X", help="GPUs of a worker, a fraction or 1 (default: 1 if any)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="workers that share a trial's steps")
    parser.add_argument("--spread", action="store_true", help="put a trial's workers on nodes of their own")
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto or host:6379 (default: this machine)")
    parser.add_argument(
        "--search", choices=("optuna",), help="search LGD's weights and components around the grid's base"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="trials of the search, all calls together (default: 20)"
    )
    parser.add_argument(
        "--objectives", metavar="A,B", help="AP (default), or AP,gpu_hours for the Pareto front of both"
    )
    parser.add_argument(
        "--early-stop", action="store_true", help="with --search: end trials that fall behind in AP (ASHA)"
    )
    parser.add_argument("--max-gpu-hours", type=float, metavar="X", help="end the sweep when this call has used them")
    parser.add_argument("--max-time", metavar="T", help="end the sweep after this time, e.g. 90s, 45m, 8h")
    parser.add_argument(
        "--accept-other-code", action="store_true", help="go on in a directory whose trials other code or versions ran"
    )
    parser.add_argument("--list", action="store_true", help="list the grids and their arms")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would run and what it will cost, and check it, without training",
    )
    parser.add_argument("--measure", action="store_true", help="with --dry-run: measure the steps that were not yet")
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="X", help="with --dry-run: say the price, too")
    parser.add_argument("--status", type=Path, metavar="DIR", help="how far a results directory is")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="run what a results directory still lacks; with --data where its data lies elsewhere now",
    )
    return parser


def _run(arguments: Sequence[str] | None, console: Console) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        _list(options, console)
        return 0
    directory: Path | None = options.status or options.resume
    if directory is not None:
        for flag in KEPT:
            if getattr(options, flag) != parser.get_default(flag) and not (flag == "data" and options.resume):
                raise InputError(f"--resume and --status take the sweep as it is: leave out --{FLAGS.get(flag, flag)}")
        described = _read_sweep(directory)
        if options.data:
            described["overrides"] = _moved(described["overrides"], options.data)
        if options.samples is not None:
            if not described.get("search"):
                raise InputError(f"--samples {options.samples}: {directory} holds no search")
            described["search"]["samples"] = _samples(options)
    elif options.grid is None:
        raise InputError("say which grid: --grid NAME (see --list)")
    else:
        described = _describe(options)
        directory = options.output or Path("results") / _label(described)
        _check_same(directory, described)
    trials = _plan(described, directory)
    if options.status:
        return _status(trials, directory, console)
    over = _budget(options)
    if not options.dry_run and (options.measure or options.price_per_gpu_hour is not None):
        raise InputError("--measure and --price-per-gpu-hour need --dry-run")
    if options.price_per_gpu_hour is not None and not 0 <= options.price_per_gpu_hour < math.inf:
        raise InputError(f"--price-per-gpu-hour {options.price_per_gpu_hour:g}: a price from 0")
    from ablations.ray_sweep import done, resources_for, this_machine
    from lgd.distributed import ray_train

    search = _search(described, directory)
    for line in dict.fromkeys(t.experiment.schedule.mismatch for t in trials):
        if line:
            print(f"warning: {line}", file=sys.stderr)
    missing = [t for t in trials if done(t) is None]
    fingerprints = _check_built(trials, missing)
    _check_still_same(trials, fingerprints)
    _check_code(directory, described, accepted=options.accept_other_code)
    for arm in grid(described["grid"], described["preset"]).arms:
        if arm.skipped:
            console.print(f"skipped: {arm.name}: {arm.skipped}", markup=False, highlight=False, soft_wrap=True)
    planned = [*missing, *([Trial("", search.base, directory)] if search else [])]
    held = (options.cpus, options.gpus, options.workers, options.spread)
    address = options.address or os.environ.get("RAY_ADDRESS")
    if options.dry_run and not address:
        resources = resources_for(planned, [this_machine()], *held)
        _show_plan(trials, fingerprints, missing, resources, console)
        _show_waiting(described, console)
        _show_cost(missing, described, search, resources, options, console)
        return 0
    if not address:
        # What can never fit is refused before Ray starts.
        resources_for(planned, [this_machine()], *held)
    with ray_train.cluster(address):
        resources = resources_for(planned, ray_train.nodes(), *held)
        if options.dry_run:
            _show_plan(trials, fingerprints, missing, resources, console)
            _show_waiting(described, console)
            _show_cost(missing, described, search, resources, options, console)
            return 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with FileLock(directory / "lock", timeout=0):
                # Another sweep may have been at work here until a moment ago.
                missing = [t for t in missing if done(t) is None]
                why, spent = _train(missing, trials, described, directory, resources, search, over, console)
                more = [] if why else _plan(described, directory)
                if len(more) > len(trials):
                    # What these trials took says how long others are to train.
                    trials, missing = more, [t for t in more if done(t) is None]
                    _check_built(trials, missing)
                    resources = resources_for(missing, ray_train.nodes(), *held)
                    why, _ = _train(
                        missing, trials, described, directory, resources, None, lambda x: over(spent + x), console
                    )
                again = f"python ablations/run.py --resume {directory}{_placed(options)}"
                return _finish(trials, described, directory, search, why, again, console)
        except Timeout:
            raise InputError(
                f"{directory}: another sweep is at work there; wait for it, or choose another --output"
            ) from None


def _placed(options: argparse.Namespace) -> str:
    """The options that say where trials run and what each holds, as the command had them: no sweep keeps those."""
    default = vars(_parser().parse_args([]))
    given = {flag: getattr(options, flag) for flag in ("cpus", "gpus", "workers", "address")}
    said = [f" --{flag} {value}" for flag, value in given.items() if value != default[flag]]
    return "".join([*said, " --spread" if options.spread else ""])


def _describe(options: argparse.Namespace) -> dict[str, Any]:
    """The sweep as its directory keeps it."""
    if options.seeds is not None and options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: at least one")
    overrides = list(options.overrides)
    if options.data:
        overrides.append(f"data.source={absolute_source(options.data)}")
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
    if options.search:
        objectives = (options.objectives or "AP").split(",")
        described["search"] = {
            "samples": _samples(options),
            "objectives": [x.strip() for x in objectives],
            "early_stop": options.early_stop,
        }
        # Beside the search's own trials only what they are compared to.
        described["arms"] = [x for x in described["arms"] if x == chosen.reference]
    elif options.samples or options.objectives or options.early_stop:
        raise InputError("--samples, --objectives and --early-stop need --search optuna: a grid runs whole")
    return described


def _moved(overrides: list[str], data: str) -> list[str]:
    """A sweep's overrides where its data lies elsewhere now; that it is the same data is seen from each record."""
    source, key = absolute_source(data), "data.source="
    if not any(x.startswith(key) and x.partition(":")[0] == f"{key}{source.partition(':')[0]}" for x in overrides):
        raise InputError(f"--data {data} with --resume says where the sweep's own data lies now; it has no such data")
    return [f"{key}{source}" if x.startswith(key) else x for x in overrides]


def _label(described: dict[str, Any]) -> str:
    return f"{described['grid']}-{described['preset']}{'-search' if 'search' in described else ''}"


def _samples(options: argparse.Namespace) -> int:
    samples = 20 if options.samples is None else int(options.samples)
    if samples < 1:
        raise InputError(f"--samples {samples}: at least one")
    return samples


def _search(described: dict[str, Any], directory: Path) -> Any:
    """The sweep's search; None where it has none."""
    if not described.get("search"):
        return None
    from ablations.optuna_search import OBJECTIVES, Search

    wanted = described["search"]
    if wanted["objectives"] not in (["AP"], list(OBJECTIVES)):
        raise InputError(f"--objectives {','.join(wanted['objectives'])}: AP, or {','.join(OBJECTIVES)}")
    if wanted["early_stop"] and len(wanted["objectives"]) > 1:
        raise InputError("--early-stop with --objectives AP,gpu_hours: what is ended early has no cost to compare")
    base = preset(described["preset"]).override(described["overrides"])
    base = base.override({"method.name": "lgd", "data.source": absolute_source(base.data.source)})
    if wanted["early_stop"] and not base.evaluation.every:
        base = base.override({"evaluation.every": max(1, base.schedule.steps // 8)})
    return Search(base, directory.resolve(), tuple(wanted["objectives"]), wanted["early_stop"], base.seed)


def _budget(options: argparse.Namespace) -> Callable[[float], str]:
    """Why a sweep must end, from the device-seconds its trials have used; "" while it need not."""
    hours, longest, begun = options.max_gpu_hours, _duration(options.max_time), time.monotonic()
    if hours is not None and not hours > 0:
        raise InputError(f"--max-gpu-hours {hours:g}: a number above 0")

    def over(spent: float) -> str:
        if hours is not None and spent >= hours * 3600:
            return f"--max-gpu-hours {hours:g} are used"
        if longest is not None and time.monotonic() - begun >= longest:
            return f"--max-time {options.max_time} is over"
        return ""

    return over


def _duration(text: str | None) -> float | None:
    """Seconds of ``90``, ``90s``, ``45m``, ``8h``, ``2d``."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not found or not float(found[1]):
        raise InputError(f"--max-time {text}: a time such as 90s, 45m or 8h")
    return float(found[1]) * UNITS[found[2]]


def _train(
    missing: list[Trial],
    trials: list[Trial],
    described: dict[str, Any],
    directory: Path,
    resources: Any,
    search: Any,
    over: Callable[[float], str],
    console: Console,
) -> tuple[str, float]:
    """Run the sweep; why it ended before all was run ("" if it did not), and the device-seconds that it spent."""
    from ablations.ray_sweep import Names, run_sweep

    samples = described["search"]["samples"] if search else 0
    total = len(trials) + samples
    described.pop("ended", None)
    described["code"] = _code()
    write_text(directory / SWEEP_FILE, json.dumps(described, indent=1) + "\n")
    with_search = f" and {samples} samples of a search" if search else ""
    console.print(
        f"{described['grid']} grid, preset {described['preset']}: {len(trials)} trials{with_search},"
        f" {len(missing)} to run, {_held(resources)}; results in {directory}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    if not missing and not search:
        return "", 0.0
    display = SweepDisplay(
        missing,
        total=total,
        finished=len(trials) - len(missing) + (_searched(directory) if search else 0),
        max_concurrent=resources.max_concurrent,
        console=console,
    )
    names = Names(described["grid"], described["preset"], tuple(described["overrides"]))
    terminated = threading.Event()
    try:
        with display, on_signal(terminated.set, signal.SIGTERM):
            ended = run_sweep(
                missing,
                names,
                directory,
                resources,
                display,
                search=search,
                samples=samples,
                over=lambda spent: "SIGTERM came" if terminated.is_set() else over(spent),
            )
    except KeyboardInterrupt:
        # A second Ctrl-C would cut the tables short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return "interrupted", 0.0
    from benchmarks.predict_cost import learn

    with contextlib.suppress(OSError):
        # What the trials took is what the next dry run predicts with.
        learn(missing, resources)
    return ended.why, ended.spent


def _searched(directory: Path) -> int:
    return len(list(directory.glob("trials/search-*/record.json")))


def _unsampled(described: dict[str, Any], search: Any) -> int:
    """Samples that the sweep's search, if it has one, still lacks."""
    return max(0, described["search"]["samples"] - len(search.ended())) if search else 0


def _held(resources: Any) -> str:
    """What the trials hold, in words."""
    each = f"{resources.cpus} CPU and {resources.gpus:g} GPU"
    if resources.workers > 1:
        each = f"{resources.workers} workers of {each}{' on nodes of their own' if resources.spread else ''}"
    return f"{resources.max_concurrent} side by side, {each} each"


def _finish(
    trials: list[Trial],
    described: dict[str, Any],
    directory: Path,
    search: Any,
    why: str,
    again: str,
    console: Console,
) -> int:
    """Write and show what there is; the exit status. again: the command that goes on."""
    from ablations.ray_sweep import done
    from analysis.html_report import write_page
    from analysis.load import load_runs
    from analysis.report import main_table, order, write_outputs
    from analysis.tables import print_shown

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    left = [t for t in trials if not (t.directory / FILE).exists()]
    unsampled = _unsampled(described, search)
    described["ended"] = {
        "why": why,
        "not_run": [
            *map(_unfinished, left),
            *_waiting(described),
            *([f"{unsampled} samples of the search"] if unsampled else []),
        ],
    }
    write_text(directory / SWEEP_FILE, json.dumps(described, indent=1) + "\n")
    runs = load_runs(directory)
    if runs:
        sweep = order(directory, [run.record for run in runs])
        written = [*write_outputs(directory, sweep), write_page(directory, sweep)]
        print_shown(main_table(runs, sweep), console)
        if search:
            written += _show_search(described, search, directory, say)
        say(f"written: {', '.join(str(x) for x in written)}")
    for name in described["ended"]["not_run"]:
        say(f"not run: {name}")
    if why:
        say(f"{why} after {len(trials) - len(left)} of {len(trials)} trials; go on with: {again}")
        return 130 if why == "interrupted" else 3
    if search and any(run.record.status == "failed" for run in runs):
        return 1
    return 0 if all(done(t) is not None and _is_finished(t) for t in trials) and not _waiting(described) else 1


def _is_finished(trial: Trial) -> bool:
    return load(trial.directory / FILE).status == "finished"


def _unfinished(trial: Trial) -> str:
    """A trial without a record, and how far it is."""
    newest = sorted((trial.directory / "checkpoints").glob("step-*.pth"))
    at = f" (checkpoint after step {int(newest[-1].stem.removeprefix('step-'))})" if newest else ""
    return f"{trial.arm}, seed {trial.experiment.seed}{at}"


def _show_search(described: dict[str, Any], search: Any, directory: Path, say: Callable[[str], None]) -> list[Path]:
    """Print the best trials as commands; draw Optuna's plots."""
    from ablations.optuna_search import STUDY_FILE, command, draw

    study = search.study()
    found = search.best(study)
    if not found:
        say("no trial of the search was complete")
        return []
    say("best trial:" if len(search.objectives) == 1 else "Pareto front:")
    for trial in sorted(found, key=lambda t: -t.values[0]):
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(search.objectives, trial.values, strict=True))
        again = command(described["preset"], described["overrides"], trial.params, search.base.seed)
        say(f"  {values}: {again}")
    say(f"study: optuna-dashboard sqlite:///{directory / STUDY_FILE}")
    return draw(study, search.objectives, directory)


def _code() -> dict[str, dict[str, str]]:
    """What computes a sweep's numbers: versions of the packages, and the files of this one by a digest."""
    import lgd
    from lgd.results import provenance

    root = Path(lgd.__file__).parent
    files = {
        path.relative_to(root.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(root.rglob("*.py"))
    }
    return {"versions": provenance.versions(), "files": files}


def _check_code(directory: Path, described: dict[str, Any], *, accepted: bool) -> None:
    """Refuse to mix trials of different code in one table, unless that is ``accepted``."""
    path = directory / SWEEP_FILE
    if accepted or not path.exists() or not list(directory.glob(f"trials/*/{FILE}")):
        return
    there, here = _read_sweep(directory).get("code"), _code()
    if there is None:
        different = "it does not say by which"
    else:
        versions = [
            f"{name} {there['versions'].get(name, 'none')} there and {here['versions'].get(name, 'none')} here"
            for name in sorted({*there["versions"], *here["versions"]})
            if there["versions"].get(name) != here["versions"].get(name)
        ]
        files = [
            name
            for name in sorted({*there["files"], *here["files"]})
            if there["files"].get(name) != here["files"].get(name)
        ]
        shown = files[:5] + ([f"{len(files) - 5} more"] if len(files) > 5 else [])
        different = ", ".join(versions + ([f"changed: {', '.join(shown)}"] if files else []))
    if different:
        raise InputError(
            f"{directory} holds trials that other code ran ({different}): choose another --output, or say"
            " --accept-other-code"
        )


def _plan(described: dict[str, Any], directory: Path) -> list[Trial]:
    """Its trials, but for those whose steps are still to be measured; notes the steps that can be told by now."""
    whole, base = grid(described["grid"], described["preset"]), preset(described["preset"])
    rest = (described["seeds"], described["overrides"], directory)
    steps = steps_for_equal_time(whole, base, *rest, described.get("steps", {}))
    if steps:
        described["steps"] = steps
    chosen = tuple(with_steps(arm, steps) for arm in whole.arms if arm.name in described["arms"])
    return plan(replace(whole, arms=chosen), base, *rest)


def _waiting(described: dict[str, Any]) -> list[str]:
    """The arms whose steps are still to be measured, a line each."""
    known = described.get("steps", {})
    return [
        f"{arm.name}: its steps follow from what {arm.time_budget_from} takes"
        for arm in grid(described["grid"], described["preset"]).arms
        if arm.time_budget_from and arm.name in described["arms"] and arm.name not in known
    ]


def _show_waiting(described: dict[str, Any], console: Console) -> None:
    for line in _waiting(described):
        console.print(f"later: {line}", markup=False, highlight=False, soft_wrap=True)


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


class _Code(BaseModel):
    versions: dict[str, str]
    files: dict[str, str]


class _Searched(BaseModel):
    samples: PositiveInt
    objectives: list[str]
    early_stop: bool


class _Described(BaseModel, strict=True):
    """What :func:`_describe` and :func:`_train` write of a sweep."""

    grid: str
    preset: str
    overrides: list[str]
    arms: list[str]
    seeds: PositiveInt
    reference: str = ""
    steps: dict[str, PositiveInt] = {}
    search: _Searched | None = None
    code: _Code | None = None


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
    try:
        _Described.model_validate(described)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from None
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
    if there.get("search") and _study(there) != _study(described):
        raise InputError(
            f"{directory} holds a search with {_study(there)}, not {_study(described)}: choose another --output"
        )
    described["steps"] = there.get("steps", {})
    if there["grid"] != described["grid"]:
        return
    order = [arm.name for arm in grid(described["grid"], described["preset"]).arms]
    described["arms"] = [x for x in order if x in there["arms"] or x in described["arms"]]
    described["seeds"] = max(there["seeds"], described["seeds"])


def _study(described: dict[str, Any]) -> str:
    """What a search's study cannot change, in words."""
    search = described.get("search")
    if not search:
        return "no search"
    return f"objectives {','.join(search['objectives'])}{' and early stopping' if search['early_stop'] else ''}"


def _check_built(trials: Sequence[Trial], missing: Sequence[Trial]) -> dict[str, str]:
    """Build every arm once: what cannot be built is refused now, and so are two arms that are the same.

    An arm that has trials ``missing`` must find all that training needs; one that has none may do without.
    """
    from lgd.training.run import dry_build

    found: dict[str, str] = {}
    names: dict[str, str] = {}
    wanted = {trial.arm for trial in missing}
    for trial in _of_the_first_seed(trials):
        try:
            shown = dry_build(trial.experiment, to_train=trial.arm in wanted)
        except InputError as error:
            raise InputError(f"arm {trial.arm!r}: {error}") from None
        if shown in names:
            raise InputError(f"arms {names[shown]!r} and {trial.arm!r} would train the same thing ({shown})")
        names[shown] = trial.arm
        found[trial.arm] = shown
    return found


def _of_the_first_seed(trials: Sequence[Trial]) -> list[Trial]:
    """One trial an arm. None where a search has nothing that it is compared to."""
    return [trial for trial in trials if trial.experiment.seed == trials[0].experiment.seed]


def _check_still_same(trials: Sequence[Trial], fingerprints: dict[str, str]) -> None:
    """Refuse to put new trials beside records of what the code or the data no longer build."""
    from ablations.ray_sweep import done

    for trial in _of_the_first_seed(trials):
        record = done(trial)
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
    for key, value in each[0].items() if each else ():
        if not key.startswith("method.") and all(x[key] == value for x in each):
            console.print(f"  {key} = {value!r}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{len(missing)} of {len(trials)} trials to run, {_held(resources)}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _show_cost(
    missing: list[Trial],
    described: dict[str, Any],
    search: Any,
    resources: Any,
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Say what the sweep will take, from steps that were measured on this machine."""
    # It takes seconds to import.
    from benchmarks.predict_cost import measure_missing, predict

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    planned = list(missing)
    if search is not None:
        # A search's trials are taken to cost what LGD whole does; components that are off make some cheaper.
        left = _unsampled(described, search)
        if left:
            say(f"and {left} samples of a search")
        planned += [Trial("LGD (search)", search.base, search.output / "trials" / f"search-{i}") for i in range(left)]
    if options.measure:
        measure_missing(planned, resources, on_progress=say)
    for line in predict(planned, resources).lines(options.price_per_gpu_hour):
        say(line)


def _status(trials: list[Trial], directory: Path, console: Console) -> int:
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
            begun = f"begun, no record: {_unfinished(trial)}" if trial.directory.exists() else "not begun"
            table.add_row(trial.name, begun)
    console.print(table)
    console.print(f"{finished} of {len(trials)} trials finished", highlight=False)
    searched = _searched(directory)
    if searched:
        console.print(f"{searched} trials of a search", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
