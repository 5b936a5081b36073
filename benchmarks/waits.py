"""Counts, without a GPU, what a training step launches and how often it makes the host wait for the device.

Nothing is timed: one step runs on the CPU while its operators are counted, with detectron2's losses and with ours. What
the loader does, the copies of a batch to the device and the waits inside libraries are not counted.

detectron2 has no losses of ATSS and POTO. Theirs of one image at a time are counted in a checkout of these detectors'
former code, with ``--before``; the rows then go into the file with the others.
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
    from benchmarks.timer_spec import Stage, SyntheticImages, TimerSpec
    from lgd.config.paper import DETECTORS

if TYPE_CHECKING:
    import pandas as pd

    from lgd.config.experiment import Experiment

PROG = "benchmarks/waits.py"

DESCRIPTION = "Count what a step launches and what it waits for, for every detector (docs/performance.md). No GPU."

EXAMPLES = ("--preset nano  # a minute", "--detector fcos", "--table benchmarks/results/FILE.csv")

METHODS = ("baseline", "lgd")

OURS = "ours"

SIDES = {"detectron2's losses": ("fast losses",), OURS: ()}
"""Sides of the comparison, and the optimizations that are turned off for each."""

NOT_DETECTRON2S = ("atss", "poto")
"""Detectors that detectron2 has no losses for."""

BEFORE = "per-image losses (before {commit})"
"""What ``--before`` calls its side."""

CHECKOUT = "git checkout {commit}^ -- lgd/detectors/{{atss,poto,common}}.py"
"""What brings back the code that ``--before`` counts."""

COLUMNS = (
    *("detector", "method", "side", "launches", "waits", "waits_for", "images", "height", "width"),
    *("torch", "git_commit", "started", "command"),
)
"""Columns that the table needs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser, "nano")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/...)")
    parser.add_argument(
        "--before",
        metavar="COMMIT",
        help=f"only {' and '.join(NOT_DETECTRON2S)}, where this is done first: {CHECKOUT.format(commit='COMMIT')}",
    )
    parser.add_argument("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier count, no more")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    if options.table:
        print(markdown(read_results(options.table, COLUMNS)))
        return 0
    if options.before:
        command = f"{CHECKOUT.format(commit=options.before)} && {command}"
    # Lazy: pandas and torch.
    import pandas as pd

    from lgd.results import provenance

    every = NOT_DETECTRON2S if options.before else DETECTORS
    detectors = [options.detector] if options.detector else list(every)
    rows: list[dict[str, Any]] = []
    for detector in detectors:
        chosen = argparse.Namespace(**{**vars(options), "detector": detector})
        experiment = experiment_from(chosen)
        images = images_from(chosen, experiment)
        for method in METHODS:
            rows += measure(with_method(chosen, experiment, method), images, options.before)
    frame = pd.DataFrame(rows).assign(
        torch=provenance.versions()["torch"],
        git_commit=provenance.git_commit(),
        started=provenance.now(),
        command=command,
    )
    stem = output_stem(f"waits-before-{options.before}" if options.before else "waits", options, experiment)
    if not options.detector:
        stem = stem.with_name(stem.name.replace(f"-{experiment.detector.name}-", "-detectors-"))
    path = csv_path(options.output, stem)
    text = markdown(frame)
    write_results(frame, path, text)
    print(f"{text}\nwritten: {path}, {path.with_suffix('.md')}")
    return 0


def sides(detector: str, before: str | None = None) -> dict[str, tuple[str, ...]]:
    """Those of ``SIDES`` that the detector has; with ``before`` only that commit's."""
    if before:
        return {BEFORE.format(commit=before): ()}
    return {name: without for name, without in SIDES.items() if name == OURS or detector not in NOT_DETECTRON2S}


def measure(experiment: Experiment, images: SyntheticImages, before: str | None = None) -> list[dict[str, Any]]:
    """A row for each of ``sides``: launches and waits of one step of ``experiment``."""
    # Lazy: torch.
    from benchmarks.step_timer import StepTimer
    from benchmarks.wait_counter import WaitCounter, as_on_gpu
    from lgd.logs import quiet_libraries
    from lgd.training.device import process_settings

    on_cpu = experiment.override({"precision": "fp32", "device": "cpu"})
    rows = []
    for side, without in sides(experiment.detector.name, before).items():
        with process_settings(on_cpu), quiet_libraries():
            timer = StepTimer(TimerSpec(on_cpu, images, experiment.method.name, without))
            stage = Stage(distils=experiment.method.has_distillation)
            counter = WaitCounter()
            with as_on_gpu():
                # The first step fills caches.
                timer.trainer(stage).train(0, 1)
                with counter:
                    timer.trainer(stage).train(1, 2)
        rows.append(
            {
                "detector": experiment.detector.name,
                "method": experiment.method.name,
                "side": side,
                "launches": counter.launches,
                "waits": counter.waits.total(),
                "waits_for": ", ".join(f"{n} x {name}" for name, n in sorted(counter.waits.items())),
                "images": experiment.schedule.batch,
                "height": images.size[0],
                "width": images.size[1],
            }
        )
    return rows


def markdown(frame: pd.DataFrame) -> str:
    """The counts as a table, and notes."""
    from analysis.render import pipe_table

    header = ["detector", "method", "losses", "launches", "waits", "for"]
    columns = ["detector", "method", "side", "launches", "waits", "waits_for"]
    first = frame.iloc[0]
    notes = [
        f"One step of {first['images']} images of {first['height']} x {first['width']} pixels, the second of a"
        " training; an operator that is no view counts as one launch.",
    ]
    for _, row in frame.drop_duplicates("command").iterrows():
        commit = row["git_commit"][:12]
        notes.append(f"torch {row['torch']}, commit {commit}; counted {row['started']} by `{row['command']}`.")
    rows = [[str(x) for x in row] for row in frame[columns].to_numpy()]
    return "\n".join([pipe_table(header, rows), "", *(f"- {x}" for x in notes), ""])


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
