"""When a sweep that is to end has ended.

``ablations/tune/ray_sweep.py`` sets what Ray Tune reads when it is imported, so import it before this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial


class StopWhenIdle(tune.Stopper):
    """Ends a sweep that is to end once none of its trials runs: those that wait for room are never begun.

    Ray Tune alone would begin each of them, which may take as long as other work holds the cluster.
    """

    def __init__(self) -> None:
        self._idle = False

    def update(self, trials: Iterable[Any], *, to_end: bool) -> None:
        """Called after each of Tune's steps. trials: all that Tune knows. to_end: whether the sweep is to end."""
        self._idle = to_end and all(trial.status != Trial.RUNNING for trial in trials)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._idle
