"""Studies: runs of one grid in one results directory, and every comparison in them as one frame."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.costs import cost_ratio
from analysis.frame import frame, write_csv
from analysis.grid_runs import as_shown
from analysis.load import Run, arm_of, by_seed, cost_seconds, finished, load_runs, score, teacher_ap
from analysis.render import markdown
from analysis.stats.differences import Difference, Ratio, paired_difference, verdict
from analysis.table_builders.frontier import on_gpu
from analysis.table_builders.sweep_table import main_table, sweep_of
from analysis.teachers import arms_never_ahead
from lgd.config.arms import Arm, Grid
from lgd.config.detector import NO_WEIGHTS, TIMM, Detector
from lgd.config.extra_arms import is_again
from lgd.config.grids import NAMES, grid
from lgd.config.paper import DETECTORS
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import Record
from lgd.results.sweep_spec import SWEEP_FILE, SweepSpec

NOTES = "notes.md"
"""In a results directory: a person's reading of it, which its page takes in as it is."""

KEPT_FILES = ("sweep.json", NOTES, "trials/*/record.json", "trials/*/metrics.json", "trials/*/error.txt")
"""Files that are kept of a results directory: records and logs, no weights.

A sweep goes on from these: what has a record is not run again. So nothing of FGFI's teachers, whose record would pass
for their weights; what they cost is in the records of the runs that use them.
"""

Value = Callable[[Record], float | None]

AP: Value = score("AP")


def kept_name(source: Path) -> str:
    """The name of a results directory among those that are kept: ``components_tiny_2cores_2026-11-26``.

    It is its own name without the preset, the preset, the hardware, and the day of its first training, which stays the
    same when the sweep goes on. A name that ends in a day is left as it is. Raises InputError where there is no record.
    """
    name = source.resolve().name
    if re.search(r"_\d{4}-\d{2}-\d{2}$", name):
        return name
    records = [run.record for run in load_runs(source)]
    if not records:
        raise InputError(f"{source}: no trials/*/record.json in it")
    first = min(records, key=lambda record: record.started or record.finished or "~")
    day = (first.started or first.finished)[:10] or "undated"
    return f"{name.removesuffix(f'-{first.preset}')}_{first.preset}_{_hardware(first.hardware)}_{day}"


def _hardware(hardware: Mapping[str, str]) -> str:
    """``2cores``, or the GPU's model: ``h100``."""
    gpu = hardware.get("gpu", "none")
    if gpu == "none":
        return f"{hardware.get('cores', 'some')}cores"
    return next(iter(re.findall(r"[a-z]+\d+", gpu.lower())), "gpu")


def keep(source: Path, target: Path) -> list[Path]:
    """Copy what is worth keeping of a results directory, and write its ``records.csv`` and ``table.md``; their paths.

    Raises InputError where there is no record, and where ``target`` has a trial that ``source`` lacks: the page would
    mix two sweeps.
    """
    runs = load_runs(source)
    if not runs:
        raise InputError(f"{source}: no trials/*/record.json in it")
    for other in sorted(target.glob("trials/*/record.json")):
        if not (source / other.relative_to(target)).exists():
            raise InputError(f"{other} is no trial of {source}: remove {target}, or keep under another name")
    copied = []
    for path in sorted(x for pattern in KEPT_FILES for x in source.glob(pattern)):
        copied.append(target / path.relative_to(source))
        copied[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied[-1])
    return [*copied, *write_tables(target, runs)]


def write_tables(directory: Path, runs: Sequence[Run]) -> list[Path]:
    """Write ``records.csv`` and ``table.md`` of a study's runs; their paths."""
    csv, table = directory / "records.csv", directory / "table.md"
    records = [run.record for run in runs]
    write_csv(frame(records), csv)
    write_text(table, markdown(main_table(runs, sweep_of(directory, records)), title=False))
    return [csv, table]


@dataclass(frozen=True)
class Family:
    """A detector's arms: the baseline that they are compared with, and LGD whole ("" where it was not trained)."""

    detector: str
    baseline: str
    lgd: str
    arms: tuple[Arm, ...]

    def whole_of(self, arm: Arm) -> str:
        """The arm with a verdict of its own that ``arm`` differs least from in its changes; "" for another method's.

        ``ours without encoder`` is a variant of ``LGD residual (ours)``, ``without encoder`` one of ``LGD``.
        """
        if not arm.changes or "method.name" in arm.changes:
            return ""
        missing = object()

        def differing(other: Arm) -> int:
            keys = arm.changes.keys() | other.changes.keys()
            return sum(arm.changes.get(key, missing) != other.changes.get(key, missing) for key in keys)

        wholes = [x for x in self.arms if x.answers and x.name != arm.name and "method.name" not in x.changes]
        return min(wholes, key=differing).name if wholes else ""


