"""Shows where a training step goes: milliseconds and FLOPs of each part, forward and backward.

A step is divided into consecutive ranges, each of one part, so the parts add up to the step. In the forward pass a
range starts where a module, or the detector's label assignment, is entered or left. Autograd numbers its nodes in the
order of the forward pass, so each node of the backward pass belongs to the part that created it. On a GPU ranges are
timed by CUDA events: nothing waits for the device within a step.

FLOPs are those of torch.utils.flop_counter in the same ranges, since fvcore's tracer sees neither losses nor the
backward pass: convolutions (deformable ones too), matrix products and attention; a multiplication and an addition are
two. Norms, activations, pooling, sampling and other memory-bound operators count as none.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from benchmarks.contention import contention_note, other_load
    from benchmarks.options import (
        Benchmark,
        add_training_arguments,
        experiment_from,
        images_from,
        output_stem,
        read_results,
        with_method,
        write_results,
    )
    from benchmarks.step_parts import DIRECTIONS, PARTS
    from benchmarks.timer_spec import SyntheticImages, TimerSpec, stages
    from lgd.config.method import BUILT_IN
    from lgd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from lgd.config.experiment import Experiment

PROG = "benchmarks/breakdown.py"

DESCRIPTION = (
    "Show where a training step goes: milliseconds and FLOPs of each part, forward and backward (docs/cost.md)."
)

EXAMPLES = (
    " # LGD, tiny, on the CPU",
    "--method fgfi --detector faster_rcnn",
    "--preset paper --precision bf16  # on a GPU",
)

COLUMNS = (
    *("part", "direction", "ms", "gflop", "method", "detector", "backbone", "batch", "height", "width", "objects"),
    *("precision", "gpu", "cpu", "cores", "torch", "detectron2", "git_commit", "started", "command", "stage"),
    *("step_ms", "profiled_ms", "other_cores"),
)
"""Columns that the table needs."""

CHUNK = 4
"""Steps that are profiled, or timed as a whole, before it is the other's turn."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    add = parser.add_argument
    add("--method", default="lgd", metavar="NAME", help=f"one of {', '.join(BUILT_IN)} (default: lgd)")
    add("--steps", type=int, default=20, metavar="N", help="steps to profile (default: 20)")
    add("--output", type=Path, metavar="STEM", help="where to, without suffix (default: benchmarks/results/...)")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    if options.steps < 1:
        raise InputError(f"--steps {options.steps}: at least one")
    experiment = with_method(options, experiment_from(options), options.method)
    images = images_from(options, experiment)
    stem: Path = options.output or output_stem(f"breakdown-{options.method}", options, experiment)
    frame, whole = measure(experiment, images, options.steps)
    frame = frame.assign(**_described(experiment, images), **whole, command=command)
    written = write(frame, stem)
    print(f"{markdown(frame)}\nwritten: {', '.join(map(str, written))}")
    return 0


