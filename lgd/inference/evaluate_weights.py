"""The command ``lgd eval``: score a detector that is there already, such as one of a model zoo or a trained student."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.cli import Parser, examples, exit_status, format_duration
from lgd.config.data_source import absolute_source, add_data_arguments, source_of, split_overrides
from lgd.config.detector import NO_WEIGHTS
from lgd.config.detector_options import detector_overrides
from lgd.config.experiment import DATA_SET_KEYS, Data, Experiment, settings, split_assignment
from lgd.config.grids import check_overrides
from lgd.config.paper_recipes import Reported
from lgd.config.presets import named_experiment, preset
from lgd.errors import InputError
from lgd.files import write_text
from lgd.inference.predict import RESULTS_FILE, load_student
from lgd.inference.scores_file import FILE, ScoresFile, Weights, beside_the_paper, load_scores, table
from lgd.results import provenance
from lgd.signals import exit_on_interrupt
from lgd.storage.outputs import is_url

if TYPE_CHECKING:
    from torch import nn

    from lgd.data.dataset import DataSet
    from lgd.training.export import TrainedStudent

PROG = "lgd eval"

WITHOUT_NAME = "paper"
"""The preset whose image sizes and data count where a detector is named and no training."""

SCORED_BY = ("detector.", "data.test_size", "data.max_size", "evaluation.scorer", "precision")
"""Settings, or groups of them, that scores depend on, besides the files of data and weights."""

EXAMPLES = (
    "retinanet_r50_2x_ms --weights model_final.pth             # beside the paper's AP",
    "--detector zoo:COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml --data coco-json:DIR",
    "--detector torchvision:retinanet_resnet50_fpn_v2 --val-json val.json --images DIR",
    "results/train/finetune-lgd-seed0 --data voc:DIR           # a trained student on other data",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 scored, 2 wrong input or a full disk, 130 interrupted (Ctrl-C or SIGTERM)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: run(parser(prog).parse_args(given), shlex.join([*prog.split(), *given])))


def parser(prog: str = PROG) -> Parser:
    found = Parser(
        prog=prog,
        description="Score a detector that is there already: of a model zoo, of a file, or a trained student.",
        epilog=examples(prog, *EXAMPLES),
    )
    add = found.add_argument
    add(
        "name", nargs="?", metavar="NAME",
        help="a training of the paper (lgd train --list), or the directory of a finished training",
    )  # fmt: skip
    add(
        "--weights", metavar="FILE",
        help="of the whole detector: a file (.pkl, .pth), or detectron2://, torchvision:// or https:// (default: those"
        " that the detector is published with, or the student's)",
    )  # fmt: skip
    add(
        "--detector", metavar="SPEC",
        help="fcos or the like, a detectron2 config (.yaml, .py, or zoo:NAME), torchvision:NAME, or"
        " package.module:function (docs/own-detector.md)",
    )  # fmt: skip
    add(
        "--detector-set", action="append", default=[], metavar="KEY=VALUE",
        help="change a key of its config, or an argument of its function; may be given several times",
    )  # fmt: skip
    add(
        "--data", metavar="SOURCE",
        help="as docs/data.md lists, such as voc:DIR (default: MS-COCO in datasets/coco, or the training's)",
    )  # fmt: skip
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a setting, e.g. data.test_size=640; may be given several times",
    )  # fmt: skip
    add("--output", type=_local, metavar="DIR", help=f"for {FILE} (default: results/eval/NAME-WEIGHTS)")
    add("--save-detections", action="store_true", help=f"write {RESULTS_FILE}, too, in COCO's results format")
    add("--device", choices=("auto", "cpu", "cuda"), help="default: a GPU if any, or the training's own")
    add("--batch", type=int, metavar="N", help="images at once, at most (default: 1 of 800 pixels, 8 of 256)")
    add(
        "--precision", choices=("fp32", "bf16", "fp16"),
        help="of the forward pass, under autocast (default: fp32, as evaluations of trainings)",
    )  # fmt: skip
    add_data_arguments(found)
    return found


@dataclass(frozen=True)
class _Subject:
    """What is scored."""

    name: str
    experiment: Experiment
    reported: tuple[Reported, ...] = ()
    """What the paper reports for it."""
    student: TrainedStudent | None = None
    """Where it is a trained one; else it is built from the experiment."""


def run(options: argparse.Namespace, command: str) -> int:
    """Score, write and print; returns the exit status. command: for the file. Raises InputError, one line."""
    if options.batch is not None and options.batch < 1:
        raise InputError(f"--batch {options.batch}: at least 1")
    if options.weights == NO_WEIGHTS:
        raise InputError(f"--weights {NO_WEIGHTS}: random values are not scored")
    subject = _subject(options)
    with exit_on_interrupt():
        # Not at the top: importing torch and detectron2 takes seconds, which --help need not take.
        from lgd.data.catalog import load_dataset
        from lgd.data.dataset import check_objects
        from lgd.evaluation.evaluate import images_at_once
        from lgd.inference.score_detector import score_detector
        from lgd.training.device import resolve_device
    device = resolve_device(subject.experiment)
    subject, source, digest = _with_weights(subject, options)
    dataset = load_dataset(subject.experiment.data)
    check_objects(dataset)
    detector, weights = _built(subject, source, digest, dataset)
    output = options.output or Path("results") / "eval" / _label(subject, source)
    batch = options.batch or images_at_once(subject.experiment.data)
    described = _description(subject, weights, dataset) | {"batch": batch, "device": str(device), "command": command}
    _check_output(output, described)
    found = score_detector(detector, dataset, subject.experiment, device, batch)
    images = dataset.counts.val.images
    paper = beside_the_paper(
        subject.reported, found.scores.box, found.scores.mask, classes=len(dataset.class_names), images=images
    )
    written = ScoresFile(
        **described,
        box=found.scores.box,
        mask=found.scores.mask,
        seconds=found.seconds,
        images_per_second=round(images / found.seconds.detection, 3),
        paper=tuple(paper),
        finished=provenance.now(),
    )
    try:
        # First: where nothing can be written, they are there to be read.
        print("\n".join(_report(written, images)))
    finally:
        # Also where nobody reads on, as after ``| head -1``. The scores before the large file, which may fill the disk.
        write_text(output / FILE, written.model_dump_json(indent=1) + "\n")
        if options.save_detections:
            write_text(output / RESULTS_FILE, json.dumps(found.detections))
    print(f"scores: {output / FILE}")
    return 0


def _report(scores: ScoresFile, images: int) -> list[str]:
    seconds = scores.seconds
    return [
        *table(scores.box, scores.mask),
        *scores.paper,
        f"{images} images in {format_duration(seconds.detection)} ({scores.images_per_second:.3g} images/s on"
        f" {scores.device}), scored in {format_duration(seconds.scoring)}",
    ]


# -- what is scored


def _subject(options: argparse.Namespace) -> _Subject:
    """What the options name. Raises InputError, one line, for what contradicts itself."""
    if options.train_json is None and options.val_json is not None:
        # Nothing is trained: the annotations to evaluate on stand for both.
        options.train_json = options.val_json
    options.data = source_of(options, options.data)
    name = options.name
    if name is not None and ("/" in name or Path(name).is_dir()):
        return _trained(Path(name), options)
    if name is None and options.detector is None:
        raise InputError("say what to score: a training of the paper, a training's directory, or --detector")
    base = preset(WITHOUT_NAME) if name is None else named_experiment(name).experiment
    options.overrides = detector_overrides(options, options.overrides, name or WITHOUT_NAME)
    experiment = _changed(base, options)
    if experiment.detector.label == base.detector.label and name is not None:
        return _Subject(name, experiment, named_experiment(name).reported)
    # What is reported is of another detector.
    return _Subject("-".join(x for x in (name, experiment.detector.slug) if x), experiment)


def _local(text: str) -> Path:
    """What --output says, which is no URL."""
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text}: a directory on this machine is needed")
    return Path(text)


def _trained(directory: Path, options: argparse.Namespace) -> _Subject:
    """The student of a finished training, with what the options change."""
    if options.weights is not None:
        raise InputError(f"--weights {options.weights}: {directory} has its own, leave one of them out")
    of_detector = [x for x in options.overrides if split_assignment(x)[0].startswith("detector.")]
    if of_detector or options.detector_set:
        raise InputError(f"{[*of_detector, *options.detector_set][0]}: a trained student's detector is as it is")
    student = load_student(directory, "cpu", options.detector)
    return _Subject(directory.resolve().name, _changed(student.description.experiment, options), student=student)


def _changed(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """``experiment`` with the options' changes, and those of --set."""
    given = {
        "data.source": ("--data", options.data and absolute_source(options.data)),
        "detector.weights": ("--weights", options.weights),
        "device": ("--device", options.device),
        "precision": ("--precision", options.precision),
    }
    named = {key: (f"{flag} {value}", value) for key, (flag, value) in given.items() if value is not None}
    check_overrides(options.overrides, options=named)
    # As evaluations of trainings, which compute in float32 whatever the training's precision.
    ours = experiment.override({"precision": "fp32", "data.workers": "auto"})
    if options.data:
        # How the training's own data was split says nothing of other data.
        ours = ours.override({f"data.{x}": getattr(Data(), x) for x in DATA_SET_KEYS if x != "source"})
    changed = ours.override([*split_overrides(options), *options.overrides])
    # At the end: another detector.source among the overrides replaces all settings of the detector.
    return changed.override({key: value for key, (_, value) in named.items()})


