"""What a session on a GPU measures, the most valuable first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed import BASELINE, FGFI, LGD, TEACHER
from lgd.config.paper import DETECTORS, DetectorName
from lgd.errors import InputError

OUTPUT = "{output}"
"""In a command: the measurement's own directory."""

TIME_LEFT = "{time_left}"
"""In a command: the seconds that it may take."""

FROM_SCRATCH = ("detector.backbone.weights=none", "detector.backbone.norm=BN", "detector.backbone.freeze_at=0")
"""Settings of the paper's detectors without weights to download."""


TOY_DETECTOR = ("detector.backbone.width=8", "detector.channels=16", "detector.head_convs=1")
"""Settings of the smallest detectors, for the commands of a dry session."""


COMPILED = ((LGD, BASELINE), (FGFI, TEACHER))
"""Arms that are compiled in one measurement; a dry session compiles the first."""

COMPILED_DETECTORS: tuple[DetectorName, ...] = ("retinanet", "faster_rcnn")

FURTHER_DETECTORS: tuple[DetectorName, ...] = ("atss", "poto", "mask_rcnn")
"""Detectors that the grid ``evidence`` has not."""


@dataclass(frozen=True)
class Measurement:
    """One measurement: a command of its own, which writes into its own directory."""

    name: str
    decides: str
    """What its numbers answer."""
    command: tuple[str, ...]
    """Arguments of the Python interpreter."""
    dry: tuple[str, ...]
    """Those on a CPU at toy sizes."""
    seconds: int
    """Estimate on one 80 GB GPU."""
    least: int = 0
    """How many of ``seconds`` there must be left to begin; fewer than ``seconds`` where the command goes on the next
    time from where it was stopped."""

    @property
    def resumes(self) -> bool:
        return bool(self.least)

    @property
    def needed(self) -> int:
        """Seconds that must be left to begin."""
        return self.least or self.seconds


def plan(*, data: str = "shapes", compiles: bool = True) -> list[Measurement]:
    """All measurements. data: of the loader's. compiles: whether torch.compile, which needs a C compiler, works."""
    return [
        Measurement(
            "gpu-tests",
            "whether a RetinaNet step waits for nothing, CUDA deformable convolutions, half precision, exports",
            ("-m", "pytest", "-m", "gpu", "-q", "-n0", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60",
             "--continue-on-collection-errors", *gpu_tests(), f"--junitxml={OUTPUT}/junit.xml"),
            ("-m", "pytest", "-m", "gpu", "-q", "-n0", "-p", "no:cacheprovider", "tests/unit/training/test_gpu_step.py",
             f"--junitxml={OUTPUT}/junit.xml"),
            60,
        ),
        _speed("retinanet", "LGD in 220 ms and 27 GiB, its extra at most 0.45; FGFI's cost", 8.7, 180),
        _speed("faster_rcnn", "LGD in 400 ms", 8.7, 200),
        _speed("retinanet", "LGD in 90 ms where launches bind", 13, 105, side=320),
        Measurement(
            "breakdown",
            "where LGD's step goes, against the roofline",
            ("benchmarks/breakdown.py", "--preset", "paper", "--precision", "bf16", "--output", f"{OUTPUT}/breakdown"),
            ("benchmarks/breakdown.py", "--preset", "nano", "--batch", "2", "--steps", "2", "--output",
             f"{OUTPUT}/breakdown"),
            60,
        ),
        _kernels(),
        _trainings("RetinaNet", ("RetinaNet baseline", "RetinaNet LGD"), "LGD's gain at the small preset", 420),
        Measurement(
            "loader",
            "the share of a step that waits for data, at the paper's setting",
            _training(data, "data.workers=16", "schedule.steps=60", "precision=bf16"),
            _dry_training("data.workers=1"),
            90,
        ),
        Measurement(
            "two-trials",
            "whether two Ray Tune trials share a GPU",
            _sweep("components", "small", ("baseline", "LGD"), "schedule.steps=60", "evaluation.every=0",
                   more=("--gpus", "0.5")),
            _dry_sweep("components", ("baseline", "LGD")),
            90,
        ),
        Measurement(
            "ray-train",
            "whether Ray Train runs a worker over NCCL",
            (*_training("shapes", "data.shapes_side=320", "schedule.steps=30"), "--workers", "1"),
            (*_dry_training(), "--workers", "1", "--gpus-per-worker", "0"),
            60,
        ),
        # Late, since compiling takes minutes; a second try finds the kernels that the first one left in torch's cache.
        *([_speed(x, f"what torch.compile gives in {DETECTORS[x]}'s step with {arms[0]}", 8.7, 420, compiled=arms)
           for arms in COMPILED for x in COMPILED_DETECTORS] if compiles else []),
        _trainings(
            "other-detectors",
            ("FCOS baseline", "FCOS LGD", "Faster R-CNN baseline", "Faster R-CNN LGD"),
            "LGD's gain on FCOS and Faster R-CNN at the small preset",
            1200,
        ),
        *map(_further_trainings, FURTHER_DETECTORS),
    ]  # fmt: skip


def gpu_tests() -> list[str]:
    """The files of the tests marked gpu; none where the tests are not there. Collecting all files takes a minute."""
    root = Path(__file__).parents[1]
    files = (root / "tests").rglob("test_*.py")
    return sorted(str(x.relative_to(root)) for x in files if "pytest.mark.gpu" in x.read_text(encoding="utf-8"))


