"""Whole training steps of LGD, loss by loss, against those of the released code."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from lgd.config.phases import Phases
from lgd.detectors.fast_losses import use_fast_losses
from lgd.methods.distiller import Distiller
from lgd.methods.label_guided.distance import DistillationDistance
from lgd.methods.label_guided.teacher import ImplicitTeacher
from tests.parity.test_parity import fill_from_names, parameter_shapes

PIXEL = 8
"""Each pixel of a stored image stands for a square of this side."""

EXACT_STEPS = 3
EXACT = 4e-6
"""Relative error of the first steps. Rounding, which depends on the number of threads, then grows with every update."""

LATER = {"retinanet": 1e-4, "faster_rcnn": 5e-4}
"""Relative error of the later steps. Where rounding changes which regions R-CNN draws, a loss moves by 3e-4."""


class Trace:
    """One stored training: its settings, batches and losses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrays: dict[str, Any] = dict(np.load(Path(__file__).parent / f"trace_{name}.npz"))

    def __getitem__(self, key: str) -> Any:
        return self.arrays[key]

    def distiller(self, *, fast: bool) -> Distiller:
        """detectron2's stock detector with the trace's parameters, its teacher and distillation adapter beside it."""
        student: Any = self._student()
        teacher = ImplicitTeacher(
            256, 80, context=bool(self["context"]), detach_appearance=bool(self["detach_appearance"])
        )
        distance = DistillationDistance(256)
        fill_from_names(teacher, distance, parameter_shapes("context"))
        phases = Phases(frozen_until=int(self["frozen_until"]), distill_from=int(self["distill_from"]))
        model = Distiller(
            use_fast_losses(student) if fast else student,
            teacher,
            distance,
            phases=phases,
            joint_head=fast,
            cache_targets=fast,
        )
        return model.train()

    def _student(self) -> Any:
        cfg = model_zoo.get_config(f"COCO-Detection/{self.name}_R_50_FPN_1x.yaml")
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 128
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 100
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
        student = build_model(cfg)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if parameter.ndim > 1:
                    parameter.copy_(_drawn(name, tuple(parameter.shape)))
        return student

    def batch(self, step: int) -> list[dict[str, Any]]:
        """Two images, as detectron2's loaders yield them."""
        found = []
        for image in range(2):
            pixels = self[f"image_{step}_{image}"].repeat(PIXEL, axis=1).repeat(PIXEL, axis=2)
            instances = Instances(pixels.shape[1:])
            instances.gt_boxes = Boxes(torch.from_numpy(self[f"boxes_{step}_{image}"].copy()))
            instances.gt_classes = torch.from_numpy(self[f"labels_{step}_{image}"].copy())
            found.append({"image": torch.from_numpy(pixels.copy()), "instances": instances})
        return found

    def train(self, model: Distiller) -> Iterator[dict[str, float]]:
        """The losses of each step, with the detector's running normaliser after it where it has one."""
        student: Any = model.student
        parameters = list(model.parameters())
        optimizer = torch.optim.SGD(parameters, lr=float(self["lr"]), momentum=0.9, weight_decay=1e-4)
        with EventStorage(0) as storage:
            for step in range(int(self["steps"])):
                storage.iter = step
                for parameter in student.backbone.bottom_up.parameters():
                    parameter.requires_grad_(not model.phases.freezes_backbone(step))
                if self.name == "faster_rcnn":
                    torch.manual_seed(1000 + step)
                losses = model(self.batch(step))
                optimizer.zero_grad(set_to_none=True)
                sum(losses.values()).backward()
                torch.nn.utils.clip_grad_value_(parameters, 1.0)
                optimizer.step()
                found = {name: x.item() for name, x in losses.items()}
                if hasattr(student, "loss_normalizer"):
                    found["loss_normalizer after the step"] = float(student.loss_normalizer)
                yield found


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    gains = {
        ".stem.": 0.02,
        "backbone.bottom_up.top_block": 0.7,
        "backbone.bottom_up.": 0.6,
        "head.": 0.3,
        "proposal_generator.": 0.3,
        "roi_heads.": 0.3,
    }
    gain = next((x for part, x in gains.items() if (part in name if part == ".stem." else name.startswith(part))), 0.7)
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(math.prod(shape)).reshape(shape)
    return torch.from_numpy((values / math.sqrt(math.prod(shape[1:])) * gain).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False], ids=["shared head and labels", "two passes"])
@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_losses_follow_the_released_code(name: str, fast: bool) -> None:
    trace = Trace(name)
    columns = [str(x).replace("instructive ", "instructive/") for x in trace["columns"]]
    for step, found in enumerate(trace.train(trace.distiller(fast=fast))):
        expected = dict(zip(columns, trace["losses"][step].tolist(), strict=True))
        tolerance = EXACT if step < EXACT_STEPS else LATER[name]
        assert found == pytest.approx(expected, rel=tolerance), f"step {step}"
