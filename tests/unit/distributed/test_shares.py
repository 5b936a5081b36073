"""A training whose number of workers changes is that of its largest number. Real processes over Gloo, without Ray."""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor

from lgd.config.experiment import Experiment, parse
from lgd.data.sampling import BatchSampler
from lgd.distributed import ranks, shares
from lgd.distributed.workers import Node, Workers
from lgd.errors import InputError
from lgd.results.record import Record, load
from lgd.training import run as training
from lgd.training.__main__ import main
from lgd.training.own_shares import OwnShares
from lgd.training.progress import Stopped
from tests.helpers import quick_experiment
from tests.helpers_processes import run_on
from tests.unit.distributed.test_ranks import ALIKE

SHARES = 4
STEPS = 5


def _experiment(**changes: Any) -> Experiment:
    """Norms of batches, which have running statistics, in the backbone."""
    described = {**ALIKE, "schedule.steps": STEPS, "detector.backbone.norm": "BN", "detector.backbone.width": 8}
    return quick_experiment(**{**described, **changes})


def _attempt(experiment: Experiment, directory: Path, stop_after: int) -> None:
    """One attempt at a training of SHARES shares, which stops after that many steps of its own; 0: at the end."""
    asked = itertools.count(1)
    with shares.split_into(SHARES), suppress(Stopped):
        training.run(experiment, directory, should_stop=lambda: next(asked) == stop_after)


def _work(rank: int, described: dict[str, Any], directory: str, stop_after: int) -> None:
    _attempt(parse(described), Path(directory), stop_after)


def _on(world: int, experiment: Experiment, directory: Path, stop_after: int) -> None:
    run_on(world, _work, experiment.model_dump(mode="json"), str(directory), stop_after)


