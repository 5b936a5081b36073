from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main as analysis
from analysis.frame import frame, read_csv, write_csv
from analysis.load import (
    by_seed,
    changes,
    check_data,
    cost_seconds,
    finished,
    identity,
    is_reproduction,
    load_records,
    load_runs,
    score,
)
from analysis.tables import main as tables
from lgd.config.experiment import NEUTRAL_KEYS, Experiment
from lgd.errors import InputError
from lgd.results.record import Pretraining, Scores

from .conftest import MakeRecord


def test_order_is_by_arm_then_seed(tmp_path: Path, make_record: MakeRecord) -> None:
    for name, record in {
        "a": make_record("without encoder", 0),
        "b": make_record("baseline", 10),
        "c": make_record("LGD", 1),
        "d": make_record("baseline", 9),
    }.items():
        record.save(tmp_path / "trials" / name)
    found = [(r.arm, r.experiment.seed) for r in load_records(tmp_path)]
    assert found == [("LGD", 1), ("baseline", 9), ("baseline", 10), ("without encoder", 0)]


def test_directory_without_records(tmp_path: Path) -> None:
    assert load_records(tmp_path) == []
    (tmp_path / "trials" / "running").mkdir(parents=True)
    assert load_records(tmp_path) == []


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such directory"):
        load_records(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: not a directory"):
        load_records(tmp_path / "file")


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_broken_record_is_named(tmp_path: Path, make_record: MakeRecord, content: str) -> None:
    make_record("baseline").save(tmp_path / "trials" / "good")
    broken = tmp_path / "trials" / "broken" / "record.json"
    broken.parent.mkdir()
    broken.write_text(content)
    with pytest.raises(InputError) as refused:
        load_records(tmp_path)
    assert str(broken) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [(b'{\n"arm": "\xff"}', 2), (b"[" * 100_000, 1), (b'{"steps": ' + b"1" * 10_000 + b"}", 1)],
    ids=["bytes", "brackets", "digits"],
)
def test_what_no_parser_takes_is_one_line(tmp_path: Path, content: bytes, line: int) -> None:
    path = tmp_path / "x" / "record.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_records(tmp_path)
    assert str(refused.value).startswith(f"{path}:{line}: not a record (")


def test_same_arm_and_seed_twice(tmp_path: Path, make_record: MakeRecord) -> None:
    first = make_record("baseline", 3).save(tmp_path / "trials" / "a")
    second = make_record("baseline", 3).save(tmp_path / "trials" / "b")
    with pytest.raises(InputError) as refused:
        load_records(tmp_path)
    assert str(first) in str(refused.value)
    assert str(second) in str(refused.value)


def test_finished_runs_by_seed(make_record: MakeRecord) -> None:
    records = [
        make_record("LGD", 2, 20.0),
        make_record("LGD", 0, 10.0),
        make_record("LGD", 1, status="diverged", reason="NaN"),
        make_record("baseline", 5, 30.0),
        make_record("LGD", 4, student=Scores(AP=None, AP50=None, AP75=None, APs=None, APm=None, APl=None)),
    ]
    runs = finished(records, "LGD")
    assert list(runs) == [0, 2, 4]
    assert by_seed(runs, score("AP")) == {0: 10.0, 2: 20.0}
    with pytest.raises(InputError, match="two finished records of 'LGD' seed 0"):
        finished([*records, make_record("LGD", 0, 11.0)], "LGD")


