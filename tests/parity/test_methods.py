"""PKD, CWD, MGD, FGD and LabelEnc's label map against the reference numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lgd.methods.cwd.distance import cwd_loss
from lgd.methods.fgd.distance import FocalGlobal, foreground_mask
from lgd.methods.labelenc.label_map import label_map
from lgd.methods.mgd.distance import MaskedGeneration
from lgd.methods.objects import pad_objects
from lgd.methods.pkd.distance import pkd_loss

RTOL = 1e-5


class Fixture:
    """One file: maps of both detectors, objects, and the losses and gradients of the methods."""

    def __init__(self, name: str) -> None:
        self.arrays: dict[str, Any] = dict(np.load(Path(__file__).parent / f"{name}.npz"))
        height, width = self["image_hw"].tolist()
        self.image_size = (height, width)
        self.levels = sum(key.startswith("student_") for key in self.arrays)
        self.channels, self.teacher_channels = (self[f"{x}_0"].shape[1] for x in ("student", "teacher"))

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]).copy())

    def objects(self) -> tuple[list[Tensor], list[Tensor]]:
        counts = self["counts"].tolist()
        return list(self["boxes"].split(counts)), list(self["labels"].split(counts))

    def fill(self, module: nn.Module, prefix: str) -> nn.Module:
        """The module with the fixture's parameters, all of them."""
        found = {k.removeprefix(prefix): self[k] for k in self.arrays if k.startswith(prefix)}
        module.load_state_dict(found, strict=True)
        return module


@pytest.fixture(scope="module", params=["methods_a", "methods_b"])
def case(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.param)


def _check(case: Fixture, name: str, loss: Any) -> None:
    """``loss(level, student, teacher)`` has the fixture's value and gradient on each level."""
    total = torch.zeros(())
    for i in range(case.levels):
        student, teacher = case[f"student_{i}"].requires_grad_(), case[f"teacher_{i}"].requires_grad_()
        value = loss(i, student, teacher.detach())
        torch.testing.assert_close(value, case[f"{name}:loss_{i}"], rtol=RTOL, atol=0)
        value.backward()
        expected = case[f"{name}:grad_{i}"]
        # Each element to 1e-5 of the map's largest: those next to zero are differences of larger numbers.
        torch.testing.assert_close(student.grad, expected, rtol=RTOL, atol=RTOL * float(expected.abs().max()))
        total = total + value.detach()
    torch.testing.assert_close(total, case[f"{name}:loss"], rtol=RTOL, atol=0)


def test_pkd_and_cwd() -> None:
    case = Fixture("methods_a")
    _check(case, "pkd", lambda _, student, teacher: pkd_loss(student, teacher))
    _check(case, "cwd", lambda _, student, teacher: cwd_loss(student, teacher))


def test_mgd(case: Fixture) -> None:
    level = case.fill(MaskedGeneration(case.channels, case.teacher_channels), "mgd:param:")
    _check(case, "mgd", lambda i, student, teacher: level(student, teacher, case[f"mgd:uniform_{i}"]))


def test_fgd(case: Fixture) -> None:
    level = case.fill(FocalGlobal(case.channels, case.teacher_channels), "fgd:param:")
    boxes, _, valid = pad_objects(*case.objects())

    def loss(_: int, student: Tensor, teacher: Tensor) -> Tensor:
        size = (student.shape[2], student.shape[3])
        value: Tensor = level(student, teacher, foreground_mask(boxes, valid, size, case.image_size))
        return value

    _check(case, "fgd", loss)


def test_label_map(case: Fixture) -> None:
    found = label_map(*case.objects(), num_classes=5, image_size=case.image_size)
    torch.testing.assert_close(found, case["labelenc:map"], rtol=RTOL, atol=0)