def _values(record: Record) -> dict[str, list[float]]:
    return {name: [value for _, value in curve] for name, curve in record.losses.items()}


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_workers_that_come_and_go_train_what_all_of_them_train(detector: str, tmp_path: Path) -> None:
    """One worker, then three, which four shares do not divide between, then two: losses and weights of one throughout.

    RetinaNet divides its losses by a running mean over all shares; Faster R-CNN draws the regions it learns from.
    """
    experiment = _experiment(**{"detector.name": detector})
    came_and_went, steady = tmp_path / "came and went", tmp_path / "steady"
    _attempt(experiment, came_and_went, stop_after=2)
    _on(3, experiment, came_and_went, stop_after=2)
    _on(2, experiment, came_and_went, stop_after=0)
    _attempt(experiment, steady, stop_after=0)
    ours, theirs = (load(x / "record.json") for x in (came_and_went, steady))
    assert (ours.status, ours.attempts, ours.steps) == ("finished", 3, STEPS)
    assert (ours.fewest_devices, ours.devices, theirs.fewest_devices, theirs.devices) == (1, 3, None, 1)
    assert ours.devices_held == "1 to 3"
    for name, curve in _values(theirs).items():
        # Only the order of sums differs.
        assert _values(ours)[name] == pytest.approx(curve, rel=1e-4), name
    weights: list[dict[str, Tensor]] = [
        torch.load(x / "student.pth", weights_only=True)["model"] for x in (came_and_went, steady)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[1].items():
        assert torch.allclose(weights[0][name], tensor, rtol=1e-3, atol=1e-5), name
    seconds, device_seconds = (sum(x.values()) for x in (ours.seconds, ours.device_seconds))
    assert seconds < device_seconds < 3 * seconds


def test_every_number_of_workers_sees_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide and high images go into different batches, which each share fills on its own."""
    wide = [i % 3 == 0 for i in range(23)]
    found = []
    for world in (1, 3, SHARES):
        monkeypatch.setattr(comm, "get_world_size", lambda world=world: world)
        steps: list[list[Any]] = [[None] * SHARES for _ in range(9)]
        for rank in range(world):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            with shares.split_into(SHARES):
                batches = iter(BatchSampler(len(wide), 5, 2, wide, start=1))
                for step, share in itertools.product(range(9), shares.own()):
                    steps[step][share] = next(batches)
        found.append(steps)
    assert found[0] == found[1] == found[2]
    assert all({wide[i] for _, i in batch} in ({True}, {False}) for step in found[0] for batch in step)


def test_a_mean_that_was_not_counted_is_asked_for_again() -> None:
    """A loss that comes in later: the model counts from then on. A running mean moves once a step."""
    detector = _Detector()
    with shares.split_into(2):
        ranks.sync_loss_normalizer(detector)
        own = OwnShares(detector)
        own.seed(0, 0)
        own._needs_counting = False
        own.count([1.0, 3.0], detector)
        with pytest.raises(shares.NotCountedError), own.computing_share(0):
            detector(1.0)
        assert detector.values == []
        from detectron2.utils.events import EventStorage

        with EventStorage():
            own.count([1.0, 3.0], detector, again=True)
        for i, batch in enumerate((1.0, 3.0)):
            with own.computing_share(i):
                assert detector(batch) == 2.0
    assert detector.values == [2.0]


@pytest.mark.parametrize(("before", "after"), [(SHARES, 2), (1, SHARES)])
def test_a_training_goes_on_with_another_number_of_shares(tmp_path: Path, before: int, after: int) -> None:
    """At a later step than random numbers of 32 bits could be counted to."""
    experiment, asked = _experiment(**{"schedule.steps": 8}), itertools.count(1)
    with shares.split_into(before), suppress(Stopped):
        training.run(experiment, tmp_path, should_stop=lambda: next(asked) == 6)
    with shares.split_into(after):
        record = training.run(experiment, tmp_path)
    assert (record.status, record.attempts, record.steps) == ("finished", 2, 8)


def test_shares_have_random_numbers_of_their_own_from_every_step_on() -> None:
    drawn = []
    with shares.split_into(SHARES):
        own = OwnShares(torch.nn.Linear(1, 1))
        for start in (0, 4, 5, 100, 180_000):
            own.seed(7, start)
            drawn += [int(x["numpy"][1][0]) for x in own.random_states()]
    assert len(set(drawn)) == 5 * SHARES


class _Detector(torch.nn.Module):
    """Divides by the running mean of a number, as detectron2's dense detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.values: list[float] = []

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        self.values.append(value)
        return value

    def forward(self, number: float) -> Any:
        return self._ema_update("loss_normalizer", number, 100)


@pytest.mark.parametrize(
    ("workers", "changes", "words"),
    [
        (Workers(3, minimum=1), {}, r"does not split over 3 workers; MAX may be 1, 2, 4 \(between MIN and MAX any"),
        (Workers(4, minimum=2), {"schedule.accumulate": 2}, "in 2 parts each; MAX may be 2 "),
        (Workers(2, minimum=3), {}, "MIN is at least 1, and MAX at least MIN"),
        (Workers(2, minimum=0), {}, "MIN is at least 1, and MAX at least MIN"),
        (Workers(2, minimum=1), {"detector.backbone.norm": "SyncBN"}, "SyncBN takes its statistics over the workers"),
    ],
)
def test_workers_whose_results_would_depend_on_their_number_are_refused(
    workers: Workers, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        workers.check(_experiment(**changes))


def test_elastic_workers_need_room_for_the_fewest() -> None:
    elastic = Workers(4, minimum=2)
    elastic.check(_experiment())
    assert elastic.max_concurrent([Node(1, 0), Node(1, 0)]) == 1
    with pytest.raises(InputError, match="2 workers of 1 CPU and 0 GPU each can never run here"):
        elastic.max_concurrent([Node(1, 0)])


@pytest.mark.parametrize("wrong", [["--elastic", "2"], ["--elastic", "a:b"], ["--elastic", "1:2", "--workers", "2"]])
def test_a_wrong_range_is_one_line(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["retinanet_r50_2x_ms", "--method", "baseline", "--data", "shapes", "--output", str(tmp_path)]
    assert main([*arguments, "--yes", *wrong]) == 2
    assert "elastic" in capsys.readouterr().err.splitlines()[-1]


def test_synchronised_norms_of_any_detector_are_refused() -> None:
    from lgd.training.own_shares import check_norms

    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(2))
    check_norms(model)
    with shares.split_into(2), pytest.raises(InputError, match="SyncBN takes its statistics over the workers"):
        check_norms(model)


class _Counting(torch.nn.Module):
    """With a running number that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.weight = 100.0, torch.nn.Parameter(torch.ones(()))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        self.seen = 0.9 * self.seen + 0.1 * float(batch.sum())
        return {"loss": self.weight * batch.sum() / shares.mean_over_shares(batch.sum())}


def test_a_models_running_numbers_are_those_of_the_first_share() -> None:
    batches = [torch.ones(2), torch.full((2,), 5.0)]
    with shares.split_into(2), EventStorage(0):
        model = _Counting()
        own = OwnShares(model)
        own.seed(0, 0)
        own.count(batches, model)
        assert model.seen == 100.0
        for i, batch in enumerate(batches):
            with own.computing_share(i):
                model(batch)
        assert model.seen == pytest.approx(0.9 * 100 + 0.1 * 2)
