"""The packages of the services that a training logs to. Loads neither torch nor detectron2."""

from __future__ import annotations

import importlib
from typing import Any

from lgd.config.experiment import Experiment
from lgd.errors import InputError


def check(experiment: Experiment) -> None:
    """Raise InputError, one line, when the package of a service that ``experiment`` logs to is missing."""
    for name in experiment.log:
        package(name)


def package(name: str) -> Any:
    """The package of the service ``name``. Raises InputError, one line, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"log {name}: its package is not installed: pip install -e '.[{name}]'") from None
