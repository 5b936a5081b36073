"""The evaluations of a training: its scores after some steps, and the file that keeps them while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lgd.config.experiment import Experiment
from lgd.detectors.model_layout import predicts_masks
from lgd.distributed import ranks
from lgd.evaluation.evaluate import evaluate, evaluate_both
from lgd.evaluation.label_signal import Batch, label_signal, signal_images
from lgd.files import write_text
from lgd.methods.distiller import Distiller, student_of
from lgd.results.record import EvaluationPoint
from lgd.training.build import Built
from lgd.training.progress import EVALUATIONS_FILE


class Evaluations:
    """Evaluates the model of a training in ``directory``.

    points: the scores so far, by step. label_signal: of a few images, by step (:class:`lgd.results.record.Record`).
    """

    def __init__(self, built: Built, experiment: Experiment, directory: Path) -> None:
        self._built, self._experiment, self._directory = built, experiment, directory
        self.points: list[EvaluationPoint] = []
        self.label_signal: list[tuple[int, dict[str, float]]] = []
        self._few_images: list[Batch] = []

    @property
    def last(self) -> EvaluationPoint | None:
        return self.points[-1] if self.points else None

    def restore(self, points: Iterable[str], label_signal: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Go on from what a checkpoint holds: the points as JSON, and the label signal."""
        self.points = [EvaluationPoint.model_validate_json(x) for x in points]
        self.label_signal = [(step, dict(found)) for step, found in label_signal]

    def has(self, step: int) -> bool:
        """Whether the last evaluation was after ``step`` steps."""
        return self.last is not None and self.last.step == step

    def evaluate(self, step: int, after_image: Callable[[], None] = lambda: None) -> None:
        """Evaluate after ``step`` steps.

        All workers must call it. The main process writes EVALUATIONS_FILE. after_image: see
        :func:`lgd.evaluation.evaluate.evaluate`.
        """
        model, experiment = self._built.model, self._experiment
        how: dict[str, Any] = {
            "dataset": self._built.dataset,
            "settings": experiment.data,
            "evaluation": experiment.evaluation,
            "masks": predicts_masks(student_of(model)),
            "directory": self._directory,
            "after_image": after_image,
        }
        ranks.broadcast_buffers(model)
        teacher = None
        if experiment.method.has_teacher_ap and experiment.evaluation.scores_teacher:
            assert isinstance(model, Distiller)
            student, teacher = evaluate_both(model, **how)
        else:
            student = evaluate(student_of(model), **how)
        self.points.append(
            EvaluationPoint(
                step=step,
                student=student.box,
                teacher=teacher.box if teacher else None,
                student_mask=student.mask,
                teacher_mask=teacher.mask if teacher else None,
                attention=teacher.attention if teacher else None,
                label_use=teacher.label_use if teacher else None,
                label_signal=dict(teacher.label_signal) if teacher else {},
            )
        )
        if ranks.is_main_process():
            lines = [x.model_dump_json() + "\n" for x in self.points]
            write_text(self._directory / EVALUATIONS_FILE, "".join(lines))

    def measures_label_signal(self) -> bool:
        """Whether there is a teacher whose label signal can be measured."""
        method, evaluation = self._experiment.method, self._experiment.evaluation
        return method.has_teacher_ap and evaluation.scores_teacher and isinstance(self._built.model, Distiller)

    def measure_label_signal(self, step: int) -> None:
        """Measure it after ``step`` steps, on a few images. The main process alone: nothing is exchanged."""
        assert isinstance(self._built.model, Distiller)
        self._few_images = self._few_images or signal_images(self._built.dataset, self._experiment.data)
        if found := label_signal(self._built.model, self._few_images):
            self.label_signal.append((step, found))