@dataclass(frozen=True)
class Study:
    """Runs of one grid in one directory."""

    directory: Path
    runs: tuple[Run, ...]
    grid: Grid

    @property
    def name(self) -> str:
        return self.directory.name

    @cached_property
    def records(self) -> list[Record]:
        return [run.record for run in self.runs]

    @cached_property
    def families(self) -> list[Family]:
        by_baseline: dict[str, list[Arm]] = {}
        trained = {arm_of(record) for record in self.records}
        for arm in self.grid.arms:
            if arm.name in trained:
                by_baseline.setdefault(self.grid.references[arm.name], []).append(arm)
        return [
            Family(
                self._detector(baseline, arms),
                baseline,
                next((x.name for x in arms if not x.changes), ""),
                tuple(arms),
            )
            for baseline, arms in by_baseline.items()
        ]

    def _detector(self, baseline: str, arms: Sequence[Arm]) -> str:
        """Named by the baseline, ``FCOS baseline``, or by the records of its arms."""
        if baseline.endswith(" baseline"):
            return baseline.removesuffix(" baseline")
        names = {arm.name for arm in arms}
        label = next(r.experiment.detector.label for r in self.records if arm_of(r) in names)
        return {str(key): title for key, title in DETECTORS.items()}.get(label, label)

    @property
    def data(self) -> str:
        return " and ".join(dict.fromkeys(Path(r.experiment.data.source).name for r in self.records))

    @property
    def steps(self) -> int:
        """Steps of the first arm; in most grids those of all that are not trained for equal time."""
        return self.records[0].experiment.schedule.steps

    @property
    def lengths(self) -> str:
        """Steps of all arms that are not trained for equal time: ``80 / 160``."""
        timed = {arm.name for arm in self.grid.arms if arm.time_budget_from}
        steps = {r.experiment.schedule.steps for r in self.records if arm_of(r) not in timed}
        return " / ".join(map(str, sorted(steps or {self.steps})))

    @property
    def preset(self) -> str:
        """The preset's name of today."""
        return self.records[0].preset

    @property
    def last(self) -> str:
        """When its last training finished; "" where no record says."""
        return max(record.finished for record in self.records)

    @property
    def network(self) -> str:
        """Detector, backbone and what training starts from, in words; of all that were trained."""
        return " and ".join(dict.fromkeys(_network(record.experiment.detector) for record in self.records))

    @property
    def images(self) -> str:
        """How many training images there were, the parts that arms were trained on included: ``125, 500 and 2000``."""
        found = {
            round(count * record.experiment.data.train_fraction)
            for record in self.records
            if isinstance(count := record.data.get("train_images"), int)
        }
        *most, last = map(str, sorted(found)) if found else ["an unknown number of"]
        return " and ".join([", ".join(most), last] if most else [last])

    @property
    def on_gpu(self) -> bool:
        return all(map(on_gpu, self.records))

    @cached_property
    def _finished(self) -> dict[str, dict[int, Record]]:
        return {arm: finished(self.records, arm) for arm in {arm_of(record) for record in self.records}}

    @cached_property
    def never_ahead(self) -> list[str]:
        """The arms whose teacher was never better than its student."""
        return arms_never_ahead(self.records)

    def finished(self, arm: str) -> dict[int, Record]:
        """By seed; none for an arm that was not trained."""
        return self._finished.get(arm, {})

    def values(self, arm: str, value: Value) -> dict[int, float]:
        """By seed."""
        return by_seed(self.finished(arm), value)

    def cost(self, arm: str, other: str, value: Value = cost_seconds) -> Ratio | None:
        """Of the seeds that both trained on like hardware."""
        return cost_ratio(self.finished(arm), self.finished(other), value)

    def mean(self, arm: str, value: Value) -> float | None:
        found = self.values(arm, value).values()
        return fmean(found) if found else None

    def lead(self, arm: str) -> Difference | None:
        """The AP of the arm's teacher over its own."""
        return paired_difference(self.values(arm, teacher_ap), self.values(arm, AP))

    def difference(self, arm: str, other: str, value: Value = AP) -> Difference | None:
        """``arm`` less ``other``, paired by seed."""
        return paired_difference(self.values(arm, value), self.values(other, value))


def _network(detector: Detector) -> str:
    title = {str(key): title for key, title in DETECTORS.items()}.get(detector.label, detector.label)
    backbone = f" on {detector.backbone_label.partition(':')[2] or detector.backbone_label}"
    if detector.is_pretrained:
        start = " from a trained detector's weights"
    elif detector.initial_weights == NO_WEIGHTS:
        # A network of timm has the width that it was made with.
        timm = detector.backbone_label.startswith(TIMM)
        start = " from scratch" if timm else f" of width {detector.backbone.resolved_width} from scratch"
    else:
        start = " with ImageNet weights" if detector.is_built_in else ""
    return f"{title}{backbone if detector.backbone_label else ''}{start}"


