"""Records of results directories -> one tidy table, a row a trial (docs/records.md has its columns and their units)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pandas as pd

from lgd.config.experiment import Checkpoints, Evaluation, Experiment, difference, settings
from lgd.config.paper import ScoreName
from lgd.errors import InputError
from lgd.files import atomic_write
from lgd.results.record import FILE, SCHEMA, Pretraining, Record, Scores, load

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")

SAME_RESULT = (
    "seed", "threads", "device", "memory_format", "compile", "data.workers", "checkpoint.", "evaluation.", "log"
)  # fmt: skip
"""Settings, or groups of them, that change how fast a training goes, what is looked at or its seed, not what it is."""


def changes(record: Record) -> tuple[str, ...]:
    """Those of a record's overrides that may change what it trained."""
    return tuple(x for x in record.overrides if not x.strip().startswith(SAME_RESULT))


class Run(NamedTuple):
    """A record, and the directory it lies in with what else the run left."""

    record: Record
    directory: Path


def load_runs(*directories: Path) -> list[Run]:
    """Every record of a sweep (``trials/*/record.json``) or of single trainings (``*/record.json``) in ``directories``.

    Ordered by preset, arm, then seed. What several directories hold of one training and seed comes once, the one that
    finished first. What a frozen teacher cost is divided between all the runs here that know of it. Raises InputError,
    naming the file, when a directory is missing, a record is broken or of an unknown version, two records of the same
    preset, arm and seed are of different trainings, or data of one name is not the same data.
    """
    found: dict[tuple[str, str, int], Run] = {}
    for directory in directories:
        here = set()
        if not directory.is_dir():
            raise InputError(f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}")
        for path in sorted([*directory.glob(f"trials/*/{FILE}"), *directory.glob(f"*/{FILE}")]):
            run = Run(_load(path), path.parent)
            key = (run.record.preset, arm_of(run.record), run.record.experiment.seed)
            other = found.get(key)
            if other is not None and identity(other.record.experiment) != identity(run.record.experiment):
                raise InputError(
                    f"{path}: holds another training of {key[1]!r} seed {key[2]} than {other.directory / FILE}"
                )
            if other is not None and key in here:
                raise InputError(f"{path}: holds {key[1]!r} seed {key[2]}, and so does {other.directory / FILE}")
            here.add(key)
            if other is None or _rank(run.record) < _rank(other.record):
                found[key] = run
    return _shared_out(found[key] for key in sorted(found))


def check_data(records: Iterable[Record]) -> None:
    """Refuse records whose data has one name and settings but another fingerprint: they would be taken for a pair.

    Raises InputError naming both.
    """
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(identity(record.experiment).data.model_dump_json(), record)
        if not same_data(record, other):
            raise InputError(
                f"{record.name} was trained on other data than {other.name}, though both call it"
                f" {record.experiment.data.source!r} (fingerprints {record.data['fingerprint']} and"
                f" {other.data['fingerprint']}): they do not compare"
            )


def same_data(a: Record, b: Record) -> bool:
    """Whether two records say nothing else of their data. One that ended before it looked at it says nothing."""
    here, there = (x.data.get("fingerprint") for x in (a, b))
    return here is None or there is None or here == there


def _shared_out(runs: Iterable[Run]) -> list[Run]:
    """Each run's teacher shared by as many as came to use it in the end; its record knows of those before it."""

    def teacher(x: Pretraining) -> tuple[str, float]:
        # Trained twice, on two machines, it is two teachers.
        return x.fingerprint, x.full

    users: dict[tuple[str, float], int] = {}
    runs = list(runs)
    for x in (run.record.pretraining for run in runs):
        if x:
            users[teacher(x)] = max(users.get(teacher(x), 1), x.shared_by)
    return [
        run._replace(
            record=run.record.model_copy(update={"pretraining": x.model_copy(update={"shared_by": users[teacher(x)]})})
        )
        if (x := run.record.pretraining)
        else run
        for run in runs
    ]


def _load(path: Path) -> Record:
    """A record; what is wrong with it is told with its line in the file."""
    try:
        return load(path)
    except InputError as error:
        complaint = str(error).removeprefix(f"{path}: ")
        if complaint == str(error):
            raise
        lines = path.read_text(encoding="utf-8").splitlines()
        line = 0
        for key in ["schema_version"] if "schema" in complaint else complaint.split(":")[0].split("."):
            # Keys come in the order of their nesting; a list's positions have none.
            line = next((i for i, text in enumerate(lines) if i >= line and f'"{key}"' in text), line)
        raise InputError(f"{path}:{line + 1}: {complaint}") from None


