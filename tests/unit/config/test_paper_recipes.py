"""The paper's trainings by name, and the command that trains them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from lgd.config.experiment import Experiment, settings
from lgd.config.paper import paper
from lgd.config.paper_recipes import DATA, NAMES, REPORTED, define, named
from lgd.config.presets import PAPER, PAPER_TABLES_AT, Preset, at_preset, preset
from lgd.detectors import build_detector
from lgd.detectors.weights import load_weights
from lgd.distributed.ray_train import Node, Workers
from lgd.errors import InputError
from lgd.results.record import load
from lgd.training.__main__ import main
from lgd.training.build import build, build_model
from lgd.training.optimizer import lr_factor
from lgd.training.resume import existing_record
from tests.helpers import quick_experiment

ROOT = Path(__file__).parents[3]

QUICK = [
    f"--set={setting}"
    for setting in (
        "schedule.steps=4", "schedule.warmup_steps=1", "data.source=shapes", "data.shapes_train=12",
        "data.shapes_val=6", "data.shapes_side=64", "data.min_sizes=[64]", "data.max_size=64", "data.test_size=64",
        "data.workers=0", "detector.backbone.name=resnet18", "detector.backbone.weights=none",
        "detector.backbone.width=8", "detector.channels=16", "detector.head_convs=1", "detector.fc_dim=16",
        "device=cpu", "threads=1",
    )
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_describes_a_detector_that_can_be_built(name: str) -> None:
    described = named(name).experiment
    # detectron2's Swin reads numbers while it is built.
    with torch.device("cpu" if described.detector.backbone.name == "swin_t" else "meta"):
        build_detector(described.detector, 80)
    assert described.method.name == "lgd"
    assert named(name).reported


def test_names_and_figures() -> None:
    assert len(NAMES) == 30
    for name in ("retinanet_r50_2x_ms", "fcos_x101_dcnv2_2x_ms", "faster_rcnn_r101_2x_ms", "mask_rcnn_swin_t_3x_ms"):
        assert name in NAMES
    assert {"atss_r50_1x_ss", "poto_r50_3x_ms"} < set(NAMES)
    assert len({x[:5] + x[7:] for x in REPORTED}) == len(REPORTED)
    assert all(x.lgd is not None and 35 < x.lgd < 48 for x in REPORTED)
    assert all(0 < x.lgd - x.baseline < 3 for x in REPORTED if x.baseline is not None and x.lgd is not None)
    masks = [(x.baseline, x.lgd) for x in named("mask_rcnn_swin_t_3x_ms").reported if x.metric == "mask"]
    assert masks == [(41.8, 42.4), (None, 42.5)]


def test_the_papers_preset_is_one_of_them() -> None:
    assert named("retinanet_r50_2x_ms").experiment == PAPER


@pytest.mark.parametrize(
    ("name", "phases", "falls"),
    [
        ("retinanet_r50_1x_ss", (10_000, 15_000, None), (60_000, 80_000)),
        ("fcos_r101_2x_ms", (20_000, 30_000, None), (120_000, 160_000)),
        ("fcos_r101_dcnv2_2x_ms", (20_000, 30_000, 130_000), (120_000, 160_000)),
        ("faster_rcnn_x101_dcnv2_2x_ms", (20_000, 30_000, 130_000), (120_000, 160_000)),
        ("atss_r101_dcnv2_2x_ms", (20_000, 30_000, None), (120_000, 160_000)),
        ("mask_rcnn_swin_t_3x_ms", (30_000, 45_000, None), (210_000, 250_000)),
    ],
)
def test_schedules(name: str, phases: tuple[int, int, int | None], falls: tuple[int, int]) -> None:
    schedule = named(name).experiment.schedule
    found = schedule.phases
    assert (found.frozen_until, found.distill_from, found.distill_until) == phases
    assert tuple(round(x * schedule.steps) for x in schedule.milestones) == falls
    factor = lr_factor(schedule)
    for step, expected in ((falls[0] - 1, 1.0), (falls[0], 0.1), (falls[1], 0.01)):
        assert factor(step / schedule.steps) == pytest.approx(expected)


def test_scale_rate_and_method_by_name() -> None:
    single, multi = named("retinanet_r50_1x_ss").experiment, named("faster_rcnn_r50_1x_ms").experiment
    assert single.data.min_sizes == (800,)
    assert multi.data.min_sizes == (640, 672, 704, 736, 768, 800)
    assert {(x.data.test_size, x.data.max_size, x.schedule.batch) for x in (single, multi)} == {(800, 1333, 16)}
    assert (single.schedule.resolved_lr, multi.schedule.resolved_lr) == (0.01, 0.02)
    assert (single.method.context, single.method.detach_appearance) == (True, False)
    assert (multi.method.context, multi.method.detach_appearance) == (False, True)
    assert named("fcos_r50_2x_ms").experiment.method.context is False
    assert named("fcos_r101_2x_ms").experiment.method.context is True


def test_norms_are_decayed_in_the_papers_trainings_alone() -> None:
    assert all(named(name).experiment.schedule.decay_norms for name in NAMES)
    assert {name for name in get_args(Preset) if preset(name).schedule.decay_norms} == {"paper"}
    trainings = paper().tables["table8"].trainings
    for size in PAPER_TABLES_AT:
        assert {at_preset(size, x).schedule.decay_norms for x in trainings} == {size == "paper"}


def test_other_combinations_have_names_too() -> None:
    other = named("poto_swin_t_1x_ss")
    assert other.reported == ()
    assert "reports nothing" in other.head[-1]
    with pytest.raises(InputError, match="did you mean 'retinanet_r50_2x_ms'"):
        named("retinanet_r50_2xms")


def test_tables_8_and_9_have_names_with_their_data() -> None:
    for table, schedule in (("table8", "18k"), ("table9", "30k")):
        for x in paper().tables[table].trainings:
            chosen = named(f"{x.detector}_{x.backbone}_{x.schedule}_{x.scale}_{x.data}")
            assert x.schedule == schedule
            assert chosen.experiment == define(x.detector, x.backbone, x.schedule, x.scale, x.data)
            assert chosen.experiment.data.source == DATA[x.data]
            assert chosen.head[-1] == f"what the paper reports: lgd sweep list {table}"
    assert "reports nothing" in named("fcos_r101_18k_ms_voc").head[-1]
    with pytest.raises(InputError) as caught:
        named("faster_rcnn_r50_18k_ms")
    assert str(caught.value) == (
        "faster_rcnn_r50_18k_ms: 18k is the schedule of Pascal VOC: say faster_rcnn_r50_18k_ms_voc"
    )
    with pytest.raises(InputError, match="say retinanet_r50_30k_ss_crowdhuman"):
        named("retinanet_r50_30k_ss")
    with pytest.raises(InputError, match="no experiment 'retinanet_r50_2x_ms_voc'; did you mean"):
        named("retinanet_r50_2x_ms_voc")


# ------------------------------------------------------------------------------------------------ linear scaling rule


def test_the_learning_rate_follows_the_batch_unless_it_is_set() -> None:
    base = named("faster_rcnn_r50_1x_ss").experiment
    halved = base.override({"schedule.batch": 8})
    assert halved.schedule.resolved_lr == pytest.approx(0.01)
    assert halved.override(["schedule.lr=0.02"]).schedule.resolved_lr == 0.02
    assert halved.override(["schedule.lr=0.02"]).override(["schedule.lr=auto"]) == halved
    assert halved.override({"schedule.lr_per_16": 0.04}).schedule.resolved_lr == pytest.approx(0.02)


def test_a_fingerprint_tells_the_rate_not_how_it_was_said() -> None:
    ruled = quick_experiment(schedule__lr="auto", schedule__lr_per_16=0.08)
    same = quick_experiment(schedule__lr=0.01)
    other = quick_experiment(schedule__lr=0.02)
    prints = [build(x).fingerprint for x in (ruled, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("batch", "lr", "warns"),
    [(8, "auto", False), (8, 0.005, False), (8, 0.00503, False), (8, 0.0052, True), (32, 0.01, True), (16, 0.3, False)],
)
def test_a_rate_off_the_linear_rule_is_remarked_on(
    batch: int, lr: float | str, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["retinanet_r50_2x_ms", "--show", "--batch", str(batch), "--set", f"schedule.lr={lr}"]
    assert main(given) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == warns
    assert ("warning: schedule.lr" in said) is warns
    assert bool(_changed(batch, lr).schedule.lr_warning) is warns


def _changed(batch: int, lr: float | str) -> Experiment:
    return named("retinanet_r50_2x_ms").experiment.override({"schedule.batch": batch, "schedule.lr": lr})


def test_the_rule_holds_in_every_preset() -> None:
    for name in ("nano", "small", "paper"):
        base = preset(name)
        halved = base.override({"schedule.batch": base.schedule.batch // 2})
        assert halved.schedule.resolved_lr == pytest.approx(base.schedule.resolved_lr / 2)
    assert preset("nano").schedule.resolved_lr == pytest.approx(0.05)


# --------------------------------------------------------------------------------------------------- command


def test_list_has_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert "45.5, LGD 46.4 (Table 14); mask AP baseline 41.8, LGD 42.4" in lines[NAMES.index("mask_rcnn_swin_t_3x_ms")]


def test_show_prints_all_there_is_and_it_can_be_set_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fcos_x101_dcnv2_2x_ms", "--show", "--method", "baseline", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, rest = [x for x in lines if x.startswith("#")], [x for x in lines if not x.startswith("#")]
    assert "python -m lgd.train fcos_x101_dcnv2_2x_ms --method lgd" in head[1]
    assert "baseline 46.1, LGD 47.9 (abstract, Table 13)" in head[2]
    expected = named("fcos_x101_dcnv2_2x_ms").experiment.override({"method.name": "baseline", "seed": 3})
    assert [x.partition("=")[0] for x in rest] == list(settings(expected))
    assert Experiment().override(rest) == expected


def test_an_experiment_trains_and_is_not_trained_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    given = ["retinanet_r50_2x_ms", "--method", "lgd", *QUICK, "--batch", "2", "--output", str(output)]
    assert main(given) == 0
    said = capsys.readouterr()
    assert "step " in said.out
    assert "box AP " in said.out
    assert "LGD 40.4 (code's README)" in said.out
    assert f"record: {output / 'record.json'}" in said.out
    assert "waited for data " in said.out
    assert f"student: {output / 'student.pth'}" in said.out
    assert said.err == ""
    record = load(output / "record.json")
    assert (record.status, record.preset, record.arm) == ("finished", "retinanet_r50_2x_ms", "lgd")
    assert record.experiment.schedule.resolved_lr == pytest.approx(0.01 / 8)

    written = (output / "record.json").stat().st_mtime_ns
    assert main([*given, "--set", "threads=2"]) == 0
    assert "trained already" in capsys.readouterr().out
    assert (output / "record.json").stat().st_mtime_ns == written

    assert main([*given, "--seed", "4", "--batch", "4"]) == 2
    said = capsys.readouterr()
    assert "seed is 0 there and 4 here" in said.err
    assert "schedule.batch is 2 there and 4 here" in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--workers", "1"], Workers(1)),
        (["--workers", "2", "--cpus-per-worker", "3"], Workers(2, cpus=3)),
        (["--workers", "0"], Workers(0)),
        (["--gpus-per-worker", "0"], Workers(1)),
        (["--gpus-per-worker", "1"], Workers(1, gpus=1)),
        (["--restarts", "0"], Workers(1, restarts=0)),
        (["--spread"], Workers(1, spread=True)),
        (["--address", "auto"], Workers(1)),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_whatever_is_said_of_workers_is_heard(
    options: list[str], expected: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of these options puts the training under Ray."""
    heard = []

    def run(experiment: Experiment, directory: Path, workers: Callable[[list[Node]], Workers], **_: object) -> None:
        heard.append(workers([Node(4, 0)]))
        raise InputError("this is all")

    monkeypatch.setattr("lgd.training.worker.train_on_workers", run)
    given = ["retinanet_r50_2x_ms", "--method", "baseline", *QUICK, "--batch", "2", "--output", str(tmp_path / "out")]
    assert main([*given, *options]) == 2
    assert heard == [expected]


