"""The planned trials of a sweep, as Ray Tune asks for them.

``tune.grid_search`` over the trials would do the same, but it copies the whole list of values for each of them, all
before the first trial starts: 2,000 trials are four million copied configurations.

``ablations/tune/ray_sweep.py`` sets what Ray Tune reads when it is imported, so import it before this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from ablations.trial_config import TrialConfig


class PlannedTrials(Searcher):
    """Proposes the trials in their order, and none any more once the file ``stop`` is there."""

    def __init__(self, trials: Iterable[TrialConfig], stop: Path) -> None:
        super().__init__()
        # As text: Tune keeps every trial's configuration several times over.
        self._left = iter([json.dumps(trial) for trial in trials])
        self._stop = stop

    def suggest(self, trial_id: str) -> Any:
        text = None if self._stop.exists() else next(self._left, None)
        return self.FINISHED if text is None else {"trial": text}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None: ...

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its records, not from Tune's state."""
