"""Reading records: of results directories, by arm and seed, and the numbers in them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, get_args

from lgd.config.data_source import COCO_2017, is_coco_2017, portable_source
from lgd.config.experiment import NEUTRAL_KEYS, Evaluation, Experiment, difference, without_neutral_settings
from lgd.config.extra_arms import AGAIN_SEEDS, is_again
from lgd.config.paper import ScoreName
from lgd.config.presets import Preset
from lgd.errors import InputError
from lgd.results.record import FILE, Pretraining, Record, Scores, load

SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")

EVALUATION = "evaluation."
"""Begins the settings that say when and how a training is evaluated, not what it is."""


def changes(record: Record) -> tuple[str, ...]:
    """A record's overrides that may change the training."""
    same = {*NEUTRAL_KEYS, "seed"}
    if _on_papers_coco(record):
        # Wherever the paper's data lies, a bucket included, it is the paper's.
        same.add("data.source")
    keys = {x: x.partition("=")[0].strip() for x in record.overrides}
    return tuple(x for x, key in keys.items() if key not in same and not key.startswith(EVALUATION))


def trained(record: Record) -> Experiment:
    """A record's experiment, MS-COCO 2017 under the name that the paper's trainings have for it."""
    if not _on_papers_coco(record):
        return record.experiment
    data = record.experiment.data.model_copy(update={"source": COCO_2017})
    return record.experiment.model_copy(update={"data": data})


def _on_papers_coco(record: Record) -> bool:
    """Whether it is of the preset ``paper`` or one of the paper's trainings, on MS-COCO 2017."""
    others = set(get_args(Preset)) - {"paper"}
    return record.preset not in others and is_coco_2017(record.experiment.data.source, record.data)


class Run(NamedTuple):
    """A record, and the directory it lies in with what else the run left."""

    record: Record
    directory: Path


def load_runs(*directories: Path, damaged: list[str] | None = None) -> list[Run]:
    """Every record of a sweep (``trials/*/record.json``) or of single trainings (``*/record.json``) in ``directories``.

    Ordered by preset, arm, then seed. What several directories hold of one training and seed comes once, the one that
    finished first; different trainings of one arm and seed all come (:func:`analysis.variants.variants` tells them
    apart). What a frozen teacher cost is divided between all the runs here that know of it.

    damaged: gets a line for every record that is broken or of an unknown version, which is then left out. Raises
    InputError, naming the file, for such a record without ``damaged``, for a missing directory, and where one directory
    holds a training and seed twice.
    """
    found: dict[tuple[str, str, int, Experiment], Run] = {}
    for directory in directories:
        here = set()
        if not directory.is_dir():
            raise InputError(f"{directory}: {'not a directory' if directory.exists() else 'no such directory'}")
        for path in sorted([*directory.glob(f"trials/*/{FILE}"), *directory.glob(f"*/{FILE}")]):
            try:
                run = Run(_load(path), path.parent)
            except InputError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
                continue
            experiment = run.record.experiment
            key = (run.record.preset, arm_of(run.record), experiment.seed, identity(experiment))
            other = found.get(key)
            if other is not None and key in here:
                raise InputError(f"{path}: holds {key[1]!r} seed {key[2]}, and so does {other.directory / FILE}")
            here.add(key)
            if other is None or _rank(run.record) < _rank(other.record):
                found[key] = run
    # The order is stable: of different trainings of one arm and seed, that of the directories.
    return _with_shared_teachers(found[key] for key in sorted(found, key=lambda x: x[:3]))


def warn_of_damaged(damaged: Iterable[str]) -> int:
    """Say on stderr which records were left out; the exit status, 1 where there were any."""
    lines = list(damaged)
    for line in lines:
        print(f"warning: {line}: left out", file=sys.stderr)
    return 1 if lines else 0


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


def _with_shared_teachers(runs: Iterable[Run]) -> list[Run]:
    """Each run's teacher with the number of runs that share it in the end: a record counts those before it alone."""

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
    """A record. Raises InputError with the file and the line that is wrong."""
    try:
        return load(path)
    except InputError as error:
        complaint = str(error).removeprefix(f"{path}: ")
        if complaint == str(error) or complaint.startswith("cannot be read"):
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


def identity(experiment: Experiment) -> Experiment:
    """``experiment`` without its seed and without what changes no result: equal for equal trainings.

    Of a data source's directory the last two parts count, so that records of several machines compare.
    """
    # One for all seeds, of which there may be more than a cache holds.
    return _identity(experiment.model_copy(update={"seed": 0}))


