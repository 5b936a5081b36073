"""Searches without Ray: what a driver asks and tells, and the records that trainings would leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablations.search.optuna_search import Search
from ablations.search.search_space import proposed_trial
from ablations.trial_config import RecordLabels, TrialConfig, trial_config
from ablations.tune.ray_trial import last_report
from lgd.config.experiment import parse
from lgd.config.grids import Trial
from lgd.config.presets import NANO
from lgd.distributed.resources import Resources
from lgd.results.record import EvaluationPoint, Record, Scores
from lgd.training.progress import EVALUATIONS_FILE
from lgd.training.run import failed_record

LGD_NANO = NANO.override({"method.name": "lgd"})


def base_of(search: Search) -> TrialConfig:
    labels = RecordLabels("components", "nano")
    return trial_config(Trial("", search.base, search.output), labels, search.output, Resources(1, 0, 1))


@contextmanager
def driver(search: Search) -> Iterator[Any]:
    """Its searcher."""
    with search.opened(base_of(search)) as (searcher, _, _):
        yield searcher


def end(
    search: Search, proposed: Mapping[str, Any], status: str = "finished", curve: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """Save the record of a proposed trial; its last report, as Tune keeps it. curve: AP by step."""
    trial = proposed_trial({**proposed, "base": base_of(search)})
    points = points_of(curve or {})
    scored = status in ("finished", "stopped") and points
    update = {
        "status": status,
        "steps": max(curve or {0: 0.0}),
        "evaluations": points,
        "student": points[-1].student if scored else None,
        "device_seconds": {"training": 60.0},
    }
    record: Record = failed_record(parse(trial["experiment"]), "", **trial["labels"]).model_copy(update=update)
    record.save(Path(trial["directory"]))
    return {key: x for key, x in last_report(record).items() if key != "record"}


def points_of(curve: Mapping[int, float]) -> list[EvaluationPoint]:
    scores = {step: Scores(AP=ap, AP50=None, AP75=None, APs=None, APm=None, APl=None) for step, ap in curve.items()}
    return [EvaluationPoint(step=step, student=x) for step, x in scores.items()]


def interrupt(search: Search, name: str, curve: Mapping[int, float]) -> None:
    """Leave what a trial that is killed has noted."""
    directory = search.output / "trials" / name
    directory.mkdir(parents=True)
    (directory / EVALUATIONS_FILE).write_text("".join(f"{x.model_dump_json()}\n" for x in points_of(curve)))


def progress(step: int, ap: float, evaluated: int) -> dict[str, Any]:
    """A trial's report on its way."""
    return {"step": step, "steps": 160, "AP": ap, "evaluated_step": evaluated, "training_iteration": step}
