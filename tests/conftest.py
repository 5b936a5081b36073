"""What holds for every test."""

from __future__ import annotations

import torch

# Tiny networks on few cores: threads wait for each other longer than they work.
torch.set_num_threads(1)
