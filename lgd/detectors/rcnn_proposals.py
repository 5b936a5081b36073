"""The RPN's proposals of all images at once: detectron2's ``find_top_rpn_proposals``, without a wait for each image.

torchvision's NMS returns as many boxes as it keeps, a number that the host has to wait for. Here what a level's boxes
suppress is a matrix, and the greedy choice is repeated on the device until it no longer changes.

Shape suffixes: B images, P boxes of an image (all levels), p of one level, K proposals of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lgd.detectors.batched import MAX_PAIRS, batched_iou

ROUNDS = 16
"""Rounds of :class:`MatrixNMS` between two checks of whether it is final, each of which waits for the device."""


class Candidates(NamedTuple):
    """The boxes of every level with the highest scores, clipped to their images."""

    boxes: Tensor
    """(B, P, 4), pixels; level after level, by score within a level."""
    logits: Tensor
    """(B, P), objectness."""
    valid: Tensor
    """(B, P), bool: whether both sides are longer than the RPN's ``min_box_size``."""
    sizes: tuple[int, ...]
    """Boxes of each level."""
    finite: Tensor
    """(), bool: whether all predicted boxes and scores are."""


class Proposals(NamedTuple):
    """The proposals of a batch, padded; each image's by score."""

    boxes: Tensor
    """(B, K, 4), pixels."""
    logits: Tensor
    """(B, K), objectness."""
    counts: Tensor
    """(B,): how many an image has; the slots after these are padding."""

    @property
    def valid(self) -> Tensor:
        """(B, K), bool: False for padding."""
        return torch.arange(self.logits.shape[1], device=self.logits.device) < self.counts[:, None]

    def instances(self, image_sizes: Sequence[tuple[int, int]], counts: Sequence[int]) -> list[Instances]:
        """As detectron2's RPN returns them. counts: the numbers in ``self.counts``."""
        found = []
        for boxes, logits, size, count in zip(self.boxes, self.logits, image_sizes, counts, strict=True):
            found.append(Instances(size, proposal_boxes=Boxes(boxes[:count]), objectness_logits=logits[:count]))
        return found


def find_candidates(
    rpn: Any,
    anchors: Sequence[Boxes],
    pred_objectness_logits: Sequence[Tensor],
    pred_anchor_deltas: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
) -> Candidates:
    """The boxes that the RPN's NMS chooses from in training."""
    scores, boxes = [], []
    decoded = rpn._decode_proposals(anchors, pred_anchor_deltas)
    for boxes_BR4, logits_BR in zip(decoded, pred_objectness_logits, strict=True):
        best_Bp, index_Bp = logits_BR.topk(min(logits_BR.shape[1], rpn.pre_nms_topk[True]), dim=1)
        scores.append(best_Bp)
        boxes.append(boxes_BR4.gather(1, index_Bp[..., None].expand(-1, -1, 4)))
    logits_BP, boxes_BP4 = torch.cat(scores, dim=1), torch.cat(boxes, dim=1)
    finite = boxes_BP4.isfinite().all() & logits_BP.isfinite().all()
    boxes_BP4 = _clip(boxes_BP4, image_sizes)
    valid_BP = (boxes_BP4[..., 2:] - boxes_BP4[..., :2] > rpn.min_box_size).all(-1)
    return Candidates(boxes_BP4, logits_BP, valid_BP, tuple(x.shape[1] for x in scores), finite)


