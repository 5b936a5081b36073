"""What Optuna's study is told of a trial: its learning curve, and how it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from lgd.results.record import EvaluationPoint
from lgd.storage import outputs
from lgd.training.progress import EVALUATIONS_FILE

Curve = dict[int, float]
"""AP in percent, by the steps after which it was evaluated."""


def curve_of(points: Iterable[EvaluationPoint]) -> Curve:
    return {x.step: x.student.AP for x in points if x.student.AP is not None}


def evaluations_so_far(directory: Path) -> list[EvaluationPoint]:
    """Of a training that did not end by itself; empty where they cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        outputs.fetch_notes(directory)
        lines = (directory / EVALUATIONS_FILE).read_text(encoding="utf-8").splitlines()
        return [EvaluationPoint.model_validate_json(line) for line in lines]
    return []


def curve_so_far(directory: Path) -> Curve:
    """Of a training that was interrupted; empty where nothing can be read."""
    return curve_of(evaluations_so_far(directory))


def report(trial: optuna.Trial, curve: Mapping[int, float]) -> None:
    """Report the part of the curve that the study does not have. With several objectives Optuna takes none."""
    if len(trial.study.directions) > 1:
        return
    known = trial.storage.get_trial(trial._trial_id).intermediate_values
    for step, ap in curve.items():
        if step not in known:
            trial.report(ap, step)


def tell(
    trial: optuna.Trial, status: str, values: Mapping[str, Any], objectives: Sequence[str], curve: Mapping[int, float]
) -> None:
    """Tell the study that a trial ended. status: of its record. values: of the objectives, those that are known.

    What was ended early, or diverged, is pruned: TPE counts it among the bad ones, behind all that were trained to
    their end, and does not take its last AP for that of a whole training. So does it with several objectives, though
    Optuna prunes none of those itself. What failed says nothing of the parameters. A trial that has ended in the study,
    since another driver took it for dead, stays as it is.
    """
    known = [float(values[x]) for x in objectives if values.get(x) is not None]
    report(trial, curve)
    if status == "finished" and len(known) == len(objectives):
        trial.study.tell(trial, known, skip_if_finished=True)
    else:
        state = TrialState.PRUNED if status in ("stopped", "diverged") else TrialState.FAIL
        trial.study.tell(trial, state=state, skip_if_finished=True)
