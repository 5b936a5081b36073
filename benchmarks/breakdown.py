"""Where a training step goes: milliseconds and FLOPs of each part, forward and backward.

python benchmarks/breakdown.py                                     # LGD, tiny, on the CPU
python benchmarks/breakdown.py --method fgfi --detector faster_rcnn
python benchmarks/breakdown.py --preset paper --precision bf16     # on a GPU

A step is cut where it passes from one part to another, and what lies between two cuts counts for one part, so the
parts add up to the step. In the forward pass the cuts are at the calls of modules and of the detectors' label
assignment. Autograd numbers its nodes as the forward pass makes them, so each node of the backward pass is known to be
of the part during which it was made. On a GPU the cuts are CUDA events: nothing waits for the device within a step.

FLOPs are those of torch.utils.flop_counter at the same cuts, since fvcore's tracer sees neither losses nor the backward
pass: convolutions (deformable ones too), matrix products and attention, a multiplication and an addition being two.
Norms, activations, pooling, sampling and whatever else is bound by memory count for nothing there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures import BLUE, GREY, ORANGE, STYLE, save
from benchmarks.options import (
    add_options,
    command_line,
    experiment_of,
    images_of,
    output_stem,
)
from benchmarks.step_profiler import DIRECTIONS, PARTS, counted, flop_counter, timed
from benchmarks.step_timer import Bench, Images, Job, stages
from benchmarks.table7 import NONE, pipe_table, provenance_columns, short
from lgd.cli import Parser, answer
from lgd.config.experiment import Experiment
from lgd.errors import InputError
from lgd.files import atomic_write, write_text
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Distiller
from lgd.results import provenance
from lgd.results.cost_meter import FIRST_STEPS
from lgd.training import run as training

PIECE = 4
"""Steps between a look at the parts and a look at the whole."""


def measure(experiment: Experiment, images: Images, steps: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Means of ``steps`` steps of the schedule's longest stage.

    A row for each part and direction that occurs: ``part``, ``direction``, ``ms``, ``gflop``; and of the whole step
    ``stage``, ``step_ms`` and ``looked_ms``, the median without and with a look at its parts.
    """
    planned = stages(experiment)
    stage = max(planned, key=planned.__getitem__)
    with training.process_settings(experiment), quiet_libraries():
        bench = Bench(Job(experiment, images, experiment.method.name))
        if isinstance(bench.model, Distiller):
            # In one batch nobody could tell the head's second pass from its first.
            bench.model.joint = False
        whole: list[float] = []
        cuts = timed(bench.model, bench.device)
        bench.stretch(stage, FIRST_STEPS, 1)
        # In turn, so that both see the same machine.
        for done in range(0, steps, PIECE):
            count = min(PIECE, steps - done)
            whole += bench.stretch(stage, 1, count).steps_ms
            bench.trainer(stage, cuts).train(0, 1 + count)
            # The first one comes after other work.
            del cuts.steps[-1 - count]
        counter = flop_counter()
        with counter:
            flops = counted(bench.model, counter)
            bench.trainer(stage, flops).train(0, 1)
    rows = [
        {
            "part": part,
            "direction": direction,
            "ms": statistics.fmean(x.get((part, direction), 0.0) for x in cuts.steps),
            "gflop": flops.steps[0].get((part, direction), 0.0),
        }
        for part in PARTS
        for direction in DIRECTIONS
        if any((part, direction) in x for x in (*cuts.steps, *flops.steps))
    ]
    looked = statistics.median(sum(x.values()) for x in cuts.steps)
    return pd.DataFrame(rows), {"stage": str(stage), "step_ms": statistics.median(whole), "looked_ms": looked}


