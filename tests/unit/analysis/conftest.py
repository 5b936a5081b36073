from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from ablations.plan import describe
from lgd.config.experiment import Backbone, Data, Detector, Experiment, Schedule
from lgd.config.extra_arms import ExtraArms
from lgd.config.grids import grid, plan
from lgd.config.method import make as make_method
from lgd.config.presets import NANO
from lgd.results.record import Record, Scores
from lgd.training.teacher import train_with_teacher
from tests.conftest import once_per_run

MakeRecord = Callable[..., Record]


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """Records of a small grid; ``ap`` None leaves the trial without scores."""

    def make(arm: str, seed: int = 0, ap: float | None = None, seconds: float | None = None, **changes: Any) -> Record:
        values: dict[str, Any] = {
            "status": "finished",
            "grid": "components",
            "preset": "nano",
            "arm": arm,
            "experiment": Experiment(
                detector=Detector(backbone=Backbone(name="resnet18", norm="BN", freeze_at=0)),
                data=Data(min_sizes=(96, 128)),
                schedule=Schedule(steps=600, batch=8, warmup_steps=50),
                method=make_method("baseline" if arm == "baseline" else "lgd"),
                seed=seed,
            ),
            "fingerprint": f"fingerprint of {arm} {seed}",
            "steps": 600,
            "student": None
            if ap is None
            else Scores(AP=ap, AP50=ap + 20, AP75=ap - 5, APs=None, APm=ap, APl=ap, per_class={"disc": ap}),
            "seconds": {} if seconds is None else {"setup": 2.0, "training": seconds, "evaluation": 3.0},
            "peak_memory_mib": {"host": 500.4},
            "versions": {"torch": "2.11.0", "detectron2": "0.6"},
            "hardware": {"cpu": "A processor", "cores": "2", "memory_gib": "8", "gpu": "none"},
            "git_commit": "0123456789abcdef0123+changes",
            "started": "2025-01-02T03:04:05+00:00",
            "finished": "2025-01-02T03:05:06+00:00",
        }
        return Record.model_validate(values | changes)

    return make


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A results directory with the description of a sweep that has every extra arm."""
    extra = ExtraArms(equal_cost=("longer", "bigger"), again=True)
    describe("components", "nano", seeds=5, extra=extra).write(tmp_path)
    return tmp_path


@pytest.fixture
def plain_directory(tmp_path: Path) -> Path:
    """The same without extra arms: nothing of equal cost was asked for."""
    describe("components", "nano", seeds=5).write(tmp_path)
    return tmp_path


QUICK = [
    "schedule.steps=6", "schedule.warmup_steps=2", "schedule.batch=2", "method.from_step=1",
    "method.teacher.gate=false",
    "data.shapes_train=12", "data.shapes_val=6", "data.shapes_side=64", "data.min_sizes=[64]", "data.max_size=64",
    "data.test_size=64", "detector.backbone.width=8", "detector.channels=16", "detector.head_convs=1",
    "evaluation.every=3", "evaluation.teacher=true", "evaluation.keep_detections=true",
    "checkpoint.every=0", "threads=1",
]  # fmt: skip


@pytest.fixture(scope="session")
def real_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results directory as a sweep of table7 leaves it: real trainings of a few steps, two seeds of each arm."""
    return once_per_run(tmp_path_factory, "results", _run_table7)


def _run_table7(root: Path) -> Path:
    directory = root / "table7-tiny"
    for trial in plan(grid("table7", "nano"), NANO, 2, QUICK, directory):
        if trial.experiment.method.name == "labelenc":
            # A row that was not trained; its first stage would take as long as all others.
            continue
        train_with_teacher(
            trial.experiment, trial.directory, grid="table7", preset="nano", arm=trial.arm, overrides=QUICK
        )
    return directory


def _beyond_limits(axes: Any) -> list[Any]:
    low, high = sorted(axes.get_ylim())
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    return [label for place, label in ticks if not low <= place <= high]


def assert_ticks_apart(figure: Any) -> None:
    """No number below an axis touches the next one."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        beyond = set(_beyond_limits(axes))
        shown = [x for x in axes.get_xticklabels() if x.get_text() and x not in beyond]
        boxes = sorted((x.get_window_extent(canvas.get_renderer()) for x in shown), key=lambda x: x.x0)
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes)), [x.get_text() for x in shown]


def assert_texts_inside(figure: Any) -> None:
    """No text of a figure is cut off at its edges."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    # Ticks beyond an axis' limits are not drawn.
    outside = {label for axes in figure.axes for label in _beyond_limits(axes)}
    texts = [x for axes in figure.axes for x in (*axes.get_yticklabels(), *axes.texts, axes.xaxis.label)]
    for text in (x for x in (*texts, figure._suptitle) if x is not None and x.get_text()):
        if text in outside:
            continue
        box = text.get_window_extent(canvas.get_renderer())
        assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, text.get_text()
        assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1, text.get_text()
