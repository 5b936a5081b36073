"""What all objects share is taken from the label embeddings (``method.centred_labels``; not part of the paper).

A training step's gradient has one part that is the same for all objects ("there is an object here") and one that
differs by class. The first is the larger, and it moves every weight matrix along the mean of its inputs. Normalised
afterwards, the differences between classes shrink by as much as the shared part grows: within ten steps hardly anything
is left of them (docs/method.md, "Label signal"). With the mean over the objects subtracted before each normalisation,
the shared part cannot grow in these layers, and the biases of the layers that follow can still say what it said.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTUM = 0.1
"""Weight of the newest batch in the running mean; higher at first, so that it begins as the mean of all batches."""


class CentreObjects(nn.Module):
    """Subtract from vectors (..., C) their mean over a batch's objects; in evaluation a running mean of training's.

    With several workers each takes the mean of its own part of the batch, and the main process's running mean is that
    of all (as batch norm without synchronisation). A batch with a single object is left as it is.
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Centre ``x``. valid: (...) bool, False in padding slots, which do not count; None: all count."""
        if not self.training:
            return x - self.mean.to(x.dtype)
        if valid is None:
            valid = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        weights = valid[..., None].float()
        count = weights.sum()
        values = x.float().masked_fill(~valid[..., None], 0)
        mean = values.flatten(0, -2).sum(dim=0) / count.clamp(min=1)
        with torch.no_grad():
            self.batches += 1
            self.mean.lerp_(mean, (1 / self.batches).clamp(min=MOMENTUM))
        return x - (mean * (count > 1)).to(x.dtype)