def markdown(frame: pd.DataFrame) -> str:
    """The parts as a table, with what a reader must know."""
    total, flops = frame["ms"].sum(), frame["gflop"].sum()
    rows = []
    for part in [x for x in PARTS if x in set(frame["part"])]:
        found = frame[frame["part"] == part].set_index("direction")
        cells = [_cell(found, "ms", x, "{:.2f}") for x in DIRECTIONS]
        cells += [f"{found['ms'].sum():.2f}", f"{found['ms'].sum() / total:.1%}"]
        cells += [_cell(found, "gflop", x, "{:.3g}") for x in DIRECTIONS[:2]]
        cells += [f"{found['gflop'].sum() / flops:.1%}"]
        rows.append([part, *cells])
    sums = [frame.loc[frame["direction"] == x, ["ms", "gflop"]].sum() for x in DIRECTIONS]
    by_time = [*(f"{x['ms']:.2f}" for x in sums), f"{total:.2f}", "100.0%"]
    rows.append(["all", *by_time, *(f"{x['gflop']:.3g}" for x in sums[:2]), "100.0%"])
    header = ["part", *(f"{x} ms" for x in DIRECTIONS), "ms", "of the time", "forward GFLOP", "backward GFLOP"]
    first = frame.iloc[0]
    where = first["gpu"] if first["gpu"] != "none" else f"{first['cpu']}, {first['cores']} cores"
    notes = [
        f"{first['method']} on {first['detector']} {first['backbone']}, {first['precision']}, {first['batch']} images"
        f" of {first['height']} x {first['width']} pixels with {first['objects']:g} boxes on average; the steps are of"
        f" the stage {first['stage']!r}.",
        f"A step that nobody looked at takes {first['step_ms']:.2f} ms (median): looking at the parts adds"
        f" {first['looked_ms'] / first['step_ms'] - 1:+.1%}. Both are of steps whose passes through the head are taken"
        " one after the other, so that they can be told apart; a training takes them in one batch (lgd/methods/shared_head.py).",
        "FLOPs: torch.utils.flop_counter, a multiplication and an addition being two; what is no convolution, matrix"
        " product or attention is not counted.",
        f"{where}; torch {first['torch']}, detectron2 {first['detectron2']}, commit {short(first['git_commit'])};"
        f" measured {first['started']} by `{first['command']}`.",
    ]
    return "\n".join([pipe_table([*header, "of the FLOPs"], rows), "", *(f"- {x}" for x in notes), ""])


def figure(frame: pd.DataFrame) -> Figure:
    """Time and FLOPs of each part as bars, forward, backward and update beside each other."""
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
            text = f"{value / total:.0%}" if total else NONE
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
    table, text = (stem.with_name(stem.name + x) for x in (".csv", ".md"))
    with atomic_write(table) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    write_text(text, markdown(frame))
    with mpl.rc_context(STYLE):
        return [table, text, *save(figure(frame), stem)]


def _cell(found: pd.DataFrame, column: str, direction: str, form: str) -> str:
    return form.format(found.loc[direction, column]) if direction in found.index else NONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return answer(lambda: _run(_parser().parse_args(arguments), arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="benchmarks/breakdown.py", description="Where a training step goes, part by part.")
    add_options(parser)
    add = parser.add_argument
    add("--method", default="lgd", metavar="NAME", help="baseline, lgd (default) or fgfi")
    add("--steps", type=int, default=20, metavar="N", help="steps to look at (default: 20)")
    add("--output", type=Path, metavar="STEM", help="where to, without suffix (default: benchmarks/results/...)")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    if options.steps < 1:
        raise InputError(f"--steps {options.steps}: at least one")
    experiment = experiment_of(options).override({"method.name": options.method})
    images = images_of(options, experiment)
    stem: Path = options.output or output_stem(f"breakdown-{options.method}", options, experiment)
    shared = {"started": training.now(), "git_commit": provenance.git_commit()}
    frame, whole = measure(experiment, images, options.steps)
    height, width = images.size
    described = {
        "method": options.method,
        "detector": experiment.detector.name,
        "backbone": experiment.detector.backbone.name,
        **whole,
        "batch": experiment.schedule.batch,
        "height": height,
        "width": width,
        "objects": images.objects,
        "precision": experiment.precision,
        "threads": experiment.threads,
        **provenance_columns(provenance.hardware(), provenance.versions()),
        **shared,
        "command": command_line("benchmarks/breakdown.py", arguments),
    }
    frame = frame.assign(**described)
    written = write(frame, stem)
    print(f"{markdown(frame)}\nwritten: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
