from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from analysis.plots.arms import arms_figure
from lgd.results.record import Record

from .conftest import MakeRecord

ARMS = ["baseline", "LGD", "without encoder", "costs $5 & <more>"]


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    return [
        *(make_record("baseline", seed, 20.0 + seed, 50.0) for seed in range(2)),
        *(make_record("LGD", seed, 22.0 + 1.5 * seed, 90.0 + 2 * seed) for seed in range(2)),
        make_record("without encoder", 0, status="failed", reason="x"),
        make_record(ARMS[3], 0, 19.0, 80.0),
    ]


def _texts(svg: Path) -> list[str]:
    return ["".join(node.itertext()) for node in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_files_and_contents(records: list[Record], tmp_path: Path) -> None:
    paths = arms_figure(records, ARMS, "baseline", tmp_path / "arms.v1")
    assert [p.name for p in paths] == ["arms.v1.png", "arms.v1.svg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arms.v1.png", "arms.v1.svg"]
    with Image.open(paths[0]) as image:
        assert image.format == "PNG"
        assert image.width == 1600
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 10
    texts = _texts(paths[1])
    assert set(ARMS) <= set(texts)
    # Differences 2.0 and 2.5: s = 0.5 / sqrt(2), half width 12.7062 * 0.25. Cost 182 / 100.
    assert {"+2.2 [-0.9, +5.4]", "1.82x", "-1.0", "1.60x", "reference"} <= set(texts)
    assert texts.count("no finished run") == 1
    assert any("not a reproduction of the paper" in text for text in texts)


def test_same_records_give_the_same_bytes(records: list[Record], tmp_path: Path) -> None:
    first = arms_figure(records, ARMS, "baseline", tmp_path / "first")
    second = arms_figure(records[::-1], ARMS, "baseline", tmp_path / "second")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert not re.search(r"<dc:date>|Matplotlib v", first[1].read_text())


def test_global_style_stays(records: list[Record], tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    arms_figure(records, ARMS, "baseline", tmp_path / "arms")
    assert dict(mpl.rcParams) == before


def test_no_arm_finished(make_record: MakeRecord, tmp_path: Path) -> None:
    records = [make_record(arm, 0, status="diverged", reason="nan") for arm in ARMS]
    _, svg = arms_figure(records, ARMS, "baseline", tmp_path / "arms")
    texts = _texts(svg)
    assert texts.count("no finished run") == len(ARMS)
    assert "mean of baseline" not in texts


def test_one_seed_shows_no_interval(make_record: MakeRecord, tmp_path: Path) -> None:
    records = [make_record("baseline", 0, 20.0, 1.0), make_record("LGD", 0, 22.0, 2.0)]
    _, svg = arms_figure(records, ["baseline", "LGD"], "baseline", tmp_path / "arms")
    texts = _texts(svg)
    assert "+2.0" in texts
    assert not any("interval" in text for text in texts)


def test_labels_do_not_overlap(make_record: MakeRecord) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from analysis.plots.arms import _arms
    from analysis.plots.style import STYLE

    names = ["baseline", "LGD", "without encoder", "without adapter", "without mapper", "appearance only",
             "label only", "an arm whose name takes several lines because it says everything"]  # fmt: skip
    records = [
        make_record(arm, seed, 20.0 + i + (seed - 1) * (1 + i), 50.0 * (1 + i))
        for i, arm in enumerate(names)
        for seed in range(2)
    ]
    with mpl.rc_context(STYLE):
        figure = _arms(records, names, "baseline")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        left, right = figure.axes
        shown = [*left.get_yticklabels(), *left.texts, *right.texts]
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in shown]
    page = figure.bbox
    assert len(boxes) == 8 + 9 + 8
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, shown[i].get_text()
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, shown[i].get_text()
        for j in range(i):
            assert not box.overlaps(boxes[j]), (shown[i].get_text(), shown[j].get_text())
