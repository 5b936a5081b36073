"""Label-appearance encoder (the LGD paper, section 3.1).

Shape suffixes: B images, N object slots of an image, T objects of the batch (with the padding slots where those are not
left out), K classes, C channels, P = h * w cells of a level.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lgd import device_waits
from lgd.methods.init import init_he
from lgd.methods.label_guided.centring import CentreObjects
from lgd.methods.label_guided.init import init_balanced, init_centred, init_identity, init_one_hot
from lgd.methods.norms import group_norm, layer_norm

CORNERS = 4
"""Entries of a descriptor before its one-hot class."""


class SpatialTransformer(nn.Module):
    """A learnt k x k matrix for each object (PointNet's STN, without its pooling and without an identity added)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        widths = (size, 64, 128, 1024, 512, 256)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.matrix = nn.Linear(widths[-1], size * size)

    def forward(self, x_Tk: Tensor) -> Tensor:
        """Return ``x @ M`` with each object's own M, shape (T, k)."""
        hidden = x_Tk
        for layer in self.layers:
            hidden = layer_norm(layer(hidden)).relu()
        matrix_Tkk = self.matrix(hidden).unflatten(-1, (self.size, self.size))
        return (x_Tk.to(matrix_Tkk.dtype).unsqueeze(-2) @ matrix_Tkk).squeeze(-2)


class LabelEncoder(nn.Module):
    """PointNet over an image's label descriptors: (B, N, 4 + K) -> label embeddings (B, N, C).

    centred: subtract the mean over the objects from the descriptors and before each norm (lgd/methods/label_guided/
    centring.py).
    """

    def __init__(self, num_classes: int, channels: int, *, centred: bool = False) -> None:
        super().__init__()
        size = CORNERS + num_classes
        self.num_classes = num_classes
        self.stn_in = SpatialTransformer(size)
        self.conv1 = nn.Linear(size, 64)
        self.stn_feat = SpatialTransformer(64)
        self.conv2 = nn.Linear(64, 128)
        self.conv3 = nn.Linear(128, 1024)
        self.conv4 = nn.Linear(64 + 1024, channels)
        self.centres = nn.ModuleList(map(CentreObjects, (size, 64, 128, 1024, channels))) if centred else None

    def init(self) -> None:
        """Initial weights with which the labels of different objects stay apart (lgd/methods/label_guided/init.py)."""
        init_he(self)
        for stn in (self.stn_in, self.stn_feat):
            init_centred(*stn.layers[1:])
            init_identity(stn.matrix, stn.size)
        init_one_hot(self.conv1, CORNERS)
        init_centred(self.conv2, self.conv3)
        init_balanced(self.conv4, 64)

    def forward(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """Embed ``descriptors`` (B, N, 4 + K); slots where ``valid`` (B, N) is False do not reach the others."""
        images, count = valid.shape
        rows_Tk = descriptors.flatten(0, 1)
        slots_T: Tensor | None = None
        if not device_waits.reading_waits(valid):
            # Most slots may be padding. On a GPU, finding out which would synchronise and cost more than it saves.
            slots_T = valid.flatten().nonzero().squeeze(1)
            rows_Tk = rows_Tk[slots_T]
        counted_T = valid.flatten() if slots_T is None else torch.ones_like(slots_T, dtype=torch.bool)
        hidden = self._normed(1, self.conv1(self.stn_in(self._centred(0, rows_Tk, counted_T))), counted_T)
        feature_T64 = self.stn_feat(hidden)
        hidden = self._normed(2, self.conv2(feature_T64), counted_T)
        hidden = self._normed(3, self.conv3(hidden), counted_T)
        # Every image has at least one valid slot, and a ReLU's output is never below zero, so zero in the padding
        # slots leaves the maximum as it is.
        padded = _in_slots(hidden, slots_T, images * count).unflatten(0, (images, count))
        image_BD = padded.masked_fill(~valid[..., None], 0).amax(dim=1)
        if slots_T is None:
            image_TD = image_BD[:, None].expand(-1, count, -1).flatten(0, 1)
        else:
            image_TD = image_BD[slots_T // count]
        embedded = self._normed(4, self.conv4(torch.cat([feature_T64, image_TD], dim=-1)), counted_T)
        return _in_slots(embedded, slots_T, images * count).unflatten(0, (images, count))

    def _centred(self, layer: int, x_TD: Tensor, counted_T: Tensor) -> Tensor:
        return x_TD if self.centres is None else self.centres[layer](x_TD, counted_T)

    def _normed(self, layer: int, x_TD: Tensor, counted_T: Tensor) -> Tensor:
        return layer_norm(self._centred(layer, x_TD, counted_T)).relu()


def _in_slots(rows: Tensor, slots: Tensor | None, count: int) -> Tensor:
    """Rows (T, D) at their ``slots`` (T,) of ``count``, zero elsewhere; unchanged where ``slots`` is None."""
    return rows if slots is None else rows.new_zeros(count, rows.shape[-1]).index_copy(0, slots, rows)


class LabelProjection(nn.Module):
    """Linear C -> C, LayerNorm without affine, ReLU, on label embeddings (B, N, C). centred: as in the encoder."""

    def __init__(self, channels: int, *, centred: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.centre = CentreObjects(channels) if centred else None

    def forward(self, embeddings: Tensor, valid: Tensor | None = None) -> Tensor:
        """Project ``embeddings``. valid: (B, N) bool, the slots that hold an object; None: all."""
        projected = self.linear(embeddings)
        return layer_norm(projected if self.centre is None else self.centre(projected, valid)).relu()


class AppearanceEncoder(nn.Module):
    """Mean of the projected student features over each object's region, at one level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features_BChw: Tensor, regions_BNP: Tensor) -> Tensor:
        """Return (B, N, C); an object whose region is empty gets the zero vector."""
        projected = group_norm(self.conv(features_BChw), relu=True)
        # A sum over a whole level exceeds fp16's range. Regions are 0 or 1, which bfloat16 holds.
        dtype = torch.bfloat16 if projected.dtype is torch.bfloat16 and projected.is_cuda else torch.float32
        with torch.autocast(projected.device.type, enabled=False):
            total = (regions_BNP.to(dtype) @ projected.to(dtype).flatten(2).transpose(1, 2)).float()
            mean = total / regions_BNP.sum(-1, keepdim=True).clamp(min=1)
        return mean.to(projected.dtype)
