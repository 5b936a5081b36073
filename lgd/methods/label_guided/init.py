"""Initial weights of the implicit teacher (docs/method.md, "How the modules start").

The released code leaves torch's default initialisation. Started so, a teacher does not use its labels for hundreds of
steps: each linear layer shrinks the signal, two random STN matrices mix it, and the 1,024 numbers that an image's
objects share outweigh the 64 that are an object's own. Above all, descriptors of different objects are nearly the same
vector (a one-hot of K classes has K - 1 entries of -1), and a ReLU's outputs have a mean, the same for all objects and
larger than their differences. With keys and values that are all alike, every object gets the same output whatever the
attention (docs/evidence.md has a training that stayed so for 1,500 steps). The functions here keep the labels of
different objects apart from the first step, from the descriptors to keys, values and queries; the first layers of the
encoder's small networks and what comes after attention have He's weights. Which label an object attends to is left to
training; lgd/methods/label_guided/label_use.py measures it.
"""

from __future__ import annotations

import torch
from torch import nn


def init_one_hot(linear: nn.Linear, first: int) -> None:
    """Set the bias so that inputs from ``first`` on, a one-hot in [-1, 1], act as if they were in [0, 2]."""
    with torch.no_grad():
        linear.bias.copy_(linear.weight[:, first:].sum(dim=1))


def init_identity(linear: nn.Linear, size: int) -> None:
    """Let a linear layer whose output is a flattened (size, size) matrix start near the identity."""
    nn.init.normal_(linear.weight, std=1e-3)
    with torch.no_grad():
        linear.bias.copy_(torch.eye(size).flatten())


def init_centred(*linears: nn.Linear) -> None:
    """Let the weights of each output sum to zero, so that what all inputs share (a ReLU's mean) cancels."""
    with torch.no_grad():
        for linear in linears:
            linear.weight -= linear.weight.mean(dim=1, keepdim=True)


def init_balanced(linear: nn.Linear, first: int) -> None:
    """Let the first ``first`` inputs contribute as much to the output as all the others together.

    Each of the two parts is centred, as in :func:`init_centred`.
    """
    with torch.no_grad():
        for part in (linear.weight[:, :first], linear.weight[:, first:]):
            part -= part.mean(dim=1, keepdim=True)
        linear.weight[:, :first] *= ((linear.in_features - first) / first) ** 0.5