def test_frame(make_record: MakeRecord) -> None:
    teacher = Scores(AP=44.5, AP50=60.0, AP75=40.0, APs=None, APm=None, APl=None)
    table = frame(
        [
            make_record(
                "LGD",
                1,
                33.25,
                100.5,
                teacher=teacher,
                losses={"total_loss": [(1, 4.0), (600, 0.5)], "loss_cls": []},
                parameters={"student": 1000},
                data={"classes": 5, "name": "shapes"},
                step_ms=12.5,
                within_training={"data_wait": 2.01, "first_steps": 1.0},
            ),
            make_record("", 2, status="failed", reason="RuntimeError: no memory", peak_memory_mib={}, started=""),
        ]
    )
    first, second = table.iloc[0], table.iloc[1]
    assert first["AP"] == 33.25
    assert pd.isna(first["APs"])
    assert first["AP[disc]"] == 33.25
    assert first["teacher_AP"] == 44.5
    assert first["loss[total_loss]"] == 0.5
    assert "loss[loss_cls]" not in table
    assert first["seconds[training]"] == 100.5
    assert first["data_wait"] == pytest.approx(0.02)
    assert pd.isna(second["data_wait"])
    assert first["peak_memory_mib[host]"] == 500.4
    assert first["schedule.steps"] == 600
    assert first["data.min_sizes"] == "[96, 128]"
    assert first["data[classes]"] == 5
    assert first["parameters[student]"] == 1000
    assert first["version[torch]"] == "2.11.0"
    assert first["hardware[gpu]"] == "none"
    assert first["started"] == pd.Timestamp("2025-01-02T03:04:05Z")
    assert pd.isna(first["reason"])
    assert second["arm"] == "lgd"
    assert second["reason"] == "RuntimeError: no memory"
    assert second[["AP", "AP[disc]", "teacher_AP", "loss[total_loss]", "seconds[training]"]].isna().all()
    assert pd.isna(second["started"])


def test_frame_types(make_record: MakeRecord) -> None:
    table = frame([make_record("LGD", 1, 33.0, 1.0, data={"classes": 5, "name": "shapes"})])
    expected = {
        "arm": "string",
        "seed": "Int64",
        "AP": "Float64",
        "schedule.steps": "Int64",
        "schedule.lr": "Float64",
        "data.flip": "boolean",
        "data[classes]": "Int64",
        "data[name]": "string",
        "git_commit": "string",
    }
    assert {name: str(table[name].dtype) for name in expected} == expected


def test_columns_do_not_depend_on_values(make_record: MakeRecord) -> None:
    none = frame([])
    one = frame([make_record("LGD", 1, 33.0, 1.0)])
    always = [name for name in one if "[" not in str(name)]
    assert list(none.columns) == always
    assert len(none) == 0
    assert none.dtypes.to_dict() == one[always].dtypes.to_dict()
    assert always[:7] == ["schema_version", "grid", "preset", "arm", "seed", "status", "reason"]


def test_csv_round_trip(tmp_path: Path, make_record: MakeRecord) -> None:
    table = frame(
        [
            make_record('odd, "name"', 0, 100 / 3, 0.1 + 0.2, data={"classes": 5}),
            make_record("NA", 1, status="failed", reason="two\nlines"),
        ]
    )
    path = tmp_path / "records.csv"
    write_csv(table, path)
    times = ["started", "finished"]
    read = pd.read_csv(
        path,
        dtype=table.dtypes.drop(times).to_dict(),
        parse_dates=times,
        keep_default_na=False,
        na_values=[""],
    )
    read[times] = read[times].astype(table["started"].dtype)
    pd.testing.assert_frame_equal(read, table)


def test_csv_replaces_whole(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "records.csv"
    write_csv(frame([make_record("LGD"), make_record("LGD", 1)]), path)
    write_csv(frame([make_record("LGD")]), path)
    assert len(path.read_text().splitlines()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["records.csv"]


def test_records_survive_disk(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record("LGD", 1, 33.0, 1.0)
    path = record.save(tmp_path / "trials" / "x")
    assert json.loads(path.read_text())["arm"] == "LGD"
    assert load_records(tmp_path) == [record]


def test_a_frame_comes_back_from_its_csv(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "records.csv"
    table = frame([make_record("LGD", 1, 33.5, 100.5), make_record("baseline", 0, status="failed", reason='a,b\n"c"')])
    write_csv(table, path)
    read = read_csv(path)
    assert list(read.columns) == list(table.columns)
    for name in ("arm", "seed", "AP", "seconds[training]", "schedule.steps", "reason", "started", "data.flip"):
        assert [None if pd.isna(x) else x for x in read[name]] == [None if pd.isna(x) else x for x in table[name]], name


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("LGD", "LGD,more", r"records.csv:3: \d+ cells, the header has \d+"),
        ("\n3,components,nano,LGD", "\n7,components,nano,LGD", "records.csv:3: record schema '7' is not known"),
        ("33.0", "high", "records.csv:3: AP is 'high', not a number"),
        (",finished,", ",fine,", "records.csv:2: no status 'fine'"),
        ("schema_version", "version", "records.csv:1: no column 'schema_version'"),
    ],
)
def test_a_broken_row_is_refused_with_its_line(
    old: str, new: str, words: str, tmp_path: Path, make_record: MakeRecord
) -> None:
    path = tmp_path / "records.csv"
    write_csv(frame([make_record("baseline", 1, 32.0), make_record("LGD", 1, 33.0)]), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=words):
        read_csv(path)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"schema_version": 3', '"schema_version": 9', r":2: record schema 9"),
        ('"batch": 8', '"batch": "many"', r":\d+: experiment.schedule.batch: .*many"),
        ('"status": "finished"', '"status": "fine"', r":3: status: .*fine"),
        ('"reason": "",', '"reason": "" "",', r":4: not a record"),
        ('"host": 500.4', '"host": NaN', r":\d+: peak_memory_mib.host: .*finite"),
    ],
)
def test_a_broken_record_is_refused_with_its_line(
    old: str, new: str, line: str, tmp_path: Path, make_record: MakeRecord
) -> None:
    path = make_record("LGD").save(tmp_path / "trials" / "x")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=f"record.json{line}") as refused:
        load_runs(tmp_path)
    if "batch" in old:
        number = int(str(refused.value).split("record.json:")[1].split(":")[0])
        assert "many" in path.read_text().splitlines()[number - 1]


