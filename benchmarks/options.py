"""Options that the benchmark commands share: the training to measure, checks of options, files to write.

torch, detectron2 and pandas are imported inside functions: --help and wrong options take a fraction of a second.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.timer_spec import SyntheticImages
from lgd.cli import Parser, examples, exit_status, typed
from lgd.config.paper import DETECTORS
from lgd.errors import InputError
from lgd.files import atomic_write, write_text

if TYPE_CHECKING:
    import pandas as pd

    from lgd.config.experiment import Backbone, Experiment
    from lgd.config.presets import Preset

_CHECKOUT = Path(__file__).parents[1]


def checkout() -> Path:
    """The repository that this code is run from. Raises InputError where it is an installed package."""
    if not (_CHECKOUT / "pyproject.toml").is_file():
        raise InputError("no checkout here, for this package is installed: say --repository DIR")
    return _CHECKOUT


RESULTS = _CHECKOUT / "benchmarks" / "results" if (_CHECKOUT / "pyproject.toml").is_file() else Path("results")
"""Where measurements are written unless told otherwise: in a checkout beside the kept ones, else in ./results."""

COCO_CLASSES = 80
COCO_OBJECTS = 7.3
"""Mean number of annotations an image of COCO's train2017 (860,001), of its images with any (117,266)."""


@dataclass(frozen=True)
class Benchmark:
    """The command line of a benchmark: what its module gives as ``main`` and ``parser``."""

    prog: str
    """As a file of this repository."""
    description: str
    examples: Sequence[str]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, str], int]
    """Gets the options, and what was typed, which is kept beside the results."""

    def parser(self, prog: str = "") -> Parser:
        prog = prog or self.prog
        found = Parser(prog=prog, description=self.description, epilog=examples(prog, *self.examples))
        self.add_arguments(found)
        return found

    def main(self, arguments: Sequence[str] | None = None, prog: str = "") -> int:
        """Exit status: 0 measured, 2 wrong input, 130 interrupted."""

        def command() -> int:
            parser = self.parser(prog)
            line = shlex.join([*typed(parser.prog).split(), *(sys.argv[1:] if arguments is None else arguments)])
            return self.run(parser.parse_args(arguments), line)

        return exit_status(command)


def add_training_arguments(parser: argparse.ArgumentParser, preset: Preset = "tiny") -> None:
    """Options that :func:`experiment_from` and :func:`images_from` read. preset: the default."""
    add = parser.add_argument
    add("--preset", default=preset, metavar="PRESET",
        help="the training to begin from: tiny (CPU), small, paper or finetune (default: %(default)s)")  # fmt: skip
    add("--detector", metavar="NAME", help=f"one of {', '.join(DETECTORS)}")
    add("--backbone", metavar="NAME", help="of the student, such as resnet50 or swin_t")
    add("--teacher-backbone", metavar="NAME", help="of frozen teachers, such as resnet101")
    add("--batch", type=int, metavar="N", help="images a step, all devices together")
    add("--side", type=int, metavar="PIXELS", help="shorter side of the images (default: the largest of the training)")
    add("--objects", type=float, metavar="N", help="boxes an image, on average (default: as in the preset's data)")
    add("--precision", choices=("fp32", "bf16", "fp16"))
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change any setting, e.g. schedule.accumulate=4; may be given several times")  # fmt: skip


