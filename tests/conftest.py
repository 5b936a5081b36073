"""What holds for every test."""

from __future__ import annotations

import pytest
import torch

# Tiny networks on few cores: threads wait for each other longer than they work.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
