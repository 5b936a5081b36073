"""Where a search's study lies when the user says so: a database by SQLAlchemy's URL, or a file, Optuna's journal."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from lgd.errors import InputError
from lgd.storage.outputs import is_url

PASSWORD_VARIABLE = "LGD_STUDY_PASSWORD"
"""Environment variable: the password of a study's database, of any kind."""

STORES = ("s3", "gs", "gcs", "az", "abfs", "file", "http", "https")

SECRETS = {"password", "passwd", "pwd", "sslpassword"}
"""Options of a URL that drivers of databases take."""


def study_place(text: str) -> str:
    """What ``--study`` names, as sweep.json keeps it: a URL without a password, or an absolute path.

    Raises InputError, one line, for a URL with a password in it, which is not repeated, and for what is no database.
    """
    if not text:
        raise InputError("--study: a database's URL, such as postgresql://HOST/NAME, or a file")
    if not is_url(text):
        return str(Path(text).expanduser().absolute())
    scheme, _, rest = text.partition("://")
    try:
        url = urlsplit(text)
        has_secret = url.password is not None or bool(SECRETS & parse_qs(url.query, keep_blank_values=True).keys())
    except ValueError as error:
        raise InputError(f"--study {scheme}://...: no URL ({error})") from None
    if has_secret:
        raise InputError(
            f"--study {scheme}://...: a URL without a password, which {PASSWORD_VARIABLE} or, of PostgreSQL, PGPASSWORD"
            " or PGPASSFILE has"
        )
    if scheme in STORES:
        raise InputError(
            f"--study {text}: a database's URL (sqlite:///FILE, postgresql://, mysql://) or a file; with --output in"
            " object storage the study lies there"
        )
    if scheme.partition("+")[0] == "sqlite" and not rest.startswith("/file:"):
        path = rest.removeprefix("/")
        if not rest.startswith("/") or path in ("", ":memory:"):
            raise InputError(f"--study {text}: a file, such as {scheme}:///study.db")
        return f"{scheme}:///{Path(path).absolute()}"
    return text
