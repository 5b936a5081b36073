"""Markup in any text of a record, a sweep's description or an image's name is text on the page, and in its commands."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
import types
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from pydantic import BaseModel

from analysis.commands import command_of, training_command
from analysis.examples import examples
from analysis.html_report import write_page
from analysis.load import Run, load_runs
from analysis.sweep_table import Sweep, sweep_of
from lgd.config.experiment import Experiment, parse
from lgd.errors import InputError
from lgd.results.record import FILE, Contention, EvaluationPoint, Pretraining, Record, Scores, load
from lgd.results.sweep_spec import SWEEP_FILE, CodeVersion, SearchSpec, SweepEnd, SweepSpec
from tests.helpers_data import edit_json, write_coco

from .conftest import MakeRecord

Text = Callable[[str], str]
"""What to write at a place."""

MOST_PLAIN = 0.5
"""Part of an experiment's texts that may be names or paths which refuse markup."""


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
        joules={"training": 9}, reused=False,
    )  # fmt: skip
    point = EvaluationPoint(
        step=300, student=scores, teacher=scores, student_mask=scores, teacher_mask=scores, label_signal={"labels": 1}
    )
    return make_record(
        arm, seed, student=scores, teacher=scores, student_mask=scores, teacher_mask=scores,
        evaluations=[point, point.model_copy(update={"step": 600})], pretraining=teacher, overrides=["threads=1"],
        reason="why", data={"name": "shapes"}, weights={"none": "0"}, parameters={"student": 9},
        losses={"total_loss": [(300, 1.5), (600, 0.5)]}, teacher_lead=[(300, 0.5)], distilled=[(1, 600)],
        seconds={"training": 10.0}, device_seconds={"training": 10}, within_training={"data_wait": 1},
        joules={"training": 9}, step_ms=5, contention=Contention(own_cores=1, other_cores=1, cores=2),
        experiment=Experiment().override({"method.name": "baseline" if arm == "baseline" else "lgd", "seed": seed}),
    )  # fmt: skip


def _experiment(whole: Any, text: Text) -> tuple[Any, set[str]]:
    """The experiment with texts at all places that take them, and those places."""
    taken = set[str]()
    for place in set(_places(Experiment)):
        changed = whole
        for prefix in ("", "coco-json:/", "/", "timm:"):
            done = set[str]()
            changed = _filled(whole, {place}, lambda x, prefix=prefix: prefix + text(x), done)  # type: ignore[misc]
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
    for arm, seed in (("baseline", 0), ("baseline", 1), ("LGD", 0), ("LGD", 1), ("LGD", 2)):
        tree = _filled(json.loads(_whole_record(make_record, arm, seed).model_dump_json()), all_places, text, done)
        tree["experiment"], taken = _experiment(tree["experiment"], text)
        assert len(taken) > MOST_PLAIN * len(set(_places(Experiment))), taken
        directory = root / "trials" / f"{arm} {seed}"
        directory.mkdir(parents=True)
        status = {"status": "failed", "student": None} if seed == 2 else {}
        (directory / FILE).write_text(json.dumps({**tree, **status, "arm": names[arm]}))
        load(directory / FILE)
    spec = SweepSpec(
        grid="components", preset="nano", overrides=("threads=1",), arms=("a",), reference="a", seeds=2,
        steps={"a": 6}, search=SearchSpec(samples=2, objectives=("AP",), early_stop=True, study="a", study_name="b"),
        code=CodeVersion(versions={"torch": "2"}, files={"a.py": "0"}), ended=SweepEnd(why="why", not_run=("b",)),
    )  # fmt: skip
    of_sweep, done_there = set(_places(SweepSpec)), set[str]()
    tree = _filled(json.loads(spec.model_dump_json()), of_sweep, text, done_there)
    (root / SWEEP_FILE).write_text(
        json.dumps({**tree, "arms": list(names.values()), "reference": names["baseline"]})
    )
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
    assert "49 }}" not in page.texts


@pytest.mark.slow
def test_texts_of_records_and_of_the_sweep_stay_texts(make_record: MakeRecord, tmp_path: Path) -> None:
    root, left = _write(tmp_path / "evil", make_record, _evil)
    assert left == set()
    page = _page(root)
    _check_escaped(page, _page(_write(tmp_path / "plain", make_record, _plain)[0]))
    shown = {x for x in (*_places(Record), *_places(SweepSpec), "the arm LGD") if _evil(x) in page.texts}
    assert shown >= {
        "the arm LGD", ".preset", ".reason", ".hardware.*", ".finished", ".ended.not_run.*", ".student.per_class{}"
    }, shown  # fmt: skip