@pytest.mark.slow
def test_a_diverged_training_ends_in_one_line(tmp_path: Path) -> None:
    """As a process: what reaches the terminal is what its user sees."""
    extra = ["--set=schedule.lr=1e12", "--set=schedule.clip=0", "--set=schedule.steps=20", "--batch=16"]
    done = subprocess.run(
        [sys.executable, "-m", "lgd.train", "retinanet_r50_2x_ms", "--method=baseline", *QUICK, *extra],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    assert "diverged after" in done.stdout
    directory = tmp_path / "results" / "train" / "retinanet_r50_2x_ms-baseline-seed0"
    assert load(directory / "record.json").status == "diverged"


def test_a_failed_training_leaves_its_record_and_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr("lgd.training.run.train_loader", fail)
    given = ["retinanet_r50_2x_ms", "--method", "baseline", *QUICK, "--batch", "2", "--output", str(tmp_path)]
    assert main(given) == 1
    said = capsys.readouterr()
    assert "failed: RuntimeError: out of luck" in said.out
    assert said.err == ""
    record = load(tmp_path / "record.json")
    assert record.status == "failed"
    assert "RuntimeError" in (tmp_path / "error.txt").read_text()
    assert existing_record(tmp_path, record.experiment) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say which experiment"),
        (["retinanet_r50_2x_ms"], "--method"),
        (["retinanet_r51_2x_ms", "--method", "lgd"], "did you mean 'retinanet_r50_2x_ms'"),
        (["retinanet_r50_2x_ms", "--method", "fitnet"], "fitnet"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--colour"], "--colour"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--batch", "0"], "schedule.batch"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--seed", "-1"], "seed"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--set", "schedule.step=3"], "did you mean 'schedule.steps'"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--set", "schedule.accumulate=3"], "does not split"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--data", "coco-json:/nowhere"], "/nowhere"),
        (["retinanet_r50_30k_ms", "--method", "lgd"], "30k is the schedule of CrowdHuman"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--data", "voc2031"], "voc2031"),
        (["retinanet_r50_2x_ms", "--method", "lgd", "--set", "method.name=baseline"], "contradicts --method lgd"),
        (["finetune", "--method", "lgd", "--data", "coco-json:/nowhere"], "/nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_left(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_finetune_starts_from_a_detector_of_other_classes_and_trains_for_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [x for x in QUICK if "schedule.steps" not in x]
    described = preset("finetune").override([x.removeprefix("--set=") for x in small])
    torch.manual_seed(5)
    trained = build_detector(described.detector, 80).state_dict()
    torch.save({"model": trained}, tmp_path / "trained.pth")
    given = ["finetune", "--method=lgd", *small, f"--set=detector.weights={tmp_path / 'trained.pth'}"]
    # oneDNN's bfloat16 gradient of a 3 x 3 kernel on a map of one pixel holds what was in its memory, where there is
    # AVX-512: NaN after a training that diverged.
    given += ["--batch=2", "--set=schedule.epochs=0.8", "--set=schedule.warmup_steps=auto", "--set=precision=fp32"]
    assert main([*given, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    record = load(tmp_path / "out" / "record.json")
    schedule = record.experiment.schedule
    images = record.data["train_images"]
    assert isinstance(images, int)
    assert (schedule.epochs, schedule.steps) == (None, math.ceil(0.8 * images / 2))
    assert record.steps == schedule.steps
    assert f"{schedule.steps} steps of 2 images" in said.out
    # What it was trained with says the same once more, and it is not trained again.
    assert preset("finetune").override(record.overrides).override({"data.source": "shapes"}) == record.experiment
    assert main([*given, "--output", str(tmp_path / "out")]) == 0
    assert "trained already" in capsys.readouterr().out

    model = build_model(record.experiment.override({"method.name": "baseline"}), int(record.data["classes"]))
    new = {name for name, x in model.state_dict().items() if not torch.equal(x, trained[name])}
    assert new == {"head.cls_score.weight", "head.cls_score.bias"}


def test_layers_that_do_not_fit_are_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = preset("finetune").override([x.removeprefix("--set=") for x in QUICK]).detector
    torch.save({"model": build_detector(settings, 80).state_dict()}, tmp_path / "80.pth")
    load_weights(build_detector(settings, 7), str(tmp_path / "80.pth"), whole=True)
    assert [x.message for x in caplog.records if x.levelname == "WARNING" and x.name.startswith("lgd")] == [
        f"weights {tmp_path / '80.pth'}: new initial values for 1 layer (head.cls_score) that do not fit"
    ]
    caplog.clear()
    load_weights(build_detector(settings, 80), str(tmp_path / "80.pth"), whole=True)
    assert [x for x in caplog.records if x.name.startswith("lgd")] == []
    detector: Any = build_detector(settings, 80)
    state = detector.backbone.bottom_up.state_dict()
    torch.save({"model": state}, tmp_path / "backbone.pth")
    with pytest.raises(InputError, match=r"are not a detector's: set detector\.backbone\.weights"):
        load_weights(build_detector(settings, 7), str(tmp_path / "backbone.pth"), whole=True)


def test_an_output_that_cannot_be_made_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "out")
    assert main(["retinanet_r50_2x_ms", "--method", "baseline", *QUICK, "--batch", "2", "--output", output]) == 2
    assert "file: a file, not a directory to write to" in capsys.readouterr().err
