"""Two sweeps of two users on one cluster and one bucket, on unlike nodes that come and go: stub trainings.

Eight nodes and 200 trials are the nightly one.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from ablations.command import main
from ablations.scaling.cluster import Attempt, FakeCluster, Kind, attempts, failures, most_at_once, sweep_arguments
from ablations.scaling.stub_training import HOLD, SITECUSTOMIZE
from lgd.storage import outputs
from lgd.storage.store import Store
from tests.conftest import check_no_leftover_processes, once_per_run
from tests.helpers import wait_until
from tests.helpers_storage import BUCKET
from tests.integration.commands import call

pytestmark = pytest.mark.slow

STEPS = 4

NO_FIGURES = """
from ablations.import_patches import patch_on_import

def without(module):
    module.draw, module.arms_figure = lambda *_: [], lambda *_: []
    module.write_page = lambda directory, *_: directory / "report.html"

patch_on_import({"analysis.report.write": without})
"""

KINDS = {"no GPU": Kind(1), "one GPU": Kind(2, 1), "eight GPUs": Kind(3, 8)}

FIRST, SECOND = 10, 2
"""Trials of the two sweeps: of half a GPU each, and without one."""


class Ran(NamedTuple):
    """What was seen. at_once: trials of each sweep that ran on each kind of node when nothing could begin any more."""

    at_once: tuple[Counter[str], Counter[str]]
    refused: tuple[int, str]
    status: tuple[int, int]
    said: str
    made: list[Attempt]
    groups: int
    urls: tuple[str, str]
    outputs: tuple[Path, Path]
    left: list[str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Ran:
    def make(directory: Path) -> Ran:
        request.getfixturevalue("s3")
        with check_no_leftover_processes():
            return _run(directory)

    return once_per_run(tmp_path_factory, "many-nodes", make)


class _Sweeps:
    """The two sweeps' commands, and what they have running."""

    def __init__(self, cluster: FakeCluster, directory: Path) -> None:
        self._cluster, self._directory = cluster, directory
        self.kinds: dict[str, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []

    def add(self, name: str, kind: Kind) -> None:
        """A node joins. No disk that the nodes share, nor the commands."""
        self.kinds[self._cluster.add(kind, {"LGD_CACHE": str(self._directory / name)}, wait=False)] = name

    def start(self, user: str, url: str, trials: int, gpus: str) -> None:
        arguments = [*sweep_arguments(trials, STEPS), "--gpus", gpus, "--output", url]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LGD_CACHE", str(self._directory / user))
            self.processes.append(self._cluster.start(*arguments, said=self._directory / f"{user}.txt"))

    def running(self, url: str) -> Counter[str]:
        """How many of its trials have begun on each kind of node."""
        return Counter(self.kinds[x.node] for x in attempts(self._cluster.events()) if x.trial.startswith(url))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """No longer than all commands are at work."""
        wait_until(lambda: condition() or any(x.poll() is not None for x in self.processes))


def _run(directory: Path) -> Ran:
    first, second = urls = (f"s3://{BUCKET}/{directory.name}/first", f"s3://{BUCKET}/{directory.name}/second")
    with FakeCluster(step_seconds=0.1, code=SITECUSTOMIZE + NO_FIGURES) as cluster:
        sweeps = _Sweeps(cluster, directory)
        for name, kind in KINDS.items():
            sweeps.add(name, kind)
        cluster.wait()
        (cluster.place / HOLD).touch()
        try:
            sweeps.start("first", first, FIRST, "0.5")
            sweeps.wait_until(lambda: sweeps.running(first).total() == 5)
            sweeps.start("second", second, SECOND, "0")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LGD_CACHE", str(directory / "third"))
                called = call(*sweep_arguments(FIRST, STEPS), "--output", first, "--address", cluster.address)
            sweeps.wait_until(lambda: sweeps.running(second).total() == 1)
            # A node that joins is used by sweeps that began before it.
            sweeps.add("joined", KINDS["one GPU"])
            sweeps.wait_until(lambda: sum(sweeps.running(url)["joined"] for url in urls) == 2)
            at_once = sweeps.running(first), sweeps.running(second)
            # One with two trials goes, and they go on elsewhere.
            cluster.lose(next(node for node, name in sweeps.kinds.items() if name == "one GPU"))
            (cluster.place / HOLD).unlink()
            status = [process.wait(300) for process in sweeps.processes]
        finally:
            for process in sweeps.processes:
                process.kill()
        made, groups = attempts(cluster.events()), cluster.placement_groups()
    said = "\n".join((directory / f"{user}.txt").read_text() for user in ("first", "second"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGD_CACHE", str(directory / "reader"))
        read = [outputs.output_path(url) for url in urls]
        for path in read:
            outputs.fetch_records(path)
    left = [x for url in urls for x in Store(url).entries() if "checkpoints/" in x or x == "stop"]
    refused = called.status, called.err
    return Ran(at_once, refused, (status[0], status[1]), said, made, groups, urls, (read[0], read[1]), left)


def test_two_sweeps_finish_whole_though_nodes_come_and_go(ran: Ran) -> None:
    assert ran.status == (0, 0), ran.said
    for url, path, trials in zip(ran.urls, ran.outputs, (FIRST, SECOND), strict=True):
        made = [x for x in ran.made if x.trial.startswith(url)]
        assert failures(path, trials, made, STEPS) == []
        assert f"{trials} trials" in ran.said
    # Those of the lost node were begun twice.
    assert len(ran.made) == FIRST + SECOND + 2
    assert ran.said.count("its worker died; it") == 2
    assert (ran.groups, ran.left) == (0, [])


def test_trials_are_packed_as_the_nodes_resources_allow(ran: Ran) -> None:
    """Half a GPU and a core each: one GPU takes two, and of eight as many are used as there are cores."""
    first, second = ran.at_once
    assert (first["one GPU"], first["eight GPUs"], first["no GPU"]) == (2, 3, 0)
    assert (second["one GPU"], second["eight GPUs"], second["no GPU"]) == (0, 0, 1)
    assert first["joined"] + second["joined"] == 2
    most = most_at_once(ran.made)
    assert max(most.values()) == 3


def test_a_second_sweep_in_the_same_place_is_refused(ran: Ran) -> None:
    status, said = ran.refused
    assert status == 2
    assert "is at work there; wait for it, or choose another --output" in said
    assert said.count("\n") == 1


@pytest.mark.nightly
def test_200_trials_on_eight_nodes_that_come_and_go_lose_nothing_and_do_nothing_twice(tmp_path: Path) -> None:
    """Minutes. What it checks is said in docs/load.md."""
    assert main(["bench", "load", "--parts", "cluster", "--output", str(tmp_path / "load.csv")]) == 0