@lru_cache(maxsize=8192)
def _identity(experiment: Experiment) -> Experiment:
    neutral = without_neutral_settings(experiment)
    data = neutral.data.model_copy(update={"source": portable_source(neutral.data.source)})
    return neutral.model_copy(update={"evaluation": Evaluation(), "data": data})


def is_reproduction(records: Iterable[Record]) -> bool:
    """Whether every record is from the ``paper`` preset, with nothing changed that could change a result."""
    return all(record.preset == "paper" and not changes(record) for record in records)


def seed_of(record: Record) -> int:
    """The seed that a record is paired by: of a baseline's second training (an A/A arm), that of the first."""
    return record.experiment.seed % AGAIN_SEEDS if is_again(arm_of(record)) else record.experiment.seed


def arm_of(record: Record) -> str:
    """The arm's name, with the additions of ours that the command switched on; the method's for a run outside a grid.

    Not the grid's name for it (``record.arm``), which :func:`analysis.grid_runs.as_shown` turns into this one.
    """
    return record.shown_arm


def by_arm(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each arm, arms and records in their order.

    For what is asked of every arm: to look through all records for each of thousands of arms takes minutes.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(arm_of(record), []).append(record)
    return found


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
        seed = seed_of(record)
        if seed in runs:
            raise InputError(f"two finished records of {arm!r} seed {seed}")
        first = first or record
        ours, others = identity(record.experiment), identity(first.experiment)
        if ours != others:
            differs = difference(others, ours)
            raise InputError(f"{arm!r} seeds {first.experiment.seed} and {seed} are different trainings: {differs}")
        runs[seed] = record
    return dict(sorted(runs.items()))


def by_seed(runs: Mapping[int, Record], value: Callable[[Record], float | None]) -> dict[int, float]:
    """``value`` of each run by seed, without the runs where it is None."""
    return {seed: number for seed, run in runs.items() if (number := value(run)) is not None}


def score_of(scores: Scores | None, name: str) -> float | None:
    """A score by name, percent; None where there is none."""
    # mMR belongs to data sets that are scored with it.
    value = getattr(scores, name, None)
    return None if value is None else float(value)


def score(name: str) -> Callable[[Record], float | None]:
    """Reader of a student's score, percent; ``name`` is one of :data:`SCORES`."""
    return lambda record: score_of(record.student, name)


def teacher_ap(record: Record) -> float | None:
    """AP of the instructive features, percent."""
    return score_of(record.teacher, "AP")


def training_seconds(record: Record) -> float | None:
    """Wall-clock seconds of the training steps."""
    return record.seconds.get("training")


def training_device_seconds(record: Record) -> float | None:
    """Device-seconds of the training steps; of a record that only has wall-clock seconds, those times its devices."""
    wall = training_seconds(record)
    return record.device_seconds.get("training", None if wall is None else wall * record.devices)


def cost_seconds(record: Record) -> float | None:
    """Device-seconds of the training steps, its own and all of its frozen teacher's."""
    own = training_device_seconds(record)
    return None if own is None else own + teacher_seconds(record)


def teacher_seconds(record: Record) -> float:
    """Device-seconds of the training steps of its teacher, as if no other run shared it; 0 without a teacher."""
    return record.pretraining.training if record.pretraining else 0.0


def measured(name: ScoreName) -> Callable[[Record], float | None]:
    """Reader of a student's score by its name in the paper's tables, percent."""
    kind, _, key = name.rpartition("_")
    return lambda record: score_of(record.student_mask if kind == "mask" else record.student, key)


def gpu_hours(record: Record) -> float:
    """Device-hours of a run, all phases, the whole pre-training of its teacher included."""
    return record.gpu_hours + pretraining_hours(record)


def pretraining_hours(record: Record) -> float:
    """Device-hours of its teacher's training as if no other run shared it; 0 without a teacher."""
    return record.pretraining.full / 3600 if record.pretraining else 0.0


def other_load(record: Record) -> float | None:
    """The part of the machine's cores that other work used while it trained, other trials included, 0 to 1."""
    contention = record.contention
    return None if contention is None else contention.other_cores / contention.cores


def step_spread(record: Record) -> float | None:
    """Interquartile range of its step times over their median."""
    return None if record.contention is None else record.contention.step_spread


def peak_memory(kind: str) -> Callable[[Record], float | None]:
    """Reader of the peak memory, MiB; ``kind`` is ``device`` or ``host`` (see lgd/results/cost_meter.py).

    Of records before schema 3 ``host`` is left out: it was the peak of all that the same process had trained before.
    """

    def read(record: Record) -> float | None:
        if kind == "host" and record.fingerprint_version == 1:
            return None
        return record.peak_memory_mib.get(kind)

    return read
