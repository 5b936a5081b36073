"""What the commands have in common."""

from __future__ import annotations

import pytest

from lgd.cli import exit_status, format_duration
from lgd.errors import InputError


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
