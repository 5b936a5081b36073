"""The parts of a step: that they are found, add up, and count FLOPs as one does by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from benchmarks import breakdown
from benchmarks.gpu_results import figures
from benchmarks.step_parts import DIRECTIONS, PARTS, REST
from benchmarks.step_profiler import StepProfiler, flop_counter, flop_profiler, time_profiler
from benchmarks.step_timer import StepTimer
from benchmarks.timer_spec import Stage, SyntheticImages, TimerSpec
from lgd.detectors.deformable import DeformableBottleneck
from lgd.methods.distiller import Distiller, student_of
from tests.helpers import quick_experiment
from tests.unit.benchmarks.test_cost import QUICK

IMAGES = SyntheticImages(64, 64, 3, 7)
LGD_PARTS = {"encoder", "adapter", "mapper", "second head pass", "distance"}
OWN = {
    "baseline": set[str](),
    "lgd": LGD_PARTS,
    "fgfi": {"teacher's backbone", "distance"},
}
ALWAYS = {"backbone", "head", "label assignment", "optimiser", REST}


def timer_of(**changes: Any) -> StepTimer:
    small = {"detector__fc_dim": 16, "detector__anchor_scale": 2.0}
    return StepTimer(TimerSpec(quick_experiment(**{**small, **changes}), IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "method"),
    [
        ("retinanet", "baseline"), ("retinanet", "lgd"), ("retinanet", "fgfi"), ("faster_rcnn", "lgd"),
        ("faster_rcnn", "fgfi"), ("fcos", "lgd"), ("atss", "baseline"), ("poto", "baseline"), ("mask_rcnn", "baseline"),
    ],
)  # fmt: skip
def test_every_part_is_found_and_all_add_up_to_the_step(
    detector: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This thread's own time: what others do in between, in this process too, belongs to no part.
    monkeypatch.setattr(time, "perf_counter", time.thread_time)
    timer = timer_of(detector__name=detector, method__name=method)
    stage = Stage(distils=method != "baseline")
    profiler = time_profiler(timer.model, timer.device)
    lasted: list[float] = []
    resolve = profiler._resolve

    def kept(readings: Any) -> Any:
        walk = profiler._ranges.index(None)
        lasted.append(readings[-1] - readings[0] - (readings[walk + 1] - readings[walk]))
        return resolve(readings)

    monkeypatch.setattr(profiler, "_resolve", kept)
    timer.trainer(stage, profiler).train(0, 3)
    for step in profiler.steps:
        assert {part for part, _ in step} == ALWAYS | OWN[method]
        assert {direction for _, direction in step} <= set(DIRECTIONS)
        assert all(ms >= 0 for ms in step.values())
        for part in {"backbone", "head"} | OWN[method] - {"teacher's backbone"}:
            assert step[part, "forward"] > 0
            assert step[part, "backward"] > 0, part
        assert ("label assignment", "backward") not in step
        assert ("teacher's backbone", "backward") not in step
        # The rest stays the rest.
        assert sum(ms for (part, _), ms in step.items() if part == REST) < 0.5 * sum(step.values())
    # Only walking the graph is left out, and nothing is counted twice.
    assert [sum(step.values()) for step in profiler.steps] == pytest.approx(lasted)


def test_profiling_leaves_the_model_as_it_was() -> None:
    timer = timer_of()
    student: Any = student_of(timer.model)
    hooks = [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in timer.model.modules()]
    own = {name: set(vars(x)) for name, x in timer.model.named_modules()}
    before = student.label_anchors
    trainer = timer.trainer(Stage(distils=True), time_profiler(timer.model, timer.device))
    trainer.train(0, 1)
    assert [len(x._forward_hooks) + len(x._forward_pre_hooks) for x in timer.model.modules()] == hooks
    assert {name: set(vars(x)) - own[name] for name, x in timer.model.named_modules() if set(vars(x)) - own[name]} in (
        {},
        {"student": {"loss_normalizer"}},
    )
    assert "_write_metrics" not in vars(trainer)
    assert student.label_anchors is before


class OneConvolution(nn.Module):
    """Where a detector is looked for: a "backbone" of one convolution and a "head" of one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.head = nn.Linear(5, 7, bias=False)

    def preprocess_image(self, batch: Any) -> Any:
        return torch.stack([x["image"].float() for x in batch])

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        features = self.backbone(self.preprocess_image(batch))
        return {"loss": self.head(features.mean(dim=(2, 3))).square().mean()}


def test_flops_of_known_layers_by_hand() -> None:
    timer = timer_of(method__name="baseline")
    timer.model = OneConvolution()
    timer.optimizer = torch.optim.SGD(timer.model.parameters(), lr=0.1)
    counter = flop_counter()
    profiler = flop_profiler(timer.model, counter)
    with counter:
        timer.trainer(Stage(), profiler).train(0, 2)
    convolution, linear = 2 * 2 * (64 * 64) * 5 * 3 * 9, 2 * 2 * 5 * 7
    for step in profiler.steps:
        flops = {part: round(1e9 * x) for part, x in step.items() if x}
        assert flops == {
            ("backbone", "forward"): convolution,
            # The images need no gradient: that of the weights is all there is.
            ("backbone", "backward"): convolution,
            ("head", "forward"): linear,
            ("head", "backward"): 2 * linear,
        }