def _rank(record: Record) -> tuple[bool, str]:
    return record.status != "finished", record.finished


def load_records(*directories: Path) -> list[Record]:
    """The records of :func:`load_runs`."""
    return [run.record for run in load_runs(*directories)]


def load_frame(*directories: Path) -> pd.DataFrame:
    """:func:`frame` of all records under ``directories``: the one call that gets the results into pandas."""
    return frame(load_records(*directories))


def identity(experiment: Experiment) -> Experiment:
    """``experiment`` without its seed and without what changes no result: equal for equal trainings.

    Of a data source's directory the last two parts count, so that records of several machines compare.
    """
    data = experiment.data
    scheme, colon, path = data.source.partition(":")
    source = f"{scheme}:{'/'.join(Path(path).parts[-2:])}" if colon else scheme
    return experiment.model_copy(
        update={
            "seed": 0,
            "threads": 0,
            "device": "auto",
            "memory_format": "auto",
            "compile": False,
            "checkpoint": Checkpoints(),
            "evaluation": Evaluation(),
            "log": (),
            "data": data.model_copy(update={"workers": 0, "source": source}),
        }
    )


def is_reproduction(records: Iterable[Record]) -> bool:
    """Whether every record is from the ``paper`` preset, with nothing changed that could change a result."""
    return all(record.preset == "paper" and not changes(record) for record in records)


def arm_of(record: Record) -> str:
    """The arm's name; the method's for a run outside a grid."""
    return record.arm or record.experiment.method.name


def finished(records: Iterable[Record], arm: str) -> dict[int, Record]:
    """The finished runs of ``arm`` by seed, seeds rising.

    Raises InputError for two finished runs of one seed, for which one to pair would be a guess, and for seeds of
    different trainings, whose mean would be of nothing.
    """
    runs: dict[int, Record] = {}
    first: Record | None = None
    for record in records:
        if record.status != "finished" or arm_of(record) != arm:
            continue
        seed = record.experiment.seed
        if seed in runs:
            raise InputError(f"two finished records of {arm!r} seed {seed}")
        first = first or record
        differs = difference(identity(first.experiment), identity(record.experiment))
        if differs:
            raise InputError(f"{arm!r} seeds {first.experiment.seed} and {seed} are different trainings: {differs}")
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


def training_device_seconds(record: Record) -> float | None:
    """Device-seconds of the training steps; of a record that only has wall-clock seconds, those times its devices."""
    wall = training_seconds(record)
    return record.device_seconds.get("training", None if wall is None else wall * record.devices)


def measured(name: ScoreName) -> Callable[[Record], float | None]:
    """Reader of a student's score by its name in the paper's tables, percent."""
    kind, _, key = name.rpartition("_")
    return lambda record: _score(record.student_mask if kind == "mask" else record.student, key)


def gpu_hours(record: Record) -> float:
    """Device-hours of a run, all phases, the whole pre-training of its teacher included."""
    return record.gpu_hours + pretraining_hours(record)


def pretraining_hours(record: Record) -> float:
    """Device-hours of its teacher's training as if no other run shared it; 0 without a teacher."""
    return record.pretraining.full / 3600 if record.pretraining else 0.0