def test_costs_masks_and_what_was_changed(make_record: MakeRecord) -> None:
    teacher_features = Pretraining(
        fingerprint="f", backbone="r", steps=9, AP=4.0, device_seconds={"training": 7200}, reused=True, shared_by=2
    )
    masks = Scores(AP=12.0, AP50=20.0, AP75=None, APs=None, APm=None, APl=None, per_class={"disc": 3.0})
    row = frame(
        [
            make_record(
                "LGD", 1, 33.0, student_mask=masks, pretraining=teacher_features, overrides=["threads=2"], attempts=2,
                device_seconds={"training": 1800.0, "lost": 1800.0}, joules={"training": 180_000.0},
            )
        ]
    ).iloc[0]  # fmt: skip
    assert (row["mask_AP"], row["mask_AP50"], row["mask_AP[disc]"]) == (12.0, 20.0, 3.0)
    assert (row["gpu_hours"], row["pretraining_hours"], row["pretraining_hours_shared"]) == (1.0, 2.0, 1.0)
    assert (row["device_seconds[lost]"], row["watts"], row["attempts"]) == (1800.0, 100.0, 2)
    assert row["overrides"] == '["threads=2"]'


@pytest.mark.parametrize(
    ("preset", "overrides", "expected"),
    [
        ("paper", [], True),
        ("paper", ["threads=4", "data.workers=2", "checkpoint.every=100", "evaluation.every=5", "log=[wandb]"], True),
        ("paper", ["schedule.steps=9"], False),
        ("paper", ["threads=4", "precision=bf16"], False),
        ("nano", [], False),
    ],
)
def test_a_reproduction_is_the_papers_setting_unchanged(
    preset: str, overrides: list[str], expected: bool, make_record: MakeRecord
) -> None:
    assert is_reproduction([make_record("LGD", preset=preset, overrides=overrides)]) is expected


def test_what_changes_no_result_is_the_same_training() -> None:
    """All that a training may be gone on with under another value of, and what is looked at."""
    others = {
        "threads": 7, "device": "cpu", "data.workers": 3, "checkpoint.every": 9, "checkpoint.keep": 5, "log": ["wandb"],
        "memory_format": "contiguous", "compile": True, "evaluation.every": 5, "evaluation.teacher": True, "seed": 4,
    }  # fmt: skip
    of_teacher = {"method.teacher.gate": False, "method.teacher.floor": 9.0}
    assert set(NEUTRAL_KEYS) <= others.keys() | of_teacher.keys()
    for key, value in others.items():
        assert identity(Experiment().override({key: value})) == identity(Experiment()), key
    with_teacher = Experiment().override({"method.name": "fgfi"})
    assert identity(with_teacher.override(of_teacher)) == identity(with_teacher)
    assert identity(Experiment().override({"precision": "bf16"})) != identity(Experiment())


