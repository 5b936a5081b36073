"""The paper's numbers: read whole, checked, and the same ones everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from lgd.config import paper, paper_recipes
from lgd.config.paper import Training, read
from lgd.config.paper_recipes import DATA, SCALES, SCHEDULES
from lgd.errors import InputError

ROOT = Path(__file__).parents[3]
FILE = ROOT / "lgd" / "config" / "paper.yaml"
REPORTED = next(
    (x for x in (ROOT / "../shared/paper/reported.yaml", Path("/work/shared/paper/reported.yaml")) if x.is_file()), None
)


def test_names_are_those_of_the_experiments() -> None:
    for names, known in (
        (paper.DetectorName, paper.DETECTORS),
        (paper.BackboneName, paper.BACKBONES),
        (paper.BackboneName, paper_recipes.BACKBONES),
        (paper.ScheduleName, SCHEDULES),
        (paper.ScaleName, SCALES),
        (paper.DataName, DATA),
        (paper.DataName, paper.DATA),
        (paper.MethodName, paper.METHODS),
    ):
        assert tuple(known) == get_args(names)
    assert tuple(paper.paper().metrics) == paper.METRICS


def test_what_the_tables_say_of_each_other_holds() -> None:
    tables = paper.paper().tables
    cost = tables["table7"]
    by_method = {x.method: x for x in cost.trainings}
    baseline = cost.value(by_method["baseline"], "overall_hours")
    assert baseline is not None
    specific = {}
    for method, training in by_method.items():
        overall, own = cost.value(training, "overall_hours"), cost.value(training, "method_hours")
        if own is not None and overall is not None:
            assert overall - baseline == pytest.approx(own)
            specific[method] = own
    claimed = tables["reduction"].cells[0].value
    assert claimed is not None
    assert round(100 * (1 - specific["lgd"] / specific["fgfi"])) == claimed
    for name in ("abstract", "table13"):
        for method in ("baseline", "lgd"):
            x101 = Training(detector="fcos", backbone="x101_dcnv2", schedule="2x", scale="ms", method=method)
            assert tables[name].value(x101, "box_AP") == {"baseline": 46.1, "lgd": 47.9}[method]


def test_lgd_is_above_its_baseline_in_every_table() -> None:
    """A digit that was mistyped would show here."""
    known = paper.paper()
    compared = 0
    for table in known.tables.values():
        for training in (x for x in table.trainings if x.method == "lgd"):
            for metric in table.metrics:
                ours, theirs = table.value(training, metric), table.value(training.baseline, metric)
                if ours is not None and theirs is not None and known.metrics[metric].unit == "%":
                    gain = ours - theirs if known.metrics[metric].better == "higher" else theirs - ours
                    assert 0 < gain <= 3.05, (training.name, metric)
                    compared += 1
    assert compared == 36


@pytest.mark.skipif(REPORTED is None, reason="the transcription is not on this machine")
def test_every_number_is_the_transcriptions() -> None:
    """Number by number, each at its place; none more, none less."""
    assert REPORTED is not None
    known = {(name, x.training.name, x.metric): x.value for name, t in paper.paper().tables.items() for x in t.cells}
    theirs = {key: value for key, value in _transcribed(yaml.safe_load(REPORTED.read_text())) if value is not None}
    assert theirs == {key: value for key, value in known.items() if value is not None}


def _transcribed(raw: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], float | None]]:
    """((table, training, metric), number) of ../shared/paper/reported.yaml."""
    keys = {"AP": "box_AP", "AP50": "box_AP50", "AP75": "box_AP75", "box": "box_AP", "mask": "mask_AP"}
    methods = {"Baseline": "baseline", "baseline": "baseline", "lgd": "LGD"}
    hours = {"pretraining": "pretraining_hours", "overall": "overall_hours", "method_specific": "method_hours"}
    for row in raw["abstract"]:
        setting = f"{row.get('detector')} {row.get('backbone')} {row.get('schedule')} {row.get('scale')}"
        if "claim" in row:
            yield ("reduction", "RetinaNet R-50 2x ms LGD", "reduction"), row["value"]
        else:
            for method in ("baseline", "lgd"):
                yield ("abstract", f"{setting} {methods[method]}", "box_AP"), row[method]
    for detector, row in raw["main_2x_ms"].items():
        for backbone, value in row.items():
            yield ("main", f"{detector} {backbone} 2x ms LGD", "box_AP"), value
    for detector, row in raw["swin_3x_ms_rerun"].items():
        for key in ("ap_box", "ap_mask"):
            metric = f"{key.removeprefix('ap_')}_AP"
            yield ("swin-rerun", f"{detector} {row['backbone']} 3x ms LGD", metric), row.get(key)
    free = raw["teacher_free"]
    for method, values in free.items():
        for column, value in zip(free["columns"], values, strict=True) if method != "columns" else ():
            detector, schedule, scale = column.rsplit(" ", 2)
            name = f"{detector} R-50 {schedule} {scale} {methods.get(method, method)}"
            yield ("teacher-free", name, "box_AP"), value
    based = raw["teacher_based"]
    for method, values in based.items():
        for backbone, value in zip(based["columns"], values, strict=True) if method != "columns" else ():
            yield ("teacher-based", f"RetinaNet {backbone} 2x ms {methods.get(method, method)}", "box_AP"), value
    for method, row in raw["table7_training_cost_hours"].items():
        how = {"FGFI": "FGFI (R-101)"}.get(method, methods.get(method, method))
        for key, value in row.items():
            yield ("table7", f"RetinaNet R-50 2x ms {how}", hours[key]), value
    for detector, row in raw["table8_pascal_voc"].items():
        for method, scores in row.items():
            for key, value in scores.items():
                yield ("table8", f"{detector} R-50 18k ms Pascal VOC {methods[method]}", keys[key]), value
    for detector, row in raw["table9_crowdhuman_mmr"].items():
        for method, value in row.items():
            yield ("table9", f"{detector} R-50 30k ms CrowdHuman {methods[method]}", "mMR"), value
    for name, row in raw["table10_instance_segmentation"].items():
        for method, scores in row.items():
            for key, value in scores.items():
                yield ("table10", f"{name} 1x ms {methods[method]}", keys[key]), value
    for detector, rows in raw["table11_3x_ms"].items():
        for backbone, row in rows.items():
            for method, value in row.items():
                yield ("table11", f"{detector} {backbone} 3x ms {methods[method]}", "box_AP"), value
    for row in raw["table12_other_detectors"]:
        setting = f"{row['detector']} {row['backbone']} {row['schedule']} {row['scale']}"
        for method in ("baseline", "lgd"):
            yield ("table12", f"{setting} {methods[method]}", "box_AP"), row[method]
    for detector, row in raw["table13_x101_dcnv2_2x_ms"].items():
        for method, value in row.items():
            yield ("table13", f"{detector} X-101-DCNv2 2x ms {methods[method]}", "box_AP"), value
    for detector, row in raw["table14_swin_t_3x_ms"].items():
        for method, scores in row.items():
            for key, value in scores.items():
                yield ("table14", f"{detector} Swin-T 3x ms {methods[method]}", keys[key]), value


def test_names_say_what_was_trained() -> None:
    trainings = paper.paper().tables["teacher-based"].trainings
    assert trainings[2].name == "RetinaNet R-50 2x ms FGFI (R-101)"
    assert trainings[2].baseline == trainings[0]
    assert paper.paper().tables["table8"].trainings[1].name == "Faster R-CNN R-50 18k ms Pascal VOC LGD"
    every = [x for table in paper.paper().tables.values() for x in table.trainings]
    assert len({x.name for x in every}) == len(set(every))


def test_a_number_may_stand_in_another_table() -> None:
    known = paper.paper()
    first = known.tables["main"].trainings[0]
    assert known.tables["main"].value(first, "box_AP") is None
    assert known.first_value(first, "box_AP", exclude_tables=["main"]) == (38.8, "comparison to teacher-based methods")
    assert known.first_value(first, "mMR") is None


def test_no_number_of_the_paper_is_typed_in_the_code() -> None:
    """Those with a decimal are few enough in code for a look at all of them."""
    numbers = {f"{x.value}" for t in paper.paper().tables.values() for x in t.cells if x.value and x.value % 1}
    for path in [
        *(ROOT / "lgd").rglob("*.py"),
        *(ROOT / "ablations").rglob("*.py"),
        *(ROOT / "analysis").rglob("*.py"),
    ]:
        found = numbers & set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", path.read_text(encoding="utf-8")))
        assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("method: lgd, box_AP: 39.0}", "method: lgd, box_AP: high}", "tables.abstract.cells.1.value: .*'high'"),
        ("method: lgd, box_AP: 39.0}", "method: lgd, box_APP: 39.0}", "tables.abstract: cell 2 has no number"),
        (
            "method: lgd, box_AP: 39.0}",
            "method: lgd, box_AP: 39.0, colour: 3}",
            "tables.abstract.cells.1.training.colour",
        ),
        ("method: lgd, box_AP: 39.0}", "method: baseline, box_AP: 39.0}", "2x ss baseline has box_AP twice"),
        ("method: lgd, box_AP: 39.0}", "method: fgfi, box_AP: 39.0}", "fgfi needs the backbone of its teacher"),
        ("source: abstract", "source: hearsay", "tables.abstract.source: .*'hearsay'"),
        ("  poster: the", "  abstract: the", "tables.teacher-free: source poster is not among"),
        ("  mMR: {title: mMR", "  box_AP: {title: mMR", "tables.table9: metric mMR is not among the metrics"),
        ("tables:", "tables: {", r"paper.yaml:\d+: not YAML"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(old: str, new: str, words: str, tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "paper.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=words) as refused:
        read(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"paper.yaml: cannot be read"):
        read(tmp_path / "paper.yaml")
