"""Markup in any text of a record, a sweep's description or an image's name is text on the page, and in its commands."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
import subprocess
import types
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel

from analysis.commands import training_command
from analysis.load import Run, load_runs
from analysis.report.examples import examples
from analysis.report.html_report import write_page
from analysis.table_builders.sweep_table import Sweep, sweep_of
from lgd.config.experiment import Experiment, parse
from lgd.errors import InputError
from lgd.results.record import FILE, Contention, EvaluationPoint, Pretraining, Record, Scores, load
from lgd.results.sweep_spec import SWEEP_FILE, CodeVersion, SearchSpec, SweepEnd, SweepSpec
from tests.helpers_data import edit_json, write_coco

from .conftest import MakeRecord

Text = Callable[[str], str]
"""What to write at a place."""

OWN = {"source": "/own.yaml", "overrides": ["A=1"], "bottom_up": "body", "weights": "/own.pkl"}
"""Settings of a detector that is not built-in; what they name is not there."""

REFUSED = {".detector.backbone.name"}
"""Places of an experiment that take known names alone."""


def _evil(place: str) -> str:
    return f"<script>alert('{place}')</script>\"'><img src=x onerror=alert(1)>&lt;{{{{ 7 * 7 }}}}"


def _plain(place: str) -> str:
    """As long, and at the same place wherever texts are sorted."""
    return re.sub(r"[^a-z0-9]", "x", _evil(place))


def _places(annotation: Any, path: str = "") -> Iterator[str]:
    """Every place of a model where any text may stand: ``.student.per_class{}`` is of a dict's keys."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is str:
        yield path
    elif origin is Annotated:
        yield from _places(inner[0], path)
    elif origin in (Union, types.UnionType):
        for each in inner:
            yield from _places(each, path)
    elif origin is dict:
        yield from _places(inner[0], f"{path}{{}}")
        yield from _places(inner[1], f"{path}.*")
    elif origin in (list, tuple):
        for each in inner:
            yield from _places(each, f"{path}.*")
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from _places(field.annotation, f"{path}.{name}")


def _filled(value: Any, places: set[str], text: Text, done: set[str], path: str = "") -> Any:
    """``value``, a JSON tree, with texts at ``places``: instead of what is there, but beside a dict's own keys."""
    if isinstance(value, dict):
        filled = {
            key: _filled(x, places, text, done, f"{path}.{key}" if f"{path}{{}}" not in places else f"{path}.*")
            for key, x in value.items()
        }
        if f"{path}{{}}" in places and value:
            done.add(f"{path}{{}}")
            filled[text(f"{path}{{}}")] = next(iter(filled.values()))
        return filled
    if isinstance(value, list):
        return [_filled(x, places, text, done, f"{path}.*") for x in value]
    if path not in places or value is None:
        return value
    done.add(path)
    return text(path)


def _whole_record(make_record: MakeRecord, arm: str, seed: int = 0) -> Record:
    """A record in which nothing is left out."""
    scores = Scores(AP=20, AP50=40, AP75=15, APs=1, APm=3, APl=12, mMR=50, VOC=40, per_class={"disc": 10})
    teacher = Pretraining(
        fingerprint="f", backbone="resnet101", weights="a/teacher.pkl", steps=6, AP=30, device_seconds={"training": 9},
        joules={"training": 9}, hardware={"gpu": "none"}, reused=False,
    )  # fmt: skip
    point = EvaluationPoint(
        step=300, student=scores, teacher=scores, student_mask=scores, teacher_mask=scores, label_signal={"labels": 1}
    )
    return make_record(
        arm, seed, student=scores, teacher=scores, student_mask=scores, teacher_mask=scores,
        evaluations=[point, point.model_copy(update={"step": 600})], pretraining=teacher, overrides=["threads=1"],
        reason="why", data={"name": "shapes"}, weights={"none": "0"}, parameters={"student": 9},
        losses={"total_loss": [(300, 1.5), (600, 0.5)]}, teacher_lead=[(300, 0.5)], distilled=[(1, 600)],
        label_signal=[(5, {"labels": 1})],
        seconds=10.0, device_seconds={"training": 10}, within_training={"data_wait": 1},
        joules={"training": 9}, step_ms=5, contention=Contention(own_cores=1, other_cores=1, cores=2),
        experiment=Experiment().override({"method.name": "baseline" if arm == "baseline" else "lgd", "seed": seed}),
    )  # fmt: skip


