"""Records as one tidy table, a row a trial, and as CSV (docs/records.md has the columns and their units)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from analysis.load import SCORES, arm_of, load_records, score_of, teacher_ap
from lgd.config.experiment import Experiment, settings
from lgd.errors import InputError
from lgd.files import atomic_write
from lgd.results.record import SCHEMA, Record


def load_frame(*directories: Path) -> pd.DataFrame:
    """:func:`frame` of all records under ``directories``: the one call that gets the results into pandas."""
    return frame(load_records(*directories))


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a trial, in the order given; docs/records.md lists the columns, their order is that of the code.

    Missing values are NA (empty text counts as missing). Counts are Int64, measurements Float64, the rest text,
    booleans or UTC timestamps. The bracketed columns (``AP[class]``, ``seconds[phase]``) are those that any record
    has, in order of first appearance; the others are always there.
    """
    columns = _Columns()
    _trial_columns(columns, records)
    _score_columns(columns, records)
    _cost_columns(columns, records)
    _setting_columns(columns, records)
    _provenance_columns(columns, records)
    # From a dict of Series: growing a frame column by column is slow and fragments it.
    return pd.DataFrame(columns.series)


class _Columns:
    """The columns of a frame, in the order they were added."""

    def __init__(self) -> None:
        self.series: dict[str, pd.Series] = {}

    def add(self, name: str, dtype: str, values: Iterable[Any]) -> None:
        self.series[name] = pd.Series([None if v == "" else v for v in values], dtype=dtype)

    def add_group(self, prefix: str, dtype: str | None, groups: Sequence[Mapping[str, Any]]) -> None:
        """A column for every key of ``groups``; without a ``dtype`` that of its values."""
        for key in dict.fromkeys(key for group in groups for key in group):
            values = [group.get(key) for group in groups]
            self.add(f"{prefix}[{key}]", dtype or _dtype(values), values)


def _trial_columns(columns: _Columns, records: Sequence[Record]) -> None:
    columns.add("schema_version", "Int64", [r.schema_version for r in records])
    columns.add("grid", "string", [r.grid for r in records])
    columns.add("preset", "string", [r.preset for r in records])
    columns.add("arm", "string", [arm_of(r) for r in records])
    columns.add("seed", "Int64", [r.experiment.seed for r in records])
    columns.add("status", "string", [r.status for r in records])
    columns.add("reason", "string", [r.reason for r in records])
    columns.add("detector", "string", [r.experiment.detector.label for r in records])
    columns.add("backbone", "string", [r.experiment.detector.backbone_label for r in records])
    columns.add("data_source", "string", [r.experiment.data.source for r in records])
    columns.add("steps", "Int64", [r.steps for r in records])


def _score_columns(columns: _Columns, records: Sequence[Record]) -> None:
    """Percent, but for the losses: last points of their curves."""
    for name in (*SCORES, "mMR"):
        columns.add(name, "Float64", [score_of(r.student, name) for r in records])
    for name in SCORES:
        columns.add(f"mask_{name}", "Float64", [score_of(r.student_mask, name) for r in records])
    columns.add("teacher_AP", "Float64", [teacher_ap(r) for r in records])
    columns.add("teacher_mask_AP", "Float64", [score_of(r.teacher_mask, "AP") for r in records])
    columns.add("teacher_beat_student", "boolean", [r.teacher_beat_student for r in records])
    columns.add_group("AP", "Float64", [r.student.per_class if r.student else {} for r in records])
    columns.add_group("mask_AP", "Float64", [r.student_mask.per_class if r.student_mask else {} for r in records])
    columns.add_group("loss", "Float64", [{k: c[-1][1] for k, c in r.losses.items() if c} for r in records])


def _cost_columns(columns: _Columns, records: Sequence[Record]) -> None:
    """Defined in lgd/results/cost_meter.py."""
    columns.add_group("seconds", "Float64", [r.seconds for r in records])
    columns.add_group("within_training", "Float64", [r.within_training for r in records])
    columns.add("data_wait", "Float64", [r.data_wait for r in records])
    columns.add_group("device_seconds", "Float64", [r.device_seconds for r in records])
    columns.add_group("joules", "Float64", [r.joules for r in records])
    columns.add("gpu_hours", "Float64", [r.gpu_hours for r in records])
    teachers = [r.pretraining for r in records]
    columns.add("pretraining_hours", "Float64", [x and x.full / 3600 for x in teachers])
    columns.add("pretraining_hours_shared", "Float64", [x and x.amortised / 3600 for x in teachers])
    columns.add("watts", "Float64", [r.watts for r in records])
    columns.add("step_ms", "Float64", [r.step_ms for r in records])
    columns.add_group("peak_memory_mib", "Float64", [r.peak_memory_mib for r in records])
    for count in ("devices", "fewest_devices", "nodes", "attempts"):
        columns.add(count, "Int64", [getattr(r, count) for r in records])
    columns.add_group("parameters", "Int64", [r.parameters for r in records])


