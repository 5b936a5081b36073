"""Progress reports of a training, and the exception Stopped. Loads no torch, so that commands start at once."""

from __future__ import annotations

Progress = dict[str, float | int]
"""``step``, ``steps``, ``loss`` and ``eta`` (seconds left; both NaN before they are known), ``spent`` (device-seconds
of all attempts so far) and, after an evaluation, the student's ``AP`` (percent) and the step that it is of,
``evaluated_step``."""

EVALUATIONS_FILE = "evaluations.jsonl"
"""In a training's directory: its EvaluationPoints so far, one a line."""


class Stopped(Exception):  # noqa: N818  not an error
    """A training was stopped on request before its end, and has written a checkpoint after ``step`` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"stopped after {self.step} steps, with a checkpoint"
