"""Initial weights of the implicit teacher (docs/method.md, "How the modules start").

``reference``: the released code leaves torch's default initialisation (:func:`init_attention_reference` has the one
exception). ``informed`` is ours, by the other functions here.

Started as the released code does, a teacher does not use its labels for hundreds of steps: each linear layer shrinks
the signal, two random STN matrices mix it, and the 1,024 numbers that an image's objects share outweigh the 64 that are
an object's own. Above all, descriptors of different objects are nearly the same vector (a one-hot of K classes has K -
1 entries of -1), and a ReLU's outputs have a mean, the same for all objects and larger than their differences. With
keys and values that are all alike, every object gets the same output whatever the attention (docs/evidence.md has a
training that stayed so for 1,500 steps). The functions here keep the labels of different objects apart from the first
step, from the descriptors to keys, values and queries; the first layers of the encoder's small networks and what comes
after attention have He's weights. Which label an object attends to is left to training;
lgd/methods/label_guided/label_use.py measures it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from lgd.methods.label_guided.adapter import RelationAdapter


def init_attention_reference(adapter: RelationAdapter) -> None:
    """The start of ``torch.nn.MultiheadAttention``, whose input projection is one (3C, C) matrix.

    Its weights are Xavier-uniform over the stacked matrix, and all biases zero. The output projection's weights keep
    torch's default.
    """
    channels = adapter.query.in_features
    bound = math.sqrt(6 / (channels + 3 * channels))
    for linear in (adapter.query, adapter.key_value):
        nn.init.uniform_(linear.weight, -bound, bound)
    for linear in (adapter.query, adapter.key_value, adapter.output):
        nn.init.zeros_(linear.bias)


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