def _setting_columns(columns: _Columns, records: Sequence[Record]) -> None:
    """Add a column for every setting, by its dotted key and typed as the setting; lists as JSON text."""
    columns.add("fingerprint", "string", [r.fingerprint for r in records])
    columns.add_group("data", None, [r.data for r in records])
    flat = [_flat_settings(r.experiment) for r in records]
    defaults = _flat_settings(Experiment())
    # Settings of a method are its own: a record of another has none of them.
    for key in dict.fromkeys(key for each in (defaults, *flat) for key in each):
        if key != "seed":
            values = [each.get(key) for each in flat]
            columns.add(key, _dtype([defaults.get(key), *values]), values)
    columns.add("overrides", "string", [json.dumps(r.overrides) for r in records])


def _provenance_columns(columns: _Columns, records: Sequence[Record]) -> None:
    columns.add_group("version", "string", [r.versions for r in records])
    columns.add_group("hardware", "string", [r.hardware for r in records])
    columns.add("git_commit", "string", [r.git_commit for r in records])
    for name, times in (("started", [r.started for r in records]), ("finished", [r.finished for r in records])):
        columns.series[name] = _timestamps(pd.Series(times, dtype="string"))


def _timestamps(texts: pd.Series) -> pd.Series:
    return pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce").dt.as_unit("s")


def _flat_settings(experiment: Experiment) -> dict[str, Any]:
    return {
        key: json.dumps(value) if isinstance(value, (tuple, list, dict)) else value
        for key, value in settings(experiment).items()
    }


def _dtype(values: Iterable[Any]) -> str:
    types = {type(value) for value in values if value is not None}
    if types == {bool}:
        return "boolean"
    if types == {int}:
        return "Int64"
    return "Float64" if types <= {int, float} else "string"


def row_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each row by column, None for NA."""
    # Through object: an extension dtype would turn None back into NA.
    plain = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


_TEXT = (
    *("setting", "method", "metric", "reported_where", "mark", "skipped", "arm", "data", "device", "quantity", "unit"),
    *("reference", "teacher", "gate", "inherit", "authors_inherit", "published", "ended"),
)
_DTYPES = {**dict.fromkeys(_TEXT, "string"), "seeds": "Int64", "pairs": "Int64", "front": "boolean"}


def typed_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A table of results: words as text, ``seeds`` and ``pairs`` as Int64, the rest as Float64."""
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=_DTYPES.get(name, "Float64")) for name in columns}
    )


# ---------------------------------------------------------------------------------------------------- CSV


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write ``table`` as UTF-8 CSV, atomically; NA is an empty cell, numbers keep every digit."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


NUMBERS = ("seed", "steps", *SCORES, "mMR", "teacher_AP", "gpu_hours", "step_ms")
"""Columns in which only numbers may stand."""


def read_csv(path: Path) -> pd.DataFrame:
    """Read what :func:`write_csv` wrote, with the types of :func:`frame` as far as the values tell them.

    Raises InputError naming the file, and the line of a row that is broken or of another version.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            missing = {"schema_version", "arm", "status", *NUMBERS} - set(header)
            if missing:
                raise InputError(f"{path}:1: no column {min(missing)!r}: not a table of records of this version")
            for cells in rows:
                _check_row(f"{path}:{rows.line_num}", header, cells)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV file ({error})") from None
    table = pd.read_csv(path, keep_default_na=False, na_values=[""]).convert_dtypes()
    # Their names in schema 2.
    table = table.rename(columns={"waiting": "data_wait", "within_training[waiting]": "within_training[data_wait]"})
    for name in ("started", "finished"):
        table[name] = _timestamps(table[name])
    return table


def _check_row(place: str, header: Sequence[str], cells: Sequence[str]) -> None:
    if len(cells) != len(header):
        raise InputError(f"{place}: {len(cells)} cells, the header has {len(header)}")
    row = dict(zip(header, cells, strict=True))
    if row["schema_version"] not in ("2", str(SCHEMA)):
        raise InputError(
            f"{place}: record schema {row['schema_version']!r} is not known (this version reads 2 to {SCHEMA})"
        )
    if row["status"] not in get_args(Record.model_fields["status"].annotation):
        raise InputError(f"{place}: no status {row['status']!r}")
    for name in NUMBERS:
        try:
            float(row[name] or 0)
        except ValueError:
            raise InputError(f"{place}: {name} is {row[name]!r}, not a number") from None
