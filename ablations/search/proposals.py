"""Ray Tune's searcher over Optuna's study, as a search uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.search.optuna import OptunaSearch

from ablations.search.study_storage import SharedStudy


def searcher_class(name: Callable[[Mapping[str, Any]], str], stop: Path, shared: SharedStudy | None) -> type[Any]:
    """A searcher that names what it proposes, and proposes nothing more once the file ``stop`` is there.

    name: of a trial, by its parameters. shared: where the study may be other drivers' too; what does not answer is
    asked again there. These are no attributes of the searcher, which Tune pickles.
    """

    class Proposals(OptunaSearch):
        def suggest(self, trial_id: str) -> Any:
            if stop.exists() or (shared is not None and shared.away):
                return OptunaSearch.FINISHED
            if shared is None:
                return self._proposed(trial_id)
            found = shared.tried(lambda: self._claimed(trial_id))
            return OptunaSearch.FINISHED if shared.away else found

        def _claimed(self, trial_id: str) -> Any:
            assert shared is not None
            shared.fail_stale()
            config = self._proposed(trial_id)
            shared.claim(trial_id, self._ot_trials[trial_id])
            return config

        def _proposed(self, trial_id: str) -> Any:
            config = OptunaSearch.suggest(self, trial_id)
            if not isinstance(config, dict):
                return config
            return {**config, "name": name({k: v for k, v in config.items() if k != "base"})}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if shared is None:
                super().on_trial_result(trial_id, result)
            else:
                shared.tried(lambda: OptunaSearch.on_trial_result(self, trial_id, result))

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            # What the study is not told now for lack of an answer, it is told by the trial's record in the end.
            super().on_trial_complete(trial_id, result, error)
            if shared is not None:
                shared.running.pop(trial_id, None)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: a search goes on from its study, not from Tune's state."""

    return Proposals
