"""The command ``lgd export``: the student of a finished training for use elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lgd.cli import Parser, examples, exit_status
from lgd.errors import InputError
from lgd.inference.predict import add_detector_option, load_student

if TYPE_CHECKING:
    from lgd.data.images import Pixels
    from lgd.training.export import TrainedStudent

PROG = "lgd export"

DEFAULTS = {"detectron2": "student-detectron2.pth", "torchvision": "student-torchvision.pth", "onnx": "student.onnx"}
"""File in the training's directory by format."""

OF_THE_TRAINING = ("student.pth", "student.json", "record.json", "metrics.json", "evaluations.jsonl")
"""Files in the training's directory that nothing else has."""

EXAMPLES = (
    "results/train/finetune-lgd-seed0 --format onnx --image photo.jpg",
    "DIR --format detectron2 --output detector.pth",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 written and checked, 2 wrong input or a detector that cannot be exported so, 130 interrupted
    (Ctrl-C or SIGTERM)."""
    return exit_status(lambda: run(parser(prog).parse_args(arguments)))


def parser(prog: str = PROG) -> Parser:
    found = Parser(
        prog=prog,
        description="Write the student of a finished training for use elsewhere, and print how it is loaded.",
        epilog=examples(prog, *EXAMPLES),
    )
    add = found.add_argument
    add("run", type=Path, metavar="RUN", help="directory of a training, with student.pth and student.json")
    add(
        "--format", choices=tuple(DEFAULTS), required=True,
        help="weights of the plain detector, or of torchvision's model; or all of it, from an image to boxes",
    )  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="default: student.onnx or student-FORMAT.pth in RUN")
    add("--image", type=Path, metavar="FILE", help="to check on (default: one of the training's validation images)")
    add_detector_option(found)
    return found


def run(options: argparse.Namespace) -> int:
    """Export, print how the file is used, and return the exit status. Raises InputError, one line."""
    output: Path = options.output or options.run / DEFAULTS[options.format]
    if output.is_dir():
        raise InputError(f"--output {output} is a directory: a file is needed")
    if output.resolve() in {(options.run / name).resolve() for name in OF_THE_TRAINING}:
        raise InputError(f"--output {output} is a file of the training itself: choose another")
    # The file is checked on the CPU, whatever the machine.
    student = load_student(options.run, "cpu", options.detector)
    from lgd.inference.out_of_memory import enough_memory, smaller_images

    with enough_memory("cpu", f"--format {options.format}", smaller_images(options.run, "cpu")):
        lines = _export(student, output, options)
    print("\n".join([f"{output}:", *lines]))
    return 0


def _export(student: TrainedStudent, output: Path, options: argparse.Namespace) -> list[str]:
    """Write the file; the lines that say how it is used."""
    if options.format == "detectron2":
        from lgd.inference.weights_file import export_detectron2

        return export_detectron2(student, output, options.detector)
    if options.format == "torchvision":
        from lgd.inference.weights_file import export_torchvision

        return export_torchvision(student, output, _image(student, options.image))
    from lgd.inference.onnx_file import export_onnx

    pixels = _image(student, options.image)
    return [
        export_onnx(student, output, student.resized(pixels)),
        "input image: (3, height, width) float32, BGR, 0 to 255, its shorter side"
        f" {student.description.preprocessing.min_size} pixels, the longer at most"
        f" {student.description.preprocessing.max_size}; boxes are corners in its pixels",
    ]


def _image(student: TrainedStudent, path: Path | None) -> Pixels:
    """The image to check on: that of ``path``, else the validation image with the most objects, else noise where the
    data is gone."""
    import json
    from collections import Counter

    import numpy as np

    from lgd.data.catalog import load_dataset
    from lgd.data.images import read_image

    if path is not None:
        return read_image(path)
    try:
        layout = load_dataset(student.description.experiment.data).layout
        contents = json.loads(layout.val_json.read_bytes())
        objects = Counter(x["image_id"] for x in contents.get("annotations", ()))
        return read_image(layout.val_images / max(contents["images"], key=lambda x: objects[x["id"]])["file_name"])
    except InputError as error:
        print(f"note: checked on noise, for the training's data cannot be read ({error})", file=sys.stderr)
    side = student.description.preprocessing.min_size
    return np.random.default_rng(0).integers(0, 256, (side, side * 5 // 4, 3), np.uint8)
