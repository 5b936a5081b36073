"""A naive implementation of LGD: one image, one object, one pass after the other. speed.py compares with it.

It has the parameters of lgd/methods/label_guided/teacher.py and computes the same features, in loops over images,
levels and objects, with detectron2's own losses, two passes through the head, labels assigned twice, and torch's
default SGD.

Shape suffixes: N objects of one image, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timer_spec import OPTIMIZATIONS
from lgd.detectors.fast_losses import use_detectron2_losses
from lgd.kernels.usable import turn_off
from lgd.methods.distiller import Distiller, student_of
from lgd.methods.feature_capture import Features
from lgd.methods.label_guided.teacher import ImplicitTeacher
from lgd.methods.norms import group_norm, layer_norm
from lgd.methods.objects import NO_CLASS, Objects


def without_optimizations(model: nn.Module, names: Collection[str] = OPTIMIZATIONS) -> nn.Module:
    """``model`` with these OPTIMIZATIONS turned off; its parameters stay. Changes ``model`` itself."""
    student: Any = student_of(model)
    if "Triton kernels" in names:
        # Of the whole process, which times this model alone.
        turn_off()
    if "fast losses" in names:
        use_detectron2_losses(student)
    if isinstance(model, Distiller):
        model.joint_head = "joint head" not in names
        model.cache_targets = "cached targets" not in names
        if "vectorised teacher" in names and isinstance(model.teacher, ImplicitTeacher):
            model.teacher.__class__ = NaiveTeacher
    return model


def default_sgd(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """SGD with torch's default implementation for the same parameters and settings."""
    kept = ("lr", "momentum", "weight_decay")
    groups = [{"params": g["params"], **{k: g[k] for k in kept}} for g in optimizer.param_groups]
    return torch.optim.SGD(groups)


