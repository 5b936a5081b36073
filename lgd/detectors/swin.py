"""Swin Transformer (Liu et al., ICCV 2021): detectron2's own class, under ResNet's stage names.

Not timm's, which is to be had as ``timm:swin_tiny_patch4_window7_224``: there the merging of patches belongs to the
stage after it and the outputs have no norms, so that published detection checkpoints, detectron2's among them, do not
fit.
"""

from __future__ import annotations

import warnings
from typing import Self

from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor

DEPTHS = (2, 2, 6, 2)
"""Blocks of a stage in Swin-T."""

DROP_PATH = 0.2
"""Largest rate of stochastic depth, that of the last block; the first block's is 0 (the paper's for detection)."""


class Swin(SwinTransformer):
    """Swin-T as a bottom-up network, ``width`` (96 in the paper) channels in its first stage.

    Images of any size (B, 3, H, W) go in; ``res2`` to ``res5`` come out, those of them that are asked for, at strides
    4 to 32 (rounded up), ``width`` * 2^i channels each, through a LayerNorm of their own.

    State dict: that of detectron2's ``SwinTransformer`` and of the paper's detection code: ``patch_embed.*``,
    ``layers.<stage>.blocks.<block>.*``, ``layers.<stage>.downsample.*``, and ``norm<stage>.*`` for each output, which
    classifiers lack. Stages after the last one asked for are not built.

    freeze_at: 1 freezes the patch embedding, 2 the first stage too, and so on. A frozen stage drops no paths. The
    merging of patches after a stage belongs to it (``layers.<stage>.downsample``) and freezes with it.
    """

    def __init__(
        self, width: int, out_features: list[str], *, freeze_at: int = 0, drop_path: float = DROP_PATH
    ) -> None:
        names = [f"res{i + 2}" for i in range(len(DEPTHS))]
        unknown = [x for x in out_features if x not in names]
        if unknown or not out_features:
            raise ValueError(f"out_features {out_features} must be some of {names}")
        stages = [i for i, name in enumerate(names) if name in out_features]
        depths = DEPTHS[: stages[-1] + 1]
        # 32 channels a head as in the paper; a width that this does not divide has one head in its first stage.
        heads = width // 32 if width % 32 == 0 else 1
        with warnings.catch_warnings():
            # detectron2 calls torch.meshgrid in the old way, and timm by an old name.
            warnings.filterwarnings("ignore", message=".*meshgrid", category=UserWarning)
            warnings.filterwarnings("ignore", message="Importing from timm", category=FutureWarning)
            super().__init__(
                embed_dim=width,
                depths=depths,
                num_heads=tuple(heads * 2**i for i in range(len(depths))),
                # Rates rise from block to block to that of the whole network's last, also where not all is built.
                drop_path_rate=drop_path * (sum(depths) - 1) / (sum(DEPTHS) - 1),
                out_indices=tuple(stages),
                frozen_stages=freeze_at if freeze_at > 0 else -1,
            )
        self._names = {f"p{i}": names[i] for i in stages}
        self._out_features = list(self._names.values())
        self._out_feature_channels = {names[i]: width * 2**i for i in stages}
        self._out_feature_strides = {names[i]: 4 * 2**i for i in stages}

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Feature maps by stage name, finest first."""
        features = super().forward(images_B3HW)
        return {name: features[p] for p, name in self._names.items()}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        # The constructor puts what is frozen in evaluation mode, and the first train() would take it out again.
        self._freeze_stages()
        return self
