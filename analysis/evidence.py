"""Does it help? ``docs/evidence.md``, wholly from records: tables, curves, costs and what may be concluded from them.

python -m analysis.evidence results/evidence-tiny results/noise-floor-tiny --keep benchmarks/results
python -m analysis.evidence benchmarks/results/evidence* benchmarks/results/noise-floor*

What only a person can judge is read from ``notes.md`` in a results directory and put in as it is.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import matplotlib as mpl

from analysis.arms import CONFIDENCE, noise_floor, number, quantity, rows_of, show_noise_floor, with_interval
from analysis.charts import curves
from analysis.figures import STYLE, arms_figure, save
from analysis.html_report import training_command
from analysis.load import (
    Run,
    arm_of,
    by_seed,
    finished,
    frame,
    load_runs,
    score,
    teacher_ap,
    training_device_seconds,
    write_csv,
)
from analysis.render import NONE, Shown, markdown
from analysis.report import main_table, order
from analysis.stats import Difference, paired_difference, paired_ratio
from analysis.tables import arms_shown, notes
from lgd.cli import Parser, answer
from lgd.config.grids import EVIDENCE, NOISE_FLOOR, Arm, Grid, grid
from lgd.errors import InputError
from lgd.files import write_text
from lgd.results.record import EvaluationPoint, Record

NOTES = "notes.md"
"""In a results directory: a person's reading of it."""

KEPT = ("sweep.json", NOTES, "trials/*/record.json", "trials/*/metrics.json", "trials/*/error.txt")
"""What is worth keeping of a results directory: records and logs, no weights.

A sweep goes on from these: what has a record is not run again. So nothing of FGFI's teachers, whose record would pass
for their weights; what they cost is in the records of the runs that use them.
"""

Value = Callable[[Record], float | None]

AP: Value = score("AP")


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
    for path in sorted(x for pattern in KEPT for x in source.glob(pattern)):
        copied.append(target / path.relative_to(source))
        copied[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied[-1])
    records = [run.record for run in runs]
    write_csv(frame(records), target / "records.csv")
    write_text(target / "table.md", markdown(main_table(runs, order(source, records)), title=False))
    return [*copied, target / "records.csv", target / "table.md"]


@dataclass(frozen=True)
class Study:
    """Runs of the grid in one directory.

    mark: what tells its title from another's. families: by the arm that they are compared with, its arms in order.
    """

    directory: Path
    runs: tuple[Run, ...]
    grid: Grid
    mark: str = ""

    @property
    def records(self) -> list[Record]:
        return [run.record for run in self.runs]

    @property
    def families(self) -> dict[str, list[Arm]]:
        found: dict[str, list[Arm]] = {}
        there = {arm_of(record) for record in self.records}
        for arm in self.grid.arms:
            if arm.name in there:
                found.setdefault(self.grid.references[arm.name], []).append(arm)
        return found

    @property
    def title(self) -> str:
        data = " and ".join(dict.fromkeys(Path(r.experiment.data.source).name for r in self.records))
        steps = self.records[0].experiment.schedule.steps
        return f"Preset {self.records[0].preset}, data {data}, {steps} steps{self.mark}"

    @property
    def on_gpu(self) -> bool:
        return all(r.hardware.get("gpu", "none") != "none" for r in self.records)

    def values(self, arm: str, value: Value) -> dict[int, float]:
        """By seed."""
        return by_seed(finished(self.records, arm), value)

    def over(self, arm: str, reference: str, value: Value = AP) -> Difference | None:
        """``arm`` less ``reference``, paired by seed."""
        return paired_difference(self.values(arm, value), self.values(reference, value), CONFIDENCE)

    def mean(self, arm: str, value: Value) -> float | None:
        found = self.values(arm, value).values()
        return fmean(found) if found else None


def studies(directories: Iterable[Path]) -> tuple[list[Study], list[tuple[Path, list[Run]]]]:
    """The runs of the evidence grid, and those of the noise floor with their directory, by directory."""
    found, floors = [], []
    for directory in directories:
        runs = load_runs(directory)
        ours = tuple(run for run in runs if run.record.grid == EVIDENCE)
        floor = [run for run in runs if run.record.grid == NOISE_FLOOR.name]
        if ours:
            found.append(Study(directory, ours, grid(EVIDENCE, ours[0].record.preset)))
        if floor:
            floors.append((directory, floor))
        if not ours and not floor:
            raise InputError(f"{directory}: no run of the grids {EVIDENCE} and {NOISE_FLOOR.name} in it")
    titles = [study.title for study in found]
    marked = [replace(x, mark=f" ({x.directory.name})") if titles.count(x.title) > 1 else x for x in found]
    return marked, floors