def _with_weights(subject: _Subject, options: argparse.Namespace) -> tuple[_Subject, str, str]:
    """The subject with its weights' source in the experiment, the source, and the file's SHA-256; "" for none.

    Downloads what has to be. Raises InputError, one line, where they cannot be had.
    """
    from lgd.detectors.weight_digests import check_digest
    from lgd.detectors.weight_sources import find_weights, local_path, without_query
    from lgd.inference.whole_weights import own_weights_of
    from lgd.training.export import WEIGHTS_FILE

    if subject.student is not None:
        path = Path(options.name) / WEIGHTS_FILE
        return subject, str(path), check_digest(str(path), path, downloaded=False)
    source = own_weights_of(subject.experiment.detector)
    if source == NO_WEIGHTS:
        return subject, source, ""
    experiment = subject.experiment.override({"detector.weights": source})
    weights = find_weights(without_query(source))
    print(weights, flush=True)
    path = local_path(weights.source)
    digest = check_digest(weights.source, path, downloaded=bool(weights.url))
    return replace(subject, experiment=experiment), source, digest


def _built(subject: _Subject, source: str, digest: str, dataset: DataSet) -> tuple[nn.Module, Weights]:
    """The detector with its weights, on the CPU. Raises InputError, one line, where they or the classes do not fit."""
    from lgd.inference.score_detector import built_with_weights

    if subject.student is not None:
        detector: nn.Module = subject.student.detector
        _check_names(subject.student.description.class_names, dataset)
    else:
        detector, note = built_with_weights(subject.experiment, source, dataset)
        if note:
            print(f"note: {note}", file=sys.stderr)
    tensors = len(detector.state_dict()) if digest else 0
    return detector, Weights(source=source if digest else "", sha256=digest, tensors=tensors)


