"""Records of a results directory -> one tidy table, a row a trial."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lgd.errors import InputError
from lgd.experiment import Experiment, settings
from lgd.files import replacing
from lgd.record import FILE, Record, Scores, load

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def load_records(directory: Path) -> list[Record]:
    """Every ``trials/*/record.json`` under ``directory``, ordered by arm, then seed; none there: an empty list.

    Raises InputError, naming the file, when the directory is missing, a record is broken or of an unknown version,
    or two records claim the same arm and seed.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}")
    found: dict[tuple[str, int], tuple[Path, Record]] = {}
    for path in sorted(directory.glob(f"trials/*/{FILE}")):
        record = load(path)
        key = (arm_of(record), record.experiment.seed)
        if key in found:
            raise InputError(f"{path}: holds {key[0]!r} seed {key[1]}, and so does {found[key][0]}")
        found[key] = (path, record)
    return [found[key][1] for key in sorted(found)]


def arm_of(record: Record) -> str:
    """The arm's name; the method's for a run outside a grid."""
    return record.arm or record.experiment.method.name


def finished(records: Iterable[Record], arm: str) -> dict[int, Record]:
    """The finished runs of ``arm`` by seed, seeds rising.

    Raises InputError for two finished runs of one seed: which one to pair would be a guess.
    """
    runs: dict[int, Record] = {}
    for record in records:
        if record.status != "finished" or arm_of(record) != arm:
            continue
        seed = record.experiment.seed
        if seed in runs:
            raise InputError(f"two finished records of {arm!r} seed {seed}")
        runs[seed] = record
    return dict(sorted(runs.items()))


def by_seed(runs: Mapping[int, Record], value: Callable[[Record], float | None]) -> dict[int, float]:
    """``value`` of each run by seed, without the runs where it is None."""
    return {seed: number for seed, run in runs.items() if (number := value(run)) is not None}


def score(name: str) -> Callable[[Record], float | None]:
    """Reader of a student's score, percent; ``name`` is one of :data:`SCORES`."""
    return lambda record: _score(record.student, name)


def teacher_ap(record: Record) -> float | None:
    """AP of the instructive features, percent."""
    return _score(record.teacher, "AP")


def training_seconds(record: Record) -> float | None:
    """Wall-clock seconds of the training steps."""
    return record.seconds.get("training")


def peak_memory(kind: str) -> Callable[[Record], float | None]:
    """Reader of the peak memory, MiB; ``kind`` is ``device`` or ``host`` (see lgd/meter.py)."""
    return lambda record: record.peak_memory_mib.get(kind)


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a trial, in the order given. Missing values are NA (empty text counts as missing); columns, in order:

    - ``grid``, ``preset``, ``arm`` (text), ``seed`` (Int64);
    - ``status`` (finished, diverged or failed) and ``reason``;
    - ``detector``, ``backbone``, ``data_source`` (text);
    - ``steps``: training steps done (``schedule.steps`` are those planned);
    - ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``: the student's COCO box AP, percent (Float64);
    - ``teacher_AP``: AP of the instructive features, percent;
    - ``AP[class]``: the student's AP of a class, percent, a column a class;
    - ``loss[name]``: last point of a loss curve;
    - ``seconds[phase]``: wall-clock seconds by phase (setup, training, evaluation);
    - ``step_ms``: median of a training step, milliseconds;
    - ``peak_memory_mib[kind]``: MiB, host and, with a GPU, device;
    - ``devices`` and ``parameters[part]``: counts (Int64);
    - ``fingerprint``: hash of what was built;
    - ``data[key]``: what the data set says of itself;
    - every setting of the experiment by its dotted key (``schedule.lr``), typed as the setting; lists as JSON text;
    - ``version[package]``, ``hardware[key]``, ``git_commit`` (text);
    - ``started``, ``finished``: UTC timestamps.

    The bracketed columns are those that any record has, in order of first appearance; the others are always there.
    """
    columns: dict[str, pd.Series] = {}

    def put(name: str, dtype: str, values: Iterable[Any]) -> None:
        columns[name] = pd.Series([None if v == "" else v for v in values], dtype=dtype)

    def put_group(prefix: str, dtype: str | None, groups: Sequence[Mapping[str, Any]]) -> None:
        for key in dict.fromkeys(key for group in groups for key in group):
            values = [group.get(key) for group in groups]
            put(f"{prefix}[{key}]", dtype or _dtype(values), values)

    put("grid", "string", [r.grid for r in records])
    put("preset", "string", [r.preset for r in records])
    put("arm", "string", [arm_of(r) for r in records])
    put("seed", "Int64", [r.experiment.seed for r in records])
    put("status", "string", [r.status for r in records])
    put("reason", "string", [r.reason for r in records])
    put("detector", "string", [r.experiment.detector.name for r in records])
    put("backbone", "string", [r.experiment.detector.backbone.name for r in records])
    put("data_source", "string", [r.experiment.data.source for r in records])
    put("steps", "Int64", [r.steps for r in records])
    for name in SCORES:
        put(name, "Float64", [_score(r.student, name) for r in records])
    put("teacher_AP", "Float64", [teacher_ap(r) for r in records])
    put_group("AP", "Float64", [r.student.per_class if r.student else {} for r in records])
    put_group("loss", "Float64", [{k: c[-1][1] for k, c in r.losses.items() if c} for r in records])
    put_group("seconds", "Float64", [r.seconds for r in records])
    put("step_ms", "Float64", [r.step_ms for r in records])
    put_group("peak_memory_mib", "Float64", [r.peak_memory_mib for r in records])
    put("devices", "Int64", [r.devices for r in records])
    put_group("parameters", "Int64", [r.parameters for r in records])
    put("fingerprint", "string", [r.fingerprint for r in records])
    put_group("data", None, [r.data for r in records])
    described = [_described(r.experiment) for r in records]
    for key, default in _described(Experiment()).items():
        if key != "seed":
            values = [d[key] for d in described]
            put(key, _dtype([default, *values]), values)
    put_group("version", "string", [r.versions for r in records])
    put_group("hardware", "string", [r.hardware for r in records])
    put("git_commit", "string", [r.git_commit for r in records])
    for name, times in (("started", [r.started for r in records]), ("finished", [r.finished for r in records])):
        texts = pd.Series(times, dtype="string")
        columns[name] = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce").dt.as_unit("s")
    # From a dict of Series: growing a frame column by column is slow and fragments it.
    return pd.DataFrame(columns)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write ``frame`` as UTF-8 CSV, atomically; NA is an empty cell, numbers keep every digit."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


def _score(scores: Scores | None, name: str) -> float | None:
    value = getattr(scores, name) if scores else None
    return None if value is None else float(value)


def _described(experiment: Experiment) -> dict[str, Any]:
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
