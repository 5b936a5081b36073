"""1x1 convolutions between levels with different numbers of channels and a method that needs one number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lgd.methods.feature_capture import Features

MOST_CHANNELS = 256
"""Channels that are taught in, as in FPN, unless every level has fewer."""


class ChannelAdapters(nn.Module):
    """For each level a convolution to ``width`` channels, and one back to the level's own.

    They belong to the training, not to the student: they are dropped after it. channels: of each level, by name.
    """

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.width = min(MOST_CHANNELS, max(channels.values()))
        self.inward = nn.ModuleDict({name: nn.Conv2d(x, self.width, 1) for name, x in channels.items()})
        self.outward = nn.ModuleDict({name: nn.Conv2d(self.width, x, 1) for name, x in channels.items()})

    def to_width(self, features: Mapping[str, Tensor]) -> Features:
        """Maps (B, C_level, h, w) by level as maps (B, width, h, w)."""
        return {name: self.inward[name](x) for name, x in features.items()}

    def to_levels(self, features: Mapping[str, Tensor]) -> Features:
        """Maps (B, width, h, w) by level as maps (B, C_level, h, w)."""
        return {name: self.outward[name](x) for name, x in features.items()}
