"""Times a training step of each method and derives the paper's Table 7 from it.

The plain detector, each method and each training that a method needs before (a frozen teacher's, a label encoder's)
have a process that keeps its model. They are timed one at a time, in turn, round after round, every second round in
reverse order, so that drift of the machine affects all alike. LGD with its backbone frozen and methods before their
distillation begins are timed separately and count by their share of the schedule. Batches are synthetic and in memory,
so loading is not measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
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
        per_device,
        with_method,
        write_results,
    )
    from benchmarks.timer_process import TimerProcess
    from benchmarks.timer_spec import StepTimes, SyntheticImages, TimerSpec, stages
    from lgd.errors import InputError

if TYPE_CHECKING:
    from lgd.config.experiment import Experiment

PROG = "benchmarks/cost.py"

DESCRIPTION = "Time a training step of each method and derive the paper's Table 7 from it (docs/cost.md)."

EXAMPLES = (
    " # tiny, on the CPU: a minute or two",
    "--preset paper --precision bf16  # R-50, FGFI's teacher R-101, shorter side 800",
    "--methods all  # every method that the detector can be trained with",
    "--preset paper --detector faster_rcnn --devices 8 --price-per-gpu-hour 2.5",
    "--table benchmarks/results/FILE.csv  # print the table again, without measuring",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    add = parser.add_argument
    add("--methods", metavar="NAMES",
        help="all, or names separated by commas, beside the baseline (default: fgfi and lgd)")  # fmt: skip
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
    from benchmarks.table7 import PRETRAINING, markdown, read

    if options.table:
        print(markdown(read(options.table), price))
        return 0
    experiment = experiment_from(options)
    if options.schedule_steps is not None:
        experiment = experiment.override({"schedule.steps": options.schedule_steps})
    devices = 1 if options.devices is None else options.devices
    images = images_from(options, experiment)
    trainings = {
        name: per_device(with_method(options, experiment, name), devices)
        for name in chosen_methods(options, experiment)
    }
    output = csv_path(options.output, output_stem("cost", options, experiment))
    described = {"preset": options.preset, "devices": devices, **_described(experiment, images), "command": command}
    by_name, before = with_pretrainings(trainings)
    described["teacher_backbone"] = _teacher_backbone(by_name)
    rows = measure(by_name, images, options.rounds, options.drop, options.steps)
    frame = _frame([{**row, PRETRAINING: before.get(row["method"], "")} for row in rows], described)
    text = markdown(frame, price)
    write_results(frame, output, text)
    print(f"{text}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


def chosen_methods(options: argparse.Namespace, experiment: Experiment) -> list[str]:
    """The methods that ``--methods`` names, the baseline first; of all, those that the detector can be trained with.

    Raises InputError for one that is not known.
    """
    from benchmarks.table7 import BASELINE, METHODS
    from lgd.config.method import BUILT_IN, import_method, method_class
    from lgd.config.pays_grid import FIRST_STAGES

    if options.methods is None:
        return list(METHODS)
    if options.methods == "all":
        each = [x for x in BUILT_IN if x not in FIRST_STAGES]
        return [x for x in each if not method_class(x)(name=x).refusal(experiment.detector, experiment.schedule)]
    named = [x.strip() for x in options.methods.split(",") if x.strip()]
    for name in named:
        import_method(name)
    return list(dict.fromkeys([BASELINE, *named]))


def with_pretrainings(trainings: Mapping[str, Experiment]) -> tuple[dict[str, Experiment], dict[str, str]]:
    """Trainings to measure by name, with those that methods need before, each once; and those by method.

    One that several methods need, or that is measured itself, is measured under its first name.
    """
    from benchmarks.table7 import TEACHER

    by_name: dict[str, Experiment] = {}
    before: dict[str, str] = {}
    for name, experiment in trainings.items():
        by_name[name] = experiment
        teacher = experiment.teacher
        if teacher is None:
            continue
        same = [x for x, other in by_name.items() if _same_steps(other, teacher)]
        before[name] = same[0] if same else f"{name}{TEACHER}"
        by_name.setdefault(before[name], teacher)
    return by_name, before


def _same_steps(one: Experiment, other: Experiment) -> bool:
    """Whether two trainings differ in nothing that a step's time depends on."""
    neutral = {"seed": 0, "evaluation.every": 0, "evaluation.teacher": False}
    return one.override(neutral) == other.override(neutral)


def _teacher_backbone(by_name: Mapping[str, Experiment]) -> str:
    """Backbones of the frozen detectors, separated by commas; "none" without any."""
    found = [x.method.teacher_detector(x.detector) for x in by_name.values()]
    return ", ".join(dict.fromkeys(_network(x.backbone) for x in found if x is not None)) or "none"


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


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