def _clip(boxes_BP4: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes within their images."""
    clipped = []
    for boxes_P4, (height, width) in zip(boxes_BP4, image_sizes, strict=True):
        x1, y1, x2, y2 = boxes_P4.unbind(-1)
        clipped.append(
            torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)
        )
    return torch.stack(clipped)


class GreedyNMS:
    """torchvision's NMS, image by image: the fastest where reading a number waits for nothing."""

    def __init__(self, candidates: Candidates, threshold: float, limit: int) -> None:
        self._candidates = candidates
        levels_P = torch.cat([torch.full((n,), level) for level, n in enumerate(candidates.sizes)])
        chosen = []
        for boxes_P4, logits_P, valid_P in zip(candidates.boxes, candidates.logits, candidates.valid, strict=True):
            (kept,) = torch.where(valid_P)
            chosen.append(kept[batched_nms(boxes_P4[kept], logits_P[kept], levels_P.to(kept)[kept], threshold)][:limit])
        self._index_BK = pad_sequence(chosen, batch_first=True)
        self._counts_B = torch.tensor([len(x) for x in chosen], device=self._index_BK.device)

    def advance(self) -> tuple[Proposals, Tensor]:
        """The proposals, and True in a tensor: they are final."""
        proposals = _take(self._candidates, self._index_BK, self._counts_B)
        return proposals, torch.ones((), dtype=torch.bool, device=self._counts_B.device)


class MatrixNMS:
    """The same choice of boxes by matrix operations on the device, without a wait.

    A box is kept if no kept box of its level with a higher score overlaps it by more than ``threshold`` (IoU). Starting
    from all boxes, each round applies this rule to every box at once; after n rounds the choice among the first n boxes
    of a level is the greedy one, and a choice that a round does not change is it, too. A few rounds are enough in
    practice (tests/unit/detectors/test_rcnn_proposals.py).

    Overlaps are those of torchvision's ``batched_nms`` to the bit: it shifts the boxes of each level by a multiple of
    the largest coordinate, which rounds them.
    """

    def __init__(self, candidates: Candidates, threshold: float, limit: int) -> None:
        self._candidates, self._limit = candidates, limit
        self._kept = list(candidates.valid.split(candidates.sizes, dim=1))
        farthest_B11 = candidates.boxes.where(candidates.valid[..., None], 0).amax((1, 2), keepdim=True)
        self._suppressors = [
            _suppressors(boxes_Bp4 + level * (farthest_B11 + 1), valid_Bp, threshold)
            for level, (boxes_Bp4, valid_Bp) in enumerate(
                zip(candidates.boxes.split(candidates.sizes, dim=1), self._kept, strict=True)
            )
        ]
        self._valid = self._kept

    def advance(self) -> tuple[Proposals, Tensor]:
        """The proposals after ``ROUNDS`` more rounds, and whether they are final: (), bool, on the device."""
        settled = []
        for level, (suppressors_Bpp, valid_Bp) in enumerate(zip(self._suppressors, self._valid, strict=True)):
            kept_Bp = before_Bp = self._kept[level]
            for _ in range(ROUNDS):
                before_Bp = kept_Bp
                kept_Bp = valid_Bp & ~(suppressors_Bpp & kept_Bp[:, None]).any(2)
            self._kept[level] = kept_Bp
            settled.append((kept_Bp == before_Bp).all())
        kept_BP = torch.cat(self._kept, dim=1)
        by_score = self._candidates.logits.masked_fill(~kept_BP, -torch.inf).sort(dim=1, descending=True, stable=True)
        counts_B = kept_BP.sum(1).clamp(max=self._limit)
        return _take(self._candidates, by_score.indices[:, : self._limit], counts_B), torch.stack(settled).all()


def _suppressors(boxes_Bp4: Tensor, valid_Bp: Tensor, threshold: float) -> Tensor:
    """Whether box j overlaps box i by more than ``threshold`` and has a higher score: (B, i, j), bool."""
    parts = max(1, MAX_PAIRS // max(1, boxes_Bp4.shape[1] ** 2))
    found = []
    for boxes, valid in zip(boxes_Bp4.split(parts), valid_Bp.split(parts), strict=True):
        found.append((batched_iou(boxes, boxes, valid) > threshold).tril(-1))
    return torch.cat(found)


def _take(candidates: Candidates, index_BK: Tensor, counts_B: Tensor) -> Proposals:
    boxes_BK4 = candidates.boxes.gather(1, index_BK[..., None].expand(-1, -1, 4))
    return Proposals(boxes_BK4, candidates.logits.gather(1, index_BK), counts_B)
