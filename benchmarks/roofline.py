"""What a step must cost on a GPU at least: its FLOPs and bytes, part by part, against the GPU's limits.

python benchmarks/roofline.py                      # LGD on RetinaNet R-50, shorter side 800, for 16 images
python benchmarks/roofline.py --method baseline
python benchmarks/roofline.py --preset tiny        # seconds; the numbers of a small network

Nothing is timed: one image's step runs on the CPU in float32 while its operators are counted, and the counts are
multiplied by the number of images. So this needs no GPU, and says the same on every machine.

Bytes are what every operator reads and writes, each by itself, as without any fusion; views move nothing. In bfloat16
they are taken as half, though losses and matching stay in float32. A part's bound is the longer of the two times that
its FLOPs and its bytes take at the limits of benchmarks/reference.yaml; a fused implementation may move fewer bytes,
none gets by with fewer FLOPs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.options import add_options, command_line, experiment_of, images_of, output_stem
from benchmarks.speed import REFERENCES
from benchmarks.step_profiler import DIRECTIONS, PARTS, Cuts, flop_counter
from benchmarks.step_timer import Bench, Images, Job, Stage
from benchmarks.table7 import pipe_table
from lgd.cli import Parser, answer
from lgd.config.experiment import Experiment
from lgd.errors import InputError
from lgd.files import atomic_write, write_text
from lgd.logs import quiet_libraries
from lgd.methods.distiller import Distiller
from lgd.results import provenance
from lgd.training import run as training
from lgd.training.run import now


class BytesCounter(TorchDispatchMode):
    """Adds up the bytes that operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        given = {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = {id(x): x for x in tree_leaves(answer) if isinstance(x, torch.Tensor)}
        storages = {_storage(x) for x in given.values()}
        # What makes nothing and changes nothing is a view.
        if func._schema.is_mutable or any(_storage(x) not in storages for x in made.values()):
            self.total += sum(x.numel() * x.element_size() for x in (*given.values(), *made.values()))
        return answer


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr() if x.layout is torch.strided else id(x)


def measure(experiment: Experiment, images: Images, count: int) -> pd.DataFrame:
    """``part``, ``direction``, ``gflop`` and ``gbyte`` (float32) of a step of ``count`` images."""
    one = experiment.override({"schedule.batch": 1, "schedule.accumulate": 1, "precision": "fp32", "device": "cpu"})
    with training.process_settings(one), quiet_libraries():
        bench = Bench(Job(one, images, experiment.method.name))
        if isinstance(bench.model, Distiller):
            bench.model.joint = False
        flops, moved = flop_counter(), BytesCounter()
        found = {}
        for name, counter, read in (
            ("gflop", flops, lambda: flops.get_total_flops() / 1e9),
            ("gbyte", moved, lambda: moved.total / 1e9),
        ):
            cuts = Cuts(bench.model, read, lambda readings: readings)
            with counter:
                bench.trainer(Stage(distils=experiment.method.name != "baseline"), cuts).train(0, 1)
            found[name] = cuts.steps[0]
    rows = []
    for part in PARTS:
        for direction in DIRECTIONS:
            values = {name: x.get((part, direction), 0.0) for name, x in found.items()}
            if any(values.values()):
                # The optimiser's work is the same for any number of images.
                times = 1 if part == "optimiser" else count
                rows.append({"part": part, "direction": direction, **{k: v * times for k, v in values.items()}})
    return pd.DataFrame(rows)


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
    """The bounds as a table, with what a reader must know."""
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
        "GB: what each operator reads and writes by itself, without fusion.",
        f"torch {first['torch']}, commit {first['git_commit'][:12]}; counted {first['started']} by"
        f" `{first['command']}`.",
    ]
    return "\n".join([pipe_table(header, rows), "", *(f"- {x}" for x in notes), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 counted, 2 wrong input, 130 interrupted."""
    return answer(lambda: _run(_parser().parse_args(arguments), arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="benchmarks/roofline.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.set_defaults(preset="paper")
    parser.add_argument("--method", default="lgd", metavar="NAME", help="baseline, lgd (default) or fgfi")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/...)")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    if options.method not in ("baseline", "lgd", "fgfi"):
        raise InputError(f"--method {options.method}: baseline, lgd or fgfi")
    experiment = experiment_of(options).override({"method.name": options.method})
    images = images_of(options, experiment)
    precision = options.precision or "bf16"
    stem = output_stem(f"roofline_{options.method}", options, experiment.override({"precision": precision}))
    output: Path = options.output or stem.with_name(stem.name + ".csv")
    if output.suffix != ".csv":
        raise InputError(f"--output {output}: give it the suffix .csv")
    limits = yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))["limits"]
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
        started=now(),
        command=command_line("benchmarks/roofline.py", arguments),
    )
    text = markdown(frame, limits, precision)
    with atomic_write(output) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    write_text(output.with_suffix(".md"), text)
    print(f"{text}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
