"""Initial weights shared by the methods' modules."""

from __future__ import annotations

from torch import nn


def init_he(module: nn.Module) -> None:
    """He's normal weights for ReLU networks (He et al., ICCV 2015, eq. 10) and zero biases in conv and linear maps."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
