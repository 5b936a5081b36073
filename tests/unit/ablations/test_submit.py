"""``lgd submit``: what it refuses, what it sends, and how it follows a job. No cluster here: tests/integration."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from ablations import ray_job, submit
from ablations.command import main
from lgd.errors import InputError
from lgd.signals import interrupted_by_sigterm

URL = "http://127.0.0.1:8265"


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(submit.ADDRESS_VARIABLE, raising=False)
    # The command may set it.
    monkeypatch.setenv("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "token"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say where the cluster is: --address http://HEAD:8265"),
        (["--address", "head:8265", "--", "sweep", "list"], "--address head:8265: the URL of the cluster's dashboard"),
        (["--address", "ray://head:10001", "--", "sweep", "list"], "--address ray://head:10001: the URL of the"),
        (["--address", "http://head:x", "--", "sweep", "list"], "--address http://head:x: the URL of the"),
        (["--address", "http://[::1", "--", "sweep", "list"], "--address http://[::1: the URL of the"),
        (["--address", URL], "say what to run: lgd submit --address URL -- sweep run"),
        (["--address", URL, "--"], "say what to run"),
        (["--address", URL, "--", "swep", "run"], "swep run: no command for a cluster; sweep, pays, train, data"),
        (["--address", URL, "--", "submit"], "submit: no command for a cluster"),
        (["--address", URL, "--", "sweep", "run", "components", "--sedes", "3"], "unrecognized arguments: --sedes"),
        (["--address", URL, "--", "sweep", "run", "components"], "say --output: s3://BUCKET/NAME, or an absolute path"),
        (["--address", URL, "--", "eval", "retinanet_r50_2x_ms"], "say --output: an absolute path on a disk that all"),
        (
            ["--address", URL, "--", "eval", "retinanet_r50_2x_ms", "--output", "out"],
            "out: on the cluster a URL is needed, or",
        ),
        (["--address", URL, "--", "train", "finetune", "--output", "here"], "here: on the cluster a URL is needed"),
        (["--address", URL, "--", "sweep", "resume", "results/x"], "results/x: on the cluster a URL is needed, or an"),
        # Port 1: nobody listens.
        (["--address", "http://127.0.0.1:1", "--", "sweep", "list"], "no Ray dashboard answers at http://127.0.0.1:1"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert main(["submit", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_the_command_uses_the_cluster_that_it_runs_on(tmp_path: Path) -> None:
    run = ["sweep", "run", "components", "--output", "/shared/x"]
    assert submit.checked_command(run, tmp_path) == [*run, "--address", "auto"]
    assert submit.checked_command([*run, "--address", "h:1"], tmp_path) == [*run, "--address", "h:1"]
    # These leave nothing, or take no address.
    for command in (
        ["sweep", "list"],
        ["sweep", "status", "/shared/x"],
        ["bench", "cost", "--output", "/shared/c.csv"],
    ):
        assert submit.checked_command(command, tmp_path) == command
    assert submit.checked_command(["sweep", "plan", "components"], tmp_path)[-2:] == ["--address", "auto"]
    assert submit.checked_command(["train", "--list"], tmp_path)[:2] == ["train", "--list"]


def test_a_file_of_the_working_tree_may_be_named_by_its_relative_path(tmp_path: Path) -> None:
    command = ["table", "/shared/x", "records", "--table", "components"]
    with pytest.raises(InputError, match="records: on the cluster"):
        submit.checked_command(command, tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "records.csv").touch()
    assert submit.checked_command(command, tmp_path) == command


def test_what_is_not_sent_or_would_be_lost_is_refused(tmp_path: Path) -> None:
    """Ray removes the job's directory, and a sweep that goes on there with it."""
    for name in ("kept", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.json").touch()
    for command in (["sweep", "resume", "kept"], ["sweep", "resume", "./kept"], ["sweep", "status", "results"]):
        with pytest.raises(InputError, match=r": on the cluster a URL is needed, or an absolute path"):
            submit.checked_command(command, tmp_path)
    assert submit.checked_command(["sweep", "status", "./kept"], tmp_path) == ["sweep", "status", "./kept"]


def test_what_is_submitted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sent: dict[str, Any] = {}

    def fake(address: str, entrypoint: str, archive: Path, variables: dict[str, str]) -> ray_job.Job:
        sent.update(address=address, entrypoint=entrypoint, size=archive.stat().st_size, variables=variables)
        return ray_job.Job(SimpleNamespace(), "raysubmit_1", address)  # type: ignore[arg-type]

    monkeypatch.setattr(ray_job, "submit", fake)
    (tmp_path / "own.py").write_text("x = 1\n")
    monkeypatch.setenv(submit.ADDRESS_VARIABLE, f"{URL}/")
    arguments = ["--no-wait", "--working-dir", str(tmp_path), "--", "sweep", "run", "components", "--output", "/s/a b"]
    assert main(["submit", *arguments]) == 0
    assert sent["address"] == URL
    assert sent["entrypoint"] == (
        "exec python -m ablations.command sweep run components --output '/s/a b' --address auto"
    )
    assert sent["size"] > 0
    # Another tree than this lgd's: its commit is not known.
    assert sent["variables"] == {}
    assert f"its log: RAY_AUTH_MODE=token ray job logs --address {URL} --follow raysubmit_1" in capsys.readouterr().out


class Client:
    """Ray's client of the Jobs API for one job, which ends with ``status`` and ``code``.

    log: what each request for the log gives: texts, and then an error to raise or None.
    """

    def __init__(self, log: list[list[Any]], status: str = "SUCCEEDED", code: int | None = 0) -> None:
        self.log, self.stopped, self.unanswered = log, 0, 0
        self._info = SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="no such\nworking_dir")

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for text in self.log.pop(0):
            if isinstance(text, str):
                yield text
            else:
                text()
            await asyncio.sleep(0)

    def get_job_info(self, job: str) -> Any:
        if self.unanswered:
            self.unanswered -= 1
            raise RuntimeError("no answer")
        return self._info

    def stop_job(self, job: str) -> None:
        self.stopped += 1


