"""Intra-object knowledge mapper (the LGD paper, section 3.3): object vectors back onto the pyramid.

Shape suffixes: B images, N object slots, C channels, P = h * w cells of a level.
"""

from __future__ import annotations

from torch import Tensor, nn

from lgd.methods.norms import group_norm


class KnowledgeMapper(nn.Module):
    """Write each object's vector into its region, add the context object's context_BC11, refine.

    write: False writes nothing into the regions (the components grid's "mapper off"), so that the features come from
    the context object only. context: the objects' last slot is the context object.
    """

    def __init__(self, channels: int, *, write: bool = True, context: bool = True) -> None:
        super().__init__()
        if not (write or context):
            raise ValueError("with the mapper off the features come from the context object, which is off too")
        self.write = write
        self.context = context
        if write:
            self.object_linear = nn.Linear(channels, channels)
            self.object_conv = nn.Conv2d(channels, channels, 3, padding=1)
        if context:
            self.context_linear = nn.Linear(channels, channels)
        self.refine = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))

    def forward(self, vectors_BNC: Tensor, regions_BNP: Tensor, level_size: tuple[int, int]) -> Tensor:
        """Return the instructive features of one level, (B, C, h, w) with (h, w) = ``level_size``."""
        features: Tensor | None = None
        if self.write:
            objects = slice(None, -1) if self.context else slice(None)
            values_BNC = self.object_linear(vectors_BNC[:, objects])
            masks_BNP = regions_BNP[:, objects].to(values_BNC.dtype)
            written_BPC = masks_BNP.transpose(1, 2) @ values_BNC
            features = self.object_conv(written_BPC.unflatten(1, level_size).permute(0, 3, 1, 2))
        if self.context:
            context_BC11 = self.context_linear(vectors_BNC[:, -1])[:, :, None, None]
            features = context_BC11.expand(-1, -1, *level_size) if features is None else features + context_BC11
        assert features is not None
        features = features.relu()
        last = len(self.refine) - 1
        for i, conv in enumerate(self.refine):
            features = group_norm(conv(features), relu=i < last)
        return features
