"""Starting Ray on this machine."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from lgd.distributed import ray_train
from lgd.errors import InputError


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nThe raylet failed.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = r"^Ray did not start .*startup. The raylet failed.*less busy$"
    with pytest.raises(InputError, match=words), ray_train.cluster(None):
        pass