def _check_names(trained: Sequence[str], dataset: DataSet) -> None:
    """Raise InputError, one line, for another number of classes, or for the same ones in another order."""
    ours = dataset.class_names
    if len(trained) != len(ours):
        raise InputError(f"the student knows {len(trained)} classes, the data {dataset.source} has {len(ours)}")
    other = next(((i, a, b) for i, (a, b) in enumerate(zip(trained, ours, strict=True)) if a != b), None)
    if other is None:
        return
    said = f"class {other[0]} is {other[1]!r} for the student and {other[2]!r} in the data {dataset.source}"
    if sorted(trained) == sorted(ours):
        raise InputError(f"{said}: the same classes in another order")
    print(f"warning: {said}: scored as one", file=sys.stderr)


# -- where to


def _label(subject: _Subject, source: str) -> str:
    """Name of the directory: the subject's and, where they are not its own, the weights'."""
    if subject.student is not None or source == NO_WEIGHTS:
        return subject.name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source.partition("#")[0]).name)
    return f"{subject.name}-{re.sub(r'[.](pkl|pth|pt|safetensors)$', '', stem)}"


def _description(subject: _Subject, weights: Weights, dataset: DataSet) -> dict[str, Any]:
    """Fields of the file that are known beforehand."""
    known = {key: list(x) if isinstance(x, tuple) else x for key, x in settings(subject.experiment).items()}
    return {
        "name": subject.name,
        "weights": weights,
        # The file's digest says more than where it was read from.
        "settings": {x: known[x] for x in known if x.startswith(SCORED_BY) and x != "detector.weights"},
        "data": dataset.summary(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "git_commit": provenance.git_commit(),
    }


def _check_output(output: Path, described: dict[str, Any]) -> None:
    """Make the directory. Raises InputError, one line, where it cannot be, or holds the scores of something else."""
    path = output / FILE
    if path.exists():
        there = load_scores(path)
        mine = (described["weights"].sha256, described["data"]["fingerprint"], described["settings"])
        if mine != (there.weights.sha256, there.data.get("fingerprint"), there.settings):
            raise InputError(f"{path} has the scores of other weights, data or settings: choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}") from None
