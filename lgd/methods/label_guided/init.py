"""How the modules that are dropped after training start. The method's sources do not say.

A teacher is worth learning from once it uses the labels. torch's default initialisation lets an object's own label
fade on its way to the features: each linear map shrinks the signal, two random matrices mix it, and the 1,024 numbers
shared by an image's objects drown the 64 that are an object's own. Above all, descriptors of different objects are
nearly the same vector (a one-hot of K classes has K - 1 entries of -1), and what a ReLU lets through has a mean, the
same for all objects and larger than what tells them apart. Keys and values that are all alike make every object see one
and the same thing, whatever attention does (docs/evidence.md has a training that stayed there for 1,500 steps). What
follows keeps the labels of different objects apart from the first step. It reaches from the descriptors to keys, values
and queries; the first layers of the encoder's small networks and what comes after attention start as He has it. Which
label an object asks for is left to training: lgd/methods/label_guided/label_use.py measures it.
"""

from __future__ import annotations

import torch
from torch import nn


def init_he(module: nn.Module) -> None:
    """He's normal weights for ReLU networks (He et al., ICCV 2015, eq. 10) and zero biases in conv and linear maps."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def init_one_hot(linear: nn.Linear, first: int) -> None:
    """Let a linear map take the inputs from ``first`` on, a one-hot in [-1, 1], as if in [0, 2]: by its bias."""
    with torch.no_grad():
        linear.bias.copy_(linear.weight[:, first:].sum(dim=1))


def init_identity(linear: nn.Linear, size: int) -> None:
    """Let a linear map that puts out a flattened (size, size) matrix start near the identity."""
    nn.init.normal_(linear.weight, std=1e-3)
    with torch.no_grad():
        linear.bias.copy_(torch.eye(size).flatten())


def init_centred(*linears: nn.Linear) -> None:
    """Let the weights of each output sum to zero: what all its inputs share, such as the mean of a ReLU's outputs, does
    not pass."""
    with torch.no_grad():
        for linear in linears:
            linear.weight -= linear.weight.mean(dim=1, keepdim=True)


def init_balanced(linear: nn.Linear, first: int) -> None:
    """Let the first ``first`` inputs of a linear map weigh as much in its output as all the others together.

    Each of the two parts is centred, as in :func:`init_centred`.
    """
    with torch.no_grad():
        for part in (linear.weight[:, :first], linear.weight[:, first:]):
            part -= part.mean(dim=1, keepdim=True)
        linear.weight[:, :first] *= ((linear.in_features - first) / first) ** 0.5
