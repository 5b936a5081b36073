"""RetinaNet's fast losses and matches against detectron2's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss

from lgd.detectors import batched, retinanet_fast
from lgd.detectors.dense_losses import FocalLoss
from lgd.detectors.fast_losses import use_fast_losses
from tests.helpers import CLASSES, batch, instances, tiny_detector


@pytest.mark.parametrize("max_pairs", [1, 10**9])
@pytest.mark.parametrize("counts", [[3, 0, 40], [0, 0, 0], [1, 2, 3]])
def test_labels_are_detectron2s(counts: list[int], max_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MAX_PAIRS", max_pairs)
    detector = tiny_detector()
    found = instances(counts, (64, 96))
    # A box that no anchor overlaps: every anchor is then its best one, by detectron2's rule.
    found[-1].gt_boxes.tensor[:1] = torch.tensor([5000.0, 5000.0, 5010.0, 5010.0])
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    anchors = detector.anchor_generator([torch.zeros(1, 1, *x) for x in sizes])
    labels, boxes = RetinaNet.label_anchors(detector, anchors, found)
    fast_labels, fast_boxes = retinanet_fast.label_anchors(detector, anchors, found)
    for ours, theirs, our_boxes, their_boxes in zip(fast_labels, labels, fast_boxes, boxes, strict=True):
        assert torch.equal(ours, theirs)
        positive = (ours >= 0) & (ours < CLASSES)
        assert torch.equal(our_boxes[positive], their_boxes[positive])
    assert set(torch.cat(fast_labels).tolist()) > ({-1, CLASSES} if any(counts) else set())


@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0]])
def test_losses_and_gradients_are_detectron2s(counts: list[int]) -> None:
    found: list[Any] = []
    for fast in (False, True):
        detector = tiny_detector().double()
        if fast:
            use_fast_losses(detector)
        assert type(detector) is RetinaNet
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
    # float32 inside the focal loss, whatever its input.
    assert ours == pytest.approx(losses, rel=1e-6)
    assert our_logged == pytest.approx(logged)
    assert our_normalizer == pytest.approx(normalizer)
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_focal_loss(gamma: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 50, 7) * 8).to(dtype)
    labels = torch.randint(-1, 8, (2, 50))
    wanted = torch.nn.functional.one_hot(labels.clamp(min=0), 8)[..., :-1].double()
    reference = logits.double().requires_grad_()
    per_element = sigmoid_focal_loss(reference, wanted, alpha=0.25, gamma=gamma)
    expected = (per_element * (labels >= 0)[..., None]).sum()
    expected.backward()
    ours = logits.clone().requires_grad_()
    total = FocalLoss.apply(ours, labels, 0.25, gamma)
    (total * 3).backward()
    assert total.dtype is torch.float32
    assert reference.grad is not None
    assert ours.grad is not None
    assert ours.grad.dtype is dtype
    # Their sum is float32, too: fvcore casts its input.
    torch.testing.assert_close(total, expected.float(), rtol=1e-5, atol=0)
    rtol = 1e-4 if dtype is torch.float32 else torch.finfo(dtype).eps * 2
    torch.testing.assert_close(ours.grad.double(), reference.grad * 3, rtol=rtol, atol=1e-6)


def test_only_detectron2s_own_class_is_changed() -> None:
    class Own(RetinaNet):
        pass

    detector = tiny_detector()
    keys = list(detector.state_dict())
    assert list(use_fast_losses(detector).state_dict()) == keys
    own = tiny_detector()
    own.__class__ = Own
    assert "losses" not in vars(use_fast_losses(own))
    unweighted = tiny_detector()
    unweighted.focal_loss_alpha = -1
    assert "losses" not in vars(use_fast_losses(unweighted))
    giou = tiny_detector()
    giou.box_reg_loss_type = "giou"
    assert "losses" not in vars(use_fast_losses(giou))


def test_anchors_are_made_once_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "CACHED_GRIDS", 2)
    plain, fast = tiny_detector(), tiny_detector()
    use_fast_losses(fast)
    for side in (64, 96, 64, 128, 64, 32):
        maps = [torch.zeros(1, 1, side // s, side // s) for s in (8, 16, 32, 64, 128) if side >= s]
        maps += [torch.zeros(1, 1, 1, 1)] * (5 - len(maps))
        for ours, theirs in zip(fast.anchor_generator(maps), plain.anchor_generator(maps), strict=True):
            assert torch.equal(ours.tensor, theirs.tensor)
    assert len(fast.anchor_generator._grid_anchors._cache) == 2
    assert torch.equal(copy.deepcopy(fast).anchor_generator(maps)[0].tensor, plain.anchor_generator(maps)[0].tensor)


def test_matches_at_the_thresholds_and_ties() -> None:
    """IoUs that are exactly a threshold, and two objects that an anchor overlaps alike."""
    detector = tiny_detector()
    anchors = [Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 10], [100, 100, 110, 110], [0, 0, 5, 10]]))]
    found = Instances((200, 200))
    found.gt_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]]))
    found.gt_classes = torch.tensor([1, 2])
    theirs = RetinaNet.label_anchors(detector, anchors, [found])[0][0]
    ours = retinanet_fast.label_anchors(detector, anchors, [found])[0][0]
    assert ours.tolist() == theirs.tolist()
    assert ours[1] == -1
    assert ours[2] == CLASSES
