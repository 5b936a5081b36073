"""LGD, label-guided self-distillation (Zhang et al., AAAI 2022): the teacher makes its features from the labels and the
student's own (docs/method.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import model_validator

from lgd.config.base_method import DistillationMethod
from lgd.config.components import AdapterVariant, Start, component_conflict
from lgd.config.phases import Phases
from lgd.config.schedule import Schedule
from lgd.config.settings import AUTO_IS_NONE, NonNegative, Positive

if TYPE_CHECKING:
    from lgd.methods.distiller import Distiller
    from lgd.methods.parts import Parts

ADAMW_LR = 5e-4
"""Learning rate of a teacher trained with AdamW unless ``method.teacher_lr`` says otherwise."""


class LGD(DistillationMethod):
    """LGD's components, the weights of its losses and how its teacher is trained."""

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
    centred_labels: bool = False
    """Ours: subtract what the labels of all objects share, so that the teacher goes on telling classes apart
    (lgd/methods/label_guided/centring.py)."""
    teacher_optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of the teacher's modules. The released code offers AdamW; the paper's trainings have SGD."""
    teacher_lr: Annotated[Positive | None, AUTO_IS_NONE] = None
    """Learning rate of the teacher's modules; None ("auto"): the student's times ``lr_factor`` with SGD, 5e-4 with
    AdamW."""

    title: ClassVar[str] = "LGD"
    paper: ClassVar[str] = (
        "Zhang et al., LGD: Label-Guided Self-Distillation for Object Detection, AAAI 2022, arXiv 2109.11496"
    )
    learns_from: ClassVar[str] = "the labels and the student's own features"
    compares: ClassVar[str] = "squared difference of instance-normalised features"
    student_head_reads: ClassVar[str] = "the student's features and the instructive ones"
    activations: ClassVar[float] = 2.8
    has_teacher_ap: ClassVar[bool] = True

    @model_validator(mode="after")
    def _components_fit(self) -> Self:
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
        if self.centred_labels and (not self.encoder or self.variant == "appearance_only"):
            raise ValueError("centred_labels has no effect without label embeddings: turn it off")
        return self

    @property
    def additions(self) -> list[str]:
        named = {
            "own-label start": self.own_label_start,
            "residual teacher": self.residual,
            "centred labels": self.centred_labels,
        }
        return [name for name, on in named.items() if on]

    def teacher_lr_factor(self, student_lr: float) -> float:
        if self.teacher_lr is not None:
            return self.teacher_lr / student_lr
        return ADAMW_LR / student_lr if self.teacher_has_adamw else self.lr_factor

    @property
    def adapter_lr_factor(self) -> float:
        return self.lr_factor

    @property
    def teacher_has_adamw(self) -> bool:
        return self.teacher_optimizer == "adamw"

    def phases(self, schedule: Schedule) -> Phases:
        return schedule.phases

    def build(self, parts: Parts) -> Distiller:
        from lgd.methods.distiller import Distiller
        from lgd.methods.label_guided.distance import DistillationDistance
        from lgd.methods.label_guided.teacher import ImplicitTeacher

        adapters = parts.channel_adapters()
        width = adapters.width if adapters else parts.channels
        chosen = cast(Any, {
            "encoder": self.encoder,
            "adapter": self.adapter,
            "mapper": self.mapper,
            "variant": self.variant,
            "context": self.context,
            "detach_appearance": self.detach_appearance,
            "start": self.init,
            "own_label_start": self.own_label_start,
            "residual": self.residual,
            "centred_labels": self.centred_labels,
        })  # fmt: skip
        implicit = parts.once(
            ("teacher", width, *chosen.values()), lambda: ImplicitTeacher(width, parts.num_classes, **chosen)
        )
        return Distiller(
            parts.student,
            implicit,
            DistillationDistance(width, self.init),
            phases=self.phases(parts.experiment.schedule),
            distill_weight=self.distill_weight,
            instructive_weight=self.instructive_weight,
            channel_adapters=adapters,
        )
