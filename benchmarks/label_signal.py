"""Whether the features of LGD's teacher still depend on the labels as it trains, with few classes and with many.

The first steps of a preset's training are made on the shapes data, whose objects get other classes: their shape,
quarter of the image and size, mapped to the number of classes that is asked for. Measured is, by step, how far the
output of each of the teacher's modules changes when every class is replaced by the next (docs/method.md, "Label
signal").
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from benchmarks.options import Benchmark, csv_path, output_stem, read_results, write_results
    from lgd.config.experiment import STEPS, Experiment
    from lgd.config.presets import preset
    from lgd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from lgd.data.dataset import DataSet

PROG = "benchmarks/label_signal.py"

DESCRIPTION = "Measure how long LGD's teacher tells the classes of its labels apart (docs/method.md, 'Label signal')."

EXAMPLES = (
    "--classes 3,7,31,80 --steps 60 --variants LGD,centred",
    "--table benchmarks/results/FILE.csv",
)

COLUMNS = ("classes", "variant", "step", "stage", "change", "torch", "git_commit", "started", "command")
"""Columns that the table needs."""

VARIANTS: dict[str, dict[str, Any]] = {
    "LGD": {},
    "reference": {"method.init": "reference"},
    "slow": {"method.lr_factor": 0.1},
    "adamw": {"method.teacher_optimizer": "adamw"},
    "adamw-slow": {"method.teacher_optimizer": "adamw", "method.teacher_lr": 1e-4},
    "centred": {"method.centred_labels": True},
    "centred-adamw": {"method.centred_labels": True, "method.teacher_optimizer": "adamw"},
    "ours": {"method.residual": True, "method.own_label_start": True},
    "ours-centred": {"method.residual": True, "method.own_label_start": True, "method.centred_labels": True},
}
"""Settings by name."""

PLACES = 12
"""Classes of a shape: the quarter of the image that it lies in, and its size (small, medium, large)."""

IMAGES = {"data.shapes_train": 200, "data.shapes_val": 16}
"""How many are made: enough for the first steps, and a fixed batch that is measured on."""


def label_set(dataset: DataSet, classes: int, directory: Path) -> str:
    """Write the annotations of the shapes with ``classes`` classes; returns the data source that reads them."""
    layout, paths = dataset.layout, []
    root = layout.train_images.parent
    shapes = len(dataset.class_names)
    for name, source, images in (
        ("train", layout.train_json, layout.train_images),
        ("val", layout.val_json, layout.val_images),
    ):
        split = json.loads(source.read_bytes())
        sides = {x["id"]: (x["width"], x["height"]) for x in split["images"]}
        first = min(x["id"] for x in split["categories"])
        for image in split["images"]:
            image["file_name"] = str((images / image["file_name"]).relative_to(root))
        for x in split["annotations"]:
            number = PLACES * (x["category_id"] - first) + place(x["bbox"], sides[x["image_id"]])
            x["category_id"] = 1 + number * classes // (PLACES * shapes)
        split["categories"] = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(classes)]
        paths.append(directory / f"{name}-{classes}.json")
        paths[-1].write_text(json.dumps(split), encoding="utf-8")
    return f"coco-files:{paths[0]},{paths[1]},{root}"


def place(box: Sequence[float], sides: tuple[int, int]) -> int:
    """0 to 11, from the quarter of an image of ``sides`` that a box (x, y, width, height) lies in, and its size."""
    left, top, width, height = box
    across, down = sides
    quarter = 2 * (2 * top + height > down) + (2 * left + width > across)
    relative = (width * height / (across * down)) ** 0.5
    return 3 * quarter + (relative > 0.15) + (relative > 0.25)


def measured(experiment: Experiment, at: Sequence[int]) -> Iterator[tuple[int, dict[str, float]]]:
    """Train; yields each step of ``at`` with the relative change of every stage, then attention to the own label."""
    from detectron2.engine import hooks

    from lgd.data.loaders import train_loader, val_loader
    from lgd.methods.distiller import Distiller
    from lgd.training.build import build
    from lgd.training.trainer import Trainer

    built, data = build(experiment), experiment.data
    assert isinstance(built.model, Distiller)
    loader = train_loader(
        built.dataset, batch_size=experiment.schedule.batch, min_sizes=data.min_sizes, max_size=data.max_size,
        flip=data.flip, masks=False, seed=experiment.seed, workers=0,
    )  # fmt: skip
    probe = [x for batch in val_loader(
        built.dataset, min_size=data.test_size, max_size=data.max_size, workers=0, with_labels=True, cuda=False,
    ) for x in batch]  # fmt: skip
    trainer = Trainer(built.model, loader, built.optimizer, experiment, built.device)
    trainer.register_hooks([hooks.LRScheduler(built.optimizer, built.scheduler)])
    done = 0
    for step in at:
        if step > done:
            trainer.train(done, step)
            done = step
        yield step, _changes(built.model, probe)


def _changes(model: Any, batch: list[dict[str, Any]]) -> dict[str, float]:
    from lgd.evaluation.label_signal import measure_teacher

    found = measure_teacher(model, [[image] for image in batch])
    attention = found["attention"]
    return found["label_signal"] if attention is None else {**found["label_signal"], "attention": attention}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--classes", default="7", metavar="N,N", help=f"numbers of classes, up to {PLACES * 7} (default: 7)")
    add("--steps", type=int, default=60, metavar="N", help="steps of the training that are made (default: 60)")
    add("--variants", default="LGD,centred", metavar="A,B", help=f"of {', '.join(VARIANTS)} (default: LGD,centred)")
    add("--preset", default="nano", help="the training to begin from (default: nano)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="as in lgd sweep run")
    add("--output", type=Path, metavar="FILE.csv", help="where to (default: benchmarks/results/label-signal_...csv)")
    add("--table", type=Path, metavar="FILE.csv", help="print the table of an earlier measurement and do no more")


def run(options: argparse.Namespace, command: str) -> int:
    """command: what was typed, which is kept beside the results."""
    if options.table:
        print(markdown(read_results(options.table, COLUMNS)))
        return 0
    variants, numbers = _variants(options.variants), _numbers(options.classes)
    base = preset(options.preset).override({**IMAGES, "method.name": "lgd"}).override(options.overrides)
    if not all(1 < x <= PLACES * 7 for x in numbers):
        raise InputError(f"--classes {options.classes}: 2 to {PLACES * 7} classes")
    if not 0 < options.steps <= base.schedule.steps:
        raise InputError(f"--steps {options.steps}: from 1 to the training's {STEPS} {base.schedule.steps}")
    output = csv_path(options.output, output_stem("label-signal", options, base))
    # Lazy: pandas and torch.
    import pandas as pd

    from lgd.results import provenance

    frame = pd.DataFrame(measure(base, numbers, variants, options.steps)).assign(
        torch=provenance.versions()["torch"],
        git_commit=provenance.git_commit(),
        started=provenance.now(),
        command=command,
    )
    text = markdown(frame)
    write_results(frame, output, text)
    print(f"{text}\nwritten: {output}, {output.with_suffix('.md')}")
    return 0


def measure(base: Experiment, numbers: Sequence[int], variants: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """A row for each number of classes, variant, step and stage."""
    from lgd.data.catalog import load_dataset
    from lgd.logs import quiet_libraries

    at = sorted({x for x in (0, 5, 10, 20, 40) if x < steps} | {steps})
    rows = []
    with tempfile.TemporaryDirectory() as directory, quiet_libraries():
        dataset = load_dataset(base.data)
        for classes in numbers:
            experiment = base.override({"data.source": label_set(dataset, classes, Path(directory))})
            for name in variants:
                print(f"{classes} classes, {name}", file=sys.stderr, flush=True)
                for step, found in measured(experiment.override(VARIANTS[name]), at):
                    described = {"classes": classes, "variant": name, "step": step}
                    rows += [{**described, "stage": stage, "change": change} for stage, change in found.items()]
    return rows


def markdown(frame: pd.DataFrame) -> str:
    """A row for each variant and number of classes: every stage's changes at the first, a middle and the last step."""
    from analysis.render import number, pipe_table

    steps = sorted(set(frame["step"]))
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    stages = [x for x in dict.fromkeys(frame["stage"]) if x != "attention"]
    by = frame.set_index(["variant", "classes", "stage", "step"])["change"].to_dict()
    rows = []
    for variant in dict.fromkeys(frame["variant"]):
        for classes in sorted(set(frame["classes"])):
            cells = [
                ", ".join(number(by.get((variant, classes, stage, step)), 2) for step in shown) for stage in stages
            ]
            rows.append([str(variant), str(classes), *cells])
    first = frame.iloc[0]
    note = (
        f"- In each cell: after {', '.join(map(str, shown))} steps; one seed. torch {first['torch']}, commit"
        f" {first['git_commit'][:12]}; measured {first['started']} by `{first['command']}`."
    )
    return "\n".join([pipe_table(["variant", "classes", *stages], rows, left=1), "", note, ""])


def _variants(text: str) -> list[str]:
    found = [x.strip() for x in text.split(",")]
    for name in found:
        if name not in VARIANTS:
            raise InputError(f"--variants {name}: choose among {', '.join(VARIANTS)}")
    return found


def _numbers(text: str) -> list[int]:
    try:
        return [int(x) for x in text.split(",")]
    except ValueError:
        raise InputError(f"--classes {text}: whole numbers, separated by commas") from None


_COMMAND = Benchmark(PROG, DESCRIPTION, EXAMPLES, add_arguments, run)
main, parser = _COMMAND.main, _COMMAND.parser

if __name__ == "__main__":
    sys.exit(main())
