"""The RPN's proposals of all images at once: detectron2's ``find_top_rpn_proposals``, without a wait for each image.

torchvision's NMS returns as many boxes as it keeps, a number that the host has to wait for. On a GPU the boxes of all
images and levels go through one kernel (lgd/kernels/greedy_nms.py).

Shape suffixes: B images, L levels, P boxes of an image (all levels), p of one level, K proposals of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms

from lgd.kernels.usable import usable

MOST_BOXES = 2**14
"""Boxes of a level that the kernel is used for: it holds them all at once."""


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

    def finite_alone(self) -> Candidates:
        """Those whose box and score are finite; the others are not valid."""
        good = self.boxes.isfinite().all(-1) & self.logits.isfinite()
        boxes, logits = self.boxes.nan_to_num(0.0, 0.0, 0.0), self.logits.nan_to_num(0.0, 0.0, 0.0)
        return Candidates(boxes, logits, self.valid & good, self.sizes, torch.ones_like(self.finite))


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


def choose_by_image(candidates: Candidates, threshold: float, limit: int) -> Proposals:
    """The proposals by detectron2's NMS, image by image: the fastest where reading a number waits for nothing."""
    levels_P = torch.cat([torch.full((n,), level) for level, n in enumerate(candidates.sizes)])
    chosen = []
    for boxes_P4, logits_P, valid_P in zip(candidates.boxes, candidates.logits, candidates.valid, strict=True):
        (kept,) = torch.where(valid_P)
        chosen.append(kept[batched_nms(boxes_P4[kept], logits_P[kept], levels_P.to(kept)[kept], threshold)][:limit])
    index_BK = pad_sequence(chosen, batch_first=True)
    return _take(candidates, index_BK, torch.tensor([len(x) for x in chosen], device=index_BK.device))


def choose_at_once(candidates: Candidates, threshold: float, limit: int) -> Proposals:
    """The same proposals, of all images and levels at once and without a wait for the device.

    Overlaps are those of torchvision's ``batched_nms``: it shifts the boxes of each level by a multiple of the largest
    coordinate, which rounds them.
    """
    farthest_B11 = candidates.boxes.where(candidates.valid[..., None], 0).amax((1, 2), keepdim=True)
    longest = max(candidates.sizes)
    boxes, valid = [], []
    of_levels = (x.split(candidates.sizes, dim=1) for x in (candidates.boxes, candidates.valid))
    for level, (boxes_Bp4, valid_Bp) in enumerate(zip(*of_levels, strict=True)):
        padding = longest - valid_Bp.shape[1]
        boxes.append(F.pad(boxes_Bp4 + level * (farthest_B11 + 1), (0, 0, 0, padding)))
        valid.append(F.pad(valid_Bp, (0, padding)))
    kept = greedy_nms(torch.stack(boxes, dim=1), torch.stack(valid, dim=1), threshold).unbind(1)
    kept_BP = torch.cat([kept_Bp[:, :size] for kept_Bp, size in zip(kept, candidates.sizes, strict=True)], dim=1)
    by_score = candidates.logits.masked_fill(~kept_BP, -torch.inf).sort(dim=1, descending=True, stable=True)
    counts_B = kept_BP.sum(1).clamp(max=limit)
    return _take(candidates, by_score.indices[:, :limit], counts_B)


@torch.library.custom_op("lgd::greedy_nms", mutates_args=())
def greedy_nms(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Which boxes are kept: (B, L, p), bool. boxes: (B, L, p, 4), those of L levels far apart, each level's by score.

    By the kernel of lgd/kernels/greedy_nms.py; where that cannot be used, by torchvision's NMS, image by image. An
    operator of its own, so that benchmarks/wait_counter.py can count it.
    """
    if boxes.shape[2] <= MOST_BOXES and usable(boxes, any_size=True):
        # Lazy: Triton is not installed everywhere.
        from lgd.kernels.greedy_nms import greedy_nms as kernel

        return kernel(boxes.flatten(0, 1), valid.flatten(0, 1), threshold).view_as(valid)
    kept = torch.zeros_like(valid)
    for boxes_Lp4, valid_Lp, kept_Lp in zip(boxes, valid, kept, strict=True):
        level, place = torch.where(valid_Lp)
        # By place, as a level's boxes are by score already.
        chosen = nms(boxes_Lp4[level, place], -place.float(), threshold)
        kept_Lp[level[chosen], place[chosen]] = True
    return kept


@greedy_nms.register_fake
def _(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    return torch.empty_like(valid)


def _take(candidates: Candidates, index_BK: Tensor, counts_B: Tensor) -> Proposals:
    boxes_BK4 = candidates.boxes.gather(1, index_BK[..., None].expand(-1, -1, 4))
    return Proposals(boxes_BK4, candidates.logits.gather(1, index_BK), counts_B)