# ------------------------------------------------------------------------------------------------ in words


def told(found: Difference | None) -> str:
    """What an interval decides: ``more``, ``less``, ``noise``; "" where there is none."""
    if found is None or found.low is None or found.high is None:
        return ""
    return "more" if found.low > 0 else "less" if found.high < 0 else "noise"


VERDICTS = {
    "more": "more, beyond noise",
    "less": "less, beyond noise",
    "noise": "not to be told from noise",
    "": "one seed in common or none, which decides nothing",
}


def shown(found: Difference | None) -> str:
    return NONE if found is None else with_interval(found.mean, found.low, found.high)


def in_thousandths(found: Difference | None) -> str:
    """As :func:`shown`, with three decimals: of losses."""
    if found is None:
        return NONE
    interval = "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.mean:+.3f}{interval}"


def whole_cost(record: Record) -> float | None:
    """Device-seconds of the training, a frozen teacher's whole one included."""
    seconds = training_device_seconds(record)
    return None if seconds is None else seconds + (record.pretraining.full if record.pretraining else 0.0)


def own_loss(record: Record) -> float | None:
    """The student's detection losses at the end of the training, summed: mean over the last fifth of their curves."""
    own = [x for name, x in record.losses.items() if name not in ("total_loss", "loss_distill") and "/" not in name]
    if not own or not all(own):
        return None
    return sum(fmean(value for _, value in curve[-max(len(curve) // 5, 1) :]) for curve in own)


def last_rise(record: Record) -> float | None:
    """What the AP rose by between the last two evaluations, points."""
    points = [x.student.AP for x in record.evaluations if x.student.AP is not None]
    return points[-1] - points[-2] if len(points) > 1 else None


# ------------------------------------------------------------------------------------------------- document


def document(directories: Sequence[Path], output: Path) -> str:
    """The page that lies in ``output``. Draws its figures into the results directories.

    Raises InputError for a directory without runs of the two grids.
    """
    found, floors = studies(directories)
    parts = [
        "# Does it help?",
        "Every number here comes from the records in the directories named below; intervals are two-sided"
        f" {CONFIDENCE:.0%} Student t intervals of differences paired by seed (within a seed, each arm of a detector"
        " starts from the same weights and sees the same pictures in the same order). Each interval is for itself: of"
        " twenty arms that do nothing, one is expected to look as if it did something. Rebuild with",
        code([f"python -m analysis.evidence {' '.join(map(str, directories))} --output {output}"]),
    ]
    if found:
        parts += ["## In short", *(bullets(in_short(study)) for study in found)]
    for study in found:
        parts += [f"## {study.title}", *_study(study, output)]
    for directory, runs in floors:
        parts += ["## What a seed is worth", *_floor(directory, runs)]
    if not any(study.on_gpu for study in found):
        parts += ["## On a GPU", PREPARED]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def code(lines: Iterable[str]) -> str:
    return "\n".join(["```sh", *lines, "```"])


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


PREPARED = """No run on a GPU is among these records. It is prepared: the first command trains the same grid with a
ResNet-18, each detector's FGFI besides and every arm in LGD's time besides, on real pictures, the second on made ones at a
GPU's scale; each ends when its time is over. The third goes on from the checkpoints, as often as it takes.

```sh
python ablations/run.py --grid evidence --preset small --data voc:../shared/data/bccd --seeds 5 --max-time 8m --output results/evidence-bccd
python ablations/run.py --grid evidence --preset small --seeds 5 --max-time 8m --output results/evidence-shapes
python ablations/run.py --resume results/evidence-bccd --max-time 8m
python -m analysis.evidence results/evidence-bccd --keep benchmarks/results
```

The directory may be carried to another machine and resumed there (`--data voc:DIR` where the pictures lie elsewhere); keep
to one kind of machine, for the steps of equal time follow from what training cost. Where weights are too large to carry,
what `--keep` leaves will do: what has a record is not run again, a training that was cut begins anew, and so does an FGFI
teacher that is still needed."""  # noqa: E501  commands are one line


def in_short(study: Study) -> Iterator[str]:
    """What the study says of LGD, a line a detector and comparison, and which other arms helped."""
    where = "a GPU" if study.on_gpu else "the CPU"
    for reference, arms in study.families.items():
        for arm in arms:
            lgd = arm.time_budget_from
            if lgd and arm.steps_from == reference:
                ahead = study.over(lgd, arm.name)
                yield f"{study.title}, {where}: {sentence(lgd, 'the baseline trained for as long', ahead)}"
            elif not lgd and arm.name != reference:
                gain = study.over(arm.name, reference)
                if gain is not None and (not arm.changes or told(gain) == "more"):
                    yield f"{study.title}, {where}: {sentence(arm.name, 'the baseline after as many steps', gain)}"


def sentence(arm: str, other: str, found: Difference | None) -> str:
    seeds = f", {found.n} seed{'s' * (found.n > 1)}" if found else ""
    return f"{arm} against {other}: AP {shown(found)}{seeds}: {VERDICTS[told(found)]}."


def _study(study: Study, output: Path) -> Iterator[str]:
    yield warning(study)
    yield "Trained with"
    yield code([training_command(study.directory, f"results/{study.directory.name}")])
    each = {
        reference: notes(_of(study, arms), [arm.name for arm in arms], reference)
        for reference, arms in study.families.items()
    }
    common = [line for line in next(iter(each.values())) if all(line in lines for lines in each.values())]
    dates = sorted(x for r in study.records for x in (r.started, r.finished) if x)
    when = [f"Between {dates[0]} and {dates[-1]}; {len(study.runs)} trainings."] if dates else []
    yield bullets([*common, *when, *order(study.directory, study.records).not_run])
    for reference, arms in study.families.items():
        own = [line for line in each[reference] if line not in common]
        yield from _family(study, reference, arms, own, output)
    yield "### In equal time"
    yield from _equal_time(study)
    yield "### What helped, what did not, what is noise"
    yield from _decided(study)
    written = study.directory / NOTES
    if written.exists():
        yield written.read_text(encoding="utf-8")


def _of(study: Study, arms: Sequence[Arm]) -> list[Record]:
    names = {arm.name for arm in arms}
    return [record for record in study.records if arm_of(record) in names]


def warning(study: Study) -> str:
    """That a small study is one, in a quotation; "" for one at the paper's size."""
    first = study.records[0]
    if first.preset == "paper" and study.on_gpu:
        return ""
    e = first.experiment
    width, place = e.detector.backbone.resolved_width, "a GPU" if study.on_gpu else "a CPU"
    batches = " or ".join(map(str, sorted({r.experiment.schedule.batch for r in study.records})))
    return (
        f"> **Preset {first.preset} on {place}: no evidence for or against the method at the paper's size.** Backbones"
        f" are a {e.detector.backbone.name} of width {width} from scratch, trained for {e.schedule.steps} steps of"
        f" {batches} images on {first.data.get('train_images', 'unknown')} pictures of shorter side"
        f" {min(e.data.min_sizes)} to {max(e.data.min_sizes)}."
    )


def _family(study: Study, reference: str, arms: Sequence[Arm], own: Sequence[str], output: Path) -> Iterator[str]:
    """Tables and figures of one detector."""
    title, names, records = reference.removesuffix(" baseline"), [arm.name for arm in arms], _of(study, arms)
    yield f"### {title}"
    yield markdown(replace(arms_shown(records, names, reference), notes=own), title=False)
    yield markdown(_beyond(study, reference, names), title=False)
    stem = title.lower().replace(" ", "-")
    drawn = arms_figure(records, names, reference, study.directory / f"{stem}-arms")
    yield picture(f"AP and training cost of each arm of {title}", drawn[0], output)
    runs = [run for name in names for run in study.runs if arm_of(run.record) == name]
    with mpl.rc_context(STYLE):
        figure = curves(runs)
        if figure is not None:
            drawn = save(figure, study.directory / f"{stem}-curves")
            yield picture(f"AP of {title} while training", drawn[0], output)
    grown = _while_training(study, arms)
    if grown.rows:
        yield markdown(grown, title=False)
    rise = study.mean(reference, last_rise)
    if rise is not None:
        points = finished(study.records, reference).values()
        steps = {(r.evaluations[-2].step, r.evaluations[-1].step) for r in points if len(r.evaluations) > 1}
        between = " / ".join(f"step {a} and step {b}" for a, b in sorted(steps))
        yield f"Between {between} the baseline's AP rose by {number(rise)} points (mean over seeds)."


OWN_LOSS = (
    "Own losses: the student's detection losses in training, summed, mean over the last fifth of the curve: how well it"
    " fits, not how well it detects on other pictures."
)
DEVICE_S = "device-s: of the training (lgd/results/cost_meter.py), evaluations left out, a frozen teacher's whole training included."
ATTENTION = (
    "Attention to the own label: 0, each object sees all labels of its image alike; 1, its own alone"
    " (lgd/methods/label_guided/label_use.py)."
)
LABEL_USE = (
    "Label use: how far the instructive features inside boxes change when every class is exchanged for the next: 0,"
    " not at all, the teacher does not hear what it is told; 1, nothing in common is left. An untrained teacher's is"
    " high, so that only low values tell (lgd/methods/label_guided/label_use.py)."
)


def at_the_end(of: Callable[[EvaluationPoint], float | None]) -> Value:
    """What the last evaluation of a training found."""
    return lambda record: of(record.evaluations[-1]) if record.evaluations else None


@dataclass(frozen=True)
class Measure:
    """What an evaluation measures of a teacher besides its scores: its name in tables, and what a value says."""

    name: str
    of: Callable[[EvaluationPoint], float | None]
    note: str


MEASURES = (
    Measure("attention to the own label", lambda x: x.attention, ATTENTION),
    Measure("label use", lambda x: x.label_use, LABEL_USE),
)
"""Each is a column of what was found at the end, and a row of what was found on the way, where it was measured."""


def _beyond(study: Study, reference: str, arms: Sequence[str]) -> Shown:
    """What the first table leaves out: the other scores, LGD whole as the reference, and device-seconds."""
    whole = next((x.name for x in study.grid.arms if not x.changes and x.name in arms), "")
    columns = [x for x in MEASURES if any(study.mean(arm, at_the_end(x.of)) is not None for arm in arms)]
    rows = []
    for arm in arms:
        plain = arm == reference
        ratio = paired_ratio(study.values(arm, whole_cost), study.values(reference, whole_cost))
        rows.append(
            [
                arm,
                *(NONE if plain else shown(study.over(arm, reference, score(x))) for x in ("AP50", "AP75")),
                NONE if plain or arm == whole else shown(study.over(arm, whole)),
                shown(paired_difference(study.values(arm, teacher_ap), study.values(arm, AP), CONFIDENCE)),
                NONE if plain else in_thousandths(study.over(arm, reference, own_loss)),
                *(_measured(study, arm, at_the_end(x.of)) for x in columns),
                quantity(study.mean(arm, whole_cost), "s"),
                NONE if ratio is None else quantity(ratio.value, "x"),
            ]
        )
    return Shown(
        "",
        [
            *("arm", "AP50 over baseline", "AP75 over baseline", "AP over LGD", "teacher AP over the student's"),
            "own losses over baseline",
            *(x.name for x in columns),
            *("device-s", "times the baseline's"),
        ],
        rows,
        [OWN_LOSS, DEVICE_S, *(x.note for x in columns)],
    )


WATCHED: tuple[tuple[str, Callable[[EvaluationPoint], float | None], int], ...] = (
    ("", lambda x: x.student.AP, 1),
    (": its teacher", lambda x: x.teacher.AP if x.teacher else None, 1),
    *((f": {x.name}", x.of, 2) for x in MEASURES),
)
"""What a row of the table of a training's course shows after the arm's name, and with how many decimals."""


def _while_training(study: Study, arms: Sequence[Arm]) -> Shown:
    """AP and what else is WATCHED at the steps of the curves, means over the seeds that have it; no curve, no rows.

    Arms in equal time are left out: their steps are others.
    """
    found: dict[str, dict[int, str]] = {}
    for arm in (x for x in arms if not x.time_budget_from):
        records = finished(study.records, arm.name).values()
        points = [point for record in records if len(record.evaluations) > 1 for point in record.evaluations]
        for what, value, digits in WATCHED:
            by_step: dict[int, list[float]] = {}
            for point in points:
                x = value(point)
                if x is not None:
                    by_step.setdefault(point.step, []).append(x)
            if by_step:
                found[arm.name + what] = {step: f"{fmean(xs):.{digits}f}" for step, xs in by_step.items()}
    steps = sorted({step for row in found.values() for step in row})
    rows = [[name, *(row.get(step, NONE) for step in steps)] for name, row in found.items()]
    return Shown("", ["mean over seeds, after step", *map(str, steps)], rows)


def _measured(study: Study, arm: str, value: Value) -> str:
    """The mean, and over how many seeds where others lack it: it may be younger than their records."""
    found, of_all = study.values(arm, value), len(finished(study.records, arm))
    if not found:
        return NONE
    mean = f"{fmean(found.values()):.2f}"
    return f"{mean} ({len(found)} of {of_all} seeds)" if len(found) < of_all else mean


def picture(text: str, path: Path, output: Path) -> str:
    return f"![{text}]({Path(os.path.relpath(path, output.parent)).as_posix()})"


def _equal_time(study: Study) -> Iterator[str]:
    rows, said = [], []
    for reference, arms in study.families.items():
        for arm in (x for x in arms if x.time_budget_from):
            longer, ahead = study.over(arm.name, arm.steps_from), study.over(arm.time_budget_from, arm.name)
            steps = {r.experiment.schedule.steps for r in finished(study.records, arm.name).values()}
            rows.append(
                [
                    arm.steps_from,
                    " / ".join(map(str, sorted(steps))) or NONE,
                    *(quantity(study.mean(x, training_device_seconds), "s") for x in (arm.name, arm.time_budget_from)),
                    *(number(study.mean(x, AP)) for x in (arm.name, arm.time_budget_from)),
                    shown(ahead),
                    shown(longer),
                ]
            )
            said.append(sentence(arm.time_budget_from, f"{arm.steps_from} in equal time", ahead))
            if arm.steps_from == reference:
                title = reference.removesuffix(" baseline")
                said.append(
                    f"{title}: as many device-seconds as LGD's change the baseline's AP by {shown(longer)}: "
                    + {
                        "more": "it had not converged after the steps that all arms share.",
                        "noise": "no sign that the steps that all arms share were too few for it.",
                        "less": "more steps made it worse.",
                        "": VERDICTS[""] + ".",
                    }[told(longer)]
                )
    if not rows:
        yield "No arm was trained in equal time."
        return
    header = [
        *("arm in LGD's time", "its steps", "device-s", "LGD's", "AP", "LGD's"),
        *("LGD over it", "it over itself after the shared steps"),
    ]
    note = (
        "Its steps are the shared steps times what LGD cost against it, in device-seconds of training over the seeds"
        " that the sweep was begun with, as measured by its first part (ablations/equal_time.py); a frozen teacher's"
        " training is not counted."
    )
    yield markdown(Shown("", header, rows, [note]), title=False)
    yield bullets(said)


def _decided(study: Study) -> Iterator[str]:
    """Every comparison after equal steps under what its interval decides; LGD's parts against LGD whole besides."""
    groups: dict[str, list[str]] = {key: [] for key in VERDICTS}
    count = 0
    for reference, arms in study.families.items():
        names = [x for x in arms if x.name != reference and not x.time_budget_from]
        whole = next((x.name for x in names if not x.changes), "")
        for arm in names:
            is_part = whole and arm.changes and "method.name" not in arm.changes
            for other in [reference, whole] if is_part else [reference]:
                found = study.over(arm.name, other)
                groups[told(found)].append(f"{arm.name} over {other}: {shown(found)}")
                count += bool(told(found))
    heads = {
        "more": "**Helped: more AP than what it is compared with.**",
        "less": "**Did harm: less AP.**",
        "noise": "**Not to be told from noise.**",
        "": "**Not decided, for want of seeds.**",
    }
    for key, lines in groups.items():
        if lines or key:
            yield f"{heads[key]}\n\n{bullets(lines) if lines else 'None.'}"
    if count:
        chance = count * (1 - CONFIDENCE)
        yield f"{count} comparisons have an interval: by chance alone, {chance:.1f} of those would leave zero out."
    if any(arm_of(run.record).endswith("FGFI") for run in study.runs):
        yield (
            "All seeds of an FGFI arm imitate one teacher, trained once: its intervals do not hold what another teacher"
            " would have changed."
        )


def _floor(directory: Path, runs: Sequence[Run]) -> Iterator[str]:
    table = noise_floor(runs)
    records = [run.record for run in runs]
    arms = list(dict.fromkeys(map(arm_of, records)))
    yield "Trained with"
    yield code([training_command(directory, f"results/{directory.name}")])
    yield markdown(show_noise_floor(table), title=False)
    yield bullets(x for x in notes(records, arms, arms[0]) if x.startswith(("Preset", "Hardware", "Versions")))
    for row in rows_of(table):
        if row["sd"] is not None:
            yield (
                f"Between {row['seeds']} seeds of one training AP has a standard deviation of {row['sd']:.2f} points."
                f" Were two arms independent, the interval of their difference over five seeds each would be"
                f" ±{row['detectable_5']:.2f} points; what pairing gains over that shows in the intervals above."
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on stderr for wrong input."""
    return answer(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m analysis.evidence", description="Write docs/evidence.md from recorded runs.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results directories")
    parser.add_argument("--output", type=Path, default=Path("docs/evidence.md"), metavar="FILE")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="copy each RESULTS there first, without weights, and build from that"
    )
    options = parser.parse_args(arguments)
    places: list[Path] = options.results
    if options.keep:
        kept = [options.keep / place.resolve().name for place in places]
        for place, target in zip(places, kept, strict=True):
            print(f"kept {len(keep(place, target))} files in {target}")
        places = kept
    write_text(options.output, document(places, options.output))
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
