"""A search's study by URL: which are taken, what cannot be reached, and several drivers on one."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from ablations import submit, sweep, sweep_command
from ablations.plan import describe, merge, read_sweep, search_spec, with_samples
from ablations.run import main
from ablations.search import study_storage
from ablations.search.optuna_search import Search
from ablations.search.search_space import RANGES, SearchSpace
from ablations.search.study_place import PASSWORD_VARIABLE, check_study_named_again, study_option, study_place
from ablations.sweep import resume_command
from lgd.errors import InputError
from lgd.results.sweep_spec import SweepSpec
from lgd.storage.store import PATIENCE_VARIABLE
from tests.helpers_search import LGD_NANO, driver, end
from tests.helpers_storage import BUCKET, Faults


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("study.journal", "{here}/study.journal"),
        ("/a/study", "/a/study"),
        ("sqlite:///study.db", "sqlite:///{here}/study.db"),
        ("sqlite:////a/study.db", "sqlite:////a/study.db"),
        ("postgresql://me@host:5432/lgd?sslmode=require", "postgresql://me@host:5432/lgd?sslmode=require"),
        ("mysql+pymysql://host/lgd", "mysql+pymysql://host/lgd"),
        ("s3://bucket/a/study/", "s3://bucket/a/study"),
        ("file:///a/study", "file:///a/study"),
    ],
)
def test_a_place_means_the_same_wherever_a_search_goes_on(
    text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert study_place(text) == place.format(here=tmp_path)
    assert study_place(study_place(text)) == study_place(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "--study: a database's URL"),
        ("postgresql://me:secret@host/lgd", "--study postgresql://...: a URL without a password, which LGD_STUDY_PASS"),
        ("postgresql://host/lgd?user=me&password=secret", "PGPASSWORD or PGPASSFILE has"),
        ("mysql://host/lgd?passwd=secret", "a URL without a password"),
        ("postgresql://host/lgd?PASSWORD=secret", "a URL without a password"),
        ("postgresql://me:a/secret@host/lgd", "a URL without a password"),
        ("mssql+pyodbc:///?odbc_connect=SERVER%3Dhost%3BPWD%3Dsecret", "a URL without odbc_connect"),
        ("s3://", "--study s3://: a bucket and a name in it"),
        ("s3://me:secret@bucket/study", "--study s3://...: without options and credentials"),
        ("gs://bucket/study?token=secret", "--study gs://...: without options and credentials"),
        ("https://host/study", "a database's URL (sqlite:///FILE, postgresql://, mysql://), object storage (s3://"),
        ("sqlite:///:memory:", "a file, such as sqlite:///study.db"),
        ("sqlite://", "a file, such as sqlite:///study.db"),
        ("postgresql://[host/lgd", "no URL"),
        ("postgresql://host:abc/lgd", "--study postgresql://...: no URL, such as postgresql://HOST/NAME"),
        ("postgresql://me:secret", "--study postgresql://...: no URL"),
    ],
)
def test_what_is_no_place_is_one_line_without_its_password(text: str, complaint: str) -> None:
    with pytest.raises(InputError) as error:
        search_spec(3, ["AP"], False, text)
    assert complaint in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sqlite:///{here}/none/study.db", "there is no directory {here}/none"),
        ("sqlite:///{here}/broken.db", "file is not a database"),
        ("{here}/none/study", "there is no directory {here}/none"),
        ("{here}", "a file, and not a directory"),
        ("/dev/zero", "a file, and not a directory or a device"),
        ("sqlite:////dev/zero", "a file, and not a directory or a device"),
        ("{here}/real.db", "name it sqlite:///{here}/real.db"),
        ("{here}/notes", "not Optuna's journal"),
        ("nothing://host/lgd", "no database that SQLAlchemy knows"),
        ("oracle+oracledb://host/lgd", "needs the package oracledb: pip install 'oracledb'"),
    ],
)
def test_what_cannot_be_reached_is_one_line_before_anything_is_trained(
    text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "broken.db", b"SQLite format 3\0" + b"\xff" * 500)
    _write(tmp_path / "real.db", b"SQLite format 3\0")
    _write(tmp_path / "notes", b"to do\n")
    begun = time.monotonic()
    arguments = ["--grid", "components", "--preset", "nano", "--search", "optuna", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--study", text.format(here=tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"error: --study {text.format(here=tmp_path)}: ")
    assert complaint.format(here=tmp_path) in said[0]
    assert time.monotonic() - begun < 15
    assert not (tmp_path / "out" / "sweep.json").exists()


def _spec(study: str, name: str | None = None) -> SweepSpec:
    return describe("components", "nano", search=search_spec(3, ["AP"], False, study, name))


def test_a_sweep_keeps_its_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = _spec(f"sqlite:///{tmp_path}/study.db", "mine")
    spec.write(tmp_path)
    assert with_samples(spec, 7, tmp_path).search == search_spec(
        7, ["AP"], False, f"sqlite:///{tmp_path}/study.db", "mine"
    )
    other = describe("components", "nano", search=search_spec(3, ["AP"], False))
    with pytest.raises(
        InputError, match=r"holds a search with objectives AP, in study 'mine' of sqlite:///.*, not obj"
    ):
        merge(other, tmp_path)
    with pytest.raises(InputError, match="--study-name needs --study"):
        search_spec(3, ["AP"], False, None, "mine")
    assert main(["--grid", "components", "--study", "x"]) == 2
    assert main(["--status", str(tmp_path), "--study", "x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --samples, --objectives, --early-stop, --search-space and --study need --search optuna: a grid runs"
        " whole",
        "error: --resume and --status take the sweep as it is: leave out --study",
    ]


POSTGRES = "postgresql://evil.example/x"


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs, with their passwords, that are connected to: none answers."""
    urls: list[str] = []

    def connect(url: str, **_: Any) -> None:
        urls.append(url)
        raise OSError("no network")

    monkeypatch.setattr("sqlalchemy.create_engine", connect)
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    return urls


