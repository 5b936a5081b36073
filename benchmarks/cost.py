"""Measure a training step of each method and work out the paper's Table 7 from it.

python benchmarks/cost.py                                          # tiny, on the CPU: a minute or two
python benchmarks/cost.py --preset paper --precision bf16          # R-50, FGFI's teacher R-101, shorter side 800
python benchmarks/cost.py --preset paper --detector faster_rcnn --devices 8 --price-per-gpu-hour 2.5
python benchmarks/cost.py --table benchmarks/results/FILE.csv      # the table anew, without measuring

The plain detector, LGD, FGFI while it distils and FGFI's teacher in training each have a process of their own that
keeps its model. They take stretches of steps in turn, one at a time, round after round and every second round
backwards, so that whatever drifts falls on all alike. LGD with its backbone frozen and FGFI before its distillation
begins are timed apart and count by their share of the schedule. Batches are made before, so loading is not measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.options import (
    add_options,
    command_line,
    experiment_of,
    images_of,
    output_stem,
    share_of,
)
from benchmarks.step_timer import Images, Job, Stage, Stretch, Worker, stages
from benchmarks.table7 import METHODS, check, markdown, provenance_columns, read
from lgd.cli import Parser, answer
from lgd.config.experiment import Experiment
from lgd.errors import InputError
from lgd.files import atomic_write, write_text
from lgd.results import provenance
from lgd.results.cost_meter import FIRST_STEPS
from lgd.training.run import now


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return answer(lambda: _run(_parser().parse_args(arguments), arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="benchmarks/cost.py", description="Time each method's training step; the paper's Table 7.")
    add_options(parser)
    add = parser.add_argument
    add("--schedule-steps", type=int, metavar="N", help="steps of the training that the hours are for")
    add("--devices", type=int, metavar="N", help="how many share the batch (default: 1); one of them is measured")
    add("--rounds", type=int, default=5, metavar="N", help="stretches of every method and stage (default: 5)")
    add("--steps", type=int, default=8, metavar="N", help="steps that a stretch times (default: 8)")
    add("--drop", type=int, default=2, metavar="N",
        help=f"steps of a stretch before those, not timed (default: 2; {FIRST_STEPS} in the first round)")  # fmt: skip
    add("--price-per-gpu-hour", type=float, metavar="X", help="adds a column with what the device-hours cost")
    add("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/cost_...csv)")
    add("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier measurement and do no more")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    price = options.price_per_gpu_hour
    if price is not None and not 0 <= price < float("inf"):
        raise InputError(f"--price-per-gpu-hour {price:g}: a price from 0")
    if options.table:
        if options.devices is not None or options.schedule_steps is not None:
            raise InputError("--table takes a measurement as it is: leave out --devices and --schedule-steps")
        print(markdown(read(options.table), price))
        return 0
    for name, least in (("rounds", 1), ("steps", 2), ("drop", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: at least {least}")
    experiment = experiment_of(options)
    if options.schedule_steps is not None:
        experiment = experiment.override({"schedule.steps": options.schedule_steps})
    devices = 1 if options.devices is None else options.devices
    share, images = share_of(experiment, devices), images_of(options, experiment)
    stem = output_stem("cost", options, experiment)
    output: Path = options.output or stem.with_name(stem.name + ".csv")
    if output.suffix != ".csv":
        raise InputError(f"--output {output}: give it the suffix .csv")
    shared = {
        "preset": options.preset,
        "devices": devices,
        **_described(experiment, images),
        "started": now(),
        "git_commit": provenance.git_commit(),
        "command": command_line("benchmarks/cost.py", arguments),
    }
    rows = measure(variants(share), images, options.rounds, options.drop, options.steps)
    frame = pd.DataFrame([{**row, **shared} for row in rows])
    check(frame, "the measurement")
    write(frame, output, price)
    print(f"{markdown(frame, price)}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


def variants(experiment: Experiment) -> dict[str, Experiment]:
    """What is measured, by its name in METHODS. Raises InputError where a method cannot be trained like this."""
    by_name = {name: experiment.override({"method.name": name}) for name in ("baseline", "fgfi", "lgd")}
    teacher = by_name["fgfi"].teacher
    assert teacher is not None
    return {name: {**by_name, "fgfi teacher": teacher}[name] for name in METHODS}


def measure(
    experiments: dict[str, Experiment], images: Images, rounds: int, drop: int, steps: int
) -> list[dict[str, Any]]:
    """A row for each method, stage and round."""
    plan = [(name, stage, count) for name, x in experiments.items() for stage, count in stages(x).items()]
    rows = []
    with ExitStack() as stack:
        # All start at once: that takes as long as the slowest.
        workers = {name: stack.enter_context(Worker()) for name in experiments}
        for name, worker in workers.items():
            worker.send("build", Job(experiments[name], images, name))
        for worker in workers.values():
            worker.receive()
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
            for name, stage, count in plan[:: -1 if turn % 2 else 1]:
                dropped = max(drop, FIRST_STEPS) if turn == 0 else drop
                found: Stretch = workers[name].request("stretch", stage, dropped, steps)
                rows.append({**_row(name, stage, turn, found), "stage_steps": count})
                rows[-1]["schedule_steps"] = experiments[name].schedule.steps
    return rows


def write(frame: pd.DataFrame, path: Path, price: float | None) -> None:
    """The CSV, and its table as Markdown beside it; atomically."""
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    write_text(path.with_suffix(".md"), markdown(frame, price))


def _row(name: str, stage: Stage, turn: int, found: Stretch) -> dict[str, Any]:
    low, middle, high = np.quantile(found.steps_ms, (0.25, 0.5, 0.75))
    memory = "device" if "device" in found.peak_mib else "host"
    return {
        "method": name,
        "stage": str(stage),
        "round": turn,
        "timed_steps": len(found.steps_ms),
        "median_ms": middle,
        "q25_ms": low,
        "q75_ms": high,
        "mean_ms": found.mean_ms,
        "peak_mib": found.peak_mib[memory],
        "memory": memory,
    }


def _described(experiment: Experiment, images: Images) -> dict[str, Any]:
    height, width = images.size
    imitation = experiment.method.fgfi
    return {
        "detector": experiment.detector.name,
        "backbone": _network(experiment.detector.backbone),
        "teacher_backbone": _network(imitation.backbone),
        "batch": experiment.schedule.batch,
        "accumulate": experiment.schedule.accumulate,
        "height": height,
        "width": width,
        "objects": images.objects,
        "classes": images.classes,
        "precision": experiment.precision,
        "threads": experiment.threads,
        **provenance_columns(provenance.hardware(), provenance.versions()),
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
