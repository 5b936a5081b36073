"""R-CNN's fast sampling and losses against detectron2's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor
from torchvision.ops import boxes

from lgd import device_waits
from lgd.detectors import build_detector
from lgd.detectors.dense_losses import LOG_PERIOD
from lgd.detectors.fast_losses import use_fast_losses
from lgd.detectors.rcnn_fast import pool
from tests.helpers import CLASSES, batch, tiny_settings


def _detector(name: str) -> Any:
    torch.manual_seed(0)
    return build_detector(tiny_settings(name), CLASSES)


def _batch_with_masks(counts: list[int]) -> list[dict[str, Any]]:
    """Each object's mask is the lower left triangle of its box: a polygon, in the last of three images a bitmap."""
    found = batch(counts)
    for i, x in enumerate(found):
        corners = x["instances"].gt_boxes.tensor.tolist()
        masks = PolygonMasks([[[x1, y1, x1, y2, x2, y2]] for x1, y1, x2, y2 in corners])
        size = x["instances"].image_size
        x["instances"].gt_masks = BitMasks.from_polygon_masks(masks.polygons, *size) if i == 2 else masks
    return found


def _step(detector: Any, counts: list[int]) -> tuple[dict[str, float], dict[str, float], Tensor, Tensor]:
    """Losses, what is logged, gradients, and the next random number."""
    torch.manual_seed(1)
    # A step in which a GPU logs.
    with EventStorage(LOG_PERIOD - 1) as storage:
        losses = detector.train()(_batch_with_masks(counts))
        sum(losses.values()).backward()
    gradients = torch.cat([p.grad.flatten() for p in detector.parameters() if p.grad is not None])
    logged = {k: v for k, (v, _) in storage.latest().items()}
    return {k: float(v.detach()) for k, v in losses.items()}, logged, gradients, torch.rand(1)


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("counts", [[3, 0, 40], [0, 0], [150]])
def test_losses_logs_and_gradients_are_detectron2s(
    name: str, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same random numbers: the same anchors and regions are drawn, on a GPU too. 150 objects are more than the
    128 positives that are drawn."""
    # The NMS of a GPU, whose boxes are rounded otherwise.
    monkeypatch.setattr(boxes, "_batched_nms_vanilla", boxes._batched_nms_coordinate_trick)
    plain = _detector(name)
    assert "losses" not in vars(plain.proposal_generator)
    losses, logged, gradients, drawn = _step(plain, counts)
    for on_gpu in (False, True):
        detector = _detector(name)
        use_fast_losses(detector)
        assert {"losses", "forward"} <= vars(detector.proposal_generator).keys()
        assert "losses" in vars(detector.roi_heads.box_predictor)
        monkeypatch.setattr(device_waits, "reading_waits", lambda _, on_gpu=on_gpu: on_gpu)
        ours, our_logged, our_gradients, our_drawn = _step(detector, counts)
        assert torch.equal(our_drawn, drawn)
        assert ours == pytest.approx(losses, rel=1e-5)
        assert our_logged == pytest.approx(logged)
        torch.testing.assert_close(our_gradients, gradients, rtol=1e-3, atol=1e-6)


def test_regions_of_an_rpn_that_stays_detectron2s_are_drawn_from_the_same_random_numbers() -> None:
    found = []
    for fast in (False, True):
        detector = _detector("faster_rcnn")
        detector.proposal_generator.box_reg_loss_type = "giou"
        if fast:
            use_fast_losses(detector)
        assert "forward" not in vars(detector.proposal_generator)
        assert ("assign_regions" in vars(detector.roi_heads)) == fast
        found.append(_step(detector, [3, 0]))
    assert torch.equal(found[0][3], found[1][3])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooled_boxes_keep_their_digits_in_half_precision(dtype: torch.dtype) -> None:
    """Near 1000 bfloat16 tells pixels to 4."""
    pooler = ROIPooler(7, (0.25,), 0, "ROIAlignV2", canonical_level=2)
    across = (torch.arange(300.0) % 8).expand(1, 1, 8, 300).contiguous()
    boxes = [Boxes(torch.tensor([[1001.7, 2.0, 1029.3, 30.0]]))]
    expected, found = pool(pooler, [across], boxes), pool(pooler, [across.to(dtype)], boxes)
    assert found.dtype == dtype
    # The maps' own rounding alone.
    assert (found.float() - expected).abs().max() < 0.05


def test_proposals_and_pooled_features_are_detectron2s_bit_for_bit() -> None:
    plain, fast = _detector("faster_rcnn"), _detector("faster_rcnn")
    use_fast_losses(fast)
    images = plain.preprocess_image(batch([1, 1]))
    found = []
    for detector in (plain, fast):
        features = detector.backbone(images.tensor)
        torch.manual_seed(0)
        with EventStorage(0):
            proposals, _ = detector.proposal_generator.train()(
                images, features, [x["instances"] for x in batch([1, 1])]
            )
        levels = [features[x] for x in detector.roi_heads.box_in_features]
        regions = [x.proposal_boxes for x in proposals]
        # Regions of every level, and an image without any.
        regions[1].tensor[:4] *= torch.tensor([[1.0], [4.0], [16.0], [64.0]])
        pooled = detector.roi_heads.box_pooler(levels, regions)
        empty = detector.roi_heads.box_pooler(levels, [regions[0][:0], regions[1]])
        found.append([*(x.tensor for x in regions), *(x.objectness_logits for x in proposals), pooled, empty])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert len(theirs) > 0
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("where", ["logits", "images"])
def test_one_of_several_workers_diverges_in_its_losses(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error would leave the others waiting for its gradients; of a loss that is NaN all hear."""
    detector, data = _detector("mask_rcnn").train(), _batch_with_masks([3, 0])
    use_fast_losses(detector)
    monkeypatch.setattr("lgd.distributed.ranks.world_size", lambda: 2)
    with EventStorage(0):
        expected = set(detector(data))
        if where == "logits":
            with torch.no_grad():
                detector.proposal_generator.rpn_head.objectness_logits.bias.fill_(float("nan"))
        else:
            data[0]["image"][:] = float("inf")
        losses = detector(data)
    assert set(losses) == expected
    assert losses["loss_rpn_cls"].isnan()
    assert losses["loss_rpn_loc"].isnan()
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_diverged_predictions_are_named() -> None:
    detector = _detector("faster_rcnn").train()
    use_fast_losses(detector)
    with torch.no_grad():
        detector.proposal_generator.rpn_head.objectness_logits.bias.fill_(float("nan"))
    with EventStorage(0), pytest.raises(FloatingPointError, match="diverged"):
        detector(batch([1]))
