"""Computes the least that a step must cost on a GPU: the FLOPs and bytes of each part against the GPU's limits.

Nothing is timed: the step of one image runs on the CPU in float32 while its operators are counted, and the counts are
multiplied by the number of images. So this needs no GPU, and gives the same numbers on every machine.

Bytes are what each operator reads and writes without any fusion; views move nothing. In bfloat16 they are taken as
half, though losses and matching stay in float32. A part's bound is the longer of the two times that its FLOPs and its
bytes take at the limits of benchmarks/reference.yaml; a fused implementation may move fewer bytes, none needs fewer
FLOPs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from benchmarks.options import (
        Benchmark,
        add_training_arguments,
        csv_path,
        experiment_from,
        images_from,
        output_stem,
        read_results,
        with_method,
        write_results,
    )
    from benchmarks.step_parts import DIRECTIONS, PARTS
    from benchmarks.timer_spec import Stage, SyntheticImages, TimerSpec
    from lgd.config.method import BUILT_IN, import_method

if TYPE_CHECKING:
    import pandas as pd

    from lgd.config.experiment import Experiment

PROG = "benchmarks/roofline.py"

DESCRIPTION = (
    "Compute the least that a step must cost on a GPU, from its FLOPs and bytes (docs/performance.md). Needs no GPU."
)

EXAMPLES = (
    " # LGD on RetinaNet R-50, shorter side 800, for 16 images",
    "--method baseline",
    "--preset tiny  # seconds; the numbers of a small network",
    "--table benchmarks/results/FILE.csv",
)

COLUMNS = (
    *("part", "direction", "gflop", "gbyte", "method", "detector", "backbone", "batch", "height", "width", "objects"),
    *("torch", "git_commit", "started", "command"),
)
"""Columns that the table needs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser, "paper")
    parser.add_argument("--method", default="lgd", metavar="NAME", help=f"one of {', '.join(BUILT_IN)} (default: lgd)")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/...)")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE.csv",
        help="print the bounds of an earlier count, at --precision, and do no more",
    )


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    import_method(options.method)
    # Lazy: pandas and torch.
    from benchmarks.speed_table import reference_file
    from lgd.results import provenance

    precision, limits = options.precision or "bf16", reference_file()["limits"]
    if options.table:
        print(markdown(read(options.table), limits, precision))
        return 0
    experiment = with_method(options, experiment_from(options), options.method)
    images = images_from(options, experiment)
    stem = output_stem(f"roofline_{options.method}", options, experiment.override({"precision": precision}))
    output = csv_path(options.output, stem)
    frame = measure(experiment, images, experiment.schedule.batch).assign(
        method=options.method,
        detector=experiment.detector.name,
        backbone=experiment.detector.backbone.name,
        batch=experiment.schedule.batch,
        height=images.size[0],
        width=images.size[1],
        objects=images.objects,
        torch=provenance.versions()["torch"],
        git_commit=provenance.git_commit(),
        started=provenance.now(),
        command=command,
    )
    text = markdown(frame, limits, precision)
    write_results(frame, output, text)
    print(f"{text}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


def measure(experiment: Experiment, images: SyntheticImages, count: int) -> pd.DataFrame:
    """``part``, ``direction``, ``gflop`` and ``gbyte`` (float32) of a step of ``count`` images."""
    # Lazy: pandas and torch.
    import pandas as pd

    from benchmarks.bytes_counter import BytesCounter
    from benchmarks.step_profiler import StepProfiler, flop_counter, separate_head_passes
    from benchmarks.step_timer import StepTimer
    from lgd.logs import quiet_libraries
    from lgd.training.device import process_settings

    one = experiment.override({"schedule.batch": 1, "schedule.accumulate": 1, "precision": "fp32", "device": "cpu"})
    with process_settings(one), quiet_libraries():
        timer = StepTimer(TimerSpec(one, images, experiment.method.name))
        separate_head_passes(timer.model)
        flops, moved = flop_counter(), BytesCounter()
        found = {}
        for name, counter, read in (
            ("gflop", flops, lambda: flops.get_total_flops() / 1e9),
            ("gbyte", moved, lambda: moved.total / 1e9),
        ):
            profiler = StepProfiler(timer.model, read, lambda readings: readings)
            with counter:
                timer.trainer(Stage(distils=experiment.method.has_distillation), profiler).train(0, 1)
            found[name] = profiler.steps[0]
    rows = []
    for part in PARTS:
        for direction in DIRECTIONS:
            values = {name: x.get((part, direction), 0.0) for name, x in found.items()}
            if any(values.values()):
                # The optimiser's work does not depend on the number of images.
                times = 1 if part == "optimiser" else count
                rows.append({"part": part, "direction": direction, **{k: v * times for k, v in values.items()}})
    return pd.DataFrame(rows)


def read(path: Path) -> pd.DataFrame:
    """The rows that this command wrote. Raises InputError, one line, for any other file."""
    return read_results(path, COLUMNS)


def bounds(frame: pd.DataFrame, limits: dict[str, Any], precision: str) -> pd.DataFrame:
    """Milliseconds that each part's FLOPs and bytes take at the limits, and the longer of both."""
    by_part = frame.groupby("part", sort=False)[["gflop", "gbyte"]].sum().reset_index()
    half = precision != "fp32"
    optimiser = by_part["part"] == "optimiser"
    gbyte = by_part["gbyte"].where(optimiser | (not half), by_part["gbyte"] / 2)
    compute = by_part["gflop"] / limits["tflops"]["bf16" if half else "fp32"]
    memory = gbyte / limits["terabytes_per_s"]
    return by_part.assign(gbyte=gbyte, compute_ms=compute, memory_ms=memory, bound_ms=compute.combine(memory, max))


def markdown(frame: pd.DataFrame, limits: dict[str, Any], precision: str) -> str:
    """The bounds as a table, and notes."""
    from analysis.render import pipe_table

    found = bounds(frame, limits, precision)
    columns = ["gflop", "gbyte", "compute_ms", "memory_ms", "bound_ms"]
    rows = [[str(x["part"]), *(f"{x[c]:.3g}" for c in columns)] for _, x in found.iterrows()]
    rows.append(["all", *(f"{found[c].sum():.3g}" for c in columns)])
    header = ["part", "GFLOP", "GB", "ms by FLOPs", "ms by bytes", "ms, the longer"]
    first = frame.iloc[0]
    notes = [
        f"{first['method']} on {first['detector']} {first['backbone']}, {first['batch']} images of {first['height']} x"
        f" {first['width']} pixels with {first['objects']:.3g} boxes on average; the limits are of {precision}:"
        f" {limits['tflops']['bf16' if precision != 'fp32' else 'fp32']:g} TFLOP/s and"
        f" {limits['terabytes_per_s']:g} TB/s ({limits['source']}).",
        "GB: what each operator reads and writes, without fusion.",
        f"torch {first['torch']}, commit {first['git_commit'][:12]}; counted {first['started']} by"
        f" `{first['command']}`.",
    ]
    return "\n".join([pipe_table(header, rows), "", *(f"- {x}" for x in notes), ""])


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
