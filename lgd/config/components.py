"""Which of LGD's components can be trained together."""

from __future__ import annotations

from typing import Literal

AdapterVariant = Literal["appearance_queries", "label_queries", "appearance_only", "label_only"]
"""Queries, keys and values of the attention (docs/method.md, "Inter-object relation adapter").

The ``_only`` variants have no attention.
"""

Start = Literal["informed", "reference"]
"""How LGD's modules start (docs/method.md, "How the modules start"): ours, or as the released code leaves them."""


def component_conflict(*, encoder: bool, adapter: bool, mapper: bool, variant: AdapterVariant, context: bool) -> str:
    """Why this combination of components cannot be trained, in one line; empty when it can."""
    if not (encoder or adapter or mapper):
        return "encoder, adapter and mapper are all off: that is the baseline, use method 'baseline'"
    if not mapper and not context:
        return "mapper off needs the context object: without both nothing reaches the instructive features"
    if not encoder and variant in ("label_queries", "label_only"):
        return f"adapter variant {variant} needs label embeddings, but the encoder is off"
    if not adapter and variant in ("appearance_only", "label_only"):
        return f"adapter variant {variant} has no attention: 'adapter off' (attention to itself only) has no effect"
    if variant == "appearance_only" and not encoder:
        return "adapter variant appearance_only never reads the label embeddings: 'encoder off' would change nothing"
    return ""
