"""LabelEnc's label encoder: a small residual network without norms on the label map, and an FPN like the student's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import FPN, Backbone
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from lgd.config.frozen_teacher import Inherit
from lgd.errors import InputError
from lgd.methods.feature_capture import FeatureCapture, Features
from lgd.methods.inherit import BACKBONE, inherit
from lgd.methods.labelenc.label_map import label_map
from lgd.methods.parts import Parts
from lgd.methods.unregistered import Unregistered

BLOCKS = {4: 1, 8: 2, 16: 2, 32: 1}
"""Bottleneck blocks of the stage with each stride, in pixels, as in the released code."""

STEM_SIZE = 7
"""Side of the first convolution's kernel."""


class Bottleneck(nn.Module):
    """ResNet's bottleneck with biases in place of norms; a stride is in the 3x3 convolution."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = max(1, out_channels // 4)
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1)
        self.conv3 = nn.Conv2d(inner, out_channels, 1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))) + shortcut)


class LabelNetwork(Backbone):
    """The bottom-up part: a 7x7 convolution with stride 2 on the label map, then stages of bottleneck blocks.

    channels: of the stages to put out, by name, with their strides (4 to 32): those of the student's bottom-up network,
    so that its FPN fits. The first convolution has half the channels of the first stage, as in the released code, and
    at least 8.
    """

    def __init__(self, num_classes: int, channels: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        by_stride = {stride: (name, count) for name, (count, stride) in channels.items()}
        # A stage that the FPN does not read follows ResNet's rule: half the channels of the next.
        finest = min(by_stride)
        counts = {s: by_stride[s][1] if s in by_stride else max(1, by_stride[finest][1] * s // finest) for s in BLOCKS}
        # At least 8: torch's backward pass of a 1x1 convolution of 4 channels with stride 2 crashes on some CPUs where
        # the memory format is channels_last.
        width = max(8, counts[4] // 2)
        self.stem = nn.Conv2d(num_classes, width, STEM_SIZE, stride=2, padding=STEM_SIZE // 2)
        self.stages = nn.ModuleDict()
        for stride, blocks in BLOCKS.items():
            if stride > max(by_stride):
                # Nobody would read it.
                break
            count = counts[stride]
            self.stages[f"stride{stride}"] = nn.Sequential(
                *(Bottleneck(width if i == 0 else count, count, 2 if i == 0 else 1) for i in range(blocks))
            )
            width = count
        self._names = {f"stride{stride}": name for stride, (name, _) in by_stride.items()}
        self._out_features = list(channels)
        self._out_feature_channels = {name: count for name, (count, _) in channels.items()}
        self._out_feature_strides = {name: stride for name, (_, stride) in channels.items()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                c2_xavier_fill(module)
        # At a pixel seldom more than one class is present: the input's variance is that of one channel's 49 values.
        nn.init.normal_(self.stem.weight, std=1 / STEM_SIZE)

    def forward(self, labels: Tensor) -> dict[str, Tensor]:
        """The stages' outputs by the names given, of a label map (B, K, H, W)."""
        x, found = self.stem(labels), {}
        for stage, module in self.stages.items():
            x = module(x)
            if stage in self._names:
                found[self._names[stage]] = x
        return found


def build_encoder(student: nn.Module, num_classes: int) -> FPN:
    """The label encoder for a student: :class:`LabelNetwork` and a new FPN of the student's shapes.

    Raises InputError where the student's features are not those of detectron2's FPN on strides from 4 to 32.
    """
    pyramid = cast(Any, student.backbone)
    if not isinstance(pyramid, FPN):
        raise InputError(f"LabelEnc needs a detector with detectron2's FPN, not with a {type(pyramid).__name__}")
    shapes = {name: x for name, x in pyramid.bottom_up.output_shape().items() if name in pyramid.in_features}
    if not {x.stride for x in shapes.values()} <= set(BLOCKS):
        strides = sorted(x.stride for x in shapes.values())
        raise InputError(f"LabelEnc needs a backbone whose stages have strides among 4, 8, 16 and 32, not {strides}")
    network = LabelNetwork(num_classes, {name: (x.channels, x.stride) for name, x in shapes.items()})
    # A copy of the FPN around another bottom-up network, which deepcopy takes from its memo.
    encoder: FPN = copy.deepcopy(pyramid, {id(pyramid.bottom_up): network})
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("bottom_up."):
            c2_xavier_fill(module)
    return encoder.requires_grad_(True)


class LabelEncodingFunction(nn.Module):
    """Features of the student's shapes from the labels alone: stage 1's teacher, which trains with the detector.

    dims: in training, dim each object's part of the label map by min(2 u, 1), u uniform, anew each time.
    """

    uses_student_head = True
    """They go through the student's head, with detection losses of their own."""

    def __init__(self, encoder: FPN, num_classes: int, *, dims: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.dims = dims

    def forward(self, capture: FeatureCapture, instances: Sequence[Any]) -> Features:
        """One map a level, for detectron2 ``instances`` (B of them)."""
        boxes, classes = [x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances]
        dimming = None
        if self.dims and self.training:
            # From torch's global generator of the device, whose state is in the checkpoint.
            dimming = (2 * torch.rand(sum(len(x) for x in classes), device=capture.images.device)).clamp(max=1)
        labels = label_map(boxes, classes, self.num_classes, capture.image_size, dimming=dimming)
        return dict(self.encoder(labels))


class FrozenLabelEncoder(Unregistered):
    """Stage 2's teacher: the label encoder as stage 1 left it."""

    uses_student_head = False

    @property
    def encoder(self) -> nn.Module:
        """The frozen network on the label map and its FPN."""
        return cast(LabelEncodingFunction, self._unregistered[0]).encoder

    @classmethod
    def of_stage1(cls, parts: Parts, what: Inherit) -> FrozenLabelEncoder:
        """The encoder in the directory ``parts.pretrained``, whose weights ``parts.student`` inherits.

        Its FPN starts from the encoder's, its head from that of stage 1's detector. In a dry build nothing is read.
        """
        encoder = LabelEncodingFunction(build_encoder(parts.student, parts.num_classes), parts.num_classes, dims=False)
        if parts.pretrained is not None:
            encoder.load_state_dict(_weights(parts.pretrained / "teacher.pth"))
            head = {k: v for k, v in _weights(parts.pretrained / "student.pth").items() if not k.startswith(BACKBONE)}
            pyramid = {f"{BACKBONE}{name}": value for name, value in encoder.encoder.state_dict().items()}
            inherit(parts.student, head | pyramid, what)
        return cls(encoder)

    @torch.no_grad()
    def forward(self, capture: FeatureCapture, instances: Sequence[Any]) -> Features:
        """As :class:`LabelEncodingFunction`'s, without dimming and without gradient."""
        found: Features = self._unregistered[0](capture, instances)
        return found


def _weights(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["model"]
    return weights
