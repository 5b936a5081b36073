"""The command ``lgd predict``: detect on images or videos with the student of a finished training."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.cli import Parser, examples, exit_status
from lgd.errors import InputError
from lgd.files import write_text
from lgd.signals import exit_on_interrupt

if TYPE_CHECKING:
    from lgd.inference.inputs import Frame
    from lgd.training.export import TrainedStudent

PROG = "lgd predict"

RESULTS_FILE, IMAGES_FILE, DRAWN = "detections.json", "images.json", "images"
"""In the output directory: COCO's results, the images and classes that they name, and the images with boxes."""

EXAMPLES = (
    "results/train/finetune-lgd-seed0 photo.jpg --output found",
    "DIR photographs street.mp4 --video-every 10 --output found",
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 detected on everything, 1 on all but what cannot be decoded, 2 wrong input or a full disk, 130
    interrupted (Ctrl-C or SIGTERM)."""
    return exit_status(lambda: run(parser(prog).parse_args(arguments)))


def parser(prog: str = PROG) -> Parser:
    found = Parser(
        prog=prog,
        description="Detect on images and videos with the student of a finished training.",
        epilog=examples(prog, *EXAMPLES),
    )
    add = found.add_argument
    add("run", type=Path, metavar="RUN", help="directory of a training, with student.pth and student.json")
    add("inputs", type=Path, nargs="+", metavar="IMAGES", help="images, videos, or directories of them")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"for {RESULTS_FILE} (COCO's results), {IMAGES_FILE} and {DRAWN}/",
    )
    add("--threshold", type=float, default=0.5, metavar="X", help="lowest score that is kept (default: 0.5; 0: all)")
    add("--video-every", type=int, default=1, metavar="N", help="each N-th frame of a video alone (default: 1)")
    add("--no-images", action="store_true", help="write the JSON files alone")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    add_detector_option(found)
    return found


def add_detector_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detector", metavar="SOURCE", help="the training's own, where building it runs code of yours: allow that"
    )


def load_student(run: Path, device: str, source: str | None) -> TrainedStudent:
    """The student of the training in ``run``. source: what --detector says.

    Raises InputError, one line, where there is none.
    """
    from lgd.results.sweep_spec import SWEEP_FILE
    from lgd.training.export import DESCRIPTION_FILE

    if not (run / DESCRIPTION_FILE).exists():
        if (run / SWEEP_FILE).exists():
            trial = next(run.glob(f"trials/*/{DESCRIPTION_FILE}"), None)
            such = f", such as {trial.parent}" if trial else ""
            raise InputError(f"{run} holds a sweep: name one of its trainings{such}")
        why = "does not exist" if not run.exists() else f"holds no finished training: {DESCRIPTION_FILE} is missing"
        raise InputError(f"{run} {why}")
    with exit_on_interrupt():
        # Not at the top: importing torch and detectron2 takes seconds, which --help need not take.
        import torch

        from lgd.inference.out_of_memory import enough_memory
        from lgd.training.export import TrainedStudent
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with enough_memory(
        device, "this detector", "take --device cpu" if device == "cuda" else "it needs a larger machine"
    ):
        return TrainedStudent(run, device, source=source)


def run(options: argparse.Namespace) -> int:
    """Detect, and return the exit status. Raises InputError, one line, for what is wrong, before detecting anything.

    What ends it later, such as Ctrl-C or a full disk, is raised when what was found so far is written.
    """
    if not 0 <= options.threshold <= 1:
        raise InputError(f"--threshold {options.threshold}: from 0 to 1")
    if options.video_every < 1:
        raise InputError(f"--video-every {options.video_every}: at least 1")
    from lgd.inference.inputs import find_inputs

    drawn = (options.output / DRAWN).resolve()
    if any(path.is_dir() and drawn.is_relative_to(path.resolve()) for path in options.inputs):
        raise InputError(f"--output {options.output} lies in a directory that is detected on: choose another")
    inputs = find_inputs(options.inputs)
    student = load_student(options.run, options.device, options.detector)
    was_there = options.output.exists()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {options.output}: {error.strerror}") from None
    prediction = _Prediction(student, options)
    try:
        failed = prediction.add_all(inputs)
        if not prediction.found:
            raise InputError("no image could be decoded")
    except BaseException:
        prediction.save_part()
        if not was_there:
            # Not where anything is in it.
            with suppress(OSError):
                options.output.rmdir()
        raise
    prediction.save()
    print(
        f"{sum(len(results) for _, results in prediction.found)} objects of score {options.threshold:g} or more in"
        f" {len(prediction.found)} images: {options.output / RESULTS_FILE}"
    )
    return int(failed > 0)


class _Prediction:
    """The detections on the images so far."""

    def __init__(self, student: TrainedStudent, options: argparse.Namespace) -> None:
        self.student, self.options = student, options
        self.found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        """Each image with its results, in COCO's terms."""
        self.names = dict(zip(student.category_ids, student.description.class_names, strict=True))
        self._drawn: set[str] = set()
        self._files: set[str] = set()

    def add_all(self, paths: Sequence[Path]) -> int:
        """Detect on images and videos; how many of them cannot be decoded, which a line says of each.

        Any other error ends it: it is not the image's fault, and the next one would have it too.
        """
        from lgd.inference.inputs import UnreadableError

        failed = 0
        for path in paths:
            try:
                self._add(path)
            except UnreadableError as error:
                failed += 1
                print(f"warning: {error}: left out", file=sys.stderr)
        return failed

    def _add(self, path: Path) -> None:
        """Detect on an image or a video, and write what is found into the image. Raises UnreadableError."""
        from lgd.inference.inputs import frames

        for frame in frames(path, self.options.video_every):
            number = len(self.found) + 1
            results = self._detect(frame, image_id=number)
            height, width = frame.pixels.shape[:2]
            image = {"id": number, "file_name": str(frame.path), "width": width, "height": height}
            # Both at once: between any two steps Ctrl-C may come.
            self.found.append((image if frame.frame is None else {**image, "frame": frame.frame}, results))
            if not self.options.no_images:
                self._draw(frame, results)

    def _detect(self, frame: Frame, image_id: int) -> list[dict[str, Any]]:
        from detectron2.evaluation.coco_evaluation import instances_to_coco_json

        from lgd.evaluation.class_indices import check_classes
        from lgd.inference.out_of_memory import enough_memory, smaller_images

        device = next(self.student.detector.parameters()).device
        with enough_memory(device, str(frame.path), smaller_images(self.options.run, device)):
            found = self.student.detect(frame.pixels)
        check_classes(found.pred_classes, len(self.student.category_ids))
        kept = found[found.scores >= self.options.threshold]
        results: list[dict[str, Any]] = instances_to_coco_json(kept, image_id)
        for result in results:
            result["category_id"] = self.student.category_ids[result["category_id"]]
        return [x for x in results if math.isfinite(x["score"])]

    def _draw(self, frame: Frame, results: list[dict[str, Any]]) -> None:
        from lgd.data.draw import save_image, with_annotations

        number = "" if frame.frame is None else f"-{frame.frame:06d}"
        suffix = ".png" if frame.path.suffix.lower() == ".png" else ".jpg"
        stem = f"{frame.path.stem}{number}"
        # Images of several directories may have one name.
        name = stem if stem not in self._drawn else f"{stem}-{len(self.found)}"
        self._drawn.add(name)
        self._files.add(f"{name}{suffix}")
        path = self.options.output / DRAWN / f"{name}{suffix}"
        save_image(with_annotations(frame.pixels, results, self.names), path)

    def save(self) -> None:
        """Write the two JSON files. Raises InputError, one line, where they cannot be written."""
        categories = [{"id": number, "name": name} for number, name in self.names.items()]
        output: Path = self.options.output
        images = {"images": [image for image, _ in self.found], "annotations": [], "categories": categories}
        # An earlier run's results would name other images, where this one's cannot be written.
        with suppress(OSError):
            (output / RESULTS_FILE).unlink()
        for name, contents in (
            (IMAGES_FILE, images),
            (RESULTS_FILE, [x for _, results in self.found for x in results]),
        ):
            try:
                write_text(output / name, json.dumps(contents))
            except OSError as error:
                raise InputError(f"{output / name} cannot be written ({error.strerror})") from None
        self._warn_of_other_images(output / DRAWN)

    def _warn_of_other_images(self, drawn: Path) -> None:
        there = {x.name for x in drawn.iterdir() if not x.name.startswith(".")} if drawn.is_dir() else set()
        if others := len(there - self._files):
            print(f"warning: {drawn} also has files ({others}) that this run has not written", file=sys.stderr)

    def save_part(self) -> None:
        """:meth:`save` where the run ends early: a line says how many images that covers. Nothing for none."""
        if not self.found:
            return
        count = f"{len(self.found)} image{'s' if len(self.found) > 1 else ''}"
        try:
            self.save()
            print(f"ended early: {self.options.output / RESULTS_FILE} covers {count}", file=sys.stderr)
        except InputError as error:
            print(f"ended early, after {count}: {error}", file=sys.stderr)
