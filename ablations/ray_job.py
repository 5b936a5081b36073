"""Runs a command as a job of a Ray cluster through Ray's Jobs API, and follows it. Loads Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from lgd.cli import INTERRUPTED
from lgd.distributed.ray_token import TOKEN_FILE, TOKEN_VARIABLES
from lgd.errors import InputError
from lgd.signals import on_signal

for _name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
    # They say what they upload, and when a log ends.
    logging.getLogger(_name).setLevel(logging.WARNING)

STOP_SECONDS = 120
"""Time that a job gets after SIGTERM to write its checkpoints, before Ray kills it. Ray's default is 3."""

CONNECT_SECONDS = 10.0
RETRIES = 5
"""How often a lost connection to a job's log is tried again, CONNECT_SECONDS apart."""


class Job:
    """A job on a cluster."""

    def __init__(self, client: JobSubmissionClient, name: str, address: str) -> None:
        self._client, self.name, self._address = client, name, address
        self._printed = 0

    def follow(self) -> int:
        """Print the job's log until it ends. Exit status: its command's own, 130 stopped, 1 where there is none.

        Ctrl-C stops the job; the log is followed until its end. A second Ctrl-C leaves it alone, and so does SIGTERM,
        which a machine that shuts down sends.
        """
        with on_signal(self._leave, signal.SIGTERM):
            return self._follow()

    def _leave(self) -> None:
        _say(f"left: {self.name} goes on; its log: {self.log_command}")
        sys.stdout.flush()
        os._exit(INTERRUPTED)

    def _follow(self) -> int:
        stopping = False
        while True:
            try:
                if stopping:
                    self._client.stop_job(self.name)
                asyncio.run(self._print_log())
                return self._status()
            except KeyboardInterrupt:
                if stopping:
                    _say(f"left: {self.name} ends within {STOP_SECONDS} s; its log: {self.log_command}")
                    return INTERRUPTED
                stopping = True
                _say(
                    f"stopping {self.name}: its trainings write checkpoints, {STOP_SECONDS} s at most;"
                    " Ctrl-C again to leave it alone"
                )
            except (OSError, RuntimeError, aiohttp.ClientError) as error:
                _say(f"connection lost ({_line(error)}); {self.name} goes on; its log: {self.log_command}")
                return 1

    @property
    def log_command(self) -> str:
        """The command of Ray that follows this job's log."""
        # Ray's own command sends a token where it is told to alone.
        mode = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        return f"{mode}ray job logs --address {self._address} --follow {self.name}"

    async def _print_log(self) -> None:
        """Print what of the log is not printed yet, and what comes until the job ends."""
        tries = 0
        while True:
            seen, before = 0, self._printed
            try:
                # Always from the log's beginning.
                async for text in self._client.tail_job_logs(self.name):
                    new = text[max(self._printed - seen, 0) :]
                    seen += len(text)
                    if new:
                        print(new, end="", flush=True)
                        self._printed += len(new)
                return
            except (OSError, RuntimeError, aiohttp.ClientError):
                tries = 0 if self._printed > before else tries + 1
                if tries > RETRIES:
                    raise
                await asyncio.sleep(CONNECT_SECONDS)

    def _status(self) -> int:
        while not (info := self._info()).status.is_terminal():
            time.sleep(0.5)
        if info.status == JobStatus.SUCCEEDED:
            return 0
        if info.status == JobStatus.STOPPED:
            _say(f"{self.name} is stopped; the same command goes on from its checkpoints")
            return INTERRUPTED
        code = info.driver_exit_code
        if code is None:
            # It never began, or its node is lost: the log does not say why.
            _say(f"{self.name} failed: {_line(info.message)}")
            return 1
        # The shell's number for a command that a signal has ended.
        return 128 - code if code < 0 else code or 1

    def _info(self) -> JobDetails:
        for _ in range(RETRIES):
            with contextlib.suppress(OSError, RuntimeError):
                return self._client.get_job_info(self.name)
            time.sleep(CONNECT_SECONDS)
        return self._client.get_job_info(self.name)


def submit(address: str, entrypoint: str, archive: Path, variables: dict[str, str]) -> Job:
    """Start ``entrypoint``, a shell command, as a job on the cluster at ``address``, in what ``archive`` unpacks to.

    address: of the dashboard, such as http://HEAD:8265. variables: of the environment of the job and its workers.
    Raises InputError, in one line, where no cluster answers or lets in.
    """
    with _one_line(address):
        _reach(address)
        with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            client = JobSubmissionClient(address)
        environment = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **variables}
        runtime_env: dict[str, Any] = {"working_dir": str(archive), "env_vars": environment}
        return Job(client, client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env), address)


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Inside, these variables of the environment are not set: Ray would take them before what it is given."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    try:
        yield
    except AuthenticationError:
        raise InputError(
            f"{address} does not accept the token: set the cluster's as {' or '.join(TOKEN_VARIABLES)},"
            f" or write it to {TOKEN_FILE}"
        ) from None
    except OSError as error:
        raise InputError(f"no Ray dashboard answers at {address} ({error.strerror or _line(error)})") from None
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{address}: Ray's Jobs API refused: {_line(error)}") from None


def _reach(address: str) -> None:
    """Raise OSError where nothing answers. Ray's client would wait for minutes."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
        pass


def _line(text: object) -> str:
    return " ".join(str(text).split())[:200]


def _say(text: str) -> None:
    """Beside the job's own output, which is on standard output."""
    print(f"lgd submit: {text}", file=sys.stderr, flush=True)
