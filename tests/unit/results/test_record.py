"""The record's schema and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lgd.config.presets import TINY
from lgd.errors import InputError
from lgd.results.record import Record, Scores, load
from lgd.training.run import failed_record


def _record() -> Record:
    scores = Scores(AP=12.5, AP50=30.0, AP75=8.0, APs=None, APm=10.0, APl=20.0, per_class={"disc": 5.0, "star": None})
    return Record(status="finished", arm="LGD", experiment=TINY, student=scores, losses={"total_loss": [(20, 1.5)]})


def test_round_trip(tmp_path: Path) -> None:
    record = _record()
    assert load(record.save(tmp_path)) == record


def test_a_failure_names_its_reason_in_one_line() -> None:
    record = failed_record(TINY, "RuntimeError: out\nof   memory", arm="LGD")
    assert record.status == "failed"
    assert record.reason == "RuntimeError: out of memory"
    assert record.versions["torch"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t[: len(t) // 2], r"record.json:\d+: not a record"),
        (lambda t: "[]", "schema None is not known"),
        (lambda t: t.replace('"schema_version": 2', '"schema_version": 99'), "schema 99 is not known"),
        (lambda t: json.dumps({**json.loads(t), "status": "fine"}), "record.json: status: .*fine"),
        (lambda t: json.dumps({**json.loads(t), "extra": 1}), "record.json: extra"),
    ],
)
def test_broken_records_are_refused_with_the_place(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    path = _record().save(tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.*No such file"):
        load(tmp_path / "nowhere" / "record.json")


def test_records_of_schema_1_are_read(tmp_path: Path) -> None:
    """Nothing that was measured is lost to a new schema."""
    path = _record().save(tmp_path)
    old = json.loads(path.read_text())
    for added in (
        "overrides", "within_training", "device_seconds", "joules", "attempts", "nodes", "pretraining",
    ):  # fmt: skip
        del old[added]
    del old["experiment"]["checkpoint"]
    del old["experiment"]["method"]["fgfi"]
    old |= {"schema_version": 1, "seconds": {"setup": 1.0, "training": 3599.0}}
    path.write_text(json.dumps(old))
    record = load(path)
    assert record.schema_version == 2
    assert record.gpu_hours == 1
    assert record.attempts == 1
