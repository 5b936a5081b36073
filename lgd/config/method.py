"""Settings of the distillation method: none (the baseline), LGD or FGFI."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lgd.config.components import AdapterVariant, Start, component_conflict
from lgd.config.detector import Backbone
from lgd.config.settings import AUTO_IS_NONE, NonNegative, NonNegativeInt, Positive, PositiveInt, Settings

ADAMW_LR = 5e-4
"""Learning rate of a teacher trained with AdamW unless ``method.teacher_lr`` says otherwise."""


class FGFISettings(Settings):
    """FGFI (docs/method.md, "FGFI"): a frozen teacher, trained before, and where the student imitates its features."""

    backbone: Backbone = Backbone(name="resnet101", weights="detectron2://ImageNetPretrained/MSRA/R-101.pkl")
    """Backbone of the teacher; all else of its training is the student's."""
    steps: Annotated[PositiveInt | None, AUTO_IS_NONE] = None
    """Steps of the teacher's training; None ("auto"): the student's."""
    seed: NonNegativeInt = 0
    """Seed of the teacher's training. It does not follow the student's, so that all seeds share one teacher."""
    levels: Literal["best", "fpn", "all"] = "best"
    """Pyramid levels on which an object counts: ``best``, the one with the anchor of its largest IoU; ``fpn``, the one
    of FPN's equation 1; ``all``."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A cell is imitated when its IoU with an object exceeds this part of the object's largest IoU on the level."""
    weight: NonNegative = 0.01
    """Factor of the imitation loss."""
    relu: bool = True
    """A ReLU after the adaptation layer."""
    from_step: NonNegativeInt = 400
    """Steps without imitation at the beginning."""


class Method(Settings):
    """Baseline, LGD with its components and weights, or FGFI."""

    name: Literal["baseline", "lgd", "fgfi"] = "lgd"
    encoder: bool = True
    """LGD's label-appearance encoder."""
    adapter: bool = True
    """LGD's inter-object relation adapter."""
    mapper: bool = True
    """LGD's intra-object knowledge mapper."""
    variant: AdapterVariant = "appearance_queries"
    """Queries, keys and values of the adapter's attention; see AdapterVariant."""
    context: bool = True
    """The context object, whose box is the whole image."""
    detach_appearance: bool = False
    """The teacher sends no gradient into the student's features."""
    distill_weight: NonNegative = 1.0
    """Factor of the distillation loss: the paper's lambda."""
    instructive_weight: NonNegative = 1.0
    """Factor of the detection loss of the instructive features."""
    lr_factor: Positive = 1.0
    """Learning rate of the teacher and of the distillation adapter, divided by the student's; the paper's is 1."""
    init: Start = "informed"
    """How LGD's modules start (docs/method.md): ``reference``, as the released code leaves them; ``informed``, ours."""
    own_label_start: bool = False
    """Ours: a learnt bias on the attention logit of each object's own label, so that the adapter starts with objects
    that attend mostly to themselves (lgd/methods/label_guided/adapter.py)."""
    residual: bool = False
    """Ours: the instructive features are the student's, detached, plus a learnt scale times the mapper's output
    (lgd/methods/label_guided/teacher.py)."""
    teacher_optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of the teacher's modules. The released code offers AdamW; the paper's trainings have SGD."""
    teacher_lr: Annotated[Positive | None, AUTO_IS_NONE] = None
    """Learning rate of the teacher's modules; None ("auto"): the student's times ``lr_factor`` with SGD, 5e-4 with
    AdamW."""
    fgfi: FGFISettings = FGFISettings()
    """Read with method fgfi only."""

    @property
    def additions(self) -> list[str]:
        """The settings of LGD that are not the paper's but ours, as words; empty for the paper's own."""
        named = {"own-label start": self.own_label_start, "residual teacher": self.residual}
        return [name for name, on in named.items() if on] if self.name == "lgd" else []

    def resolved_teacher_lr(self, student_lr: float) -> float:
        """Learning rate of the teacher's modules, where the student's is ``student_lr``."""
        if self.teacher_lr is not None:
            return self.teacher_lr
        return ADAMW_LR if self.teacher_optimizer == "adamw" else self.lr_factor * student_lr

    @model_validator(mode="after")
    def _components_fit(self) -> Self:
        if self.name == "lgd":
            conflict = component_conflict(
                encoder=self.encoder,
                adapter=self.adapter,
                mapper=self.mapper,
                variant=self.variant,
                context=self.context,
            )
            if conflict:
                raise ValueError(conflict)
            if self.own_label_start and (not self.adapter or self.variant.endswith("_only")):
                raise ValueError("own_label_start has no effect without attention to other objects: turn it off")
        return self
