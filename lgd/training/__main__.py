"""The command ``python -m lgd.train``: train one of the paper's experiments.

python -m lgd.train retinanet_r50_2x_ms --method lgd
python -m lgd.train --list
python -m lgd.train retinanet_r50_2x_ms --show
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgd.cli import INTERRUPTED, Parser, examples, exit_status
from lgd.config.data_source import absolute_source, add_data_arguments, source_of, split_overrides
from lgd.config.detector_options import add_detector_arguments, detector_overrides
from lgd.config.experiment import Experiment
from lgd.config.experiment_warnings import warnings_of
from lgd.config.grids import check_overrides
from lgd.config.method import BUILT_IN, import_named
from lgd.config.paper_recipes import NAMES, named
from lgd.config.presets import named_experiment
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.cost_meter import HEARTBEAT_FILE
from lgd.results.record import FILE, Record, load
from lgd.signals import exit_on_interrupt, on_signal
from lgd.storage import outputs
from lgd.storage.lease import LeaseLostError
from lgd.storage.outputs import held, output_option, output_path, shown, store_of, working_in
from lgd.storage.store import StorageError
from lgd.training.command_output import PrintProgress, print_result, print_settings, summary
from lgd.training.directory_lock import training_lock
from lgd.training.progress import Stopped
from lgd.training.resume import existing_record, remove_resume_files

if TYPE_CHECKING:
    from lgd.distributed.workers import Node, Workers

PROG = "python -m lgd.train"

STORE_AWAY = 3
"""Exit status of a training that its store ended, as a sweep's: it can go on."""

UNDER_RAY = ("workers", "elastic", "gpus_per_worker", "cpus_per_worker", "spread", "restarts", "address")
"""Options of a training under Ray. Without any of them it runs in this process."""

