"""The paper's tables on the paper's data: Pascal VOC's own AP, the headline result, MS-COCO wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.load import Run
from analysis.table_builders.build import build
from analysis.table_builders.paper_scores import comparison
from lgd.config.data_source import COCO_2017_COUNTS
from lgd.config.grids import Trial, experiment_of, grid, plan
from lgd.config.presets import NANO, PAPER
from lgd.results.record import Record, Scores

R50, LGD = "RetinaNet R-50 2x ms", "RetinaNet R-50 2x ms LGD"


def _scores(ap: float, **voc: float) -> Scores:
    return Scores(AP=ap, AP50=ap + 20, AP75=ap - 5, APs=None, APm=ap, APl=ap).model_copy(update=voc)


def _run(trial: Trial, ap: float, preset: str = "paper", **changes: Any) -> Run:
    """The record that a trial would leave, with a score made up."""
    described = {"status": "finished", "preset": preset, "arm": trial.arm, "experiment": trial.experiment}
    return Run(Record.model_validate({**described, "student": _scores(ap), **changes}), trial.directory)


def _trials(table: str) -> dict[str, Trial]:
    return {t.arm: t for t in plan(grid(table, "paper"), PAPER, 1, [], Path("/r"))}


def _row(frame: pd.DataFrame, setting: str, metric: str = "box_AP") -> dict[str, Any]:
    """LGD's."""
    found = frame[(frame["setting"] == setting) & (frame["method"] == "LGD") & (frame["metric"] == metric)]
    assert len(found) == 1
    return {str(k): None if pd.isna(v) else v for k, v in found.iloc[0].items()}


VOC = "RetinaNet R-50 18k ms Pascal VOC"


def test_table_8_is_of_pascal_vocs_own_ap() -> None:
    """As the authors' code scores it: COCO's AP of the same detections is another number."""
    trials, voc = _trials("table8"), {"VOC": 80.0, "VOC75": 60.0, "VOC_AP": 54.0}
    names = [f"{VOC} {x}" for x in ("baseline", "LGD")]
    runs = [
        _run(trials[name], 40.0 + i, student=_scores(40.0 + i, **{k: v + i for k, v in voc.items()}))
        for i, name in enumerate(names)
    ]
    frame, shown = build("table8", runs)
    for metric, value, reported in (("box_AP", 55.0, 58.9), ("box_AP50", 81.0, 82.6), ("box_AP75", 61.0, 64.3)):
        row = _row(frame, VOC, metric)
        assert (row["reproduced"], row["gain"], row["mark"]) == (value, 1.0, "")
        assert row["difference"] == pytest.approx(value - reported)
    assert any("Pascal VOC's own, of eleven points" in x for x in shown.notes)
    assert not any("101 points" in x for x in shown.notes)
    # An older record has only VOC's AP50: what it lacks is COCO's, marked, and no difference to the paper.
    older = [runs[0], _run(trials[names[1]], 41.0, student=_scores(41.0, VOC=81.0))]
    frame, shown = build("table8", older)
    row = _row(frame, VOC)
    assert (row["reproduced"], row["gain"], row["mark"], row["difference"]) == (41.0, 1.0, "COCO's AP", None)
    row = _row(frame, VOC, "box_AP50")
    assert (row["reproduced"], row["mark"]) == (81.0, "")
    assert any("101 points" in x for x in shown.notes)
    # Synthetic images stand in for it elsewhere.
    small = {t.arm: t for t in plan(grid("table8", "nano"), NANO, 1, [], Path("/t"))}
    frame, shown = build("table8", [_run(small[names[1]], 9.0, "nano")])
    row = _row(frame, VOC)
    assert (row["reproduced"], row["mark"]) == (9.0, "nano")


def test_the_headline_result_has_a_table() -> None:
    trials = _trials("abstract")
    names = [f"RetinaNet R-50 2x ss {x}" for x in ("baseline", "LGD")]
    frame, _ = build("abstract", [_run(trials[name], ap) for name, ap in zip(names, (36.0, 38.5), strict=True)])
    assert len(frame) == 4
    row = _row(frame, "RetinaNet R-50 2x ss")
    assert (row["reported"], row["reproduced"], row["gain"], row["mark"]) == (39.0, 38.5, 2.5, "")
    assert row["reported_gain"] == pytest.approx(2.8)
    notes = build("table14", [])[1].notes
    assert (
        "RetinaNet Swin-T 3x ms LGD box AP 45.9 (code's README), Mask R-CNN Swin-T 3x ms LGD mask AP 42.5" in notes[1]
    )


COUNTS: dict[str, Any] = {**COCO_2017_COUNTS, "fingerprint": "f"}


@pytest.mark.parametrize(
    ("source", "data", "mark"),
    [
        ("coco", {}, ""),
        ("coco-json:/data/mscoco", COUNTS, ""),
        ("coco-json:s3://bucket/data/coco2017", COUNTS, ""),
        ("coco-json:/data/mscoco", {}, "paper, changed"),
        ("coco-json:/data/mscoco", {**COUNTS, "train_images": 100_000}, "paper, changed"),
    ],
)
def test_coco_2017_is_the_papers_data_wherever_it_lies(source: str, data: dict[str, Any], mark: str) -> None:
    """By its name or by its counts; what is neither is marked, as with any --data."""
    arm = next(x for x in grid("teacher-based", "paper").arms if x.name == LGD)
    override = f"data.source={source}"
    trial = Trial(LGD, experiment_of(arm, PAPER, [override]), Path("/r"))
    row = _row(comparison([_run(trial, 40.0, overrides=[override], data=data)], "teacher-based"), R50)
    assert (row["reproduced"], row["mark"]) == (40.0, mark)
    # One that names no data, but found it behind a link that older versions followed.
    found = comparison([_run(trial, 40.0, data=data)], "teacher-based")
    assert _row(found, R50)["reproduced"] == (None if mark else 40.0)
    # At another preset it is another training than the preset's own.
    tiny = plan(grid("teacher-based", "nano"), NANO, 1, [override], Path("/t"))
    run = _run(next(x for x in tiny if x.arm == LGD), 9.0, "nano", overrides=[override], data=data)
    assert _row(comparison([run], "teacher-based"), R50)["mark"] == "nano, changed"
