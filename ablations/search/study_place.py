"""Where a search's study lies when the user says so: a database by SQLAlchemy's URL, or Optuna's journal.

That is a file, or lies in object storage (ablations/search/study_journal.py).
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lgd.errors import InputError
from lgd.storage.outputs import checked_url, is_url
from lgd.storage.store import SCHEMES

PASSWORD_VARIABLE = "LGD_STUDY_PASSWORD"
"""Environment variable: the password of a study's database, of any kind."""

SECRETS = ("passw", "pwd")
"""What the names of options with a password have in them (password, passwd, sslpassword, ssl_key_password, PWD)."""

USER_AND_PASSWORD = re.compile(r"[^:/]*:[^@]*@")
"""What stands before a host, as SQLAlchemy reads it: there may be a slash in the password."""


class StudyUnreachableError(InputError):
    """The study does not answer. The message is one line."""


def study_place(text: str) -> str:
    """What ``--study`` names, as sweep.json keeps it: a URL without a password, or an absolute path.

    Raises InputError, one line, for a URL with a password in it, which is not repeated, and for what is no database.
    """
    if not text:
        raise InputError("--study: a database's URL, such as postgresql://HOST/NAME, or s3://BUCKET/NAME, or a file")
    if not is_url(text):
        return str(Path(text).expanduser().absolute())
    if in_store(text):
        try:
            return checked_url(text)
        except InputError as error:
            raise InputError(f"--study {error}") from None
    scheme, _, rest = text.partition("://")
    _refuse_password(scheme, rest)
    try:
        # The port is read only when it is asked for.
        _ = urlsplit(text).port
    except ValueError:
        # What it says has parts of the text in it, and so maybe of a password.
        raise InputError(f"--study {scheme}://...: no URL, such as {scheme}://HOST/NAME or HOST:PORT/NAME") from None
    if scheme in ("http", "https"):
        raise InputError(
            f"--study {text}: a database's URL (sqlite:///FILE, postgresql://, mysql://), object storage (s3://, gs://,"
            " az://, file://), or a file"
        )
    if scheme.partition("+")[0] == "sqlite" and not rest.startswith("/file:"):
        path = rest.removeprefix("/")
        if not rest.startswith("/") or path in ("", ":memory:"):
            raise InputError(f"--study {text}: a file, such as {scheme}:///study.db")
        return f"{scheme}:///{Path(path).absolute()}"
    return text


def in_store(place: str) -> bool:
    """Whether the study lies in object storage."""
    return is_url(place) and place.partition("://")[0] in SCHEMES


def check_kept(place: str) -> None:
    """Raise InputError, a line without a password, where a file's ``place`` is not as :func:`study_place` has it."""
    try:
        as_kept = study_place(place)
    except InputError as error:
        raise InputError(str(error).replace("--study", "search.study", 1)) from None
    if as_kept != place:
        raise InputError(f"search.study {place}: an absolute path or a whole URL is needed, such as {as_kept}")


def check_study_named_again(place: str, named: str | None, directory: Path) -> None:
    """Raise InputError where the results directory names a database elsewhere, and the command does not.

    Who asks a database sends it a password (PASSWORD_VARIABLE): not to a host that only the directory names, which may
    come from somebody else. place: of the directory's study, "" for one that lies in it, or for none. named: what
    ``--study`` says.
    """
    if named is not None and study_place(named) != place:
        there = f"whose study is {place}" if place else "without a study elsewhere"
        raise InputError(f"--study {study_place(named)}: {directory} holds a sweep {there}")
    if named is None and study_option(place, directory):
        raise InputError(
            f"{directory} names the study {place}, a database elsewhere: say{study_option(place, directory)} to use it"
        )


def study_option(place: str, directory: Path) -> str:
    """The option that names a study again, as a command that goes on with its sweep has to; "" for none."""
    if not is_url(place) or in_store(place):
        return ""
    scheme, _, rest = place.partition(":///")
    is_file = scheme.partition("+")[0] == "sqlite" and not rest.startswith("file:")
    inside = is_file and Path(rest).resolve().is_relative_to(directory.resolve())
    return "" if inside else f" --study {shlex.quote(place)}"


def _refuse_password(scheme: str, rest: str) -> None:
    options = [x.lower() for x in parse_qs(rest.partition("?")[2], keep_blank_values=True)]
    if "odbc_connect" in options:
        raise InputError(f"--study {scheme}://...: a URL without odbc_connect, which may have a password in it")
    if USER_AND_PASSWORD.match(rest) or any(secret in x for secret in SECRETS for x in options):
        raise InputError(
            f"--study {scheme}://...: a URL without a password, which {PASSWORD_VARIABLE} or, of PostgreSQL, PGPASSWORD"
            " or PGPASSFILE has"
        )