def add_timing_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Options that :func:`check_timing` checks. rounds: the default."""
    add = parser.add_argument
    add("--rounds", type=int, default=rounds, metavar="N", help=f"how often each row is timed (default: {rounds})")
    add("--steps", type=int, default=8, metavar="N", help="steps that are timed in a row (default: 8)")
    add("--drop", type=int, default=2, metavar="N",
        help="warm-up steps before those, not timed (default: 2; at least 5 in the first round)")  # fmt: skip


def check_timing(options: argparse.Namespace) -> None:
    for name, least in (("rounds", 1), ("steps", 2), ("drop", 0)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: at least {least}")


def csv_path(given: Path | None, stem: Path) -> Path:
    """Where the CSV goes: ``given``, else ``stem`` with a suffix."""
    path = given or stem.with_name(stem.name + ".csv")
    if path.suffix != ".csv":
        raise InputError(f"--output {path}: give it the suffix .csv")
    return path


def write_results(frame: pd.DataFrame, path: Path, text: str) -> None:
    """The CSV and, beside it, its table as Markdown; each atomically."""
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g")
    write_text(path.with_suffix(".md"), text)


def read_results(path: Path, columns: Sequence[str], dtype: dict[str, str] | None = None) -> pd.DataFrame:
    """The rows of such a CSV. Raises InputError, one line, where there is none with these columns and a row."""
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=dtype, keep_default_na=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV of measurements ({' '.join(str(error).split())[:100]})") from None
    missing = [x for x in columns if x not in frame]
    if missing:
        raise InputError(f"{path}: not a CSV of these measurements, it has no column {missing[0]!r}")
    if frame.empty:
        raise InputError(f"{path}: no rows")
    return frame


def experiment_from(options: argparse.Namespace) -> Experiment:
    """The training to measure, whatever its method. Raises InputError for impossible ones."""
    from lgd.config.method import import_named
    from lgd.config.presets import built_in_settings, preset
    from lgd.data.epochs import resolve_epochs
    from lgd.training.device import resolve_device

    import_named(options.overrides)
    experiment = preset(options.preset)
    changes: dict[str, object] = {}
    if options.detector:
        if options.detector not in DETECTORS:
            raise InputError(f"no detector {options.detector!r}: choose one of {', '.join(DETECTORS)}")
        # What the sweeps' --detector changes.
        changes |= built_in_settings(options.detector, options.preset)
    if options.backbone:
        student = _backbone(options.backbone, experiment.detector.backbone)
        changes |= {f"detector.backbone.{key}": value for key, value in student.items()}
    if options.batch is not None:
        changes["schedule.batch"] = options.batch
    if options.precision:
        changes["precision"] = options.precision
    experiment = experiment.override(changes)
    experiment = resolve_epochs(experiment.override(experiment.applicable(options.overrides)))
    if not experiment.threads and resolve_device(experiment).type == "cpu":
        # On the CPU a device is a worker process with one core, as in a sweep.
        return experiment.override({"threads": 1})
    return experiment


def with_method(options: argparse.Namespace, experiment: Experiment, name: str) -> Experiment:
    """That training with the method ``name``, and what the options say of it and of its teacher."""
    from lgd.config.method import import_named

    import_named([], name)
    found = experiment.override({"method.name": name})
    if options.teacher_backbone and found.has_setting("method.teacher.backbone"):
        teacher = found.method.teacher_detector(found.detector)
        assert teacher is not None
        changes = _backbone(options.teacher_backbone, teacher.backbone)
        found = found.override({f"method.teacher.backbone.{key}": value for key, value in changes.items()})
    own = [x for x in options.overrides if x.startswith("method.") and not x.startswith("method.name")]
    return found.override(found.applicable(own))


def images_from(options: argparse.Namespace, experiment: Experiment) -> SyntheticImages:
    """Synthetic images of that training's size and number of objects."""
    from lgd.data.catalog import load_dataset
    from lgd.data.shapes.spec import CATEGORIES

    shapes = experiment.data.source == "shapes"
    side = options.side if options.side is not None else max(experiment.data.min_sizes)
    if side < 32:
        raise InputError(f"--side {side}: at least 32 pixels")
    objects = options.objects
    if objects is None:
        objects = load_dataset(experiment.data).counts.train.mean_objects if shapes else COCO_OBJECTS
    if not 1 <= objects <= 1000:
        raise InputError(f"--objects {objects:g}: from 1 to 1000")
    longest = max(experiment.data.max_size, side)
    return SyntheticImages(side, longest, objects, len(CATEGORIES) if shapes else COCO_CLASSES)


def per_device(experiment: Experiment, devices: int) -> Experiment:
    """The training as one of ``devices`` sees it: with its share of the batch."""
    if devices < 1:
        raise InputError(f"--devices {devices}: at least one")
    schedule = experiment.schedule
    if schedule.batch % (devices * schedule.accumulate):
        raise InputError(
            f"--devices {devices}: a batch of {schedule.batch} in {schedule.accumulate} parts does not divide by it"
        )
    return experiment.override({"schedule.batch": schedule.batch // devices})


def hardware_slug() -> str:
    """This machine as part of a file name: its GPU, or its number of cores."""
    from lgd.results import provenance

    hardware = provenance.hardware()
    name = hardware["gpu"].split(" x ", 1)[-1] if hardware["gpu"] != "none" else f"{hardware['cores']}cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def output_stem(what: str, options: argparse.Namespace, experiment: Experiment) -> Path:
    """``results/WHAT_PRESET-DETECTOR-PRECISION_HARDWARE_DATE``, without a suffix."""
    name = f"{options.preset}-{experiment.detector.name}-{experiment.precision}"
    return RESULTS / f"{what}_{name}_{hardware_slug()}_{datetime.now(UTC).date()}"


def _backbone(name: str, current: Backbone) -> dict[str, object]:
    """Settings that replace a backbone by another; with that one's pretrained weights if ``current`` has weights."""
    from lgd.config.paper_recipes import BACKBONES

    if current.from_scratch:
        return {"name": name}
    standard = next((x for x in BACKBONES.values() if x.name == name and not x.deformable), None)
    return {"name": name} if standard is None else standard.model_dump(mode="json")
