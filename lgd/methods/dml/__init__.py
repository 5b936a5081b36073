"""DML: two students that teach each other by their class scores while both are trained (docs/method.md, "DML")."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lgd.config.base_method import DistillationMethod
from lgd.config.settings import NonNegative, NonNegativeInt, Positive

if TYPE_CHECKING:
    from lgd.methods.dml.model import MutualLearning
    from lgd.methods.parts import Parts


class DML(DistillationMethod):
    """The divergence between the class scores of two students. How it applies to detectors is ours.

    The first student is the result; both are paid for.
    """

    weight: NonNegative = 1.0
    """Factor of each student's divergence from the other."""
    temperature: Positive = 1.0
    """Logits are divided by it before the sigmoid or softmax."""
    peer_seed: NonNegativeInt = 1
    """Added to the experiment's seed for the second student's initial weights. 0 is refused when it is built, not here:
    records that have it are still read."""

    title: ClassVar[str] = "DML (our definition)"
    paper: ClassVar[str] = "Zhang et al., Deep Mutual Learning, CVPR 2018, arXiv 1706.00384"
    learns_from: ClassVar[str] = "class scores of a second student that is trained beside it"
    compares: ClassVar[str] = "KL divergence of class scores, both ways"
    activations: ClassVar[float] = 4.4

    def build(self, parts: Parts) -> MutualLearning:
        from lgd.errors import InputError
        from lgd.methods.class_scores import check_scores
        from lgd.methods.dml.model import MutualLearning, check_differ

        if self.peer_seed == 0:
            raise InputError("method.peer_seed=0 makes DML's two students equal: set it to 1 or more")
        check_scores(parts.student, "DML")
        peer = parts.second_student(self.peer_seed)
        if parts.has_values:
            check_differ(parts.student, peer)
        return MutualLearning(
            parts.student,
            peer,
            phases=self.phases(parts.experiment.schedule),
            weight=self.distill_weight * self.weight,
            temperature=self.temperature,
        )
