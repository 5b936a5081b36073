"""Loaders: batches are a function of seed and position alone, and hold what detectron2 expects."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from lgd.data.catalog import resolve
from lgd.data.dataset import DataSet
from lgd.data.loaders import train_loader, val_loader
from lgd.data.sampling import EqualSizes
from lgd.errors import InputError
from lgd.training import run as training
from lgd.training.build import dry_build
from tests.helpers import quick_experiment
from tests.helpers_data import edit_json
from tests.helpers_loaders import SPEC, assert_equal, batches, differ


def test_seeds(made: DataSet) -> None:
    first = batches(made, 10)
    assert_equal(first, batches(made, 10))
    assert differ(first, batches(made, 10, seed=2))


def test_an_image_is_augmented_anew_each_time(made: DataSet) -> None:
    sizes: dict[int, set[tuple[int, ...]]] = {}
    for batch in batches(made, 40):
        for sample in batch:
            sizes.setdefault(sample["image_id"], set()).add(tuple(sample["image"].shape))
    assert {shape[1] for found in sizes.values() for shape in found} == {64, 80, 96}
    assert max(map(len, sizes.values())) > 1


def test_flips_happen_to_about_half_and_to_the_boxes_as_well(made: DataSet) -> None:
    plain = batches(made, 25, min_sizes=(64,), flip=False)
    flipped = batches(made, 25, min_sizes=(64,))
    count = 0
    for a, b in zip(itertools.chain(*plain), itertools.chain(*flipped), strict=True):
        assert a["image_id"] == b["image_id"]
        boxes, mirrored = a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor
        if torch.equal(a["image"], b["image"]):
            assert torch.equal(boxes, mirrored)
        else:
            count += 1
            assert torch.equal(a["image"].flip(2), b["image"])
            x0, y0, x1, y1 = boxes.unbind(1)
            assert torch.equal(torch.stack([64 - x1, y0, 64 - x0, y1], 1), mirrored)
    assert 30 <= count <= 70


def test_foreign_random_numbers_change_nothing(made: DataSet) -> None:
    expected = batches(made, 6)
    got = []
    stream = iter(
        train_loader(
            made, batch_size=4, min_sizes=(64, 80, 96), max_size=128, flip=True, masks=False, seed=1, workers=0
        )
    )
    for step in range(6):
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002
        torch.manual_seed(step)
        torch.rand(step)
        got.append(next(stream))
    assert_equal(got, expected)


def test_loading_draws_no_foreign_random_numbers(made: DataSet) -> None:
    def drawn(load: bool) -> tuple[float, float, float]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        if load:
            batches(made, 3)
            list(val_loader(made, min_size=64, max_size=64, workers=0, with_labels=False))
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    assert drawn(True) == drawn(False)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(made: DataSet, workers: int) -> None:
    # More than two epochs of the data.
    assert_equal(batches(made, 16, workers=workers), batches(made, 16))


@pytest.mark.parametrize(("start", "workers"), [(4, 0), (36, 0), (20, 2)])
def test_start_continues(made: DataSet, start: int, workers: int) -> None:
    whole = batches(made, 14)
    rest = batches(made, 14 - start // 4, start=start, workers=workers)
    assert_equal(rest, whole[start // 4 :])


def test_start_continues_among_wide_and_high_images(mixed: DataSet) -> None:
    whole = batches(mixed, 9, batch_size=3, keep_empty=True)
    assert_equal(batches(mixed, 5, batch_size=3, keep_empty=True, start=12), whole[4:])


def test_grouping_equals_detectron2s(mixed: DataSet) -> None:
    size = [
        {"width": 40, "height": 48, "i": 0},
        {"width": 48, "height": 48, "i": 1},
        {"width": 56, "height": 48, "i": 2},
    ]
    stream = ({**size[index], "position": p} for p, index in enumerate(TrainingSampler(3, seed=1)))
    theirs = itertools.islice(AspectRatioGroupedDataset(stream, 3), 20)
    expected = [[sample["i"] + 1 for sample in batch] for batch in theirs]
    got = batches(mixed, 20, batch_size=3, keep_empty=True)
    assert [[sample["image_id"] for sample in batch] for batch in got] == expected
    assert all(len({sample["width"] > sample["height"] for sample in batch}) == 1 for batch in got)
    ungrouped = batches(mixed, 20, batch_size=3, keep_empty=True, group_aspect=False)
    order = itertools.islice(TrainingSampler(3, seed=1), 60)
    assert [sample["image_id"] - 1 for batch in ungrouped for sample in batch] == list(order)


def test_two_processes_share_the_stream(made: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batches(made, 6, group_aspect=False)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        halves.append(batches(made, 6, group_aspect=False))
    woven = [[sample for pair in zip(*step, strict=True) for sample in pair] for step in zip(*halves, strict=True)]
    assert_equal(woven, whole)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"start": 3}, "start 3"),
        ({"start": -4}, "start -4"),
        ({"min_sizes": ()}, "min_sizes"),
    ],
)
def test_wrong_options(made: DataSet, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        batches(made, 1, **wrong)


@pytest.mark.parametrize(("split", "purpose"), [("train", "train on"), ("val", "evaluate on, and AP would not be")])
def test_a_split_without_objects_is_refused_before_training(
    split: str, purpose: str, mixed: DataSet, tmp_path: Path
) -> None:
    """A validation split without any used to be trained on to the end, for an AP that is not defined."""
    path = tmp_path / f"annotations/instances_{split}2017.json"
    edit_json(path, lambda c: c["annotations"].clear())
    bare = resolve(f"coco-json:{mixed.root}", shapes=SPEC)
    said = f"{path} has no object to {purpose}"
    experiment = quick_experiment(data__source=bare.source)
    for refuse in (
        lambda: batches(bare, 1),
        lambda: training.run(experiment, tmp_path / "run"),
        lambda: dry_build(experiment, to_train=True),
    ):
        with pytest.raises(InputError, match=re.escape(said)) as caught:
            refuse()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert batches(bare, 1, keep_empty=True)


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_validation(made: DataSet, with_labels: bool, workers: int) -> None:
    loader = val_loader(made, min_size=96, max_size=128, workers=workers, with_labels=with_labels, batch_size=3)
    samples = list(itertools.chain(*loader))
    assert len(loader) == 14
    assert [sample["image_id"] for sample in samples] == list(range(1, SPEC.val + 1))
    assert all(sample["image"].shape == (3, 96, 96) for sample in samples)
    assert all((sample["height"], sample["width"]) == (64, 64) for sample in samples)
    assert all(("instances" in sample) == with_labels for sample in samples)
    if with_labels:
        counts = [len(sample["instances"]) for sample in samples]
        assert sum(counts) == made.counts.val.objects
        assert counts.count(0) == made.counts.val.empty > 0
        assert all(sample["instances"].image_size == (96, 96) for sample in samples)


def test_images_of_one_size_are_detected_on_together(mixed: DataSet) -> None:
    """Neighbours share a batch, the order stays, and no image is padded."""
    loader = val_loader(mixed, min_size=48, max_size=96, workers=0, with_labels=False, batch_size=2)
    found = list(loader)
    assert len(found) == len(loader)
    flat = [sample["image_id"] for sample in itertools.chain(*found)]
    assert flat == sorted(flat)
    assert all(len({tuple(sample["image"].shape) for sample in batch}) == 1 for batch in found)
    sizes = [(40, 48)] * 3 + [(48, 40)] + [(40, 48)]
    assert list(EqualSizes(sizes, 2)) == [[0, 1], [2], [3], [4]]
    assert list(EqualSizes([], 2)) == []