def test_a_shared_teacher_is_paid_for_once(tmp_path: Path, make_record: MakeRecord) -> None:
    """A record knows of the runs before its own; together they pay for the whole teacher, not for more."""
    teacher = {"fingerprint": "f", "backbone": "r", "steps": 9, "AP": 4.0, "device_seconds": {"training": 7200.0}}
    for seed in range(5):
        teacher_features = Pretraining.model_validate({**teacher, "reused": seed > 0, "shared_by": seed + 1})
        make_record("FGFI", seed, 30.0, pretraining=teacher_features).save(tmp_path / "trials" / f"fgfi-seed{seed}")
    elsewhere = Pretraining.model_validate({**teacher, "device_seconds": {"training": 3600.0}, "reused": False})
    make_record("FGFI", 5, 30.0, pretraining=elsewhere).save(tmp_path / "trials" / "fgfi-seed5")
    shares = [run.record.pretraining.amortised for run in load_runs(tmp_path) if run.record.pretraining]
    assert shares == pytest.approx([7200 / 5] * 5 + [3600.0])


def test_a_teachers_steps_are_paid_for_as_a_students_are(make_record: MakeRecord) -> None:
    """Neither's set-up and evaluations count where costs are compared; of hours that are given all do."""
    spent = {"setup": 2.0, "training": 40.0, "evaluation": 5.0, "lost": 1.0}
    teacher = {"fingerprint": "f", "backbone": "r", "steps": 9, "AP": 4.0, "reused": False}
    for seconds, cost in ((spent, 140.0), ({"given": 40.0}, 140.0)):
        trained = Pretraining.model_validate({**teacher, "device_seconds": seconds})
        assert cost_seconds(make_record("PKD", 0, 30.0, 100.0, pretraining=trained)) == cost
    assert cost_seconds(make_record("LGD", 0, 30.0, 100.0)) == 100.0


def test_seeds_of_different_trainings_make_no_mean(make_record: MakeRecord) -> None:
    longer = make_record("LGD").experiment.override({"schedule.steps": 1500, "seed": 1})
    records = [make_record("LGD", 0, 30.0), make_record("LGD", 1, 33.0, experiment=longer)]
    with pytest.raises(InputError, match=r"'LGD' seeds 0 and 1 are different trainings: schedule.steps is 600 .* 1500"):
        finished(records, "LGD")


def test_data_of_one_name_must_be_one(make_record: MakeRecord) -> None:
    """Pictures of the same last two directories on two machines may be others."""
    mine, theirs = (make_record(x).experiment.override({"data.source": f"voc:/{x}/data/mine"}) for x in ("a", "b"))
    here = make_record("baseline", 0, 30.0, experiment=mine, data={"fingerprint": "1"})
    there = make_record("LGD", 0, 30.0, experiment=theirs, data={"fingerprint": "2"})
    unseen = make_record("LGD", 1, experiment=theirs, status="failed", data={})
    check_data([here, here.model_copy(update={"experiment": theirs}), unseen])
    with pytest.raises(InputError, match="LGD seed 0 was trained on other data than baseline seed 0"):
        check_data([here, unseen, there])


def test_a_seed_changes_no_training(make_record: MakeRecord) -> None:
    assert changes(make_record("LGD", 2, overrides=["seed=2", "data.shapes_seed=3"])) == ("data.shapes_seed=3",)


@pytest.mark.slow
def test_a_damaged_record_is_left_out_and_named(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    for arm, ap in (("baseline", 20.0), ("LGD", 22.0), ("label only", 9.0)):
        make_record(arm, 0, ap, 10.0).save(tmp_path / "trials" / arm)
    broken = tmp_path / "trials" / "LGD" / "record.json"
    broken.write_text(broken.read_text()[:300])
    damaged: list[str] = []
    assert [run.record.arm for run in load_runs(tmp_path, damaged=damaged)] == ["baseline", "label only"]
    assert len(damaged) == 1
    assert damaged[0].startswith(f"{broken}:")
    for command in (tables, analysis):
        arguments = [str(tmp_path)] if command is analysis else [str(tmp_path), "--table", "components"]
        assert command(arguments) == 1
        shown = capsys.readouterr()
        assert "label only" in shown.out
        assert shown.err.startswith(f"warning: {broken}:")
        assert shown.err.rstrip().endswith("left out")
        assert shown.err.count("\n") == 1
    assert str(broken) in (tmp_path / "report.html").read_text(encoding="utf-8")
    for path in tmp_path.glob("trials/*/record.json"):
        path.write_text("{")
    assert analysis([str(tmp_path)]) == tables([str(tmp_path), "--table", "components"]) == 2
