"""The implicit teacher: labels and the student's features in, instructive features out (the LGD paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lgd.config.components import AdapterVariant, Start, component_conflict
from lgd.methods.feature_capture import FeatureCapture, Features
from lgd.methods.init import init_he
from lgd.methods.label_guided.adapter import RelationAdapter
from lgd.methods.label_guided.encoder import AppearanceEncoder, LabelEncoder, LabelProjection
from lgd.methods.label_guided.init import init_attention_reference, init_centred
from lgd.methods.label_guided.mapper import KnowledgeMapper
from lgd.methods.objects import Objects

RESIDUAL_SCALE = 0.1
"""First value of the learnt factor of the mapper's output in a residual teacher."""


class ImplicitTeacher(nn.Module):
    """Encoder, adapter and mapper. The layers of a component that is off are not built.

    encoder, adapter, mapper: the components (docs/method.md, "Turning components off"). variant: what attends to what.
    context: one more object per image, its box the whole image. detach_appearance: no gradient into the student's
    features. start: the modules' first weights.

    Not part of the paper: own_label_start (see :class:`RelationAdapter`); residual: the instructive features are the
    student's, detached, plus a learnt scale times the mapper's output, so that a teacher starts as good as its student
    and learns only what the labels add; centred_labels: what the labels of all objects share is subtracted
    (lgd/methods/label_guided/centring.py). Raises ValueError for a combination that cannot be trained.
    """

    uses_student_head = True
    """The instructive features have detection losses of their own."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        encoder: bool = True,
        adapter: bool = True,
        mapper: bool = True,
        variant: AdapterVariant = "appearance_queries",
        context: bool = True,
        detach_appearance: bool = False,
        start: Start = "informed",
        own_label_start: bool = False,
        residual: bool = False,
        centred_labels: bool = False,
    ) -> None:
        super().__init__()
        conflict = component_conflict(encoder=encoder, adapter=adapter, mapper=mapper, variant=variant, context=context)
        if conflict:
            raise ValueError(conflict)
        self.channels = channels
        self.num_classes = num_classes
        self.context = context
        self.detach_appearance = detach_appearance
        self.label_encoder: LabelEncoder | None = None
        self.label_projection: LabelProjection | None = None
        self.appearance_encoder: AppearanceEncoder | None = None
        if encoder and variant != "appearance_only":
            self.label_encoder = LabelEncoder(num_classes, channels, centred=centred_labels)
            self.label_projection = LabelProjection(channels, centred=centred_labels)
        elif centred_labels:
            raise ValueError("centred_labels has no effect without label embeddings")
        if variant != "label_only":
            self.appearance_encoder = AppearanceEncoder(channels)
        self.relation_adapter = RelationAdapter(
            channels, variant, exchange=adapter, own_label_start=own_label_start, centred=centred_labels
        )
        self.knowledge_mapper = KnowledgeMapper(channels, write=mapper, context=context)
        self.residual_scale = nn.Parameter(torch.tensor(RESIDUAL_SCALE)) if residual else None
        if start == "informed":
            self._init_informed()
        else:
            # For the fingerprint, which does not see weights.
            self.start = start
            if self.relation_adapter.attends:
                init_attention_reference(self.relation_adapter)

    def _init_informed(self) -> None:
        init_he(self)
        if self.label_encoder is not None and self.label_projection is not None:
            self.label_encoder.init()
            init_centred(self.label_projection.linear)
        if self.relation_adapter.attends:
            init_centred(self.relation_adapter.query, self.relation_adapter.key_value)

    def forward(self, capture: FeatureCapture, instances: Sequence[Any]) -> Features:
        """Instructive features, one map a level of the student's shapes, for detectron2 ``instances`` (B of them)."""
        objects = Objects.from_instances(instances, capture.image_size, context=self.context)
        return self.instruct(capture.features, objects)

    def instruct(self, features: Features, objects: Objects) -> Features:
        """As :meth:`forward`, from the features and the padded objects themselves."""
        sizes = {name: (int(x.shape[-2]), int(x.shape[-1])) for name, x in features.items()}
        regions = {name: objects.regions(size) for name, size in sizes.items()}
        labels = self.embed_labels(objects)
        appearance: Tensor | None = None
        if self.appearance_encoder is not None:
            appearance = torch.stack(
                [
                    self.appearance_encoder(x.detach() if self.detach_appearance else x, regions[name])
                    for name, x in features.items()
                ]
            )
        projected = None
        if labels is not None and self.label_projection is not None:
            projected = self.label_projection(labels, objects.valid)
        vectors = self.relation_adapter(appearance, projected, objects.valid)
        vectors = vectors.expand(len(features), -1, -1, -1)
        mapped = {n: self.knowledge_mapper(vectors[i], regions[n], sizes[n]) for i, n in enumerate(features)}
        if self.residual_scale is None:
            return mapped
        return {name: features[name].detach() + self.residual_scale * x for name, x in mapped.items()}

    def embed_labels(self, objects: Objects) -> Tensor | None:
        """Label embeddings (B, N, C) before their projection; None where the encoder is off."""
        if self.label_encoder is None:
            return None
        return self.label_encoder(objects.descriptors(self.num_classes), objects.valid)
