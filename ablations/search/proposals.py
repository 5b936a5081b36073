"""Ray Tune's searcher over Optuna's study, as a search uses it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from ablations.search.local_study import LocalStudy
from ablations.search.study_storage import AWAY, SharedStudy
from ablations.search.tell import Curve, report, tell

LOST = (*AWAY, UpdateFinishedTrialError)
"""What a study raises that does not take what it is told: it does not answer, or another driver has taken the trial for
dead."""


def searcher_class(
    name: Callable[[Mapping[str, Any]], str],
    stop: Path,
    access: SharedStudy | LocalStudy,
    unfinished: Sequence[tuple[FrozenTrial, Curve]] = (),
) -> type[Any]:
    """A searcher that names what it proposes, and proposes nothing more once the file ``stop`` is there.

    name: of a trial, by its parameters. access: by which the study is asked; where it does not answer, nothing more is
    proposed. unfinished: trials of the study that this driver has begun, with their learning curves so far:
    they are proposed first. These are no attributes of the searcher, which Tune pickles.
    """
    left, curves = list(unfinished), dict[str, Curve]()

    class Proposals(OptunaSearch):
        def suggest(self, trial_id: str) -> Any:
            if stop.exists() or access.away:
                return OptunaSearch.FINISHED
            found = access.tried(lambda: self._claimed(trial_id))
            return OptunaSearch.FINISHED if access.away else found

        def _claimed(self, trial_id: str) -> Any:
            access.fail_stale()
            config = self._proposed(trial_id)
            access.claim(trial_id, self._ot_trials[trial_id])
            return config

        def _proposed(self, trial_id: str) -> Any:
            if trial_id not in self._ot_trials and (found := _next(self._ot_study, left, access)):
                self._ot_trials[trial_id], curves[trial_id] = found
            config = OptunaSearch.suggest(self, trial_id)
            if not isinstance(config, dict):
                return config
            return {**config, "name": name({k: v for k, v in config.items() if k != "base"})}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if _add(curves.setdefault(trial_id, {}), result):
                # What is not taken now is reported with the next.
                with contextlib.suppress(*LOST):
                    report(self._ot_trials[trial_id], curves[trial_id])

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            # OptunaSearch's takes the AP of a trial that was ended early for its last, and tells nothing without an AP.
            last, objectives, curve = result or {}, cast(Any, self._metric), curves.pop(trial_id, {})
            _add(curve, last)
            status = "failed" if error else _status(last)
            # What the study is not told now for lack of an answer, it is told by the trial's record in the end.
            with contextlib.suppress(*LOST):
                if status:
                    tell(self._ot_trials[trial_id], status, last, objectives, curve)
            access.ended(trial_id)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a search goes on from its study, not from Tune's state."""

    return Proposals


def _next(
    study: Any, left: list[tuple[FrozenTrial, Curve]], access: SharedStudy | LocalStudy
) -> tuple[optuna.Trial, Curve] | None:
    """Take out of ``left`` the next trial that no other driver has taken for dead.

    Asked for its parameters, it has them already. It was not put into the study's queue, where another driver would get
    it, too.
    """
    while left:
        frozen, curve = left[0]
        trial = optuna.Trial(study, frozen._trial_id)
        is_ours = trial.storage.get_trial(frozen._trial_id).state == TrialState.RUNNING
        # Not before: the study may not have answered, and is asked again.
        left.pop(0)
        if is_ours:
            return trial, dict(curve)
        access.taken(frozen._trial_id)
    return None


def _add(curve: Curve, result: Mapping[str, Any]) -> bool:
    """Whether the report has an evaluation that no earlier one had, which is added to the curve."""
    step = result.get("evaluated_step")
    if step is None or "AP" not in result or step in curve:
        return False
    curve[step] = result["AP"]
    return True


def _status(last: Mapping[str, Any]) -> str:
    """How a trial ended, by its last report; "" for one that goes on later: not begun, or stopped with its sweep."""
    if not last or last.keys() & {"stopped", "unpublished"}:
        return ""
    # What a scheduler ends has no record yet.
    return str(last.get("status", "stopped"))