def _experiment(whole: Any, text: Text) -> tuple[Any, set[str]]:
    """The experiment with texts at all places that take them, and those places."""
    taken = set[str]()
    for place in sorted(set(_places(Experiment))):
        changed = whole
        for form in ("{}", "coco-json:/{}", "/{}.yaml", "A={}"):
            done = set[str]()
            changed = _filled(whole, {place}, lambda x, form=form: form.replace("{}", text(x)), done)  # type: ignore[misc]
            try:
                parse(changed)
            except InputError:
                continue
            if done:
                whole = changed
                taken |= done
                break
    return whole, taken


def _write(root: Path, make_record: MakeRecord, text: Text) -> tuple[Path, set[str]]:
    """A results directory with texts at every place; the places of a record and of a sweep that none is at."""
    names = {arm: text(f"the arm {arm}") for arm in ("baseline", "LGD")}
    all_places, done = {x for x in _places(Record) if not x.startswith(".experiment")}, set[str]()
    in_experiments = set[str]()
    for arm, seed in (("baseline", 0), ("baseline", 1), ("LGD", 0), ("LGD", 1), ("LGD", 2)):
        tree = _filled(json.loads(_whole_record(make_record, arm, seed).model_dump_json()), all_places, text, done)
        own = {"detector": OWN} if seed == 2 else {}
        tree["experiment"], taken = _experiment({**tree["experiment"], **own}, text)
        in_experiments |= taken
        directory = root / "trials" / f"{arm} {seed}"
        directory.mkdir(parents=True)
        status = {"status": "failed", "student": None} if seed == 2 else {}
        (directory / FILE).write_text(json.dumps({**tree, **status, "arm": names[arm]}))
        load(directory / FILE)
    assert in_experiments == set(_places(Experiment)) - REFUSED
    spec = SweepSpec(
        grid="components", preset="nano", overrides=("threads=1",), arms=("a",), reference="a", seeds=2,
        steps={"a": 6},
        search=SearchSpec(
            samples=2, objectives=("AP",), early_stop=True, study="a", study_name="b", space=("method.lr_factor=1:2",)
        ),
        code=CodeVersion(versions={"torch": "2"}, files={"a.py": "0"}), ended=SweepEnd(why="why", not_run=("b",)),
    )  # fmt: skip
    of_sweep, done_there = set(_places(SweepSpec)), set[str]()
    tree = _filled(json.loads(spec.model_dump_json()), of_sweep, text, done_there)
    (root / SWEEP_FILE).write_text(json.dumps({**tree, "arms": list(names.values()), "reference": names["baseline"]}))
    SweepSpec.read(root)
    return root, (all_places - done) | (of_sweep - done_there)


