"""The report: whole, self-contained and escaped, from real tiny runs."""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from ablations.run import parser as sweep_parser
from ablations.search.options import search_options
from ablations.sweep_command import new_sweep
from analysis.load import Run, load_runs
from analysis.plots.arms import _arms
from analysis.plots.costs import cost_stack
from analysis.plots.scores import gains
from analysis.plots.style import STYLE, has_hollow_bars
from analysis.report.examples import CACHE, WIDTH, _draw, _hits, examples
from analysis.report.html_report import _results, write_page
from analysis.stats.differences import CONFIDENCE
from analysis.table_builders.arms import arms_table
from analysis.table_builders.sweep_table import Sweep, sweep_of
from analysis.verdicts.questions import asked
from analysis.verdicts.verdict import verdicts
from lgd.config.experiment import Experiment
from lgd.results.record import Contention, Pretraining, load
from lgd.results.sweep_spec import SweepSpec
from tests.conftest import once_per_run
from tests.helpers_data import edit_json, write_coco

from .conftest import MakeRecord

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PHONE = 390, 844
"""Of a phone's window, CSS pixels."""

EVIL = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.sections: list[str] = []
        self.texts = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.sections += [value or "" for name, value in attrs if tag == "section" and name == "id"]
        if tag not in ("meta", "img", "br", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts += data


@pytest.fixture
def results(real_results: Path, tmp_path: Path) -> Path:
    return _copied(real_results, tmp_path)


@pytest.fixture(scope="session")
def page_text(real_results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of such results; writing one takes seconds."""

    def make(root: Path) -> str:
        return _written(_copied(real_results, root)).read_text(encoding="utf-8")

    return once_per_run(tmp_path_factory, "page", make)


def _copied(real_results: Path, directory: Path) -> Path:
    """The real runs, one of them failed for a reason full of markup."""
    copied = directory / "results of <mine>"
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
                "preset": "nano",
                "seeds": 2,
                "overrides": ["threads=1", "a=<b>"],
                "schema_version": 1,
            }
        )
    )
    return copied


def _written(results: Path) -> Path:
    runs = load_runs(results)
    return write_page(results, sweep_of(results, [run.record for run in runs]), runs)


@pytest.mark.slow
def test_the_page_is_whole_self_contained_and_escaped(results: Path) -> None:
    text = _written(results).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert EVIL in page.texts
    assert all(x.startswith(("data:image/", "#")) for x in page.loads)
    # A browser loads and runs nothing, whatever a record says.
    assert "default-src 'none'; img-src data:;" in text[: text.index("<title>")]
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", text)
    for part in (
        "5 finished, 1 failed", "not a reproduction of the paper", "What a training costs (Table 7)",
        "AP against CPU-hours",
        "Example detections", "ground truth", "The slowest", "Not finished", "python -m analysis '", "--resume '",
        "analysis/tables.py '", "--table table7",
        "--grid table7 --preset nano --seeds 2 --arms 'RetinaNet R-50 2x ms LGD' --output '",
        "--set threads=1 --set 'a=<b>'",
    ):  # fmt: skip
        assert part in page.texts, part
    # Eight figures, and three pictures of three images.
    assert page.tags.count("img") == 8 + 9
    # Each figure has a version for a phone.
    assert page.tags.count("source") == 8
    # What is looked for first stands first.
    assert page.sections == ["verdict", "curves", "arms", "teacher", "costs", "examples", "ran", "trials", "again"]
    assert "GPU-hours" not in page.texts.replace("--table gpu-hours", "")
    assert _written(results).read_text(encoding="utf-8") == text


@pytest.mark.slow
def test_examples_are_of_one_pair_and_made_once(results: Path) -> None:
    kept = examples(load_runs(results))
    for detections in results.glob("trials/*/detections.json.gz"):
        detections.unlink()
    runs = load_runs(results)
    found = examples(runs)
    # What the runs kept, and what their students detect now.
    assert [x.images for x in found] == [x.images for x in kept]
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
    assert [x.images[0] for x in changed] == [x.images[0] for x in found]
    assert all(a.images[1] != b.images[1] for a, b in zip(changed, found, strict=True))
    for weights in results.glob("trials/*/student.pth"):
        weights.unlink()
    assert examples(load_runs(results)) == []


def test_one_number_of_cost_everywhere(results: Path) -> None:
    """In the results, in the table of arms and in the figure: the training's and its teacher's, without evaluations."""
    teacher = Pretraining.model_validate(
        {"fingerprint": "0", "backbone": "r101", "steps": 9, "AP": 40.0, "reused": False,
         "device_seconds": {"training": 500.0, "evaluation": 70.0}}
    )  # fmt: skip
    runs = [x for x in load_runs(results) if x.record.experiment.method.name in ("baseline", "lgd")]
    runs = [
        x._replace(record=x.record.model_copy(update={"pretraining": teacher}))
        if x.record.experiment.method.name == "lgd"
        else x
        for x in runs
    ]
    (row,) = _results(runs, [], CONFIDENCE)
    names = ("RetinaNet R-50 2x ms baseline", "RetinaNet R-50 2x ms LGD")
    costs = arms_table([x.record for x in runs], names, names[0]).set_index("arm")["training_cost"].to_dict()
    assert row["cost"] == f"{costs[names[1]]:.2f}x"
    (verdict,) = verdicts([x.record for x in runs], asked(results, [x.record for x in runs]))
    assert row["cost"] == f"{verdict.cost:.2f}x"
    assert costs[names[1]] > 3
    with mpl.rc_context(STYLE):
        figure = cost_stack(runs)
        arms = _arms([x.record for x in runs], names, names[0])
    assert figure is not None
    assert row["cost"] in [x.get_text() for x in figure.axes[0].texts]
    assert row["cost"] in [x.get_text() for x in arms.axes[1].texts]


def test_a_result_of_one_seed_is_called_one(make_record: MakeRecord) -> None:
    runs = [Run(make_record(arm, 0, ap, 10.0), Path("/r")) for arm, ap in (("baseline", 20.0), ("LGD", 29.0))]
    (row,) = _results(runs, [], CONFIDENCE)
    assert (row["gain"], row["interval"], row["verdict"]) == ("+9.0", "", "one seed: decides nothing")
    with mpl.rc_context(STYLE):
        figure = gains(runs)
        assert figure is not None
        (bar,) = figure.axes[0].patches
        assert bar.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
        more = gains([*runs, *(Run(make_record(x.record.arm, 1, 30.0, 10.0), Path("/r")) for x in runs)])
        assert more is not None
        assert (has_hollow_bars(figure), has_hollow_bars(more)) == (True, False)
        assert more.axes[0].patches[0].get_facecolor() != (1.0, 1.0, 1.0, 1.0)


def test_a_given_teacher_of_unknown_hours_is_said_beside_the_costs(make_record: MakeRecord, tmp_path: Path) -> None:
    given = Pretraining(
        fingerprint="", backbone="r101", weights="zoo.pkl", steps=0, AP=40.0, device_seconds={}, reused=True,
        hours_known=False,
    )  # fmt: skip
    runs = [
        Run(make_record(arm, 0, 30.0, 10.0).model_copy(update={"pretraining": teacher}), tmp_path / arm)
        for arm, teacher in (("baseline", None), ("PKD", given))
    ]
    page = write_page(tmp_path, Sweep(["baseline", "PKD"], "baseline"), runs).read_text(encoding="utf-8")
    said = page.partition('id="arms"')[2].partition("</section>")[0]
    assert "Not known, and in no hours: the training of zoo.pkl." in said


def test_intervals_of_the_results_are_as_wide_as_the_verdicts(make_record: MakeRecord) -> None:
    """Of a sweep that is looked at several times they are wider, and "more" may be no answer yet."""
    gains_of = (0.1, 1.5, 2.9)
    runs = [Run(make_record("baseline", seed, 20.0, 10.0), Path("/r")) for seed in range(3)]
    runs += [Run(make_record("LGD", seed, 20.0 + x, 10.0), Path("/r")) for seed, x in enumerate(gains_of)]
    for confidence, verdict in ((0.6, "more"), (CONFIDENCE, "within noise")):
        (row,) = _results(runs, [], confidence)
        assert row["verdict"] == verdict


@pytest.mark.slow
def test_a_busy_machine_is_said_beside_the_costs(make_record: MakeRecord, tmp_path: Path) -> None:
    busy = Contention(own_cores=1.0, other_cores=0.8, cores=2)
    runs = [Run(make_record(x, 0, 20.0, 10.0, contention=busy), tmp_path) for x in ("baseline", "LGD")]
    text = write_page(tmp_path, Sweep(["baseline", "LGD"], "baseline"), runs).read_text(encoding="utf-8")
    assert "the sweep's own other trials included, used up to 40% of the cores meanwhile" in text
    quiet = [run._replace(record=run.record.model_copy(update={"contention": None})) for run in runs]
    page = write_page(tmp_path, Sweep(["baseline", "LGD"], "baseline"), quiet)
    assert "Other work" not in page.read_text(encoding="utf-8")


def test_boxes_say_whether_they_hit() -> None:
    objects = [{"bbox": [0, 0, 10, 10], "category_id": 1}, {"bbox": [20, 0, 10, 10], "category_id": 1}]
    found = [
        {"bbox": [0, 0, 10, 9], "category_id": 1, "score": 0.9},
        {"bbox": [1, 0, 10, 10], "category_id": 1, "score": 0.8},  # the same object once more
        {"bbox": [20, 0, 10, 10], "category_id": 2, "score": 0.7},  # of another class
        {"bbox": [25, 0, 10, 10], "category_id": 1, "score": 0.6},  # beside it: IoU 1/3
        {"bbox": [21, 0, 10, 10], "category_id": 1, "score": 0.5},
    ]
    assert _hits(found, objects) == [True, False, False, False, True]
    image = Image.new("RGB", (40, 20), "white")
    drawn = [_draw(image, found[:1], {1: "disc"}, hits) for hits in (None, [True], [False])]
    assert len(set(drawn)) == 3


def test_a_directory_without_records_still_has_a_page(tmp_path: Path) -> None:
    text = write_page(tmp_path, Sweep(["baseline"], "baseline"), []).read_text(encoding="utf-8")
    assert "nothing to draw yet" in text


def test_examples_show_what_training_saw(make_record: MakeRecord, tmp_path: Path) -> None:
    """An image that EXIF turns, one of 16 bits, and no region to ignore among the objects."""
    data = write_coco(tmp_path / "data")
    turned, deep = data / "val2017/turned.jpg", data / "val2017/deep.png"
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (48, 40)).save(turned, exif=exif)
    Image.fromarray(np.full((48, 48), 200 << 8, np.uint16)).save(deep)

    def edit(contents: dict[str, Any]) -> None:
        for image, path in zip(contents["images"], (turned, deep), strict=False):
            image["file_name"] = path.name

    edit_json(data / "annotations/instances_val2017.json", edit)
    for arm in ("baseline", "LGD"):
        settings = {"method.name": "baseline" if arm == "baseline" else "lgd", "data.source": f"coco-json:{data}"}
        record = make_record(arm, 0, 20.0, experiment=Experiment().override(settings))
        record.save(tmp_path / "results/trials" / arm)
        with gzip.open(tmp_path / "results/trials" / arm / "detections.json.gz", "wt", encoding="utf-8") as file:
            file.write("[]")
    found = {x.file: Image.open(io.BytesIO(x.images[1])) for x in examples(load_runs(tmp_path / "results"))}
    # The third image has a region to ignore alone.
    assert found.keys() == {"turned.jpg", "deep.png"}
    assert found["turned.jpg"].size == (WIDTH, WIDTH * 48 // 40)
    assert found["deep.png"].getpixel((5, 5)) == (200, 200, 200)


@pytest.mark.parametrize(
    "options",
    [
        ["--grid", "components", "--seeds", "3", "--set", "threads=1", "--data", "shapes"],
        ["--grid", "components", "--arms", "LGD,without adapter"],
        ["--grid", "teacher-based", "--preset", "small"],
        ["--grid", "components", "--search", "optuna", "--samples", "7", "--objectives", "AP,gpu_hours"],
        ["--grid", "components", "--search", "optuna", "--early-stop"],
        ["--grid", "components", "--search", "optuna", "--search-space", "method.distill_weight=0.1:2"],
    ],
)
def test_the_command_of_the_trainings_is_that_sweeps(options: list[str], tmp_path: Path) -> None:
    output = tmp_path / "of mine"
    spec = _spec([*options, "--output", str(output)])
    output.mkdir()
    spec.write(output)
    text = write_page(output, Sweep(list(spec.arms), "baseline"), []).read_text(encoding="utf-8")
    shown = next(x for x in _Page(text).texts.splitlines() if x.startswith("python ablations/run.py --grid"))
    shutil.rmtree(output)
    assert _spec(shlex.split(shown)[2:]) == spec


def _spec(arguments: list[str]) -> SweepSpec:
    options = sweep_parser().parse_args(arguments)
    spec, _ = new_sweep(options, search_options(options) if options.search else None)
    return spec.model_copy(update={"code": None})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(page_text: str, tmp_path: Path, width: int) -> None:
    """What is wide scrolls in a frame of its own."""
    # A frame, since no window of a headless browser is as narrow as a phone.
    assert _measured(page_text, (width, 900), "this.contentDocument.documentElement.scrollWidth", tmp_path) == width


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_verdict_is_on_the_first_screen_of_a_phone(page_text: str, tmp_path: Path) -> None:
    """Whole, without scrolling either way."""
    width, height = PHONE
    lead = "this.contentDocument.querySelector('#verdict p.lead').getBoundingClientRect()"
    assert 0 < _measured(page_text, PHONE, f"Math.ceil({lead}.bottom)", tmp_path / "below") < height
    assert 0 < _measured(page_text, PHONE, f"Math.ceil({lead}.right)", tmp_path / "beside") <= width


def _measured(text: str, window: tuple[int, int], expression: str, directory: Path) -> int:
    """A number in pixels of a page in a window; ``this`` is the frame that holds it."""
    assert CHROMIUM is not None
    directory.mkdir(exist_ok=True)
    path, loaded = directory / "measured.html", f"document.title = {expression}"
    frame = f'<iframe width="{window[0]}" height="{window[1]}" onload="{loaded}" srcdoc="{escape(text)}"></iframe>'
    path.write_text(f"<title></title>{frame}", encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={directory / 'profile'}", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<title>(-?\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    return int(found[1])
