"""A finished training, for all tests of what is done with its student."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.training.run import run
from tests.helpers import quick_experiment


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a training that detects something."""
    directory = tmp_path_factory.mktemp("trained")
    run(quick_experiment(**{"schedule.steps": 30, "method.name": "baseline"}), directory)
    return directory
