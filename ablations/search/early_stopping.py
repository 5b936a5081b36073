"""ASHA (Li et al., MLSys 2020), as a search ends trials early with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from ablations.search.tell import Curve

NO_CONTROLLER: Any = None


class ResumableASHA(ASHAScheduler):
    """ASHA by the step of an evaluation, which begins with the evaluations that there were before.

    ended: the learning curves of trials that ended. unfinished: of those that go on, by their name. Without them a
    search that goes on would compare its next trials with none of the earlier ones.
    """

    def __init__(self, steps: int, ended: Iterable[Curve], unfinished: Mapping[str, Curve]) -> None:
        super().__init__(
            # Not the step of the report, whose AP may be that of an evaluation long before.
            time_attr="evaluated_step",
            metric="AP",
            mode="max",
            max_t=steps,
            grace_period=max(1, steps // 4),
            reduction_factor=2,
            # Else a report after the one at a rung would count for the rungs below that have none of the trial yet,
            # and one at the last step would end its trial.
            stop_last_trials=False,
        )
        self._unfinished = dict(unfinished)
        for i, curve in enumerate(ended):
            # Of Tune's trial, and of its controller, ASHA needs no more.
            trial: Any = SimpleNamespace(trial_id=f"ended {i}", config={})
            self.on_trial_add(NO_CONTROLLER, trial)
            self._replay(trial, curve)
            self.on_trial_remove(NO_CONTROLLER, trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self._replay(trial, self._unfinished.get(trial.config.get("name", ""), {}))

    def _replay(self, trial: Any, curve: Curve) -> None:
        # What it says to each is of no use any more: the trial went on, or ended.
        for step, ap in sorted(curve.items()):
            self.on_trial_result(NO_CONTROLLER, trial, {"evaluated_step": step, "AP": ap})