LONG_TRAINING = 1e9
"""Pixels of all training images together from which on the time that a CPU takes is estimated first: about a second for
a small network on a fast CPU, a day for a ResNet-50 on a slow one."""


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Exit status: 0 finished, 1 diverged or failed (the record says why), 2 wrong input, 3 ended early since its store
    did not answer, 130 interrupted."""
    try:
        return exit_status(
            lambda: _run(parser(prog).parse_args(arguments)),
            "interrupted; the same command goes on from the last checkpoint",
        )
    except Stopped as stopped:
        print(f"stopped after {stopped.step} steps; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def parser(prog: str = PROG) -> Parser:
    parser = Parser(
        prog=prog,
        description="Train one of the LGD paper's experiments.",
        epilog=examples(prog, "retinanet_r50_2x_ms --method lgd", "finetune --method lgd --data voc:DIR", "--list"),
    )
    parser.add_argument(
        "experiment", nargs="?", metavar="EXPERIMENT", help="retinanet_r50_2x_ms or another of --list, or finetune"
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        help=f"one of {', '.join(BUILT_IN)}, or package.module:Class (docs/own-method.md)",
    )
    parser.add_argument(
        "--data", metavar="SOURCE",
        help="as docs/data.md lists, such as voc:DIR (default: MS-COCO in datasets/coco; finetune has none)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="change a setting, e.g. schedule.steps=100; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, metavar="N",
        help="images a step (default: 16, or 8 for finetune); the learning rate follows unless it is set",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")
    parser.add_argument(
        "--output", type=output_option, metavar="DIR",
        help="where to, or a URL such as s3://BUCKET/NAME (default: results/train/EXPERIMENT-METHOD-seedN)",
    )  # fmt: skip
    parser.add_argument(
        "--teachers", type=output_option, metavar="DIR", help="where teachers are kept (default: beside the output)"
    )
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--workers", type=int, metavar="N", help="share each step over N processes under Ray")
    how_many.add_argument(
        "--elastic", type=_range, metavar="MIN:MAX", help="the same over as many as the cluster has room for"
    )
    parser.add_argument(
        "--gpus-per-worker", type=float, metavar="X", help="1, or 0 for the CPU (default: 1 where there are GPUs)"
    )
    parser.add_argument("--cpus-per-worker", type=int, metavar="N", help="CPU cores of each (default: 1)")
    parser.add_argument("--spread", action="store_true", default=None, help="put every worker on a node of its own")
    parser.add_argument("--address", help="a running Ray cluster, e.g. auto or host:6379 (default: this machine)")
    parser.add_argument("--restarts", type=int, metavar="N", help="how often lost workers are replaced (default: 3)")
    parser.add_argument("--yes", action="store_true", help="train without a GPU even where that takes more than a day")
    add_data_arguments(parser)
    add_detector_arguments(parser)
    parser.add_argument("--list", action="store_true", help="the experiments and what the paper reports for them")
    parser.add_argument("--show", action="store_true", help="print the experiment whole, without training")
    return parser


def _range(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text}: two numbers of workers with a colon between, such as 2:8")
    return int(low), int(high)


def _run(options: argparse.Namespace) -> int:
    if options.list:
        print("\n".join(summary(named(name)) for name in NAMES))
        return 0
    if options.experiment is None:
        raise InputError("say which experiment to train; --list shows them")
    chosen = named_experiment(options.experiment)
    if options.method is None and not options.show:
        raise InputError(f"say how to train it: --method {', '.join(list(BUILT_IN)[:-1])} or {list(BUILT_IN)[-1]}")
    options.data = source_of(options, options.data)
    options.overrides = detector_overrides(options, options.overrides, options.experiment) + split_overrides(options)
    import_named(options.overrides, options.method)
    check_overrides(options.overrides, options=_other_options(options))
    experiment = _changed(chosen.experiment, options)
    for line in warnings_of(experiment):
        print(f"warning: {line}", file=sys.stderr)
    if options.show:
        print_settings(chosen, experiment)
        return 0
    if experiment.schedule.epochs is not None:
        with exit_on_interrupt():
            # Not at the top: see _train.
            from lgd.data.epochs import epoch_overrides
        options.overrides += epoch_overrides(experiment)
        experiment = _changed(chosen.experiment, options)
    name = chosen.name
    if experiment.detector.label != chosen.experiment.detector.label:
        name = f"{name}-{experiment.detector.slug}"
        # What is reported is of another detector.
        chosen = replace(chosen, reported=())
    label = f"{name}-{experiment.method.name}-seed{experiment.seed}"
    directory: Path = options.output or Path("results") / "train" / label
    on_progress = PrintProgress()
    try:
        record = _record(experiment, directory, label, chosen.name, options, on_progress)
    except LeaseLostError:
        # Another command goes on with it.
        raise
    except StorageError as error:
        # Before there is a training to go on with, it is the user's input that is wrong: as with a sweep.
        if not on_progress.begun and not any((directory / x).exists() for x in (HEARTBEAT_FILE, FILE)):
            raise
        print(f"{error}; the same command goes on", file=sys.stderr)
        return STORE_AWAY
    return print_result(record, chosen, directory)


def _record(
    experiment: Experiment,
    directory: Path,
    label: str,
    preset: str,
    options: argparse.Namespace,
    on_progress: PrintProgress,
) -> Record:
    """The training's record: the one that is there, or that of training now."""
    with _storage(directory, options):
        record = existing_record(directory, experiment)
        if record is None:
            to = shown(directory)
            print(f"{label}: {experiment.schedule.steps} steps of {experiment.schedule.batch} images, to {to}")
            if not options.yes and options.address is None:
                _check_time_without_gpu(experiment, options)
            return _train(experiment, directory, preset, options, on_progress)
        remove_resume_files(directory, record)
        print(f"{label}: trained already, on {record.finished}")
        return record


