"""Figures from real tiny runs and made records: there where there is something to draw, and saying what they show."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from analysis.load import Run, load_runs
from analysis.plots.costs import PARTS, pareto
from analysis.plots.figures import FIGURES, draw
from analysis.plots.scores import curves, gains
from analysis.plots.style import COLOURS, MARKERS, NARROW, STYLE, WIDE, Layout
from lgd.config.grids import LOSS_WEIGHTS, plan
from lgd.config.presets import NANO
from lgd.results.record import EvaluationPoint, Record, Scores

from .conftest import MakeRecord, assert_texts_inside, assert_ticks_apart


def _texts(svg: Path) -> str:
    return " ".join("".join(x.itertext()) for x in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.slow
def test_real_runs_are_drawn(real_results: Path, tmp_path: Path) -> None:
    paths = draw(load_runs(real_results), tmp_path)
    names = {p.name for p in paths}
    drawn = ("pareto", "gains", "cost", "curves", "classes", "ap-hours", "gain-against-cost", "label-signal")
    assert names == {f"{x}.{kind}" for x in drawn for kind in ("png", "svg")}
    for path in (x for x in paths if x.suffix == ".png"):
        with Image.open(path) as image:
            assert image.width > 1000
    assert "teacher's pre-training" in _texts(tmp_path / "cost.svg")
    assert "instructive features" in _texts(tmp_path / "curves.svg")
    assert re.search(r"1 +RetinaNet R-50 2x ms baseline \(nano", _texts(tmp_path / "pareto.svg"))
    assert all("not a reproduction" in _texts(tmp_path / f"{x}.svg") for x in ("pareto", "gains", "cost", "curves"))
    again = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in draw(load_runs(real_results)[::-1], tmp_path)] == again


@pytest.mark.parametrize("layout", [WIDE, NARROW])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_gains_of_long_names_have_room(count: int, layout: Layout, make_record: MakeRecord) -> None:
    """As a search of many settings names them, and one arm alone with all its settings in its name."""
    changed = [f"method.{x}={0.123 + i}" for i, x in enumerate(("distill_weight", "instructive_weight", "lr_factor"))]
    changed += [f"method.{x}=false" for x in ("mapper", "adapter", "detach_appearance")] + ["method.heads=4"]
    arms = [f"search-{i:03} of {' '.join(changed)}" for i in range(count)]
    runs = [Run(make_record(x, 0, 20.0, 10.0, overrides=[*changed, f"seed={x}"]), Path("/r")) for x in arms]
    runs.append(Run(make_record("baseline", 0, 10.0, 10.0), Path("/r")))
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = gains(runs, layout)
        assert figure is not None
        FigureCanvasAgg(figure).draw()
    # A fifth of an inch for each bar.
    assert figure.axes[0].get_window_extent().height / figure.dpi > 0.2 * count


def test_loss_weights(tmp_path: Path) -> None:
    runs = []
    for trial in plan(LOSS_WEIGHTS, NANO, 2, [], tmp_path):
        ap = 8.0 + 0.1 * getattr(trial.experiment.method, "distill_weight", 0.0) + trial.experiment.seed
        scores = Scores(AP=ap, AP50=None, AP75=None, APs=None, APm=None, APl=None)
        record = Record(
            status="finished", grid="loss-weights", preset="nano", arm=trial.arm, experiment=trial.experiment,
            student=scores,
        )  # fmt: skip
        runs.append(Run(record, trial.directory))
    draw(runs, tmp_path)
    texts = _texts(tmp_path / "loss-weights.svg")
    for label in ("instructive loss times 0.1", "instructive loss times 10", "baseline", "0.3"):
        assert label in texts


def test_what_cannot_be_drawn_any_more_goes(make_record: MakeRecord, tmp_path: Path) -> None:
    runs = [Run(make_record(arm, 0, ap), tmp_path) for arm, ap in (("baseline", 20.0), ("LGD", 22.0))]
    assert {p.name for p in draw(runs, tmp_path)} >= {"gains.svg", "classes.png"}
    assert draw(runs[:1], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert draw([], tmp_path) == []


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_leaves_the_page(name: str, layout: Layout, real_results: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = FIGURES[name](load_runs(real_results), layout)
        if figure is None:
            others = (
                *("loss-weights", "learning-rate", "schedule-length", "distill-weight", "profile"),
                *("gain-by-data", "imitation-lead"),
            )
            assert name in others, "not of this grid"
            return
        assert_texts_inside(figure)
        assert_ticks_apart(figure)


def test_learning_curves_begin_with_what_the_others_are_compared_with(make_record: MakeRecord) -> None:
    def watched(record: Record, teacher: bool) -> Record:
        scores = record.student
        assert scores is not None
        points = [
            EvaluationPoint(step=step, student=scores, teacher=scores if teacher else None) for step in (300, 600)
        ]
        return record.model_copy(update={"evaluations": points})

    arms = ["LGD", *(f"a variant {i}" for i in range(6)), "another baseline", "baseline"]
    runs = [Run(watched(make_record(x, 0, 20.0), "baseline" not in x), Path("/r")) for x in arms]
    with mpl.rc_context(STYLE):
        figure = curves(runs)
    assert figure is not None
    drawn = [x.get_label() for x in figure.axes[0].lines]
    assert drawn[:3] == ["baseline", "LGD", "LGD, instructive features"]
    assert "another baseline" not in drawn


def test_many_arms_keep_apart(make_record: MakeRecord) -> None:
    """Each point has a number, and each number a line of its own."""
    names = [f"an arm with a rather long name, number {i}" for i in range(24)]
    hours = [{"training": 3600.0 * (1 + i % 5)} for i in range(24)]
    runs = [Run(make_record(x, 0, 20 + i / 7, device_seconds=hours[i]), Path("/r")) for i, x in enumerate(names)]
    with mpl.rc_context(STYLE):
        figure = pareto(runs)
    assert figure is not None
    assert figure.axes[0].texts[-1].get_text().count("\n") == 23


SIGHT = {
    "all cones": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ],
}  # fmt: skip
"""What linear RGB looks like without a kind of cone (Machado et al. 2009, severity 1)."""


@pytest.mark.parametrize("cones", SIGHT)
def test_colours_are_told_apart_whatever_cones_a_reader_has(cones: str) -> None:
    """In CIELAB, where 2.3 is just noticed; and a marker or a hatch each, for grey prints."""
    found = [_lab(np.asarray(SIGHT[cones]) @ _linear(colour)) for colour in COLOURS]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(found, 2)) > 12
    assert len(set(MARKERS)) == len(COLOURS) == len(MARKERS)
    assert len({hatch for _, hatch in PARTS.values()}) == len(PARTS)


def _linear(colour: str) -> np.ndarray:
    levels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt((to_xyz @ linear.clip(0.01, 1)) / to_xyz.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
