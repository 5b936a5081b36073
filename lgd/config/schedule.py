"""Settings of the optimiser and of the training's phases."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import field_validator, model_validator

from lgd.config.phases import Phases, WatchedPhases
from lgd.config.settings import AUTO_IS_NONE, Fraction, NonNegative, Positive, PositiveInt, Settings, auto_or_int

PAPER_BATCH = 16
"""Images per step in the paper, which the linear scaling rule starts from."""

PAPER_WARMUP = 1000
"""Steps of the paper's warm-up."""

LR_TOLERANCE = 0.01
"""Relative difference to the linear scaling rule from which on a learning rate is remarked on."""


class Schedule(Settings):
    """Optimisation. Fractions are of ``steps``; the defaults are the paper's for 2x (docs/method.md, "Schedule")."""

    steps: PositiveInt = 180_000
    """Optimiser steps (iterations)."""
    epochs: Annotated[Positive | None, AUTO_IS_NONE] = None
    """Length in passes over the training images, in place of ``steps``; None ("auto"): as ``steps`` says. Becomes
    ``steps`` (rounded up), and None again, as soon as ``epoch_images`` is known."""
    epoch_images: Annotated[PositiveInt | None, AUTO_IS_NONE] = None
    """Training images in an epoch. Commands take them from the data set."""
    batch: PositiveInt = 16
    """Images per step, all devices together."""
    accumulate: PositiveInt = 1
    """Micro-batches that a step's batch goes through the model in, one after the other, their gradients averaged.
    Losses that are means over images come out as with the whole batch at once. What does not: losses divided by a
    number of positives (each micro-batch by its own; RetinaNet's running normaliser also moves in each), batch norm's
    statistics and, where landscape and portrait images are mixed, which images share a batch."""
    lr: Annotated[Positive | None, AUTO_IS_NONE] = None
    """Learning rate; None ("auto"): ``lr_per_16`` times batch / 16, the linear scaling rule (Goyal et al., arXiv
    1706.02677, section 2.1)."""
    lr_per_16: Positive = 0.01
    """Learning rate for 16 images per step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with ``momentum``. adamw: with torch's betas, for transformers and networks like them, whose ``lr`` and
    ``weight_decay`` are others (Swin's authors: 1e-4 for 16 images and 0.05)."""
    momentum: Fraction = 0.9
    """Of SGD."""
    weight_decay: NonNegative = 1e-4
    """Of all parameters, biases included; of norm layers' as ``decay_norms`` says."""
    decay_norms: bool = False
    """Whether weights and biases of norm layers are decayed too, as in the paper's released code."""
    warmup_steps: int | Literal["auto"] = 1000
    """Steps of the linear warm-up; auto: 1,000, as in the paper, but at most a tenth of ``steps``."""
    warmup_factor: Fraction = 1e-3
    """Learning rate of the first step, as a part of the full one."""
    milestones: tuple[Fraction, ...] = (120 / 180, 160 / 180)
    """When the learning rate is multiplied by ``gamma``, fractions of ``steps``."""
    gamma: Fraction = 0.1
    """What the learning rate is multiplied by at each of ``milestones``."""
    clip: NonNegative = 1.0
    """Largest absolute value of a gradient's element; 0: no clipping."""
    frozen: Fraction = 20 / 180
    """How long the bottom-up backbone gets no update, fraction of ``steps``."""
    distill_from: float | Literal["auto"] = 30 / 180
    """When the distillation loss starts to reach the student (before, its adapter alone), fraction of ``steps``. auto:
    after the warm-up, while the instructive features have had the lower detection loss for some time
    (lgd/methods/teacher_watch.py; LGD only)."""
    distill_until: Fraction = 1.0
    """When it stops to, fraction of ``steps``."""

    @field_validator("warmup_steps", mode="before")
    @classmethod
    def _auto_or_int(cls, value: object) -> object:
        return auto_or_int(value)

    @field_validator("distill_from", mode="before")
    @classmethod
    def _auto_or_fraction(cls, value: object) -> object:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "auto" and not (number and 0 <= value <= 1):  # type: ignore[operator]
            raise ValueError("must be auto or a number from 0 to 1")
        return value

    @model_validator(mode="before")
    @classmethod
    def _epochs_to_steps(cls, described: Any) -> Any:
        if not isinstance(described, dict):
            return described
        epochs: Any = described.get("epochs")
        images: Any = described.get("epoch_images")
        batch: Any = described.get("batch", cls.model_fields["batch"].default)
        # Anything that is no number above 0 is left to the fields' own checks.
        if any(isinstance(x, bool) or not isinstance(x, (int, float)) or not x > 0 for x in (epochs, images, batch)):
            return described
        try:
            # Not one step more for what floating point adds to a whole number of steps.
            steps = max(1, math.ceil(round(epochs * images / batch, 6)))
        except (OverflowError, ValueError):
            raise ValueError("epochs times epoch_images are too many steps") from None
        return described | {"steps": steps, "epochs": None, "epoch_images": None}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not split into accumulate {self.accumulate} equal parts")
        if self.epoch_images is not None and self.epochs is None:
            raise ValueError("epoch_images is read with epochs only: set schedule.epochs")
        # Without the number of images ``steps`` is not known yet.
        if self.epochs is None and self.resolved_warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise")
        if self.distill_from != "auto" and self.distill_until <= self.distill_from:
            raise ValueError(f"distill_until {self.distill_until} must lie after distill_from {self.distill_from}")
        return self

    @property
    def resolved_warmup_steps(self) -> int:
        if self.warmup_steps != "auto":
            return self.warmup_steps
        return min(PAPER_WARMUP, self.steps // 10)

    @property
    def linear_lr(self) -> float:
        """The linear scaling rule's learning rate for this batch."""
        return self.lr_per_16 * self.batch / PAPER_BATCH

    @property
    def resolved_lr(self) -> float:
        return self.linear_lr if self.lr is None else self.lr

    @property
    def lr_warning(self) -> str:
        """One line on a learning rate that is off the linear scaling rule for a batch other than the paper's, or ""."""
        if self.batch == PAPER_BATCH or abs(self.resolved_lr - self.linear_lr) <= LR_TOLERANCE * self.linear_lr:
            return ""
        return (
            f"schedule.lr {self.resolved_lr:g} is not what the linear scaling rule gives for {self.batch} images per"
            f" step: {self.linear_lr:g} ({self.lr_per_16:g} for {PAPER_BATCH}); schedule.lr=auto follows the rule"
        )

    @property
    def phases(self) -> Phases:
        """The same fractions as iterations."""
        frozen_until = round(self.frozen * self.steps)
        distill_until = None if self.distill_until == 1 else round(self.distill_until * self.steps)
        if self.distill_from == "auto":
            # Losses of the warm-up tell little: a teacher that is ahead in them may be far behind a little later.
            return WatchedPhases(frozen_until, self.resolved_warmup_steps, distill_until)
        return Phases(frozen_until, round(self.distill_from * self.steps), distill_until)
