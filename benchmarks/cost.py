"""Times a training step of each method and derives the paper's Table 7 from it.

The plain detector, LGD, FGFI while it distils and the training of FGFI's teacher each have a process that keeps its
model. They are timed one at a time, in turn, round after round, every second round in reverse order, so that drift
of the machine affects all alike. LGD with its backbone frozen and FGFI before its distillation begins are timed
separately and count by their share of the schedule. Batches are synthetic and in memory, so loading is not measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from benchmarks.contention import other_load
    from benchmarks.options import (
        add_timing_arguments,
        add_training_arguments,
        check_timing,
        csv_path,
        experiment_from,
        images_from,
        output_stem,
        per_device,
        run_command,
        write_results,
    )
    from benchmarks.timer_process import TimerProcess
    from benchmarks.timer_spec import StepTimes, SyntheticImages, TimerSpec, stages
    from lgd.cli import Parser, examples
    from lgd.errors import InputError

if TYPE_CHECKING:
    from lgd.config.experiment import Experiment

PROG = "benchmarks/cost.py"

DESCRIPTION = "Time a training step of each method and derive the paper's Table 7 from it (docs/cost.md)."

EXAMPLES = (
    " # tiny, on the CPU: a minute or two",
    "--preset paper --precision bf16  # R-50, FGFI's teacher R-101, shorter side 800",
    "--preset paper --detector faster_rcnn --devices 8 --price-per-gpu-hour 2.5",
    "--table benchmarks/results/FILE.csv  # print the table again, without measuring",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return run_command(parser(prog), run, arguments)


def parser(prog: str = PROG) -> Parser:
    found = Parser(prog=prog, description=DESCRIPTION, epilog=examples(prog, *EXAMPLES))
    add_arguments(found)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    add = parser.add_argument
    add("--schedule-steps", type=int, metavar="N", help="steps of the training that the hours are for")
    add("--devices", type=int, metavar="N", help="how many share the batch (default: 1); one of them is measured")
    add_timing_arguments(parser, rounds=5)
    add("--price-per-gpu-hour", type=float, metavar="X", help="adds a column with what the device-hours cost")
    add("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/cost_...csv)")
    add("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier measurement and do no more")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    price = options.price_per_gpu_hour
    if price is not None and not 0 <= price < float("inf"):
        raise InputError(f"--price-per-gpu-hour {price:g}: a price from 0")
    if options.table and (options.devices is not None or options.schedule_steps is not None):
        raise InputError("--table takes a measurement as it is: leave out --devices and --schedule-steps")
    check_timing(options)
    # Lazy: pandas takes as long to import as --help may take.
    from benchmarks.table7 import markdown, read

    if options.table:
        print(markdown(read(options.table), price))
        return 0
    experiment = experiment_from(options)
    if options.schedule_steps is not None:
        experiment = experiment.override({"schedule.steps": options.schedule_steps})
    devices = 1 if options.devices is None else options.devices
    share, images = per_device(experiment, devices), images_from(options, experiment)
    output = csv_path(options.output, output_stem("cost", options, experiment))
    described = {"preset": options.preset, "devices": devices, **_described(experiment, images), "command": command}
    frame = _frame(measure(variants(share), images, options.rounds, options.drop, options.steps), described)
    text = markdown(frame, price)
    write_results(frame, output, text)
    print(f"{text}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


def variants(experiment: Experiment) -> dict[str, Experiment]:
    """Trainings to measure, by their name in table7.METHODS. Raises InputError where a method cannot be trained."""
    by_name = {name: experiment.override({"method.name": name}) for name in ("baseline", "fgfi", "lgd")}
    teacher = by_name["fgfi"].teacher
    assert teacher is not None
    return {
        "baseline": by_name["baseline"],
        "fgfi": by_name["fgfi"],
        "fgfi teacher": teacher,
        "lgd": by_name["lgd"],
    }


def measure(
    experiments: dict[str, Experiment], images: SyntheticImages, rounds: int, warmup: int, steps: int
) -> list[dict[str, Any]]:
    """A row for each method, stage and round."""
    # Lazy: loads torch.
    from lgd.results.cost_meter import FIRST_STEPS

    plan = [(name, stage, count) for name, x in experiments.items() for stage, count in stages(x).items()]
    rows = []
    with ExitStack() as stack:
        # All start at once: that takes as long as the slowest.
        processes = {name: stack.enter_context(TimerProcess()) for name in experiments}
        for name, process in processes.items():
            process.send("build", TimerSpec(experiments[name], images, name))
        for process in processes.values():
            process.receive()
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
            for name, stage, count in plan[:: -1 if turn % 2 else 1]:
                first = max(warmup, FIRST_STEPS) if turn == 0 else warmup
                with other_load() as load:
                    found: StepTimes = processes[name].request("time_steps", stage, first, steps)
                row = {"method": name, "stage": str(stage), "round": turn, **found.columns()}
                row |= {"other_cores": load.cores, "stage_steps": count}
                rows.append({**row, "schedule_steps": experiments[name].schedule.steps})
    return rows


def _frame(rows: Sequence[dict[str, Any]], described: dict[str, Any]) -> Any:
    import pandas as pd

    from benchmarks.table7 import check

    frame = pd.DataFrame([{**row, **described} for row in rows])
    check(frame, "the measurement")
    return frame


def _described(experiment: Experiment, images: SyntheticImages) -> dict[str, Any]:
    from benchmarks.table7 import provenance_columns

    height, width = images.size
    return {
        "detector": experiment.detector.name,
        "backbone": _network(experiment.detector.backbone),
        "teacher_backbone": _network(experiment.method.fgfi.backbone),
        "batch": experiment.schedule.batch,
        "accumulate": experiment.schedule.accumulate,
        "height": height,
        "width": width,
        "objects": images.objects,
        "classes": images.classes,
        "precision": experiment.precision,
        "threads": experiment.threads,
        **provenance_columns(),
    }


def _network(backbone: Any) -> str:
    parts: Iterable[str] = (
        backbone.name,
        f"width {backbone.resolved_width}" if backbone.width != "auto" else "",
        "DCNv2" if backbone.deformable else "",
    )
    return " ".join(x for x in parts if x)


if __name__ == "__main__":
    sys.exit(main())