def test_a_password_is_sent_to_no_host_that_only_the_directory_names(
    connections: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It ends before, where it cannot connect.
    monkeypatch.setattr(sweep, "train", lambda *_: pytest.fail("it was trained"))
    spec = _spec(POSTGRES)
    spec.write(tmp_path)
    asked = f"{tmp_path} names the study {POSTGRES}, a database elsewhere: say --study {POSTGRES} to use it"
    for more in ([], ["--dry-run"], ["--samples", "5"]):
        assert main(["--resume", str(tmp_path), *more]) == 2
        assert capsys.readouterr().err == f"error: {asked}\n"
    assert main(["--status", str(tmp_path)]) == 0
    assert connections == []
    assert main(["--resume", str(tmp_path), "--study", "postgresql://other/x"]) == 2
    assert f"--study postgresql://other/x: {tmp_path} holds a sweep whose study is" in capsys.readouterr().err
    assert connections == []
    script, *arguments = shlex.split(resume_command(tmp_path, spec).removeprefix("python "))
    assert (script, arguments) == ("ablations/run.py", ["--resume", str(tmp_path), "--study", POSTGRES])
    assert main([*arguments, "--dry-run"]) == 2
    assert f"--study {POSTGRES}: " in capsys.readouterr().err
    assert connections
    assert sweep_command.main(["resume", str(tmp_path), "--study", POSTGRES, "--plan"]) == 2
    assert len(connections) == 2


def test_a_study_that_gets_no_password_is_not_to_be_named_again(tmp_path: Path) -> None:
    for place in (f"sqlite:///{tmp_path}/mine.db", f"{tmp_path}/study.journal", f"s3://{BUCKET}/x", ""):
        check_study_named_again(place, None, tmp_path)
        assert study_option(place, tmp_path) == ""
        check_study_named_again(place, place or None, tmp_path)
    for place in (POSTGRES, "sqlite:////elsewhere/study.db", f"sqlite:///{tmp_path}/../study.db", "sqlite:///file:/x"):
        with pytest.raises(InputError, match="a database elsewhere: say --study "):
            check_study_named_again(place, None, tmp_path)
        check_study_named_again(place, place, tmp_path)
    with pytest.raises(InputError, match=f"--study {tmp_path}/x: {tmp_path} holds a sweep without a study elsewhere"):
        check_study_named_again("", f"{tmp_path}/x", tmp_path)


@pytest.mark.parametrize(
    ("study", "complaint"),
    [
        ("postgresql://me:secret@host/lgd", "search.study postgresql://...: a URL without a password"),
        ("https://host/study", "search.study https://host/study: a database's URL"),
        ("study.journal", "search.study study.journal: an absolute path or a whole URL is needed"),
        ("sqlite:///study.db", "search.study sqlite:///study.db: an absolute path"),
    ],
)
def test_a_study_that_a_file_names_is_checked_as_the_option_is(study: str, complaint: str, tmp_path: Path) -> None:
    spec = _spec(POSTGRES)
    assert spec.search is not None
    spec.model_copy(update={"search": spec.search.model_copy(update={"study": study})}).write(tmp_path)
    with pytest.raises(InputError) as refused:
        read_sweep(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'sweep.json'}: {complaint}")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_job_on_a_cluster_needs_a_study_that_is_there_after_it(tmp_path: Path) -> None:
    command = ["sweep", "search", "components", "--output", "/shared/x", "--address", "auto", "--study"]
    for place in ("/shared/study", "sqlite:////shared/study.db", "postgresql://host/lgd", "s3://bucket/study/"):
        assert submit.checked_command([*command, place], tmp_path) == [*command, place]
    for place in ("study", "sqlite:///study.db"):
        with pytest.raises(InputError, match=f"^--study {place}: on the cluster an absolute path is needed"):
            submit.checked_command([*command, place], tmp_path)


def test_two_searches_with_other_settings_do_not_share_a_study(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/study.db"
    search = Search(LGD_NANO.override({"data.source": "coco-json:/here/data/mine"}), tmp_path / "a", place=place)
    search.study()
    # Elsewhere its data lies in another directory.
    replace(search, base=search.base.override({"data.source": "coco-json:/there/data/mine"})).study()
    other = replace(search, base=search.base.override({"schedule.steps": 7, "schedule.warmup_steps": 1}))
    refused = (
        rf"^study 'lgd' of {place}: it is of a search with other settings \(schedule.steps is \d+ there and 7 here"
    )
    with pytest.raises(InputError, match=refused):
        other.check_study()
    with pytest.raises(InputError, match=r"with objectives AP, not objectives AP and early stopping: choose another"):
        replace(search, early_stop=True).study()
    # Also where what is fixed has the value that it has by itself.
    for space in (
        SearchSpace(fixed=("method.mapper",)),
        SearchSpace(ranges={**RANGES, "method.lr_factor": (0.5, 2.0)}),
    ):
        with pytest.raises(InputError, match=r"of a search with another search space .*: choose another --study-name"):
            replace(search, space=space).study()
        replace(search, space=space, name=f"{space}").study()
        replace(search, space=space, name=f"{space}").check_study()
    replace(other, name="other").study()
    optuna.create_study(storage=place, study_name="foreign").ask()
    with pytest.raises(InputError, match="not of a search of this suite: choose another --study-name"):
        replace(search, name="foreign").study()


# -- drivers at work


@pytest.fixture(params=["database", "journal", "store"])
def search(request: pytest.FixtureRequest, faults: Faults, tmp_path: Path) -> Search:
    place = {
        "database": f"sqlite:///{tmp_path}/study.db",
        "journal": str(tmp_path / "study.journal"),
        "store": f"s3://{BUCKET}/{tmp_path.name}",
    }[request.param]
    if request.param == "store":
        # Of those that are asked now.
        faults.inject("503", 3)
    return Search(LGD_NANO, tmp_path / "a", samples=4, place=place)


def _states(search: Search) -> list[str]:
    return [x.state.name for x in search.study().get_trials(deepcopy=False)]


def test_what_a_killed_driver_left_is_proposed_again_to_the_next_and_to_nobody_else(search: Search) -> None:
    with driver(search) as searcher:
        first = searcher.suggest("1")
        searcher.suggest("2")
        searcher.on_trial_complete("1", end(search, first, curve={500: 3.0}))
    assert _states(search) == ["COMPLETE", "RUNNING"]
    beside = replace(search, output=search.output.parent / "b")
    with driver(beside) as searcher:
        # Of the other driver's trials it has the results, and not the work.
        assert searcher.suggest("1")["name"] == "search-002"
        assert _states(search) == ["COMPLETE", "RUNNING", "RUNNING"]
        searcher.on_trial_complete("1", error=True)
    with driver(search) as searcher:
        # Nobody finds it in the study's queue meanwhile.
        assert _states(search) == ["COMPLETE", "RUNNING", "FAIL"]
        again = searcher.suggest("1")
        assert again["name"] == "search-001"
        searcher.on_trial_complete("1", end(search, again, curve={500: 4.0}))
    assert _states(search) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [x.values for x in search.study().trials] == [[3.0], [4.0], None]


@pytest.mark.slow
def test_what_a_driver_left_that_does_not_come_back_is_proposed_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "HEARTBEAT", 1)
    monkeypatch.setattr(study_storage, "GRACE", 1)
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")
    beside = replace(search, output=tmp_path / "b")
    with driver(search) as searcher:
        left = searcher.suggest("1")
        with driver(beside) as other:
            # Its driver's heartbeat says that it is alive.
            time.sleep(2.5)
            assert other.suggest("1")["name"] == "search-001"
            other.on_trial_complete("1", error=True)
    time.sleep(2.5)
    with driver(beside) as other:
        again = other.suggest("2")
        other.on_trial_complete("2", end(beside, again, curve={500: 1.0}))
    assert {k: v for k, v in again.items() if k != "base"} == {k: v for k, v in left.items() if k != "base"}
    assert _states(search) == ["FAIL", "FAIL", "COMPLETE"]


def test_drivers_that_begin_at_once_propose_different_trials(search: Search) -> None:
    search.study()
    beside = replace(search, output=search.output.parent / "b")
    with driver(search) as one, driver(beside) as other:
        assert one.suggest("1")["name"] != other.suggest("1")["name"]


def test_a_database_that_goes_away_is_waited_for_and_then_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")
    create, left = RDBStorage._create_new_trial, [2]

    def away(storage: RDBStorage, *arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise optuna.exceptions.StorageInternalError("the server closed the connection")
        return create(storage, *arguments, **options)

    monkeypatch.setattr(RDBStorage, "_create_new_trial", away)
    with driver(search) as searcher:
        assert searcher.suggest("1")["name"] == "search-000"
        searcher.on_trial_complete("1", {"AP": 1.0, "status": "finished"})
    assert left == [0]
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    left[0] = 10**6
    gone = rf"^study {search.place}: no answer for 0 s \(the server closed the connection\)$"
    with pytest.raises(InputError, match=gone), driver(search) as searcher:
        assert searcher.suggest("1") == searcher.FINISHED
        assert searcher.suggest("2") == searcher.FINISHED


def test_without_a_place_the_study_is_in_the_results(tmp_path: Path) -> None:
    search = Search(LGD_NANO, tmp_path / "a")
    with driver(search) as searcher:
        searcher.suggest("1")
    assert {x.name for x in search.output.iterdir()} == {"study.db"}
    assert search.study().get_trials(states=(TrialState.RUNNING,))[0].user_attrs == {}
