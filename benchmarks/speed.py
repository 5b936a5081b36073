"""Compares the speed of a training step with that of a naive implementation, side by side in one run.

Every row has a process of its own; they take turns, every second round in reverse order (see docs/cost.md). The naive
implementation (benchmarks/naive_lgd.py) has the same parameters and computes the same losses in plain loops; the table
says how far the losses of one batch differ.

On the CPU each arm of the components grid is timed while it distils. On a GPU each row is one form of the training
step: precision, memory format, compiled or not, ours or naive. Reference figures of others for the same detector, size
and GPU (benchmarks/reference.yaml) stand below the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from benchmarks.contention import other_load
    from benchmarks.options import (
        Benchmark,
        add_timing_arguments,
        add_training_arguments,
        check_timing,
        csv_path,
        experiment_from,
        images_from,
        output_stem,
        write_results,
    )
    from benchmarks.timer_process import TimerProcess
    from benchmarks.timer_spec import NAIVE, ON_A_GPU, OPTIMIZATIONS, OURS, Stage, StepTimes, SyntheticImages, TimerSpec
    from lgd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from lgd.config.experiment import Experiment

PROG = "benchmarks/speed.py"

DESCRIPTION = "Compare the speed of a training step with that of a naive implementation (docs/performance.md)."

ALL = "all"
"""Value of ``--changes`` without one."""

BASELINE, LGD, FGFI, TEACHER = "baseline", "LGD", "FGFI", "FGFI's teacher in training"
ARMS = (BASELINE, LGD, FGFI, TEACHER)
"""What is timed on a GPU."""

NAIVE_ARMS = (BASELINE, LGD)
"""Those of them that there is a naive implementation of."""

PRECISIONS = ("fp32", "bf16")

FAST = {"memory_format": "channels_last"}
"""Settings of our forms besides the precision."""

INDUCTOR = "inductor"
"""Value of ``--compile`` without one: torch.compile's own default."""

BUILT_AT_ONCE = 5
"""Networks built at the same time on a GPU: most of it is work of one core each, then one forward pass."""

EXAMPLES = (
    " # tiny, CPU: the arms of the components grid",
    "--changes  # LGD with one optimization turned off at a time",
    "--preset paper  # one GPU: RetinaNet, 16 images of shorter side 800",
    "--preset paper --side 320  # small images: bound by kernel launches",
    "--table benchmarks/results/FILE.csv",
)