def follow(client: Client) -> int:
    return ray_job.Job(client, "raysubmit_1", URL).follow()  # type: ignore[arg-type]


def lost() -> None:
    raise RuntimeError("WebSocket connection closed unexpectedly")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("status", "code", "expected", "said"),
    [
        ("SUCCEEDED", 0, 0, ""),
        ("FAILED", 3, 3, ""),
        ("FAILED", -9, 137, ""),
        ("FAILED", None, 1, "raysubmit_1 failed: no such working_dir"),
        ("STOPPED", None, 130, "raysubmit_1 is stopped"),
    ],
)
def test_the_exit_status_is_the_jobs(
    status: str, code: int | None, expected: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(Client([["a\n", "b\n"]], status, code)) == expected
    out, err = capsys.readouterr()
    assert out == "a\nb\n"
    assert said in err
    assert bool(err) == bool(said)


def test_a_lost_connection_is_made_again_and_nothing_is_printed_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_job, "CONNECT_SECONDS", 0)
    # Each time Ray gives the log from its beginning, in other pieces.
    assert follow(Client([["ab\n", "cd", lost], ["ab\ncde\n", lost], ["ab", "\ncd", "e\nf\n"]])) == 0
    assert capsys.readouterr().out == "ab\ncde\nf\n"


def test_a_status_that_is_not_told_at_once_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_job, "CONNECT_SECONDS", 0)
    client = Client([["a\n"]], "FAILED", 3)
    client.unanswered = ray_job.RETRIES
    assert follow(client) == 3
    client = Client([["a\n"]])
    client.unanswered = ray_job.RETRIES + 1
    assert follow(client) == 1


def test_a_connection_that_stays_lost_leaves_the_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_job, "CONNECT_SECONDS", 0)
    client = Client([["a\n", lost]] * (ray_job.RETRIES + 2))
    assert follow(client) == 1
    assert client.stopped == 0
    assert "raysubmit_1 goes on; its log: RAY_AUTH_MODE=token ray job logs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (None, "raysubmit_1 is stopped; the same command goes on from its checkpoints"),
        (interrupt, "left: raysubmit_1 ends within 120 s; its log: RAY_AUTH_MODE=token ray job logs"),
    ],
    ids=["once", "twice"],
)
def test_ctrl_c_stops_the_job_and_a_second_one_leaves_it(
    second: Callable[[], None] | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client([["a\n", interrupt], ["a\n", *([second] if second else []), "checkpoint\n"]], "STOPPED", None)
    assert follow(client) == 130
    out, err = capsys.readouterr()
    assert client.stopped == 1
    assert ("checkpoint" in out) == (second is None)
    assert "stopping raysubmit_1: its trainings write checkpoints, 120 s at most; Ctrl-C again to leave it" in err
    assert said in err


def test_sigterm_leaves_a_job_that_is_followed_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine of whoever follows it shuts down: the job goes on."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    client = Client([[lambda: os.kill(os.getpid(), signal.SIGTERM)]])
    with interrupted_by_sigterm(), pytest.raises(SystemExit) as left:
        follow(client)
    assert left.value.code == 130
    assert client.stopped == 0
    assert "left: raysubmit_1 goes on; its log: " in capsys.readouterr().err
