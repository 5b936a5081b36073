"""How fast a step is beside other ways to take it, measured side by side in one run.

python benchmarks/speed.py                                    # tiny, CPU: the components grid, and straightforward code
python benchmarks/speed.py --changes                          # LGD's step with one change undone at a time
python benchmarks/speed.py --preset paper                     # one GPU: RetinaNet, 16 images of shorter side 800
python benchmarks/speed.py --preset paper --side 320          # bound by launches
python benchmarks/speed.py --preset paper --detector faster_rcnn

Every row has a process of its own; they take turns, every second round backwards (see docs/cost.md). The other side is
benchmarks/naive_lgd.py: the same parameters and the same losses, by plain loops; the table says how far the two
sides' losses of one batch are apart.

On the CPU the arms of the components grid are timed in the stage in which they all distil. On a GPU each row is one
form of the training step: precision, memory format, compiled or not, ours or straightforward; beside the rows that
benchmarks/reference.yaml has a figure for, it stands there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from benchmarks.naive_lgd import CHANGES
from benchmarks.options import add_options, command_line, experiment_of, images_of, output_stem
from benchmarks.step_timer import Images, Job, Stage, Worker
from benchmarks.table7 import NONE, pipe_table, provenance_columns
from lgd.cli import Parser, answer
from lgd.config.experiment import Experiment
from lgd.config.grids import grid
from lgd.errors import InputError
from lgd.files import atomic_write, write_text
from lgd.results import provenance
from lgd.results.cost_meter import FIRST_STEPS
from lgd.training.run import now, resolve_device

REFERENCES = Path(__file__).with_name("reference.yaml")

PLAIN, OURS = "straightforward", "ours"


@dataclass(frozen=True)
class Row:
    """What is timed. arm: what it trains, by which sides are paired; side: how. without: what of CHANGES is undone."""

    arm: str
    side: str
    experiment: Experiment
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.side}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 2 wrong input, 130 interrupted."""
    return answer(lambda: _run(_parser().parse_args(arguments), arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="benchmarks/speed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    add = parser.add_argument
    add("--rounds", type=int, default=6, metavar="N", help="stretches of every row (default: 6)")
    add("--steps", type=int, default=8, metavar="N", help="steps that a stretch times (default: 8)")
    add("--drop", type=int, default=2, metavar="N", help="steps of a stretch before those, not timed (default: 2)")
    add("--changes", action="store_true", help="instead: LGD, and LGD with one change undone at a time")
    add("--compile", action="store_true", help="on a GPU, rows with compile=true, too")
    add("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/speed_...csv)")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    for name, least in (("rounds", 1), ("steps", 2), ("drop", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: at least {least}")
    experiment = experiment_of(options)
    images = images_of(options, experiment)
    stem = output_stem("changes" if options.changes else "speed", options, experiment)
    output: Path = options.output or stem.with_name(stem.name + ".csv")
    if output.suffix != ".csv":
        raise InputError(f"--output {output}: give it the suffix .csv")
    gpu = resolve_device(experiment).type == "cuda"
    if options.changes:
        rows = changes(experiment)
    else:
        rows = forms(experiment, compiled=options.compile) if gpu else arms(experiment)
    frame = measure(rows, images, options.rounds, options.drop, options.steps)
    frame = frame.assign(
        preset=options.preset,
        detector=experiment.detector.name,
        backbone=experiment.detector.backbone.name,
        batch=experiment.schedule.batch,
        height=images.size[0],
        width=images.size[1],
        objects=images.objects,
        **provenance_columns(provenance.hardware(), provenance.versions()),
        git_commit=provenance.git_commit(),
        started=now(),
        command=command_line("benchmarks/speed.py", arguments),
    )
    text = markdown(frame, reference(frame))
    with atomic_write(output) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    write_text(output.with_suffix(".md"), text)
    print(f"{text}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


def arms(experiment: Experiment) -> list[Row]:
    """The arms of the components grid, each by both sides."""
    found = []
    for arm in grid("components", "tiny").arms:
        changed = experiment.override(arm.changes)
        plain = changed.override({"memory_format": "contiguous"})
        found += [Row(arm.name, PLAIN, plain, CHANGES), Row(arm.name, OURS, changed)]
    return found


def changes(experiment: Experiment) -> list[Row]:
    """LGD, straightforward and ours, and ours without one change at a time."""
    lgd = experiment.override({"method.name": "lgd"})
    contiguous = lgd.override({"memory_format": "contiguous"})
    return [
        Row("LGD", PLAIN, contiguous, CHANGES),
        Row("LGD", OURS, lgd),
        *(Row("LGD", f"{OURS} without {x}", lgd, (x,)) for x in CHANGES),
        Row("LGD", f"{OURS} without channels_last", contiguous),
    ]


def forms(experiment: Experiment, *, compiled: bool) -> list[Row]:
    """Forms of one detector's step on a GPU: detectron2's alone, LGD's and FGFI's."""
    as_it_comes = {"memory_format": "contiguous"}
    fast = {"precision": "bf16", "memory_format": "channels_last"}
    names = {"baseline": "baseline", "LGD": "lgd"}
    found = []
    for arm, method in names.items():
        one = experiment.override({"method.name": method})
        found += [
            Row(arm, f"{PLAIN} fp32", one.override({"precision": "fp32", **as_it_comes}), CHANGES),
            Row(arm, f"{PLAIN} bf16 channels_last", one.override(fast), CHANGES),
            Row(arm, f"{OURS} fp32", one.override({**fast, "precision": "fp32"})),
            Row(arm, f"{OURS} bf16", one.override(fast)),
        ]
        if compiled:
            found.append(Row(arm, f"{OURS} bf16 compiled", one.override({**fast, "compile": True})))
    shapes: dict[str, dict[str, Any]] = {"bf16": fast, "bf16 compiled": {**fast, "compile": True}}
    for name, form in list(shapes.items())[: 2 if compiled else 1]:
        fgfi = experiment.override({"method.name": "fgfi", **form})
        assert fgfi.teacher is not None
        found += [
            Row("FGFI", f"{OURS} {name}", fgfi),
            Row("FGFI's teacher in training", f"{OURS} {name}", fgfi.teacher),
        ]
    return found


def measure(rows: Sequence[Row], images: Images, rounds: int, drop: int, steps: int) -> pd.DataFrame:
    """A row for each of ``rows`` and round, with the losses of one batch before anything is trained."""
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in rows]
        for row, worker in zip(rows, workers, strict=True):
            worker.request("build", Job(row.experiment, images, row.name, row.without))
        losses = [sum(worker.request("losses").values()) for worker in workers]
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
            for i in list(range(len(rows)))[:: -1 if turn % 2 else 1]:
                dropped = max(drop, FIRST_STEPS) if turn == 0 else drop
                stretch = workers[i].request("stretch", Stage(distils=rows[i].experiment.method.name != "baseline"),
                                         dropped, steps)  # fmt: skip
                memory = "device" if "device" in stretch.peak_mib else "host"
                found.append(
                    {
                        "arm": rows[i].arm,
                        "side": rows[i].side,
                        "round": turn,
                        "timed_steps": steps,
                        "median_ms": stretch.median_ms,
                        "peak_mib": stretch.peak_mib[memory],
                        "memory": memory,
                        "first_loss": losses[i],
                        "precision": rows[i].experiment.precision,
                    }
                )
    order = {row.name: i for i, row in enumerate(rows)}
    frame = pd.DataFrame(found)
    return frame.iloc[sorted(range(len(frame)), key=lambda i: order[f"{found[i]['arm']}, {found[i]['side']}"])]


def reference(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Figures of others for the same detector, backbone and size on the same kind of GPU; none for a CPU."""
    described = yaml.safe_load(REFERENCES.read_text(encoding="utf-8"))
    first = frame.iloc[0]
    same = ("detector", "backbone", "batch", "height")
    return [
        row
        for row in described["rows"]
        if described["gpu"] in str(first["gpu"]) and all(row[key] == first[key] for key in same)
    ]


def markdown(frame: pd.DataFrame, references: Sequence[Mapping[str, Any]]) -> str:
    """The table: a step of each row, and ours over the other side within each round."""
    shown: list[list[str]] = []
    medians = frame.groupby(["arm", "side"], sort=False)
    for (arm, side), found in medians:
        other = frame[(frame["arm"] == arm) & (frame["side"] == _other(str(side), set(frame["side"])))]
        ratios = _ratios(other, found)
        apart = abs(found["first_loss"].iloc[0] / other["first_loss"].iloc[0] - 1) if len(other) else None
        shown.append(
            [
                str(arm),
                str(side),
                f"{found['median_ms'].median():.1f}",
                f"{found['peak_mib'].max():.0f}",
                _spread(ratios),
                NONE if apart is None else f"{apart:.1e}",
            ]
        )
    header = ["arm", "side", "ms", "peak MiB", "as fast as straightforward", "losses apart"]
    lines = [pipe_table(header, shown, left=2), ""]
    sides = set(frame["side"])
    if sides == {PLAIN, OURS}:
        by_round = frame.pivot_table(index="round", columns="side", values="median_ms", aggfunc="sum")
        whole = (by_round[PLAIN] / by_round[OURS]).tolist()
        lines += [f"All arms together: **{_spread(whole)}** as fast as the straightforward implementation.", ""]
    elif {"baseline", "LGD"} <= set(frame["arm"]):
        lines += [*_extras(frame), ""]
    if references:
        lines += [
            "| figures of others, same GPU | ms | peak GiB | source |",
            "| :-- | --: | --: | :-- |",
            *(f"| {x['what']} | {x['ms']} | {x.get('gib', NONE)} | {x['source']} |" for x in references),
            "",
        ]
    first = frame.iloc[0]
    lines += [
        f"- {first['detector']} {first['backbone']}, {first['batch']} images of {first['height']} x {first['width']}"
        f" pixels with {first['objects']:.3g} boxes on average; median over rounds, in brackets lowest and highest.",
        f"- {first['gpu'] if first['gpu'] != 'none' else first['cpu']}; torch {first['torch']}, commit"
        f" {first['git_commit'][:12]}; measured {first['started']} by `{first['command']}`.",
        "",
    ]
    return "\n".join(lines)


def _other(side: str, sides: set[str]) -> str:
    """The straightforward side that a side is held against; itself has none."""
    if side.startswith(PLAIN):
        return ""
    return PLAIN if PLAIN in sides else f"{PLAIN} fp32"


def _extras(frame: pd.DataFrame) -> list[str]:
    """What LGD and FGFI cost beyond our fastest baseline, within rounds."""
    by = {key: x.set_index("round")["median_ms"] for key, x in frame.groupby(["arm", "side"])}
    fastest = {
        arm: min((key for key in by if key[0] == arm), key=lambda key: by[key].median())
        for arm in dict.fromkeys(frame["arm"])
    }
    base = by[fastest["baseline"]]
    lines = [f"Fastest: {', '.join(f'{arm} as {side}' for arm, side in fastest.values())}."]
    lgd = (by[fastest["LGD"]] / base - 1).tolist()
    lines.append(f"LGD's extra over our fastest baseline: **{_spread(lgd, '')}** of that baseline.")
    if "FGFI" in fastest:
        fgfi = by[fastest["FGFI"]] - base + by[fastest["FGFI's teacher in training"]]
        saved = (1 - (by[fastest["LGD"]] - base) / fgfi).tolist()
        lines.append(
            f"Method-specific cost, if teacher and student take as many steps: LGD's is **{_spread(saved, '')}** below"
            " FGFI's (as a share of it)."
        )
    return lines


def _ratios(other: pd.DataFrame, ours: pd.DataFrame) -> list[float]:
    pairs = other.set_index("round")["median_ms"] / ours.set_index("round")["median_ms"] if len(other) else None
    return [] if pairs is None else pairs.dropna().tolist()


def _spread(values: Sequence[float], unit: str = "x") -> str:
    if not values:
        return NONE
    return f"{statistics.median(values):.2f}{unit} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    # As in a trial: the machine's threads are the workers'.
    torch.set_num_threads(1)
    sys.exit(main())
