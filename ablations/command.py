"""The console script ``lgd``: every command of the suite under one name. Loads a command's code when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import lgd
from lgd.cli import Parser, examples, exit_status
from lgd.signals import exit_on_interrupt

COMMANDS = {
    "sweep": (
        "ablations.sweep_command",
        "train a grid of ablations, or search around it: run, search, plan, resume, status, list",
    ),
    "pays": ("ablations.pays", "does distillation pay on your data? plans, trains, answers"),
    "train": ("lgd.training.__main__", "train one of the paper's experiments"),
    "submit": ("ablations.submit", "run one of these commands on a running Ray cluster, through its Jobs API"),
    "data": ("lgd.data.__main__", "check a data set before training on it, or join several"),
    "eval": ("lgd.inference.evaluate_weights", "score a detector that is there already, beside the paper's AP"),
    "predict": ("lgd.inference.predict", "detect on images or videos with a trained student"),
    "export": ("lgd.inference.export", "write a trained student for detectron2, torchvision or ONNX"),
    "drill": ("ablations.drill.command", "inject faults into a small sweep, and check that nothing is lost"),
    "report": ("analysis.__main__", "rebuild the tables, figures and report of a results directory"),
    "table": ("analysis.tables", "print a table from recorded runs"),
}
"""Module and summary by name. Modules have ``parser(prog)`` and ``main(arguments, prog)``, which returns the status."""

BENCHMARKS = {
    "cost": ("benchmarks.cost", "what each stage of training takes"),
    "speed": ("benchmarks.speed", "the speed of a step, against other implementations"),
    "breakdown": ("benchmarks.breakdown", "where a step's time goes"),
    "roofline": ("benchmarks.roofline", "how far a step is from what the hardware can do"),
    "gpu-session": ("benchmarks.gpu_session", "all that only a GPU can answer, within the minutes there are"),
    "demo": ("benchmarks.demo", "what make demo takes from nothing, set-up and run"),
    "waits": ("benchmarks.waits", "what a step launches and waits for, without a GPU"),
    "loader": ("benchmarks.loader", "the data loader's speed, against detectron2's"),
    "padding": ("benchmarks.padding", "how much larger batches are than their images"),
    "label-signal": ("benchmarks.label_signal", "how long LGD's teacher tells its labels apart"),
    "ray-overhead": ("ablations.ray_overhead", "what Ray adds to a trial of a sweep"),
    "load": ("ablations.scaling.command", "how costs grow with the number of trials, records and samples"),
    "prediction-error": ("ablations.prediction_error", "how far a sweep's predicted cost is off"),
}
"""Module and summary by name, of ``lgd bench``."""

SHELLS = ("bash", "zsh", "tcsh")

PLACES = {
    "DIR": "DIRECTORY",
    "RESULTS": "DIRECTORY",
    "RUN": "DIRECTORY",
    "CSV": "FILE",
    "FILE": "FILE",
    "IMAGES": "FILE",
}
"""What an option's metavar completes to, by shtab's names."""

EXAMPLES = (
    "sweep run components            # minutes on a CPU",
    "sweep status results/components-tiny",
    "pays --data coco-json:DIR --budget 8h",
    "train retinanet_r50_2x_ms --method lgd",
    "data check coco-json:DIR",
    "predict results/train/finetune-lgd-seed0 photo.jpg --output found",
    "COMMAND --help",
    "completion bash > ~/.local/share/bash-completion/completions/lgd",
)

BENCH_EXAMPLES = (
    "cost                            # minutes on a CPU",
    "breakdown --method fgfi --detector faster_rcnn",
    "speed --preset paper            # one GPU",
)

COMPLETION_EXAMPLES = (
    "bash > ~/.local/share/bash-completion/completions/lgd",
    "zsh > ~/.zfunc/_lgd             # a directory of $fpath",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: the command's own; 2 for wrong input, 130 interrupted."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(argv))


def _run(argv: list[str]) -> int:
    command, rest, prog = argv[0] if argv else "", argv[1:], "lgd"
    if command == "bench" and rest and rest[0] in BENCHMARKS:
        return _call(BENCHMARKS[rest[0]][0], rest[1:], f"{prog} bench {rest[0]}")
    if command in COMMANDS:
        return _call(COMMANDS[command][0], rest, f"{prog} {command}")
    options = _parser(prog).parse_args(argv or ["--help"])
    if options.command == "completion":
        import shtab

        print(shtab.complete(_with_every_option(prog), options.shell))
    return 0


def _call(module: str, arguments: Sequence[str], prog: str) -> int:
    with exit_on_interrupt():
        main = import_module(module).main
    status: int = main(arguments, prog)
    return status


def _parser(prog: str, *, whole: bool = False) -> Parser:
    """Parser of the commands' names; whole: with their options, too."""
    description = "Label-Guided self-Distillation: train, compare, measure."
    parser = Parser(prog=prog, description=description, epilog=examples(prog, *EXAMPLES))
    parser.add_argument("--version", action="version", version=f"%(prog)s {lgd.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    _add(commands, prog, COMMANDS, whole=whole)
    bench = commands.add_parser(
        "bench", help="measure speed and cost on this machine",
        description="Measure the speed and cost of training steps, of the data loader and of Ray on this machine.",
        epilog=examples(f"{prog} bench", *BENCH_EXAMPLES),
    )  # fmt: skip
    _add(
        bench.add_subparsers(dest="benchmark", metavar="BENCHMARK", title="benchmarks", required=True),
        f"{prog} bench", BENCHMARKS, whole=whole,
    )  # fmt: skip
    completion = commands.add_parser(
        "completion", help="print a script for the shell's completion",
        description="Print a script with which the shell completes commands and options of lgd.",
        epilog=examples(f"{prog} completion", *COMPLETION_EXAMPLES),
    )  # fmt: skip
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _add(
    commands: argparse._SubParsersAction[Parser], prog: str, table: dict[str, tuple[str, str]], *, whole: bool
) -> None:
    for name, (module, summary) in table.items():
        if whole:
            own = import_module(module).parser(f"{prog} {name}")
            commands.add_parser(name, help=summary, description=own.description, parents=[own], add_help=False)
        else:
            commands.add_parser(name, help=summary, add_help=False)


def _with_every_option(prog: str) -> Parser:
    """The whole tree, for the shell's completion; options that take a file or directory complete to those."""
    import shtab

    parser = _parser(prog, whole=True)
    stack: list[argparse.ArgumentParser] = [parser]
    while stack:
        for action in stack.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                stack += set(action.choices.values())
            elif action.metavar in PLACES:
                action.complete = getattr(shtab, PLACES[action.metavar])  # type: ignore[attr-defined]
    return parser


if __name__ == "__main__":
    sys.exit(main())