def measure(experiment: Experiment, images: SyntheticImages, steps: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Means over ``steps`` steps of the schedule's longest stage.

    Returns a row for each part and direction that occurs (``part``, ``direction``, ``ms``, ``gflop``), and of the whole
    step ``stage``, ``step_ms`` and ``profiled_ms`` (medians without and with the profiler), and ``other_cores``.
    """
    # Lazy: pandas and torch.
    import pandas as pd

    from benchmarks.step_profiler import flop_counter, flop_profiler, separate_head_passes, time_profiler
    from benchmarks.step_timer import StepTimer
    from lgd.logs import quiet_libraries
    from lgd.results.cost_meter import FIRST_STEPS
    from lgd.training.device import process_settings

    planned = stages(experiment)
    stage = max(planned, key=planned.__getitem__)
    with process_settings(experiment), quiet_libraries(), other_load() as load:
        timer = StepTimer(TimerSpec(experiment, images, experiment.method.name))
        separate_head_passes(timer.model)
        whole: list[float] = []
        times = time_profiler(timer.model, timer.device)
        timer.time_steps(stage, FIRST_STEPS, 1)
        # In turn, so that drift of the machine affects both.
        for done in range(0, steps, CHUNK):
            count = min(CHUNK, steps - done)
            whole += timer.time_steps(stage, 1, count).steps_ms
            timer.trainer(stage, times).train(0, 1 + count)
            # The first step after other work is a warm-up.
            del times.steps[-1 - count]
        counter = flop_counter()
        with counter:
            flops = flop_profiler(timer.model, counter)
            timer.trainer(stage, flops).train(0, 1)
    rows = [
        {
            "part": part,
            "direction": direction,
            "ms": statistics.fmean(x.get((part, direction), 0.0) for x in times.steps),
            "gflop": flops.steps[0].get((part, direction), 0.0),
        }
        for part in PARTS
        for direction in DIRECTIONS
        if any((part, direction) in x for x in (*times.steps, *flops.steps))
    ]
    profiled = statistics.median(sum(x.values()) for x in times.steps)
    described = {"stage": str(stage), "step_ms": statistics.median(whole), "profiled_ms": profiled}
    return pd.DataFrame(rows), {**described, "other_cores": load.cores}


def read(path: Path) -> pd.DataFrame:
    """The rows that this command wrote. Raises InputError, one line, for any other file."""
    return read_results(path, COLUMNS)


def limit_ms(frame: pd.DataFrame) -> pd.Series[float] | None:
    """Milliseconds that each part's FLOPs take at the GPU's peak; None where that is not known."""
    peak = _peak(frame)
    # GFLOP by TFLOP/s are milliseconds.
    return None if peak is None else frame.groupby("part")["gflop"].sum() / peak[0]


def _peak(frame: pd.DataFrame) -> tuple[float, str] | None:
    """TFLOP/s of the GPU at this precision, and the source of that; None where benchmarks/reference.yaml has none."""
    from benchmarks.speed_table import reference_file

    described, first = reference_file(), frame.iloc[0]
    if described["gpu"] not in str(first["gpu"]):
        return None
    limits = described["limits"]
    return float(limits["tflops"]["fp32" if first["precision"] == "fp32" else "bf16"]), str(limits["source"])


def markdown(frame: pd.DataFrame) -> str:
    """The parts as a table, and notes."""
    from analysis.render import pipe_table

    limit = limit_ms(frame)
    total, flops = frame["ms"].sum(), frame["gflop"].sum()
    rows = []
    for part in [x for x in PARTS if x in set(frame["part"])]:
        found = frame[frame["part"] == part].set_index("direction")
        cells = [_cell(found, "ms", x, "{:.2f}") for x in DIRECTIONS]
        cells += [f"{found['ms'].sum():.2f}", f"{found['ms'].sum() / total:.1%}"]
        cells += [_cell(found, "gflop", x, "{:.3g}") for x in DIRECTIONS[:2]]
        cells += [f"{found['gflop'].sum() / flops:.1%}", *([] if limit is None else [f"{limit[part]:.2f}"])]
        rows.append([part, *cells])
    sums = [frame.loc[frame["direction"] == x, ["ms", "gflop"]].sum() for x in DIRECTIONS]
    by_time = [*(f"{x['ms']:.2f}" for x in sums), f"{total:.2f}", "100.0%"]
    by_flops = [*(f"{x['gflop']:.3g}" for x in sums[:2]), "100.0%"]
    rows.append(["all", *by_time, *by_flops, *([] if limit is None else [f"{limit.sum():.2f}"])])
    header = ["part", *(f"{x} ms" for x in DIRECTIONS), "ms", "of the time", "forward GFLOP", "backward GFLOP"]
    header += ["of the FLOPs", *([] if limit is None else ["ms at the limit"])]
    return "\n".join([pipe_table(header, rows), "", *(f"- {x}" for x in _notes(frame)), ""])


def _notes(frame: pd.DataFrame) -> list[str]:
    from benchmarks.table7 import short

    first, peak = frame.iloc[0], _peak(frame)
    limit = "" if peak is None else f"At the limit: what the FLOPs take at {peak[0]:g} TFLOP/s ({peak[1]})"
    where = first["gpu"] if first["gpu"] != "none" else f"{first['cpu']}, {first['cores']} cores"
    return [
        f"{first['method']} on {first['detector']} {first['backbone']}, {first['precision']}, {first['batch']} images"
        f" of {first['height']} x {first['width']} pixels with {first['objects']:g} boxes on average; steps of the"
        f" stage {first['stage']!r}.",
        f"Without the profiler a step takes {first['step_ms']:.2f} ms (median); the profiler adds"
        f" {first['profiled_ms'] / first['step_ms'] - 1:+.1%}. In both, the head runs once for each pass, so that the"
        " passes can be told apart; in training both passes are one batch (lgd/methods/shared_head.py).",
        "FLOPs: torch.utils.flop_counter, a multiplication and an addition are two; only convolutions, matrix products"
        " and attention are counted.",
        *([f"{limit}; a part that is bound by bytes takes longer (benchmarks/roofline.py)."] if limit else []),
        f"{where}; torch {first['torch']}, detectron2 {first['detectron2']}, commit {short(first['git_commit'])};"
        f" measured {first['started']} by `{first['command']}`.",
        contention_note([float(first["other_cores"])], int(first["cores"])),
    ]


def figure(frame: pd.DataFrame) -> Figure:
    """Time and FLOPs of each part as stacked bars of forward, backward and update."""
    # Lazy: matplotlib.
    from matplotlib.figure import Figure

    from analysis.plots.style import BLUE, GREY, ORANGE
    from analysis.render import MISSING

    parts = [x for x in PARTS if x in set(frame["part"])]
    colours = {"forward": BLUE, "backward": ORANGE, "update": GREY}
    first = frame.iloc[0]
    shown = Figure(figsize=(8.0, 1.6 + 0.32 * len(parts)), layout="constrained")
    left, right = shown.subplots(1, 2, sharey=True)
    title = f"A training step with {first['method']}: {first['detector']} {first['backbone']}, {first['precision']}"
    shown.suptitle(f"{title}, {first['batch']} images", fontsize=10, x=0.01, ha="left")
    for axes, column, unit in ((left, "ms", "milliseconds"), (right, "gflop", "GFLOP")):
        starts = [0.0] * len(parts)
        for direction, colour in colours.items():
            found = frame[frame["direction"] == direction].set_index("part")[column]
            values = [float(found.get(x, 0.0)) for x in parts]
            axes.barh(range(len(parts)), values, left=starts, height=0.65, color=colour, label=direction)
            starts = [a + b for a, b in zip(starts, values, strict=True)]
        total = sum(starts)
        for row, value in enumerate(starts):
            text = f"{value / total:.0%}" if total else MISSING
            axes.annotate(text, (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlabel(unit)
        axes.set_xlim(0, 1.15 * max(starts) or 1)
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    left.set_yticks(range(len(parts)), parts)
    left.set_ylim(len(parts) - 0.5, -0.5)
    shown.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    return shown


def write(frame: pd.DataFrame, stem: Path) -> list[Path]:
    """The CSV, the table and the figure; atomically."""
    # Lazy: matplotlib.
    import matplotlib as mpl

    from analysis.plots.style import STYLE, save

    # A suffix may be part of the stem: with_suffix() would replace it.
    table = stem.with_name(stem.name + ".csv")
    write_results(frame, table, markdown(frame))
    with mpl.rc_context(STYLE):
        return [table, table.with_suffix(".md"), *save(figure(frame), stem)]


def _cell(found: pd.DataFrame, column: str, direction: str, form: str) -> str:
    from analysis.render import MISSING

    return form.format(found.loc[direction, column]) if direction in found.index else MISSING


def _described(experiment: Experiment, images: SyntheticImages) -> dict[str, Any]:
    from benchmarks.table7 import provenance_columns

    height, width = images.size
    return {
        "method": experiment.method.name,
        "detector": experiment.detector.name,
        "backbone": experiment.detector.backbone.name,
        "batch": experiment.schedule.batch,
        "height": height,
        "width": width,
        "objects": images.objects,
        "precision": experiment.precision,
        "threads": experiment.threads,
        **provenance_columns(),
    }


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
