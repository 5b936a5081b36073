"""Inter-object relation adapter (the LGD paper, section 3.2): objects of one image attend to each other.

Shape suffixes: L levels, B images, N object slots, C channels, H heads.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.config.components import AdapterVariant
from lgd.methods.label_guided.centring import CentreObjects

HEADS = 8
"""Attention heads in the paper; the greatest common divisor of both where 8 does not divide the channels."""

OWN_LABEL_START = 4.0
"""First value of the learnt bias on the own entry's logit: e^4 = 55 times the weight of another entry like it."""


class RelationAdapter(nn.Module):
    """Multi-head attention among an image's objects, its weights shared by the levels.

    exchange: False lets every object attend to itself only, all else equal (the components grid's "adapter off").
    own_label_start: add a learnt bias, ``OWN_LABEL_START`` at first, to the diagonal of the attention logits; not part
    of the paper. Raises ValueError where that would have no effect. centred: subtract the mean over the objects from
    values that are made of labels (lgd/methods/label_guided/centring.py); not part of the paper either.
    """

    def __init__(
        self,
        channels: int,
        variant: AdapterVariant,
        *,
        exchange: bool = True,
        own_label_start: bool = False,
        centred: bool = False,
    ) -> None:
        super().__init__()
        if variant not in get_args(AdapterVariant):
            raise ValueError(f"adapter variant {variant!r} is not one of {', '.join(get_args(AdapterVariant))}")
        self.variant = variant
        self.exchange = exchange
        self.heads = math.gcd(channels, HEADS)
        self.attends = variant.endswith("_queries")
        if self.attends:
            self.query = nn.Linear(channels, channels)
            self.key_value = nn.Linear(channels, 2 * channels)
            self.output = nn.Linear(channels, channels)
        if own_label_start and not (self.attends and exchange):
            raise ValueError("own_label_start has no effect without attention to other objects")
        self.centre = CentreObjects(channels) if centred and variant == "appearance_queries" else None
        self.own_bias = nn.Parameter(torch.tensor(OWN_LABEL_START)) if own_label_start else None

    def forward(self, appearance_LBNC: Tensor | None, labels_BNC: Tensor | None, valid_BN: Tensor) -> Tensor:
        """Return the objects' vectors, (L, B, N, C), or (1, B, N, C) when they do not depend on the level.

        ``labels_BNC`` is None when the encoder is off: the appearance embeddings are then their own keys and values.
        """
        if self.variant == "label_only":
            return _present(None if labels_BNC is None else labels_BNC[None], "label_only needs the encoder")
        if self.variant == "appearance_only":
            return _present(appearance_LBNC, "appearance_only needs appearance embeddings")
        query, key, value, mask = self._projected(appearance_LBNC, labels_BNC, valid_BN)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined = attended.transpose(1, 2).flatten(2).unflatten(0, (-1, len(valid_BN)))
        return self.output(joined)

    def own_weights(self, appearance_LBNC: Tensor | None, labels_BNC: Tensor | None, valid_BN: Tensor) -> Tensor:
        """The attention weight of each object's own entry, mean over the heads: (L, B, N).

        Only for variants with attention (``attends``). Padding slots hold arbitrary values.
        """
        query, key, _, mask = self._projected(appearance_LBNC, labels_BNC, valid_BN)
        logits = (query.float() @ key.float().transpose(-2, -1)) / math.sqrt(query.shape[-1])
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()
        weights = logits.softmax(dim=-1)
        return weights.diagonal(dim1=-2, dim2=-1).mean(dim=1).unflatten(0, (-1, len(valid_BN)))

    def _projected(
        self, appearance_LBNC: Tensor | None, labels_BNC: Tensor | None, valid_BN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key and value (L * B, H, N, C / H) and the attention mask, (L * B, 1, N, N).

        The mask is bool, True for attended keys, or what is added to the logits where there is a bias.
        """
        appearance_LBNC = _present(appearance_LBNC, f"{self.variant} needs appearance embeddings")
        labels_LBNC = appearance_LBNC if labels_BNC is None else labels_BNC[None]
        sources = (appearance_LBNC, labels_LBNC)
        queries, keys = sources if self.variant == "appearance_queries" else sources[::-1]
        levels = max(len(queries), len(keys))
        batch, slots = valid_BN.shape
        query = self._split(self.query(queries), levels)
        key, value = self.key_value(keys).chunk(2, dim=-1)
        if self.centre is not None and labels_BNC is not None:
            value = self.centre(value[0], valid_BN)[None]
        key, value = (self._split(x, levels) for x in (key, value))
        if self.exchange:
            # Padding slots are no keys; as queries they do no harm, since their output is not used.
            mask = valid_BN[:, None, None, :].expand(batch, 1, slots, slots)
        else:
            mask = torch.eye(slots, dtype=torch.bool, device=valid_BN.device).expand(batch, 1, slots, slots)
        if self.own_bias is not None:
            bias = self.own_bias * torch.eye(slots, device=valid_BN.device)
            mask = bias.expand(batch, 1, slots, slots).masked_fill(~mask, -math.inf).to(query.dtype)
        return query, key, value, mask.repeat(levels, 1, 1, 1)

    def values(self, labels_BNC: Tensor, valid_BN: Tensor) -> Tensor:
        """The attention's values of projected label embeddings, (B, N, C); only with labels as keys and values."""
        values = self.key_value(labels_BNC).chunk(2, dim=-1)[1]
        return values if self.centre is None else self.centre(values, valid_BN)

    def _split(self, x: Tensor, levels: int) -> Tensor:
        """(L or 1, B, N, C) -> (L * B, H, N, C / H)."""
        x = x.expand(levels, -1, -1, -1).flatten(0, 1)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _present(x: Tensor | None, why: str) -> Tensor:
    if x is None:
        raise ValueError(why)
    return x
