"""AP against cost: one front for all that was trained on one data set, gains to the baseline, after a search too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.load import Run
from analysis.plots.costs import pareto
from analysis.plots.style import STYLE
from analysis.table_builders.frontier import frontier, frontier_text, with_notes_on_hours

from .conftest import MakeRecord

HOURS = 3600.0


@pytest.fixture
def searched(make_record: MakeRecord) -> list[Run]:
    """A baseline, and trials of a search around LGD: each with settings of its own, as a search records them."""

    def run(arm: str, ap: float, hours: float, *overrides: str, seed: int = 0, **changes: Any) -> Run:
        record = make_record(arm, seed, ap, device_seconds={"training": hours * HOURS}, **changes)
        experiment = record.experiment.override(overrides)
        return Run(record.model_copy(update={"experiment": experiment, "overrides": list(overrides)}), Path("/r"))

    return [
        *(run("baseline", 0.17 + 0.01 * seed, 1.0, seed=seed) for seed in range(2)),
        run("search-bad", 0.04, 2.0, "method.distill_weight=3.0"),
        run("search-good", 0.30, 2.0, "method.distill_weight=0.123456789012345", "method.instructive_weight=0.3"),
        run("search-dear", 0.25, 3.0, "method.adapter=false"),
    ]


def test_a_searched_arm_that_the_baseline_beats_is_not_on_the_front(searched: list[Run]) -> None:
    frame = frontier(searched).set_index("arm")
    assert frame["front"].to_dict() == {
        "baseline": True, "search-bad": False, "search-good": True, "search-dear": False,
    }  # fmt: skip
    assert frame.loc["search-bad", "gain"] == pytest.approx(0.04 - 0.17)
    assert frame.loc["search-good", "gain"] == pytest.approx(0.30 - 0.17)
    assert frame["extra_hours"].fillna(-1.0).to_dict() == {
        "baseline": -1.0, "search-bad": 1.0, "search-good": 1.0, "search-dear": 2.0,
    }  # fmt: skip
    text = frontier_text(frontier(searched))
    row = next(row for row in text.rows if row[0].startswith("search-good"))
    assert row[0] == "search-good (nano, changed: method.distill_weight=0.123 method.instructive_weight=0.3)"
    assert row[text.header.index("gain")] == "+0.1"


def test_a_searched_arm_is_compared_with_the_baseline_of_its_own_training(searched: list[Run]) -> None:
    """Not with one of another length, on the same data."""
    alone = [run for run in searched if run.record.arm != "baseline"]
    base = searched[0].record
    longer = base.model_copy(update={"experiment": base.experiment.override({"schedule.steps": 900})})
    frame = frontier([*alone, Run(longer, Path("/r"))])
    assert frame["gain"].isna().all()
    assert frame["front"].sum() == 2


def test_hours_are_of_the_hardware_that_most_ran_on(searched: list[Run]) -> None:
    fast = {"cpu": "Another processor", "cores": "2", "gpu": "none"}

    def faster(run: Run, **changes: Any) -> Run:
        changes |= {"hardware": fast, "device_seconds": {"training": 36.0}}
        return Run(run.record.model_copy(update=changes), run.directory)

    third = searched[0].record.experiment.override({"seed": 7})
    others = [faster(searched[3], arm="elsewhere"), faster(searched[0], experiment=third)]
    runs = [*searched, *others]
    frame = frontier(runs).set_index("arm")
    assert frame.loc["baseline", "seeds"] == 3
    assert frame.loc["baseline", "gpu_hours"] == 1.0
    assert not frame.loc["elsewhere", "front"], "cheap elsewhere"
    assert frame.loc["search-good", "front"]
    notes = with_notes_on_hours(frontier_text(frontier(runs)), runs).notes
    assert "Trained on other hardware, so their hours do not compare: elsewhere." in notes
    assert not any(
        "other hardware" in x for x in with_notes_on_hours(frontier_text(frontier(searched)), searched).notes
    )


def test_each_data_set_has_a_front_of_its_own(searched: list[Run]) -> None:
    other = searched[2].record
    data = other.experiment.override({"data.shapes_train": 77})
    frame = frontier([*searched, Run(other.model_copy(update={"experiment": data}), Path("/r"))])
    assert frame.loc[frame["arm"] == "search-bad", "front"].tolist() == [False, True]
    text = frontier_text(frame)
    assert text.header[1] == "data"
    assert any("77" in row[1] for row in text.rows)


def test_trainings_without_a_gpu_are_not_headed_gpu_hours(searched: list[Run]) -> None:
    on_cpu = frontier_text(frontier(searched))
    assert "GPU-hours" not in " ".join([on_cpu.title, *on_cpu.header])
    assert "CPU-hours" in on_cpu.header
    hardware = {**searched[0].record.hardware, "gpu": "1 x H100, 80 GiB"}
    gpu = [run._replace(record=run.record.model_copy(update={"hardware": hardware})) for run in searched]
    on_gpu = frontier_text(frontier(gpu))
    assert on_gpu.title == "AP against GPU-hours"
    assert "GPU-hours" in on_gpu.header
    assert "device-hours" in frontier_text(frontier([*searched[:2], *gpu[2:]])).header


def test_the_list_beside_the_figure_is_whole(searched: list[Run]) -> None:
    many = [
        run._replace(record=run.record.model_copy(update={"arm": f"search-{i}{run.record.arm}"}))
        for i in range(12)
        for run in searched[2:]
    ]
    with mpl.rc_context(STYLE):
        figure = pareto([*searched[:2], *many])
        assert figure is not None
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        legend = figure.axes[0].texts[-1]
        box = legend.get_window_extent(canvas.get_renderer())
        assert legend.get_text().count("\n") == 36
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        # And the figure itself is there beside it.
        assert figure.axes[0].get_window_extent().width > 0.35 * figure.bbox.width
