"""What the commands have in common."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from lgd.cli import exit_status, format_duration
from lgd.errors import InputError
from lgd.signals import exit_on_interrupt, keep_handlers, on_signal


@pytest.fixture
def sigterm_ends() -> Iterator[None]:
    """As in a process that has just begun: Ray's handler may be left of other tests."""
    with keep_handlers(signal.SIGTERM):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        yield
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_durations() -> None:
    assert [format_duration(x) for x in (0, 61, 3723, float("inf"), float("nan"))] == [
        "0:00",
        "1:01",
        "1:02:03",
        "?",
        "?",
    ]


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (InputError("no such thing"), 2, "error: no such thing"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: x: No such file"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("embedded null byte"), 2, "error: a path with a NUL character in it (embedded null byte)"),
    ],
)
def test_what_goes_wrong_is_a_line_and_a_status(
    raised: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise raised

    assert exit_status(command) == status
    assert capsys.readouterr().err == f"{said}\n"


def test_an_interrupt_that_comes_out_of_an_import_as_another_error_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    assert exit_status(command) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_errors_keep_their_traceback() -> None:
    def command() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_status(command)


def _terminate() -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    return 0


@pytest.mark.usefixtures("sigterm_ends")
def test_sigterm_interrupts_and_what_is_half_done_is_tidied_up(capsys: pytest.CaptureFixture[str]) -> None:
    tidied: list[object] = []

    def command() -> int:
        try:
            return _terminate()
        finally:
            # A second one ends the process.
            tidied.append(signal.getsignal(signal.SIGTERM))

    # As in ``lgd``, whose commands have an exit status of their own.
    assert exit_status(lambda: exit_status(command, "interrupted; go on")) == 130
    assert capsys.readouterr().err == "interrupted; go on\n"
    assert tidied == [signal.SIG_DFL]


@pytest.mark.usefixtures("sigterm_ends")
def test_a_command_that_answers_sigterm_itself_does_so() -> None:
    answered: list[int] = []

    def command() -> int:
        with on_signal(lambda: answered.append(1), signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
        return 3

    def other() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 4

    assert exit_status(command) == 3
    with on_signal(lambda: answered.append(2), signal.SIGTERM):
        assert exit_status(other) == 4
    assert answered == [1, 2]


@pytest.mark.usefixtures("sigterm_ends")
def test_a_handler_that_is_installed_meanwhile_stays() -> None:
    """As Ray's, which has processes to end."""

    def by_ray(*_: object) -> None:
        sys.exit(1)

    def command() -> int:
        signal.signal(signal.SIGTERM, by_ray)
        return 0

    assert exit_status(command) == 0
    assert signal.getsignal(signal.SIGTERM) == by_ray
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.usefixtures("sigterm_ends")
def test_a_forked_child_is_ended_by_sigterm() -> None:
    def command() -> int:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            # What comes before, Python forgets in a child.
            os.write(writer, b"x")
            time.sleep(30)
            os._exit(0)
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert exit_status(command) == -signal.SIGTERM


@pytest.mark.usefixtures("sigterm_ends")
def test_sigterm_while_a_command_imports_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But where a sweep or a training answers it, with a line of its own."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)

    def imports() -> int:
        with exit_on_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    for command in (imports, lambda: exit_status(imports)):
        with pytest.raises(SystemExit) as left:
            command()
        assert left.value.code == 130
    answered: list[int] = []
    with on_signal(lambda: answered.append(1), signal.SIGTERM):
        assert imports() == 0
    assert answered == [1]