@dataclass(frozen=True)
class Row:
    """A row of the comparison."""

    arm: str
    """The method trained; sides of one arm are compared."""
    side: str
    """Which implementation and settings."""
    experiment: Experiment
    without: tuple[str, ...] = ()
    """Which of OPTIMIZATIONS are turned off."""
    compiler: str = ""
    """Backend of torch.compile, "" for its default."""

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.side}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    add_timing_arguments(parser, rounds=6)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--changes", nargs="?", const=ALL, default="", metavar="A,B",
        help="instead: LGD, and LGD with one optimization turned off at a time (default: each of them)")  # fmt: skip
    what.add_argument("--forms", action="store_true", help="what a GPU's step is compared in, on the CPU as well")
    add("--compile", nargs="?", const=INDUCTOR, default="", metavar="BACKEND",
        help="instead, on a GPU: our forms, and the same with compile=true (default: inductor)")  # fmt: skip
    add("--arms", default=",".join(ARMS), metavar="A,B", help="of a GPU's step: only these (default: all four)")
    add("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/speed_...csv)")
    add("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier measurement and do no more")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    check_timing(options)
    # Lazy: pandas takes as long to import as --help may take.
    from benchmarks.speed_table import markdown, read, reference, with_loss_differences

    if options.table:
        frame = read(options.table)
        print(markdown(frame, reference(frame)))
        return 0
    experiment = experiment_from(options)
    images = images_from(options, experiment)
    stem = output_stem("changes" if options.changes else "speed", options, experiment)
    output = csv_path(options.output, stem)
    rows = _rows(options, experiment)
    described = {"preset": options.preset, **_described(experiment, images), "command": command}
    measured = measure(rows, images, options.rounds, options.drop, options.steps)
    frame = with_loss_differences(measured).assign(**described)
    text = markdown(frame, reference(frame))
    write_results(frame, output, text)
    print(f"{text}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


def _rows(options: argparse.Namespace, experiment: Experiment) -> list[Row]:
    # Lazy: loads torch.
    from lgd.training.device import resolve_device

    on_gpu = resolve_device(experiment).type == "cuda"
    if (options.changes or not (options.forms or on_gpu)) and (options.compile or options.arms != ",".join(ARMS)):
        raise InputError("--compile and --arms are of a GPU's step: with --forms on a CPU, and not with --changes")
    if options.changes:
        named = () if options.changes == ALL else options.changes.split(",")
        return changes(experiment, named, on_gpu=on_gpu)
    if options.forms or on_gpu:
        return forms(experiment, compiler=options.compile, named=options.arms.split(","))
    return arms(experiment)


def arms(experiment: Experiment) -> list[Row]:
    """The arms of the components grid that it trains by default on a CPU, each naive and ours."""
    from lgd.config.grids import grid

    found = []
    for arm in (x for x in grid("components", "tiny").arms if not x.on_request):
        try:
            changed = experiment.override(arm.changes)
        except InputError:
            # An R-CNN has no context object, which LGD without mapper needs.
            if arm.name in (BASELINE, LGD):
                raise
            continue
        naive = changed.override({"memory_format": "contiguous"})
        found += [Row(arm.name, NAIVE, naive, OPTIMIZATIONS), Row(arm.name, OURS, changed)]
    return found


def changes(experiment: Experiment, names: Sequence[str] = (), *, on_gpu: bool = False) -> list[Row]:
    """LGD, naive and ours, and ours without one optimization at a time: without names, each that has an effect here.

    Raises InputError for an unknown one.
    """
    for name in names:
        if name not in OPTIMIZATIONS:
            raise InputError(f"--changes {name}: choose from {', '.join(OPTIMIZATIONS)}")
    lgd = experiment.override({"method.name": "lgd"})
    contiguous = lgd.override({"memory_format": "contiguous"})
    effective = names or [x for x in OPTIMIZATIONS if on_gpu or x not in ON_A_GPU]
    return [
        Row("LGD", NAIVE, contiguous, OPTIMIZATIONS),
        Row("LGD", OURS, lgd),
        *(Row("LGD", f"{OURS} without {x}", lgd, (x,)) for x in effective),
        *([] if names else [Row("LGD", f"{OURS} without channels_last", contiguous)]),
    ]


def forms(experiment: Experiment, *, compiler: str = "", named: Sequence[str] = ARMS) -> list[Row]:
    """Forms of one detector's step on a GPU: of the detector alone, with LGD, with FGFI, and of FGFI's teacher.

    named: which of ARMS. compiler: instead, our form in each precision, and the same with compile=true and this
    backend. Raises InputError for an unknown arm.
    """
    for name in named:
        if name not in ARMS:
            raise InputError(f"--arms {name}: choose from {', '.join(ARMS)}")
    found = []
    for arm in named:
        of_arm = partial(_of_arm, experiment, arm)
        ours = [(f"{OURS} {x}", {**FAST, "precision": x}) for x in PRECISIONS]
        if compiler:
            for side, settings in ours:
                found.append(Row(arm, side, of_arm(settings)))
                compiled = of_arm({**settings, "compile": True})
                found.append(Row(arm, f"{side} compiled", compiled, compiler=compiler))
            continue
        if arm in NAIVE_ARMS:
            default = of_arm({"precision": "fp32", "memory_format": "contiguous"})
            found.append(Row(arm, f"{NAIVE} fp32", default, OPTIMIZATIONS))
            found.append(Row(arm, f"{NAIVE} bf16 channels_last", of_arm({**FAST, "precision": "bf16"}), OPTIMIZATIONS))
        found += [Row(arm, side, of_arm(settings)) for side, settings in ours]
    return found


def _of_arm(experiment: Experiment, arm: str, settings: Mapping[str, Any]) -> Experiment:
    """The training of one of ARMS."""
    if arm in NAIVE_ARMS:
        return experiment.override({"method.name": arm.lower(), **settings})
    fgfi = experiment.override({"method.name": "fgfi", **settings})
    assert fgfi.teacher is not None
    return fgfi if arm == FGFI else fgfi.teacher


def measure(rows: Sequence[Row], images: SyntheticImages, rounds: int, warmup: int, steps: int) -> pd.DataFrame:
    """A row for each of ``rows`` and round, with the sum of losses of one batch before training."""
    # Lazy: pandas and torch.
    import pandas as pd

    from lgd.results.cost_meter import FIRST_STEPS
    from lgd.training.device import resolve_device

    on_gpu = resolve_device(rows[0].experiment).type == "cuda"

    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        processes = [stack.enter_context(TimerProcess()) for _ in rows]
        specs = [TimerSpec(row.experiment, images, row.name, row.without, row.compiler) for row in rows]
        _build(processes, specs, at_once=BUILT_AT_ONCE if on_gpu else 1)
        losses = [sum(process.request("losses").values()) for process in processes]
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
            for i in list(range(len(rows)))[:: -1 if turn % 2 else 1]:
                stage = Stage(distils=rows[i].experiment.method.has_distillation)
                first = max(warmup, FIRST_STEPS) if turn == 0 else warmup
                with other_load() as load:
                    times: StepTimes = processes[i].request("time_steps", stage, first, steps)
                columns = {"arm": rows[i].arm, "side": rows[i].side, "round": turn, **times.columns()}
                columns |= {"other_cores": load.cores, "first_loss": losses[i]}
                found.append({**columns, "precision": rows[i].experiment.precision})
    order = {row.name: i for i, row in enumerate(rows)}
    frame = pd.DataFrame(found)
    return frame.iloc[sorted(range(len(frame)), key=lambda i: order[f"{found[i]['arm']}, {found[i]['side']}"])]


def _build(processes: Sequence[TimerProcess], specs: Sequence[TimerSpec], at_once: int) -> None:
    pairs = list(zip(processes, specs, strict=True))
    for first in range(0, len(pairs), at_once):
        for process, spec in pairs[first : first + at_once]:
            process.send("build", spec)
        for process, _ in pairs[first : first + at_once]:
            process.receive()


def _described(experiment: Experiment, images: SyntheticImages) -> dict[str, Any]:
    from benchmarks.table7 import provenance_columns

    return {
        "detector": experiment.detector.name,
        "backbone": experiment.detector.backbone.name,
        "batch": experiment.schedule.batch,
        "height": images.size[0],
        "width": images.size[1],
        "objects": images.objects,
        **provenance_columns(),
    }


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