def chosen(measurements: Sequence[Measurement], names: Iterable[str]) -> list[Measurement]:
    """Those with these names, in their order; all without names. Raises InputError for an unknown one."""
    wanted = list(names)
    known = [x.name for x in measurements]
    for name in wanted:
        if name not in known:
            raise InputError(f"--only {name}: choose from {', '.join(known)}")
    return [x for x in measurements if not wanted or x.name in wanted]


def _speed(
    detector: str, decides: str, objects: float, seconds: int, *, side: int | None = None, compiled: Sequence[str] = ()
) -> Measurement:
    """compiled: these arms as they are and compiled; without, the forms of all, none of them compiled."""
    size = ("--side", str(side)) if side else ()
    command = (
        *("benchmarks/speed.py", "--preset", "paper", "--detector", detector, "--objects", str(objects), *size),
        *(["--compile", "--arms", ",".join(compiled)] if compiled else []),
        *("--rounds", "2", "--steps", "5", "--drop", "1", "--output", f"{OUTPUT}/speed.csv"),
    )
    dry = (
        *("benchmarks/speed.py", "--preset", "nano", "--detector", detector, "--batch", "1", "--side", "64", "--forms"),
        # Without the compiler's minutes: torch runs what it traced as it is.
        *(["--compile", "eager", "--arms", compiled[0]] if compiled else []),
        *("--rounds", "1", "--steps", "2", "--drop", "0", "--output", f"{OUTPUT}/speed.csv"),
        # bfloat16 is slow on most CPUs.
        *_set(TOY_DETECTOR),
        *_set(("detector.fc_dim=32", "detector.regions=16", "detector.proposals=50") if "rcnn" in detector else ()),
    )
    name = f"speed-{detector.replace('_', '-')}" + (f"-{side}" if side else "")
    if compiled:
        name += f"-compiled-{compiled[0].lower()}"
    return Measurement(name, decides, command, dry, seconds)


def _kernels() -> Measurement:
    return Measurement(
        "changes",
        "what the Triton kernels give in LGD's step",
        ("benchmarks/speed.py", "--preset", "paper", "--objects", "8.7", "--precision", "bf16", "--changes",
         "Triton kernels", "--rounds", "2", "--steps", "5", "--drop", "1", "--output", f"{OUTPUT}/speed.csv"),
        ("benchmarks/speed.py", "--preset", "nano", "--batch", "1", "--side", "64", "--changes", "Triton kernels",
         "--rounds", "1", "--steps", "2", "--drop", "0", "--output", f"{OUTPUT}/speed.csv", *_set(TOY_DETECTOR)),
        80,
    )  # fmt: skip


def _trainings(name: str, arms: Sequence[str], decides: str, seconds: int) -> Measurement:
    return Measurement(
        f"train-{name.lower()}",
        decides,
        _sweep("evidence", "small", arms, more=("--seeds", "1", "--max-time", f"{TIME_LEFT}s")),
        _dry_sweep("evidence", arms),
        seconds,
        least=120,
    )


def _further_trainings(detector: DetectorName) -> Measurement:
    """Baseline and LGD of a detector, with the evidence grid's backbone and the paper's settings for the detector."""
    # Lazy: a second.
    from lgd.config.grids import SMALL_STUDENT
    from lgd.config.paper_recipes import paper_defaults

    changes = paper_defaults(detector, SMALL_STUDENT)
    changes["schedule.lr_per_16"] = changes.pop("schedule.lr")
    arms, named = ("baseline", "LGD"), (f"detector.name={detector}", *(f"{k}={v}" for k, v in changes.items()))
    small = (*named, f"detector.backbone.name={SMALL_STUDENT}")
    toy = ("detector.fc_dim=32", "detector.regions=16", "detector.proposals=50") if "rcnn" in detector else ()
    return Measurement(
        f"train-{detector.replace('_', '-')}",
        f"LGD's gain on {DETECTORS[detector]} at the small preset",
        _sweep("components", "small", arms, *small, more=("--seeds", "1", "--max-time", f"{TIME_LEFT}s")),
        _dry_sweep("components", arms, *named, *toy),
        600,
        least=120,
    )


def _sweep(grid: str, preset: str, arms: Sequence[str], *overrides: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    named = ("--grid", grid, "--preset", preset, "--arms", ",".join(arms), "--output", f"{OUTPUT}/sweep")
    return ("ablations/run.py", *named, *_set(overrides), *more)


def _dry_sweep(grid: str, arms: Sequence[str], *overrides: str) -> tuple[str, ...]:
    tiny = (
        *("schedule.steps=4", "schedule.warmup_steps=1", "schedule.batch=2", "evaluation.every=0"),
        *("data.shapes_train=8", "data.shapes_val=4", *TOY_DETECTOR),
    )
    return _sweep(grid, "nano", arms, *tiny, *overrides, more=("--seeds", "1"))


def _training(data: str, *overrides: str) -> tuple[str, ...]:
    named = ("-m", "lgd.train", "retinanet_r50_2x_ms", "--method", "lgd", "--data", data, "--output", f"{OUTPUT}/run")
    short = ("schedule.warmup_steps=1", "evaluation.every=0")
    return (*named, *_set((*FROM_SCRATCH, *short, *overrides)))


def _dry_training(*overrides: str) -> tuple[str, ...]:
    tiny = (
        *("detector.backbone.name=resnet18", "detector.backbone.width=16", "detector.channels=32", "schedule.steps=4"),
        *("data.shapes_train=8", "data.shapes_val=4", "data.min_sizes=128", "data.max_size=128", "data.test_size=128"),
    )
    return (*_training("shapes", *tiny, *overrides), "--batch", "2", "--yes")


def _set(overrides: Iterable[str]) -> list[str]:
    return [x for override in overrides for x in ("--set", override)]