class NaiveTeacher(ImplicitTeacher):
    """The label-guided teacher, image by image and object by object."""

    def instruct(self, features: Features, objects: Objects) -> Features:
        """Instructive features (B, C, h, w) by level, from the same padded objects; padding is skipped."""
        found: dict[str, list[Tensor]] = {name: [] for name in features}
        for image in range(len(objects.boxes)):
            slots = [i for i, there in enumerate(objects.valid[image].tolist()) if there]
            boxes = [self._clamped(objects.boxes[image, i].tolist(), objects.image_size) for i in slots]
            classes = [int(objects.classes[image, i]) for i in slots]
            labels = self._labels(boxes, classes, objects.image_size, objects.boxes.device)
            for name, level in features.items():
                found[name].append(self._level(level[image : image + 1], boxes, labels, objects.image_size))
        return {name: torch.cat(maps) for name, maps in found.items()}

    def _clamped(self, box: list[float], image_size: tuple[int, int]) -> list[float]:
        height, width = image_size
        return [min(max(value, 0.0), (width if i % 2 == 0 else height) - 1.0) for i, value in enumerate(box)]

    def _labels(
        self, boxes: list[list[float]], classes: list[int], image_size: tuple[int, int], device: torch.device
    ) -> Tensor | None:
        """Projected label embeddings (N, C) of one image."""
        encoder = self.label_encoder
        if encoder is None or self.label_projection is None:
            return None
        height, width = image_size
        descriptors = []
        for box, label in zip(boxes, classes, strict=True):
            entries = [value / (width if i % 2 == 0 else height) for i, value in enumerate(box)]
            one_hot = [0.0] * self.num_classes
            if label != NO_CLASS:
                one_hot[label] = 1.0
            descriptors.append(torch.tensor(entries + one_hot, device=device) * 2 - 1)
        x = torch.stack(descriptors)
        hidden = layer_norm(encoder.conv1(encoder.stn_in(x))).relu()
        feature = encoder.stn_feat(hidden)
        hidden = layer_norm(encoder.conv2(feature)).relu()
        hidden = layer_norm(encoder.conv3(hidden)).relu()
        image = hidden.max(dim=0).values.expand(len(x), -1)
        embedded = layer_norm(encoder.conv4(torch.cat([feature, image], dim=-1))).relu()
        return cast(Tensor, self.label_projection(embedded))

    def _level(
        self, features: Tensor, boxes: list[list[float]], labels: Tensor | None, image_size: tuple[int, int]
    ) -> Tensor:
        """Instructive features (1, C, h, w) of one image and level."""
        masks = self._masks(features, boxes, image_size)
        appearance = None
        if self.appearance_encoder is not None:
            source = features.detach() if self.detach_appearance else features
            projected = group_norm(self.appearance_encoder.conv(source)).relu()[0]
            appearance = torch.stack([(projected * x).sum(dim=(1, 2)) / x.sum().clamp(min=1) for x in masks])
        return self._mapped(self._related(appearance, labels), masks)

    def _masks(self, features: Tensor, boxes: list[list[float]], image_size: tuple[int, int]) -> list[Tensor]:
        """A mask (h, w) for each box: 1 inside."""
        height, width = image_size
        h, w = features.shape[-2:]
        scale_x, scale_y = w / width, h / height
        masks = []
        for x1, y1, x2, y2 in boxes:
            centre_x, centre_y = (x1 + x2) / 2 * scale_x, (y1 + y2) / 2 * scale_y
            mask = torch.zeros(h, w, device=features.device)
            rows = [i for i in range(h) if abs(i - centre_y) <= 0.5 * (y2 - y1) * scale_y]
            columns = [j for j in range(w) if abs(j - centre_x) <= 0.5 * (x2 - x1) * scale_x]
            if rows and columns:
                mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 1
            masks.append(mask)
        return masks

    def _mapped(self, vectors: Tensor, masks: list[Tensor]) -> Tensor:
        """Features (1, C, h, w) from the objects' vectors (N, C): written into their boxes, then convolved."""
        mapper = self.knowledge_mapper
        h, w = masks[0].shape
        mapped: Tensor | None = None
        if mapper.write:
            last = len(masks) - 1 if mapper.context else len(masks)
            values = mapper.object_linear(vectors)
            written = torch.zeros(vectors.shape[-1], h, w, device=vectors.device)
            for value, mask in zip(values[:last], masks[:last], strict=True):
                written = written + value[:, None, None] * mask
            mapped = mapper.object_conv(written[None])
        if mapper.context:
            everywhere = mapper.context_linear(vectors[-1:])[:, :, None, None].expand(-1, -1, h, w)
            mapped = everywhere if mapped is None else mapped + everywhere
        assert mapped is not None
        mapped = mapped.relu()
        for i, conv in enumerate(mapper.refine):
            mapped = group_norm(conv(mapped))
            if i < len(mapper.refine) - 1:
                mapped = mapped.relu()
        return mapped

    def _related(self, appearance: Tensor | None, labels: Tensor | None) -> Tensor:
        """The objects' vectors (N, C) of one image and level: attention written out, head by head."""
        adapter = self.relation_adapter
        if adapter.variant == "label_only":
            return cast(Tensor, labels)
        if adapter.variant == "appearance_only":
            return cast(Tensor, appearance)
        memory = cast(Tensor, appearance if labels is None else labels)
        queries = cast(Tensor, appearance)
        if adapter.variant == "label_queries":
            queries, memory = memory, queries
        query, (key, value) = adapter.query(queries), adapter.key_value(memory).chunk(2, dim=-1)
        heads = []
        for q, k, v in zip(*(x.chunk(adapter.heads, dim=-1) for x in (query, key, value)), strict=True):
            scores = q @ k.T / q.shape[-1] ** 0.5
            if not adapter.exchange:
                own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
                scores = scores.masked_fill(~own, float("-inf"))
            heads.append(F.softmax(scores, dim=-1) @ v)
        return cast(Tensor, adapter.output(torch.cat(heads, dim=-1)))
