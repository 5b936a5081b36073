"""Triton kernels of the training step: several operators over a feature map or over all scores in one pass.

On a GPU what lies between two convolutions is bound by memory: each torch operator reads and writes the whole map. A
kernel reads it once. Everywhere else, and where Triton does not work, the operators compute the same.
"""
