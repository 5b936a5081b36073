"""Data sets that several files read batches of."""

from __future__ import annotations

from pathlib import Path

import pytest

from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from tests.helpers_data import write_coco
from tests.helpers_loaders import SPEC


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return resolve("shapes", shapes=SPEC)


@pytest.fixture
def mixed(tmp_path: Path) -> DataSet:
    """A data set of wide and high images."""
    return resolve(f"coco-json:{write_coco(tmp_path)}", shapes=SPEC)
