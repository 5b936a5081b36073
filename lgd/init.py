"""How the modules that are dropped after training start. The method's sources do not say."""

from __future__ import annotations

from torch import nn


def init_he(module: nn.Module) -> None:
    """He's normal weights for ReLU networks (He et al., ICCV 2015, eq. 10), biases zero, in every conv and linear map.

    torch's default shrinks a signal by three at each of them; small teachers then learn to use the labels late.
    """
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
