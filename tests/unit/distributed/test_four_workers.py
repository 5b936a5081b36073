"""Four workers train what one worker trains, with every detector. Real processes over Gloo, without Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from lgd.config.experiment import Experiment, parse
from lgd.config.paper import DETECTORS as TITLES
from lgd.distributed import shares
from lgd.results.record import Record, load
from lgd.training import run as training
from tests import helpers_network as network
from tests.conftest import once_per_run
from tests.helpers import DETECTORS, quick_experiment
from tests.helpers_processes import START_METHOD, run_on
from tests.unit.distributed.test_ranks import ALIKE

WORKERS = 4

STEPS = 5

FIRST, LATER = 1e-6, 0.02
"""How far a loss of the first two steps, and of any step, may lie from one worker's, as a part of it.

At first by the order of sums alone. Later that may have turned a choice between two regions, or two places of an
object, that were equally good: the losses are then of other ones.
"""

DRAW = ("faster_rcnn", "mask_rcnn")
"""Detectors that draw the regions which they learn from, each worker its own: one worker draws the same for its shares,
and others for its batch."""

LOST = 0.05
"""Part of the packets that are lost."""


def _experiment(detector: str) -> Experiment:
    return quick_experiment(**{**ALIKE, "schedule.steps": STEPS, "data.shapes_val": 4, "detector.name": detector})


def _work(rank: int, experiments: list[dict[str, Any]], directories: list[str]) -> None:
    for experiment, directory in zip(experiments, directories, strict=True):
        training.run(parse(experiment), Path(directory))


@pytest.fixture(scope="module")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a directory of each detector's training."""

    def make(root: Path) -> Path:
        described = [_experiment(x).model_dump(mode="json") for x in DETECTORS]
        run_on(WORKERS, _work, described, [str(root / x) for x in DETECTORS])
        return root

    return once_per_run(tmp_path_factory, "on_four", make)


def test_the_page_says_what_is_compared() -> None:
    page = " ".join((Path(__file__).parents[3] / "docs/drill.md").read_text(encoding="utf-8").split())
    said = page[page.index("test_four_workers.py") : page.index("test_two_hosts.py")]
    whole, _, drawn = said.partition("takes each batch whole.")
    assert TITLES.keys() == set(DETECTORS)
    assert {x for x, title in TITLES.items() if title in drawn} == set(DRAW)
    assert {x for x, title in TITLES.items() if title in whole} == set(DETECTORS) - set(DRAW)
    for words in (
        f"{ALIKE['detector.backbone.norm']} norms", f"over {STEPS} steps", f"the same {WORKERS} shares",
        f"within {FIRST:.0e}".replace("e-0", "e-"), f"within {LATER:.0%}".replace("%", " %"),
    ):  # fmt: skip
        assert words in said


def _check(record: Record, alone: Record) -> None:
    assert (alone.devices, alone.losses.keys()) == (1, record.losses.keys())
    for name, curve in alone.losses.items():
        ours, theirs = [v for _, v in record.losses[name]], [v for _, v in curve]
        assert ours[:2] == pytest.approx(theirs[:2], rel=FIRST), name
        assert ours == pytest.approx(theirs, rel=LATER), name


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_four_workers_follow_one(detector: str, on_four: Path, tmp_path: Path) -> None:
    """One with the same shares, and one with the whole batch: norms and losses are of each image alone here."""
    experiment, four = _experiment(detector), load(on_four / detector / "record.json")
    assert (four.status, four.devices, four.steps) == ("finished", WORKERS, STEPS)
    with shares.split_into(WORKERS):
        _check(four, training.run(experiment, tmp_path / "shares"))
    if detector not in DRAW:
        _check(four, training.run(experiment, tmp_path / "batch"))


def _on_two_hosts(rank: int, names: list[str], experiment: dict[str, Any], directory: str) -> None:
    torch.set_num_threads(1)
    host = rank * len(names) // WORKERS
    network.enter(names[host])
    os.environ["GLOO_SOCKET_IFNAME"] = network.interface(host)
    dist.init_process_group("gloo", f"tcp://{network.HOSTS[0]}:29400", rank=rank, world_size=WORKERS)
    try:
        _work(rank, [experiment], [directory])
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_lost_packets_change_nothing(on_four: Path, tmp_path: Path) -> None:
    """Two workers on each of two hosts, with a link between them that loses one packet in twenty: bit for bit."""
    why = network.missing()
    if why:
        pytest.skip(why)
    described, names = _experiment("retinanet").model_dump(mode="json"), [network.namespace(x) for x in (0, 1)]
    with network.two_hosts(LOST) as link:
        start_processes(_on_two_hosts, (names, described, str(tmp_path)), nprocs=WORKERS, start_method=START_METHOD)
    assert link.dropped > 0.3 * LOST * link.carried > 0
    ours, theirs = load(tmp_path / "record.json"), load(on_four / "retinanet" / "record.json")
    assert ours.losses == theirs.losses
    assert ours.student == theirs.student
    weights = [torch.load(x / "student.pth", weights_only=True)["model"] for x in (tmp_path, on_four / "retinanet")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
