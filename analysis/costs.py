"""What an arm cost beside another: of trainings on like hardware alone, since other seconds do not compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean, median
from typing import NamedTuple, cast

from analysis.load import by_seed, cost_seconds
from analysis.stats.differences import Ratio, paired_ratio
from lgd.results.record import Record

Runs = Mapping[int, Record]
"""By seed."""

SAME_CORES = 0.1
"""How far apart the cores that two trainings got may be for their seconds to compare."""


def hardware_of(record: Record) -> tuple[str, ...]:
    """What decides how long a step takes: the GPU's name and memory, or the processor and its cores."""
    return _named(record.hardware)


def _named(hardware: Mapping[str, str]) -> tuple[str, ...]:
    gpu = hardware.get("gpu", "none")
    if gpu != "none":
        # "8 x NAME, MEMORY": how many a node has does not change what one of them takes.
        return (gpu.partition(" x ")[2] or gpu,)
    return hardware.get("cpu", ""), hardware.get("cores", "")


def _is_of_one_kind(record: Record) -> bool:
    """Whether a teacher that was trained for it was trained on hardware like its own, as far as that is known."""
    teacher = record.pretraining
    return teacher is None or not teacher.hardware or _named(teacher.hardware) == hardware_of(record)


def on_commonest_hardware(records: Iterable[Record]) -> list[Record]:
    """The records trained on the hardware that most of them were trained on: their seconds compare."""
    found = list(records)
    commonest = Counter(map(hardware_of, found)).most_common(1)
    return [x for x in found if commonest and hardware_of(x) == commonest[0][0]]


def on_like_hardware(runs: Runs, others: Runs) -> tuple[dict[int, Record], dict[int, Record]]:
    """Of both, the runs whose seed was trained on like hardware twice, teachers included."""
    seeds = [
        x
        for x in runs
        if x in others
        and hardware_of(runs[x]) == hardware_of(others[x])
        and all(map(_is_of_one_kind, (runs[x], others[x])))
    ]
    return {x: runs[x] for x in seeds}, {x: others[x] for x in seeds}


def cost_ratio(arm: Runs, reference: Runs, read: Callable[[Record], float | None] = cost_seconds) -> Ratio | None:
    """Cost of the arm over the reference's, over the seeds trained on like hardware; None where there is none."""
    ours, theirs = on_like_hardware(arm, reference)
    return paired_ratio(by_seed(ours, read), by_seed(theirs, read))


class LongerCost(NamedTuple):
    """Cost of a reference's longer training over an arm's."""

    ratio: float
    measured: float | None
    """What was measured where the processes got other parts of the cores and ``ratio`` is by the steps; else None."""


def cost_of_longer(longer: Runs, arm: Runs, reference: Runs) -> LongerCost | None:
    """Cost of the reference's longer training over the arm's; None where it cannot be told.

    As measured where the processes of both got as much of the cores. Otherwise by the steps, which cost what the
    reference's own do: a machine that was busier meanwhile makes a training no longer.
    """
    measured, cost = cost_ratio(longer, arm), cost_ratio(arm, reference)
    cores = [_own_cores(x) for x in (longer, arm)]
    if measured and (None in cores or abs(cast(float, cores[0]) / cast(float, cores[1]) - 1) <= SAME_CORES):
        return LongerCost(measured.value, None)
    steps = [[x.experiment.schedule.steps for x in runs.values()] for runs in (longer, reference)]
    if cost is None or not all(steps):
        return None
    return LongerCost(fmean(steps[0]) / fmean(steps[1]) / cost.value, measured.value if measured else None)


def _own_cores(runs: Runs) -> float | None:
    """CPU cores that the trainings used themselves, the mean; None where no record says, and on GPUs.

    A GPU's steps hardly wait for cores.
    """
    on_cpu = [x for x in runs.values() if x.hardware.get("gpu", "none") == "none"]
    found = [x.contention.own_cores for x in on_cpu if x.contention is not None]
    return fmean(found) if found and min(found) > 0 else None


def extra_cost(arm: Runs, reference: Runs, read: Callable[[Record], float | None] = cost_seconds) -> float | None:
    """Cost of the arm less the reference's, the median over the seeds of :func:`cost_ratio`; in what ``read`` gives."""
    ours, theirs = (by_seed(x, read) for x in on_like_hardware(arm, reference))
    differences = [ours[x] - theirs[x] for x in ours.keys() & theirs.keys()]
    return median(differences) if differences else None
