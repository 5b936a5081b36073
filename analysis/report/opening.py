"""What stands at the top of a report: on what was trained, and what the names of the arms mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lgd.config.data_source import portable_source
from lgd.results.record import Record

SYNTHETIC = "shapes"

LGD = (
    "LGD (label-guided self-distillation): the detector, the student, learns to imitate the features of a teacher,"
    " which is made from the labels and the student's own features and dropped after training."
)

RESIDUAL = (
    " A residual teacher, an addition of ours and no part of the paper, starts as the student's own features and learns"
    " what to add to them."
)


def trained_on(records: Sequence[Record]) -> str:
    """The data, its images, and the steps, in a sentence; "" without a training that finished."""
    ended = [x for x in records if x.status == "finished"]
    if not ended:
        return ""
    parts = []
    for source in dict.fromkeys(portable_source(x.experiment.data.source) for x in ended):
        own = [x for x in ended if portable_source(x.experiment.data.source) == source]
        train, val = (_span(x.data.get(key) for x in own) for key in ("train_images", "val_images"))
        name = f"synthetic images ({source})" if source == SYNTHETIC else source
        images = [f"{train} to train on"] * bool(train) + [f"{val} to score"] * bool(val)
        parts.append(", ".join([name, *images]))
    steps, batch = (_span(getattr(x.experiment.schedule, name) for x in ended) for name in ("steps", "batch"))
    return f"Data: {'; '.join(parts)}. Trainings of {steps} steps of {batch} images."


def _span(values: Iterable[object]) -> str:
    """``160`` or ``160 to 1,280``; "" where no value is a number."""
    found = sorted({x for x in values if isinstance(x, int)})
    return " to ".join(f"{x:,}" for x in dict.fromkeys([found[0], found[-1]])) if found else ""


def words(records: Iterable[Record]) -> str:
    """What LGD and its teacher are, where any arm is LGD's, and what a residual one is, where any is; else ""."""
    methods = [x.experiment.method for x in records if x.experiment.method.name == "lgd"]
    if not methods:
        return ""
    return LGD + (RESIDUAL if any(getattr(x, "residual", False) for x in methods) else "")