def peak_memory(kind: str) -> Callable[[Record], float | None]:
    """Reader of the peak memory, MiB; ``kind`` is ``device`` or ``host`` (see lgd/results/cost_meter.py)."""
    return lambda record: record.peak_memory_mib.get(kind)


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a trial, in the order given. Missing values are NA (empty text counts as missing); columns, in order:

    - ``schema_version`` (Int64): of these columns and of the records;
    - ``grid``, ``preset``, ``arm`` (text), ``seed`` (Int64);
    - ``status`` (finished, diverged or failed) and ``reason``;
    - ``detector``, ``backbone``, ``data_source`` (text);
    - ``steps``: training steps done (``schedule.steps`` are those planned);
    - ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``: the student's COCO box AP, percent (Float64);
    - ``mMR``: log-average miss rate, percent, lower is better;
    - ``mask_AP`` and so on: the same of masks;
    - ``teacher_AP``, ``teacher_mask_AP``: AP of the instructive features, percent;
    - ``AP[class]``: the student's AP of a class, percent, a column a class;
    - ``loss[name]``: last point of a loss curve;
    - ``seconds[phase]``: wall-clock seconds by phase (setup, training, evaluation);
    - ``gpu_hours``: device-hours of all phases; ``pretraining_hours``, ``pretraining_hours_shared``: of a frozen
      teacher's training, whole and divided between the runs that share it; ``watts``: mean while training;
    - ``waiting``: the part of the training's seconds that steps stood still for data, 0 to 1;
    - ``device_seconds[phase]``, ``joules[phase]``, ``within_training[part]``: see lgd/results/cost_meter.py;
    - ``step_ms``: median of a training step, milliseconds;
    - ``peak_memory_mib[kind]``: MiB, host and, with a GPU, device;
    - ``devices``, ``nodes``, ``attempts`` and ``parameters[part]``: counts (Int64);
    - ``fingerprint``: hash of what was built;
    - ``data[key]``: what the data set says of itself;
    - every setting of the experiment by its dotted key (``schedule.lr``), typed as the setting; lists as JSON text;
    - ``overrides``: settings that the command changed, JSON text;
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

    put("schema_version", "Int64", [r.schema_version for r in records])
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
    put("mMR", "Float64", [_score(r.student, "mMR") for r in records])
    for name in SCORES:
        put(f"mask_{name}", "Float64", [_score(r.student_mask, name) for r in records])
    put("teacher_AP", "Float64", [teacher_ap(r) for r in records])
    put("teacher_mask_AP", "Float64", [_score(r.teacher_mask, "AP") for r in records])
    put_group("AP", "Float64", [r.student.per_class if r.student else {} for r in records])
    put_group("mask_AP", "Float64", [r.student_mask.per_class if r.student_mask else {} for r in records])
    put_group("loss", "Float64", [{k: c[-1][1] for k, c in r.losses.items() if c} for r in records])
    put_group("seconds", "Float64", [r.seconds for r in records])
    put_group("within_training", "Float64", [r.within_training for r in records])
    put("waiting", "Float64", [r.waiting for r in records])
    put_group("device_seconds", "Float64", [r.device_seconds for r in records])
    put_group("joules", "Float64", [r.joules for r in records])
    put("gpu_hours", "Float64", [r.gpu_hours for r in records])
    put("pretraining_hours", "Float64", [r.pretraining and r.pretraining.full / 3600 for r in records])
    put("pretraining_hours_shared", "Float64", [r.pretraining and r.pretraining.amortised / 3600 for r in records])
    put("watts", "Float64", [r.watts for r in records])
    put("step_ms", "Float64", [r.step_ms for r in records])
    put_group("peak_memory_mib", "Float64", [r.peak_memory_mib for r in records])
    for count in ("devices", "nodes", "attempts"):
        put(count, "Int64", [getattr(r, count) for r in records])
    put_group("parameters", "Int64", [r.parameters for r in records])
    put("fingerprint", "string", [r.fingerprint for r in records])
    put_group("data", None, [r.data for r in records])
    described = [_described(r.experiment) for r in records]
    for key, default in _described(Experiment()).items():
        if key != "seed":
            values = [d[key] for d in described]
            put(key, _dtype([default, *values]), values)
    put("overrides", "string", [json.dumps(r.overrides) for r in records])
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
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")


NUMBERS = ("seed", "steps", *SCORES, "mMR", "teacher_AP", "gpu_hours", "step_ms")


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
    for name in ("started", "finished"):
        table[name] = pd.to_datetime(table[name], utc=True, format="ISO8601", errors="coerce").dt.as_unit("s")
    return table


def _check_row(place: str, header: Sequence[str], cells: Sequence[str]) -> None:
    if len(cells) != len(header):
        raise InputError(f"{place}: {len(cells)} cells, the header has {len(header)}")
    row = dict(zip(header, cells, strict=True))
    if row["schema_version"] != str(SCHEMA):
        raise InputError(f"{place}: record schema {row['schema_version']!r} is not known (this version reads {SCHEMA})")
    if row["status"] not in get_args(Record.model_fields["status"].annotation):
        raise InputError(f"{place}: no status {row['status']!r}")
    for name in NUMBERS:
        try:
            float(row[name] or 0)
        except ValueError:
            raise InputError(f"{place}: {name} is {row[name]!r}, not a number") from None


def _score(scores: Scores | None, name: str) -> float | None:
    # mMR belongs to data sets that are scored with it.
    value = getattr(scores, name, None)
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