@contextmanager
def _storage(directory: Path, options: argparse.Namespace) -> Iterator[None]:
    """Inside, this command alone trains to ``directory``; where that stands for a URL, what it writes is published."""
    store = store_of(directory)
    if store is None:
        with training_lock(directory):
            yield
        return
    if options.teachers is None:
        options.teachers = output_path(f"{store.url.rpartition('/')[0]}/teachers")

    def lost() -> None:
        print(f"{shown(directory)}: another command has taken over, since this one did not answer", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    with held(directory, on_wait=lambda x: print(f"looking whether {x} is still at work there ..."), on_lost=lost):
        if _under_ray(options):
            # Its workers fetch and publish, each on the disk of its node.
            outputs.fetch_notes(directory)
            outputs.publish_where_missing(directory, FILE)
            yield
        else:
            with working_in(directory):
                yield


def _under_ray(options: argparse.Namespace) -> bool:
    return any(getattr(options, x) is not None for x in UNDER_RAY)


def _check_time_without_gpu(experiment: Experiment, options: argparse.Namespace) -> None:
    """Print what a long training takes on this machine's CPU. Raises InputError where it is more than a day.

    Only where it has no GPU, or must not use it.
    """
    with exit_on_interrupt():
        # Not at the top: see _train.
        from lgd.data.catalog import load_dataset
        from lgd.detectors.weight_sources import required_weights
        from lgd.training.device import resolve_device
        from lgd.training.estimate import cpu_seconds, training_pixels
    if training_pixels(experiment) < LONG_TRAINING or resolve_device(experiment).type != "cpu":
        return
    print("no GPU here: reading the annotations, then measuring how long the CPU will take", flush=True)
    # Workers that cannot be, weights and data that cannot be read are refused before anything is measured.
    if _under_ray(options):
        _workers(options, experiment, ()).check_numbers(experiment)
    required_weights(experiment)
    load_dataset(experiment.data)
    days = cpu_seconds(experiment) / 86400
    taken = f"{days:,.0f} days" if days > 2 else f"{24 * days:.0f} hours"
    if days > 1:
        raise InputError(
            f"{experiment.schedule.steps} steps would take about {taken} on this machine's CPU: train on a GPU, shorten"
            " it (--set schedule.steps=N), or say --yes"
        )
    print(f"about {taken} on this machine's CPU", flush=True)


def _changed(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """``experiment`` with the options' changes, and those of --set."""
    given = {key: value for key, (_, value) in _other_options(options).items()}
    if options.data:
        given["data.source"] = absolute_source(options.data)
    return experiment.override(given).override(options.overrides)


def _other_options(options: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """The settings that options other than --set give: by key, the option as it was written and the value."""
    given = {
        "method.name": ("--method", options.method),
        "data.source": ("--data", options.data),
        "schedule.batch": ("--batch", options.batch),
        "seed": ("--seed", options.seed),
    }
    return {key: (f"{flag} {value}", value) for key, (flag, value) in given.items() if value is not None}


def _train(
    experiment: Experiment, directory: Path, name: str, options: argparse.Namespace, on_progress: PrintProgress
) -> Record:
    """Train. An error that is not the input's fault becomes a record, with its traceback in error.txt beside it."""
    with exit_on_interrupt():
        # Not at the top: importing torch and detectron2 takes seconds, which --help need not take.
        from lgd.training.run import error_reason, failed_record
        from lgd.training.teacher import train_with_teacher

    names: dict[str, Any] = {"preset": name, "arm": experiment.method.label, "overrides": _overrides(options)}
    try:
        if _under_ray(options):
            with exit_on_interrupt():
                # Not at the top: it imports Ray.
                from lgd.training.worker import train_on_workers

            return train_on_workers(
                experiment,
                directory,
                lambda nodes: _workers(options, experiment, nodes),
                address=options.address,
                teachers=options.teachers,
                on_progress=on_progress,
                **names,
            )
        asked = threading.Event()
        with on_signal(asked.set, signal.SIGTERM, signal.SIGINT):
            return train_with_teacher(
                experiment,
                directory,
                teachers=options.teachers,
                on_progress=on_progress,
                should_stop=asked.is_set,
                **names,
            )
    except (InputError, Stopped):
        raise
    except Exception as error:
        with suppress(StorageError):
            outputs.fetch_notes(directory)
        record = _result_in(directory)
        if record is not None:
            # What failed came after it, such as the end of the workers: the training is not to be repeated for that.
            why = " ".join(error_reason(error).split())
            print(f"warning: the training was {record.status}; what failed came after it: {why}", file=sys.stderr)
            outputs.publish_where_missing(directory, FILE)
            remove_resume_files(directory, record)
            return record
        record = failed_record(experiment, error_reason(error), directory=directory, **names)
        try:
            record.save(directory)
            write_text(directory / "error.txt", traceback.format_exc())
            outputs.publish_files(directory / FILE, directory / "error.txt")
        except OSError as unwritable:
            reason = f"{record.reason} (and its record could not be written: {unwritable})"
            record = record.model_copy(update={"reason": reason})
        return record


def _result_in(directory: Path) -> Record | None:
    """The record of a training that has a result, finished or diverged; None where there is none that can be read."""
    with suppress(InputError):
        record = load(directory / FILE)
        return record if record.status in ("finished", "diverged") else None
    return None


def _workers(options: argparse.Namespace, experiment: Experiment, nodes: Sequence[Node]) -> Workers:
    """The workers that the options ask for; by default with a GPU each where the cluster has any."""
    from lgd.distributed.workers import Workers

    gpus = options.gpus_per_worker
    if gpus is None:
        gpus = float(experiment.device != "cpu" and any(node.gpus for node in nodes))
    minimum, maximum = options.elastic or (None, options.workers)
    given = {"count": maximum, "minimum": minimum, "cpus": options.cpus_per_worker, "restarts": options.restarts}
    known = {key: value for key, value in given.items() if value is not None}
    return Workers(**{"count": 1, **known}, gpus=gpus, spread=bool(options.spread))


def _overrides(options: argparse.Namespace) -> list[str]:
    """The options' changes to the paper's experiment, as key=value."""
    given = {"data.source": options.data, "schedule.batch": options.batch}
    return [f"{key}={value}" for key, value in given.items() if value is not None] + options.overrides


if __name__ == "__main__":
    sys.exit(main())
