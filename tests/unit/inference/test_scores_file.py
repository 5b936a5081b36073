"""What lgd eval prints."""

from __future__ import annotations

import pytest

from lgd.config.paper_recipes import named
from lgd.inference import score_detector
from lgd.inference.scores_file import beside_the_paper, table
from lgd.results.record import Scores


def test_beside_the_paper() -> None:
    reported = [x for x in named("retinanet_r50_2x_ms").reported if x.baseline is not None and x.lgd is not None]
    assert reported
    box = Scores(AP=40, AP50=40, AP75=40, APs=40, APm=40, APl=40)
    lines = beside_the_paper(reported, box, None, classes=80, images=5000)
    x = reported[0]
    assert x.baseline is not None
    assert x.lgd is not None
    assert lines[0].startswith(
        f"the paper's box AP: baseline {x.baseline:.1f} ({40 - x.baseline:+.1f} here), LGD {x.lgd:.1f}"
        f" ({40 - x.lgd:+.1f} here)"
    )
    (line,) = beside_the_paper(reported[:1], box, None, classes=80, images=4999)
    assert line == f"the paper reports {x} on MS-COCO val2017, which this data is not"


def test_the_table_has_what_there_is() -> None:
    box = Scores(AP=12.34, AP50=20, AP75=None, APs=1, APm=2, APl=3, mMR=55.5, VOC=44.4)
    mask = Scores(AP=5, AP50=6, AP75=7, APs=8, APm=9, APl=10)
    assert table(box, mask) == [
        "           AP   AP50   AP75    APs    APm    APl",
        "box      12.3   20.0      -    1.0    2.0    3.0",
        "mask      5.0    6.0    7.0    8.0    9.0   10.0",
        "log-average miss rate 55.5",
        "Pascal VOC's AP50 44.4",
    ]


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 30.0, 31.0, 60.0])
    monkeypatch.setattr("lgd.inference.score_detector.time.monotonic", lambda: next(clock))
    progress = score_detector.Progress(4)
    for _ in range(4):
        progress()
    assert capsys.readouterr().out == "image 2 of 4, 0:30 left\n"
