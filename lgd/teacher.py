"""The implicit teacher: labels and the student's features in, instructive features out (LGD, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lgd.adapter import AdapterVariant, RelationAdapter
from lgd.encoder import AppearanceEncoder, LabelEncoder, LabelProjection
from lgd.init import init_centred, init_he
from lgd.mapper import KnowledgeMapper
from lgd.objects import Objects
from lgd.taps import Features, Tap


class ImplicitTeacher(nn.Module):
    """Encoder, adapter and mapper. What a switched-off component would need is not built.

    encoder, adapter, mapper: the components (off as in the components grid). variant: who attends to whom. context: one
    more object an image, its box the whole image. detach_appearance: the student's features get no gradient from here.
    Raises ValueError for a combination that cannot work.
    """

    replays = True
    """The instructive features go through the student's head too."""

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
    ) -> None:
        super().__init__()
        refusal = impossible(encoder=encoder, adapter=adapter, mapper=mapper, variant=variant, context=context)
        if refusal:
            raise ValueError(refusal)
        self.channels = channels
        self.num_classes = num_classes
        self.context = context
        self.detach_appearance = detach_appearance
        self.label_encoder: LabelEncoder | None = None
        self.label_projection: LabelProjection | None = None
        self.appearance_encoder: AppearanceEncoder | None = None
        if encoder and variant != "appearance_only":
            self.label_encoder = LabelEncoder(num_classes, channels)
            self.label_projection = LabelProjection(channels)
        if variant != "label_only":
            self.appearance_encoder = AppearanceEncoder(channels)
        self.relation_adapter = RelationAdapter(channels, variant, exchange=adapter)
        self.knowledge_mapper = KnowledgeMapper(channels, write=mapper, context=context)
        init_he(self)
        if self.label_encoder is not None and self.label_projection is not None:
            self.label_encoder.init()
            init_centred(self.label_projection.linear)
        if self.relation_adapter.attends:
            init_centred(self.relation_adapter.query, self.relation_adapter.key_value)

    def forward(self, tap: Tap, instances: Sequence[Any]) -> Features:
        """Instructive features, one map a level of the student's shapes, for detectron2 ``instances`` (B of them)."""
        objects = Objects.from_instances(instances, tap.image_size, context=self.context)
        return self.instruct(tap.features, objects)

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
            projected = self.label_projection(labels)
        vectors = self.relation_adapter(appearance, projected, objects.valid)
        vectors = vectors.expand(len(features), -1, -1, -1)
        return {name: self.knowledge_mapper(vectors[i], regions[name], sizes[name]) for i, name in enumerate(features)}

    def embed_labels(self, objects: Objects) -> Tensor | None:
        """Label embeddings (B, N, C) before their projection; None where the encoder is off."""
        if self.label_encoder is None:
            return None
        return self.label_encoder(objects.descriptors(self.num_classes), objects.valid)


def impossible(*, encoder: bool, adapter: bool, mapper: bool, variant: AdapterVariant, context: bool) -> str:
    """Why this combination of components cannot be trained, in one line; empty when it can."""
    if not (encoder or adapter or mapper):
        return "encoder, adapter and mapper are all off: that is the baseline, use method 'baseline'"
    if not mapper and not context:
        return "mapper off needs the context object: without both nothing reaches the instructive features"
    if not encoder and variant in ("label_queries", "label_only"):
        return f"adapter variant {variant} needs label embeddings, but the encoder is off"
    if not adapter and variant in ("appearance_only", "label_only"):
        return f"adapter variant {variant} has no attention: 'adapter off' (objects see themselves alone) means nothing"
    if variant == "appearance_only" and not encoder:
        return "adapter variant appearance_only never reads the label embeddings: 'encoder off' would change nothing"
    return ""
