"""The report: whole, self-contained and escaped, from real tiny runs."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.examples import CACHE, examples
from analysis.page import write_page
from analysis.records import load_runs
from analysis.report import Sweep, order
from lgd.record import load

EVIL = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += data


@pytest.fixture
def results(real_results: Path, tmp_path: Path) -> Path:
    """The real runs, one of them failed for a reason full of markup."""
    copied = tmp_path / "results of <mine>"
    shutil.copytree(real_results, copied)
    path = sorted(copied.glob("trials/*fgfi*/record.json"))[0]
    failed = load(path).model_copy(update={"status": "failed", "reason": EVIL, "student": None})
    failed.save(path.parent)
    (copied / "sweep.json").write_text(
        json.dumps(
            {
                "grid": "table7",
                "arms": ["RetinaNet R-50 2x ms LGD"],
                "reference": "",
                "preset": "tiny",
                "seeds": 2,
                "overrides": ["threads=1", "a=<b>"],
            }
        )
    )
    return copied


def test_the_page_is_whole_self_contained_and_escaped(results: Path) -> None:
    sweep = order(results, [run.record for run in load_runs(results)])
    text = write_page(results, sweep).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert EVIL in page.texts
    assert all(x.startswith(("data:image/", "#")) for x in page.loads)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", text)
    for part in (
        "5 finished, 1 failed", "not a reproduction of the paper", "What a training costs (Table 7)",
        "AP against GPU-hours",
        "Example detections", "ground truth", "The slowest", "Not finished", "python -m analysis '", "--resume '",
        "analysis/tables.py '", "--table table7",
        "--grid table7 --preset tiny --seeds 2 --arms 'RetinaNet R-50 2x ms LGD' --output '",
        "--set threads=1 --set 'a=<b>'",
    ):  # fmt: skip
        assert part in page.texts, part
    # Five figures, and three pictures of three images.
    assert page.tags.count("img") == 5 + 9
    assert write_page(results, sweep).read_text(encoding="utf-8") == text


def test_examples_are_of_one_pair_and_made_once(results: Path) -> None:
    kept = examples(load_runs(results))
    for detections in results.glob("trials/*/detections.json.gz"):
        detections.unlink()
    runs = load_runs(results)
    found = examples(runs)
    # What the runs kept, and what their students detect now.
    assert [x.pictures for x in found] == [x.pictures for x in kept]
    names = ("ground truth", "RetinaNet R-50 2x ms baseline", "RetinaNet R-50 2x ms LGD")
    assert [x.names for x in found] == [names] * 3
    assert len({x.file for x in found}) == 3
    caches = sorted(results.glob(f"trials/*/{CACHE}"))
    assert len(caches) == 2
    # What a call left is what the next one draws.
    box = {"bbox": [5.0, 5.0, 30.0, 30.0], "category_id": 1, "score": 0.99}
    for cache in caches:
        kept = json.loads(cache.read_text())
        kept["detections"] = {image: [box] for image in kept["detections"]}
        cache.write_text(json.dumps(kept))
    changed = examples(runs)
    assert [x.pictures[0] for x in changed] == [x.pictures[0] for x in found]
    assert all(a.pictures[1] != b.pictures[1] for a, b in zip(changed, found, strict=True))
    for weights in results.glob("trials/*/student.pth"):
        weights.unlink()
    assert examples(load_runs(results)) == []


def test_a_directory_without_records_still_has_a_page(tmp_path: Path) -> None:
    text = write_page(tmp_path, Sweep(["baseline"], "baseline")).read_text(encoding="utf-8")
    assert "nothing to draw yet" in text
