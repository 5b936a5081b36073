"""Two students that are trained together (Zhang et al., CVPR 2018, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from lgd.config.phases import Phases
from lgd.errors import InputError
from lgd.methods.class_scores import capture_scores, divergence, other_logits
from lgd.methods.distiller import TrainingModel
from lgd.methods.feature_capture import capture_features
from lgd.methods.norm_statistics import statistics_kept, tracking_norms


class MutualLearning(TrainingModel):
    """The losses of the student, those of its peer under ``peer/``, and each one's divergence from the other's scores.

    ``loss_distill`` is the student's and ``peer/loss_distill`` the peer's; the other side gets no gradient. Both see
    the same images. Each samples regions of its own (R-CNN), which the other's head reads too. peer: a detector of the
    student's kind; it is trained by the same optimiser and not exported.
    """

    def __init__(
        self, student: nn.Module, peer: nn.Module, *, phases: Phases, weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__(student, phases=phases)
        self.peer = peer
        self.weight = weight
        self.temperature = temperature

    @property
    def detectors(self) -> tuple[nn.Module, ...]:
        return (self.student, self.peer)

    def losses(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        student: Any = self.student
        peer: Any = self.peer
        with capture_features(student.backbone) as own, capture_scores(student) as own_scores:
            losses: dict[str, Tensor] = dict(student(batch))
        with (
            get_event_storage().name_scope("peer"),
            capture_features(peer.backbone) as theirs,
            capture_scores(peer) as their_scores,
        ):
            losses |= {f"peer/{name}": x for name, x in peer(batch).items()}
        if own_scores.dense is not None and their_scores.dense is not None:
            of_student, of_peer = own_scores.dense.logits, their_scores.dense.logits
        else:
            # Each one's head reads what the other has sampled, which is no part of what it is trained on.
            norms = [*tracking_norms(student), *tracking_norms(peer)]
            with torch.no_grad(), statistics_kept(norms):
                of_peer = other_logits(peer, theirs.features, own_scores)
                of_student = other_logits(student, own.features, their_scores)
        losses["loss_distill"] = self.weight * divergence(own_scores, of_peer, self.temperature)
        losses["peer/loss_distill"] = self.weight * divergence(their_scores, of_student, self.temperature)
        return losses


def check_differ(student: nn.Module, peer: nn.Module) -> None:
    """Raise InputError where all parameters are equal: such students stay alike, at twice a student's cost."""
    pairs = zip(student.parameters(), peer.parameters(), strict=True)
    if all(torch.equal(ours, theirs) for ours, theirs in pairs):
        raise InputError(
            "DML's two students start from the same weights, those of one file, and stay equal: let the heads start"
            " anew (detector.weights=none, or weights of the backbone alone)"
        )