def load_studies(directories: Iterable[Path]) -> list[Study]:
    """A study of each directory. Raises InputError for a directory without a run of a grid."""
    return [_load_study(directory) for directory in directories]


def _load_study(directory: Path) -> Study:
    """The runs of the directory's grid: of several, that of its sweep.json, or else the one with most runs."""
    runs = _as_of_today(load_runs(directory))
    counts = Counter(run.record.grid for run in runs if run.record.grid in NAMES)
    if not counts:
        raise InputError(f"{directory}: no run of a grid in it")
    spec = SweepSpec.read(directory) if (directory / SWEEP_FILE).exists() else None
    described = spec is not None and spec.grid in counts
    name = spec.grid if spec is not None and described else counts.most_common(1)[0][0]
    ours = tuple(run for run in runs if run.record.grid == name)
    size = ours[0].record.preset
    own = spec.model_copy(update={"preset": size}).whole_grid if spec is not None and described else grid(name, size)
    return Study(directory, ours, as_shown(own, [run.record for run in ours]))


def _as_of_today(runs: Sequence[Run]) -> list[Run]:
    """With the preset's name of today: what ``tiny`` trained before it had its ImageNet backbones is ``nano`` now."""
    ours = [run.record for run in runs if run.record.preset == "tiny"]
    backbones = [record.experiment.detector.backbone for record in ours]
    # Those of today may be trained from scratch, too.
    if any(not x.from_scratch or x.name.startswith(TIMM) for x in backbones):
        return list(runs)
    return [
        run._replace(record=run.record.model_copy(update={"preset": "nano"})) if run.record.preset == "tiny" else run
        for run in runs
    ]


# -------------------------------------------------------------------------------------------- comparisons

COLUMNS = {
    **dict.fromkeys(("study", "data", "device", "detector", "arm", "other", "kind", "verdict"), "string"),
    **dict.fromkeys(("steps", "pairs"), "Int64"),
    **dict.fromkeys(("AP", "other_AP", "gain", "gain_low", "gain_high", "cost"), "Float64"),
    "never_ahead": "boolean",
}


def comparisons(studies: Iterable[Study]) -> pd.DataFrame:
    """Every pair of arms that a study compares, a row a pair. Columns:

    - ``study`` (its directory), ``data``, ``device`` (GPU or CPU), ``steps``, ``detector``, ``arm``;
    - ``other``: the arm that it is compared with; ``kind``: ``baseline`` (after equal steps), ``LGD`` (an arm against
      the one it is a variant of, such as LGD whole, after equal steps), ``equal time`` (an arm against one that had
      its training time), ``longer`` (that one against itself after the shared steps) or ``again`` (a baseline's second
      training against the first);
    - ``AP``, ``other_AP``: percent, means over the seeds that both finished;
    - ``gain``, ``gain_low``, ``gain_high``: arm less other, points, over ``pairs`` seeds; ``verdict``: see
      :func:`analysis.stats.differences.verdict`;
    - ``cost``: device-seconds of the training, its frozen teacher's included, over the other's, over the same seeds;
    - ``never_ahead``: whether the arm has a teacher that was never better than its student.
    """
    rows = [
        _row(study, family, arm, other, kind)
        for study in studies
        for family in study.families
        for arm, other, kind in _pairs(family)
    ]
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=dtype) for name, dtype in COLUMNS.items()})


def _pairs(family: Family) -> Iterator[tuple[str, str, str]]:
    for arm in family.arms:
        if arm.time_budget_from:
            yield arm.time_budget_from, arm.name, "equal time"
            yield arm.name, arm.steps_from, "longer"
        elif is_again(arm.name):
            yield arm.name, family.baseline, "again"
        elif arm.name != family.baseline:
            yield arm.name, family.baseline, "baseline"
            whole = family.whole_of(arm)
            if whole:
                yield arm.name, whole, "LGD"


def _row(study: Study, family: Family, arm: str, other: str, kind: str) -> dict[str, Any]:
    gain = study.difference(arm, other)
    seeds = gain.seeds if gain else ()
    cost = study.cost(arm, other)
    return {
        "study": study.name,
        "data": study.data,
        "device": "GPU" if study.on_gpu else "CPU",
        "steps": study.steps,
        "detector": family.detector,
        "arm": arm,
        "other": other,
        "kind": kind,
        "AP": _mean_over(seeds, study.values(arm, AP)),
        "other_AP": _mean_over(seeds, study.values(other, AP)),
        "gain": gain and gain.mean,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
        "pairs": gain.n if gain else 0,
        "verdict": verdict(gain.low, gain.high) if gain else "",
        "cost": cost and cost.value,
        "never_ahead": arm in study.never_ahead,
    }


def _mean_over(seeds: Sequence[int], values: Mapping[int, float]) -> float | None:
    return fmean(values[seed] for seed in seeds) if seeds else None