def test_flops_of_a_backbone_are_fvcores() -> None:
    """fvcore counts a multiplication and an addition as one."""
    timer = timer_of(method__name="lgd")
    assert isinstance(timer.model, Distiller)
    timer.model.joint_head = False
    counter = flop_counter()
    profiler = flop_profiler(timer.model, counter)
    with counter:
        timer.trainer(Stage(distils=True), profiler).train(0, 1)
    backbone: Any = student_of(timer.model).backbone
    with torch.no_grad():
        analysis = FlopCountAnalysis(backbone.eval(), torch.zeros(2, 3, 64, 64)).unsupported_ops_warnings(False)
        expected = analysis.by_operator()["conv"]
    (step,) = profiler.steps
    assert 1e9 * step["backbone", "forward"] == pytest.approx(2 * expected)
    # The same maps go through the same head twice.
    assert step["head", "forward"] == pytest.approx(step["second head pass", "forward"])
    assert step["head", "backward"] == pytest.approx(2 * step["head", "forward"])


def test_deformable_convolutions_are_counted() -> None:
    block = DeformableBottleneck(4, 4, bottleneck_channels=4, norm="")
    plain = {name: x for name, x in block.named_modules() if isinstance(x, nn.Conv2d)}
    counter = flop_counter()
    with counter:
        block(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    counts = {str(op).rsplit(".", 1)[-1]: flops for op, flops in counter.get_flop_counts()["Global"].items()}
    deformable = 2 * 2 * 4 * 64 * 4 * 9
    assert plain
    assert counts["deform_conv2d"] == deformable
    assert counts["_deform_conv2d_backward"] == 2 * deformable


def test_time_is_the_innermost_parts() -> None:
    clock = iter(range(100))
    model = OneConvolution()
    profiler = StepProfiler(model, lambda: next(clock), lambda readings: readings)
    profiler.before_step()
    profiler._enter("head")
    profiler._enter("label assignment")
    profiler._leave()
    profiler._leave()
    profiler.after_backward()
    profiler.after_step()
    step = profiler.steps[0]
    assert step == {
        (REST, "update"): 2, ("head", "update"): 2, ("label assignment", "update"): 1, ("optimiser", "update"): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "precision", "limit"),
    # 9894 GFLOP at 989.4 TFLOP/s are 10 ms; in float32 the peak is half of that.
    [
        ("1 x NVIDIA H100 80GB HBM3", "bf16", "10.00"),
        ("1 x NVIDIA H100 80GB HBM3", "fp32", "20.00"),
        ("A100", "bf16", ""),
    ],
)
def test_the_least_that_flops_take_is_said_of_a_known_gpu(gpu: str, precision: str, limit: str, tmp_path: Path) -> None:
    described: dict[str, Any] = dict.fromkeys(breakdown.COLUMNS, "x") | {
        "gpu": gpu,
        "precision": precision,
        "git_commit": "c" * 40,
    }
    described |= {"step_ms": 30.0, "profiled_ms": 33.0, "other_cores": 0.0, "cores": 2, "objects": 7.3}
    rows = [("head", "forward", 12.0, 3894.0), ("head", "backward", 18.0, 6000.0), ("optimiser", "update", 1.0, 0.0)]
    frame = pd.DataFrame([described | dict(zip(("part", "direction", "ms", "gflop"), x, strict=True)) for x in rows])
    text = breakdown.markdown(frame)
    cells = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if "|" in line}
    assert (cells["part"] == "ms at the limit") == bool(limit) == ("At the limit:" in text)
    if limit:
        assert (cells["head"], cells["optimiser"], cells["all"]) == (limit, "0.00", limit)
    frame.to_csv(tmp_path / "breakdown.csv", index=False)
    least = f"; {float(limit):.0f} ms at the FLOPs' limit" if limit else ""
    assert figures("breakdown", tmp_path) == f"31 ms, of it head 30, optimiser 1{least}"


@pytest.mark.slow
def test_the_command_writes_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = tmp_path / "step.of-lgd"
    assert breakdown.main([*QUICK, "--steps", "5", "--output", str(stem)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"step.of-lgd{suffix}" for suffix in (".csv", ".md", ".png", ".svg")}
    frame = pd.read_csv(tmp_path / "step.of-lgd.csv")
    assert set(frame["part"]) == ALWAYS | LGD_PARTS
    assert list(dict.fromkeys(frame["part"])) == [x for x in PARTS if x in ALWAYS | LGD_PARTS]
    assert (frame["profiled_ms"] > 0).all()
    assert frame["ms"].sum() > 0
    text = (tmp_path / "step.of-lgd.md").read_text()
    assert text in capsys.readouterr().out
    total = next(line for line in text.splitlines() if line.startswith("| all"))
    assert f"{frame['ms'].sum():.2f}" in total
    svg = (tmp_path / "step.of-lgd.svg").read_text()
    assert all(part in svg for part in ALWAYS | LGD_PARTS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--steps", "0"], "--steps 0: at least one"),
        (["--method", "magic"], "no method 'magic'"),
        (["--side", "1"], "--side 1"),
    ],
)
def test_bad_input_gives_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert breakdown.main(arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