class _Page(HTMLParser):
    """What a browser makes of a page: tags with their attributes' names, values that load something, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.values: list[str] = []
        self.texts = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.values += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "style")]

    def handle_data(self, data: str) -> None:
        self.texts += data


def _page(root: Path) -> _Page:
    runs = load_runs(root)
    return _Page(write_page(root, sweep_of(root, [x.record for x in runs]), runs).read_text(encoding="utf-8"))


def _check_escaped(page: _Page, harmless: _Page) -> None:
    assert sorted(page.tags) == sorted(harmless.tags)
    assert all(x.startswith(("data:image/", "#")) for x in page.values)
    for uri in (x for x in page.values if x.startswith("data:image/svg+xml;base64,")):
        root = ElementTree.fromstring(base64.b64decode(unquote(uri.partition(",")[2])))
        assert not [x for x in root.iter() if str(x.tag).endswith(("script", "foreignObject"))]
    assert "&lt;49" not in page.texts


@pytest.mark.slow
def test_texts_of_records_and_of_the_sweep_stay_texts(make_record: MakeRecord, tmp_path: Path) -> None:
    root, left = _write(tmp_path / "evil", make_record, _evil)
    assert left == set()
    page = _page(root)
    _check_escaped(page, _page(_write(tmp_path / "plain", make_record, _plain)[0]))
    shown = {x for x in (*_places(Record), *_places(SweepSpec), "the arm LGD") if _evil(x) in page.texts}
    assert shown >= {
        "the arm LGD", ".preset", ".reason", ".hardware.*", ".versions.*", ".finished", ".ended.why", ".ended.not_run.*"
    }  # fmt: skip


@pytest.mark.slow
def test_texts_of_examples_stay_texts(make_record: MakeRecord, tmp_path: Path) -> None:
    """Names of images and of classes are the annotation files'."""
    pages = []
    for text in (_evil, _plain):
        root = tmp_path / text.__name__
        runs = _pair(make_record, _renamed(write_coco(root / "data"), text), text, root / "results")
        found = examples(runs)
        assert all(x.file == f"{text('file')}.jpg".replace("/", "|") for x in found)
        arms = [x.record.arm for x in runs]
        page = _Page(write_page(root / "results", Sweep(arms, arms[0]), runs).read_text(encoding="utf-8"))
        assert len([x for x in page.values if x.startswith("data:image/png")]) == 3 * len(found) == 3
        assert arms[1] in page.texts
        pages.append(page)
    _check_escaped(*pages)


def _renamed(data: Path, text: Text) -> Path:
    """A data set whose classes have such names, and one image to validate on that has."""

    def edit(contents: dict[str, Any]) -> None:
        for category in contents["categories"]:
            category["name"] = f"{text('class')} {category['id']}"

    def rename(contents: dict[str, Any]) -> None:
        (image,) = contents["images"] = contents["images"][:1]
        contents["annotations"] = [x for x in contents["annotations"] if x["image_id"] == image["id"]]
        path = data / "val2017" / image["file_name"]
        image["file_name"] = path.rename(path.with_name(f"{text('file')}.jpg".replace("/", "|"))).name
        edit(contents)

    edit_json(data / "annotations/instances_train2017.json", edit)
    edit_json(data / "annotations/instances_val2017.json", rename)
    return data


def _pair(make_record: MakeRecord, data: Path, text: Text, root: Path) -> list[Run]:
    """A baseline and LGD, which detected nothing."""
    for name in ("baseline", "lgd"):
        experiment = Experiment().override({"method.name": name, "data.source": f"coco-json:{data}"})
        arm = text(f"the arm {name}") if name == "lgd" else name
        make_record(arm, 0, 20.0, experiment=experiment).save(root / "trials" / name)
        (root / "trials" / name / "detections.json.gz").write_bytes(gzip.compress(b"[]"))
    return sorted(load_runs(root), key=lambda x: x.record.arm != "baseline")


def _spec(**changes: Any) -> SweepSpec:
    spec = SweepSpec(grid="components", preset="nano", overrides=(), arms=("baseline", "LGD"), seeds=2)
    return spec.model_copy(update=changes)


HOSTILE = "x'; touch touched; $(touch touched) `touch touched` \n#"


@pytest.mark.parametrize("field", ["grid", "preset", "overrides", "arms"])
@pytest.mark.parametrize(
    "search",
    [
        None,
        SearchSpec(samples=2, objectives=("AP",), early_stop=False),
        SearchSpec(samples=2, objectives=("AP",), early_stop=False, method=HOSTILE),
    ],
)
def test_a_command_to_copy_runs_nothing_else(field: str, search: SearchSpec | None, tmp_path: Path) -> None:
    value = (HOSTILE,) if field in ("overrides", "arms") else HOSTILE
    _spec(**{field: value, "search": search}).write(tmp_path)
    command = training_command(tmp_path, "out")
    if search is None and field in ("grid", "preset"):
        # Only a known grid has arms to name.
        assert command == ""
        return
    # The words as bash takes them, of which only the first would be run.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    assert words[:3] == ["python", "ablations/run.py", "--grid"]
    of_search = bool(search and search.method == HOSTILE)
    assert (HOSTILE in words) == (field != "arms" or of_search)
    assert words[:-1] == shlex.split(command)
    assert not (tmp_path / "touched").exists()
