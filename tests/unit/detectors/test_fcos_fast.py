"""FCOS's fast losses and matches against detectron2's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from lgd.detectors import batched, build_detector, fcos_fast
from lgd.detectors.fast_losses import use_fast_losses
from tests.helpers import CLASSES, batch, instances, tiny_settings


def _fcos() -> Any:
    torch.manual_seed(0)
    return build_detector(tiny_settings("fcos"), CLASSES)


@pytest.mark.parametrize("max_pairs", [1, 10**9])
@pytest.mark.parametrize("counts", [[3, 0, 40], [0, 0], [1, 2, 3]])
def test_labels_are_detectron2s(counts: list[int], max_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MAX_PAIRS", max_pairs)
    detector = _fcos()
    found = instances(counts, (64, 96))
    # Two equal boxes: the first one is taken. One larger than any level's range but the last's.
    if counts[-1] > 2:
        found[-1].gt_boxes = Boxes(found[-1].gt_boxes.tensor.clone())
        found[-1].gt_boxes.tensor[1] = found[-1].gt_boxes.tensor[0]
        found[-1].gt_boxes.tensor[2] = torch.tensor([-2000.0, -2000.0, 2000.0, 2000.0])
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    anchors = detector.anchor_generator([torch.zeros(1, 1, *x) for x in sizes])
    labels, boxes = FCOS.label_anchors(detector, anchors, found)
    fast_labels, fast_boxes = fcos_fast.label_anchors(detector, anchors, found)
    for ours, theirs, our_boxes, their_boxes in zip(fast_labels, labels, fast_boxes, boxes, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(our_boxes, their_boxes)
    assert (torch.cat(labels) < CLASSES).any() == any(counts)


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0]])
def test_losses_and_gradients_are_detectron2s(counts: list[int]) -> None:
    found: list[Any] = []
    for fast in (False, True):
        detector = _fcos()
        if fast:
            use_fast_losses(detector)
        assert type(detector) is FCOS
        assert ("losses" in vars(detector)) == fast
        with EventStorage(0) as storage:
            for seed in range(2):
                # The second batch sees what the first left in the running normaliser.
                detector.zero_grad()
                losses = detector.train()(batch(counts, seed=seed))
                sum(losses.values()).backward()
            logged = storage.latest()["num_pos_anchors"][0]
        gradients = torch.cat([p.grad.flatten() for p in detector.parameters() if p.grad is not None])
        found.append(
            ({k: float(v.detach()) for k, v in losses.items()}, logged, gradients, float(detector.loss_normalizer))
        )
    (losses, logged, gradients, normalizer), (ours, our_logged, our_gradients, our_normalizer) = found
    assert ours == pytest.approx(losses, rel=1e-5)
    assert our_logged == pytest.approx(logged)
    assert our_normalizer == pytest.approx(normalizer)
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-3, atol=1e-6)
