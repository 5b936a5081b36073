"""The record's schema and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lgd.config.presets import NANO
from lgd.errors import InputError
from lgd.results.record import Record, Scores, load
from lgd.training.run import failed_record


def _record() -> Record:
    scores = Scores(AP=12.5, AP50=30.0, AP75=8.0, APs=None, APm=10.0, APl=20.0, per_class={"disc": 5.0, "star": None})
    return Record(status="finished", arm="LGD", experiment=NANO, student=scores, losses={"total_loss": [(20, 1.5)]})


def test_round_trip(tmp_path: Path) -> None:
    record = _record()
    assert load(record.save(tmp_path)) == record


def test_a_failure_names_its_reason_in_one_line() -> None:
    record = failed_record(NANO, "RuntimeError: out\nof   memory", arm="LGD")
    assert record.status == "failed"
    assert record.reason == "RuntimeError: out of memory"
    assert record.versions["torch"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t[: len(t) // 2], r"record.json:\d+: not a record"),
        (lambda t: "[]", "schema None is not known"),
        (lambda t: t.replace('"schema_version": 3', '"schema_version": 99'), "schema 99 is not known"),
        (lambda t: json.dumps({**json.loads(t), "status": "fine"}), "record.json: status: .*fine"),
        (lambda t: json.dumps({**json.loads(t), "extra": 1}), "record.json: extra"),
        (lambda t: json.dumps({**json.loads(t), "teacher_beat_student": "yes"}), "record.json: teacher_beat_student"),
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


def _old(path: Path) -> dict[str, Any]:
    """A record as schema 2 had it."""
    old = json.loads(path.read_text())
    for added in ("fingerprint_version", "contention"):
        del old[added]
    return {**old, "schema_version": 2, "fingerprint": "0123456789abcdef"}


def test_records_of_schema_1_are_read(tmp_path: Path) -> None:
    """Nothing that was measured is lost to a new schema."""
    path = _record().save(tmp_path)
    old = _old(path)
    for added in (
        "overrides", "within_training", "device_seconds", "joules", "attempts", "nodes", "pretraining",
    ):  # fmt: skip
        del old[added]
    del old["experiment"]["checkpoint"]
    old |= {"schema_version": 1, "seconds": {"setup": 1.0, "training": 3599.0}}
    path.write_text(json.dumps(old))
    record = load(path)
    assert record.schema_version == 3
    assert record.gpu_hours == 1
    assert record.attempts == 1
    assert record.fingerprint_version == 1


def test_records_of_schema_2_are_read(tmp_path: Path) -> None:
    path = _record().save(tmp_path)
    old = _old(path) | {"seconds": {"training": 40.0}, "within_training": {"waiting": 4.0, "first_steps": 1.0}}
    path.write_text(json.dumps(old))
    record = load(path)
    assert record.within_training == {"data_wait": 4.0, "first_steps": 1.0}
    assert record.data_wait == 0.1
    assert record.contention is None
    assert load(record.save(tmp_path)) == record


def test_fingerprints_of_two_versions_are_neither_equal_nor_different(tmp_path: Path) -> None:
    path = _record().save(tmp_path)
    path.write_text(json.dumps(_old(path)))
    old, new = load(path), _record().model_copy(update={"fingerprint": "0123456789abcdef"})
    assert old.same_build("0123456789abcdef") is None
    assert old.same_build("fedcba9876543210") is None
    assert old.same_build("0123456789abcdef", version=1) is True
    assert (new.same_build("0123456789abcdef"), new.same_build("fedcba9876543210")) == (True, False)


KEPT = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("**/record.json"))


def test_the_committed_records_stay_readable() -> None:
    assert len(KEPT) > 100
    for path in KEPT:
        record = load(path)
        assert record.schema_version == 3
        assert record.fingerprint_version == json.loads(path.read_text()).get("fingerprint_version", 1)


def test_whether_the_teacher_ever_beat_its_student() -> None:
    def scores(ap: float | None) -> dict[str, Any]:
        return dict.fromkeys(("AP50", "AP75", "APs", "APm", "APl"), None) | {"AP": ap}

    def record(*pairs: tuple[float | None, float | None], lead: tuple[float, ...] = ()) -> Record:
        points = [
            {"step": step, "student": scores(own), "teacher": None if teacher is None else scores(teacher)}
            for step, (own, teacher) in enumerate(pairs, 1)
        ]
        return Record.model_validate(
            {
                "status": "finished",
                "experiment": NANO,
                "evaluations": points,
                "teacher_lead": list(enumerate(lead, 1)),
            }
        )

    assert record((10, 12), (20, 19)).teacher_beat_student is True
    assert record((10, 9), (20, 19)).teacher_beat_student is False
    assert record((10, 9), lead=(0.5,)).teacher_beat_student is False, "its AP decides where it is known"
    assert record((10, None), lead=(-0.5, 0.1)).teacher_beat_student is True
    assert record((10, None), lead=(-0.5, -0.1)).teacher_beat_student is False
    assert record((10, None)).teacher_beat_student is None


@pytest.mark.parametrize(("lead", "told"), [([(1, 0.5)], True), ([(1, -0.5)], False), ([], None)])
def test_the_file_says_whether_the_teacher_beat_its_student(
    lead: list[tuple[int, float]], told: bool | None, tmp_path: Path
) -> None:
    """For other programs: here it follows from the evaluations, so that a record without it is the same one."""
    record = _record().model_copy(update={"teacher_lead": lead})
    path = record.save(tmp_path)
    written = json.loads(path.read_text())
    assert written.pop("teacher_beat_student") is told
    path.write_text(json.dumps(written))
    assert load(path) == record
    path.write_text(json.dumps({**written, "teacher_beat_student": not told}))
    assert load(path) == record
    assert load(path).teacher_beat_student is told
