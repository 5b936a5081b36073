"""What is checked before time is spent."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ablations import disk_and_memory
from ablations.checks import Problems, _built, build_arms, check_teachers, prepare
from ablations.cpu_time import check_cpu_time
from ablations.damaged import damage, set_aside
from ablations.disk_and_memory import check_disk, check_memory
from ablations.limits import Budget, CostOptions, Placement
from ablations.placement import resources_for
from ablations.plan import describe, search_spec, trials_of
from ablations.status import show_status
from ablations.sweep import RunOptions, _run, dry_run
from ablations.tune.ray_log import ray_log
from lgd.config.experiment import Experiment
from lgd.config.grids import Trial
from lgd.distributed.ray_train import Node
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.methods.label_guided import teacher
from lgd.results.record import Record
from lgd.results.sweep_spec import SweepSpec
from lgd.training import build, estimate
from lgd.training.build import DryBuilt
from lgd.training.disk_space import FilesSize
from lgd.training.teacher import teacher_directory
from tests.helpers_data import edit_json, write_coco
from tests.integration.commands import OVERRIDES


def test_problems_are_one_line_or_a_list() -> None:
    def refuse(text: str) -> None:
        raise InputError(text)

    problems = Problems(all_of_them=True)
    problems.refuse()
    for arm in ("a", "b", "c", "d"):
        with problems.noted(arm):
            refuse("no weights")
    with pytest.raises(InputError) as refused:
        problems.refuse()
    assert str(refused.value) == "arms 'a', 'b', 2 more: no weights"
    with problems.noted():
        refuse("no space")
    with pytest.raises(InputError) as refused:
        problems.refuse()
    assert str(refused.value).splitlines() == [
        "not ready, 2 things are in the way:",
        "  arms 'a', 'b', 2 more: no weights",
        "  no space",
    ]
    # A run need not know more than the first.
    with pytest.raises(InputError, match="arm 'a': no weights"), Problems(all_of_them=False).noted("a"):
        refuse("no weights")


def test_a_model_that_does_not_fit_is_one_line() -> None:
    def build() -> str:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory: you tried 5 bytes\nmore")

    with pytest.raises(InputError, match="does not fit into this machine's memory .*you tried 5 bytes"):
        _built(build)


@pytest.mark.parametrize(("seconds", "refused"), [(86_401.0, True), (80_000.0, False)])
def test_days_on_the_cpu_are_asked_about(
    seconds: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset for the CPU is not even timed."""
    timed = []

    def measured(experiment: object) -> float:
        timed.append(experiment)
        return seconds

    monkeypatch.setattr(estimate, "cpu_seconds", measured)
    out = io.StringIO()
    console = Console(file=out, width=200)
    check_cpu_time(trials_of(describe("components", "nano"), tmp_path).trials, 1, console)
    assert timed == []
    assert out.getvalue() == ""
    paper = trials_of(describe("components", "paper", arms="baseline"), tmp_path).trials
    if refused:
        with pytest.raises(InputError, match=r"1 of 1 trials would take about 24\.0 hours .* say --yes"):
            check_cpu_time(paper, 1, console)
    else:
        check_cpu_time(paper, 1, console)
        assert "about 22.2 hours on this machine's CPU" in out.getvalue()
    assert out.getvalue().startswith("no GPU for the trials: measuring how long the CPU will take\n")


@pytest.mark.parametrize(("gpus", "asked"), [(0.0, True), (1.0, False)])
def test_days_on_a_clusters_cpus_are_asked_about(
    gpus: float, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster whose nodes with GPUs are still to come would train on the CPUs of its head."""

    def refuse(*_: object) -> None:
        raise InputError("days")

    monkeypatch.setattr("ablations.sweep.cluster", lambda *_: contextlib.nullcontext(Resources(1, gpus, 2)))
    monkeypatch.setattr("ablations.sweep._ray_watched", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("ablations.sweep._check_shared", lambda *_: None)
    monkeypatch.setattr("ablations.sweep.check_cpu_time", refuse)
    monkeypatch.setattr("ablations.sweep.train", lambda *_: ("the budget is over", 0.0))
    monkeypatch.setattr("ablations.outcome.finish", lambda *_: 3)
    spec, console = SweepSpec(grid="components", preset="nano", overrides=(), arms=("baseline",), seeds=1), Console()

    def run(yes: bool) -> int:
        placement = Placement(address="head:6379")
        return _run(spec, tmp_path, RunOptions(placement=placement, yes=yes), Budget(), console)

    assert run(yes=True) == 3
    if asked:
        with pytest.raises(InputError, match="days"):
            run(yes=False)
    else:
        assert run(yes=False) == 3


def test_absurdly_many_images_get_a_line_at_once(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    spec = describe("components", "nano", overrides=["data.shapes_train=1000000000"])
    with pytest.raises(InputError, match=r"arm 'baseline': 1,000,000,\d+ synthetic images"):
        prepare(trials_of(spec, tmp_path), console)


def test_a_damaged_record_blocks_nothing(tmp_path: Path) -> None:
    """It is named, left out, and may be trained again."""
    spec = describe("components", "nano", arms="baseline,LGD")
    good, bad = (trial.directory for trial in trials_of(spec, tmp_path).trials)
    Record(status="finished", arm="baseline", experiment=trials_of(spec, tmp_path).trials[0].experiment).save(good)
    bad.mkdir(parents=True)
    (bad / "record.json").write_text('{"schema_version": 3, "status": "fin')
    out = io.StringIO()
    records: dict[str, Record] = {}
    sweep, console = trials_of(spec, tmp_path, records), Console(file=out, width=300, color_system=None)
    show_status(sweep, records, "lgd sweep resume DIR", console)
    said = out.getvalue()
    assert "1 of 2 trials finished" in said
    assert f"left out: {bad / 'record.json'}:1: not a record" in said
    assert "to train it again: lgd sweep resume DIR --retrain-damaged" in said
    set_aside([good, bad])
    assert damage(bad) == ""
    assert (good / "record.json").exists()
    sweep = trials_of(spec, tmp_path)
    assert (len(sweep.trials), sweep.damaged) == (2, [])


def test_a_damaged_record_of_a_teacher_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    sweep = trials_of(describe("methods", "nano", arms="baseline,PKD", seeds=1), tmp_path)
    check_teachers(tmp_path, sweep.trials, Problems(False))
    teacher = sweep.trials[1].experiment.teacher
    assert teacher is not None
    directory = teacher_directory(teacher, tmp_path / "teachers")
    directory.mkdir(parents=True)
    (directory / "record.json").write_text('{"schema_version": 3, "status": "fin')
    with pytest.raises(InputError, match=r"record.json:1: not a record .*: --retrain-damaged trains this teacher"):
        check_teachers(tmp_path, sweep.trials, Problems(False))
    check_teachers(tmp_path, sweep.trials[:1], Problems(False))
    # With the option nothing is in the way.
    out, options = io.StringIO(), RunOptions(retrain_damaged=True)
    dry_run(sweep.spec, tmp_path, options, CostOptions(), Console(file=out, width=300))
    assert out.getvalue().endswith("ready\n")


def test_damaged_trials_that_are_to_be_trained_again_are_planned(tmp_path: Path) -> None:
    spec = describe("components", "nano", arms="baseline,LGD", seeds=1)
    damaged = trials_of(spec, tmp_path).trials[1].directory
    damaged.mkdir(parents=True)
    (damaged / "record.json").write_text("{")
    for again, planned in ((False, "1 of 1 trials to run"), (True, "2 of 2 trials to run")):
        out = io.StringIO()
        options = RunOptions(retrain_damaged=again)
        dry_run(spec, tmp_path, options, CostOptions(), Console(file=out, width=300))
        assert planned in out.getvalue()
        # It was built, as the others.
        rows = [line.split() for line in out.getvalue().splitlines() if line.startswith(("baseline", "lgd"))]
        assert [len(row) for row in rows] == [4] * (1 + again)
        assert ("left out" in out.getvalue()) is not again


@pytest.mark.parametrize(("samples", "cpus"), [(30, 8), (30, 64), (3, 64)])
def test_a_search_has_as_many_trials_at_a_time_as_there_is_room_for(samples: int, cpus: int, tmp_path: Path) -> None:
    spec = describe("components", "nano", search=search_spec(samples, ["AP"], False), seeds=1)
    checked = prepare(trials_of(spec, tmp_path), Console(file=io.StringIO()))
    assert len(checked.to_train) == samples + 1
    found = resources_for(checked.to_train, [Node(cpus, 0)], Placement())
    assert found.max_concurrent == min(cpus, samples + 1)


def test_what_ray_says_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ray")
    before = logger.handlers[:]
    with ray_log(tmp_path / "ray.log"):
        logging.getLogger("ray.tune.execution.tune_controller").error("Trial task failed")
        print("An unexpected internal error", file=sys.stderr)
        print("[1/2] a line of ours")
    assert logger.handlers == before
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[1/2] a line of ours\n", "")
    assert (tmp_path / "ray.log").read_text() == "Trial task failed\nAn unexpected internal error\n"


def _built_arms(grid: str, tmp_path: Path, *overrides: str, all_problems: bool = True) -> dict[str, DryBuilt]:
    sweep = trials_of(describe(grid, "nano", overrides=[*OVERRIDES, *overrides]), tmp_path)
    problems = Problems(all_problems)
    built = build_arms(sweep, sweep.trials, problems)
    problems.refuse()
    return built


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "arms", "students", "teachers"), [("loss-weights", 16, 1, 1), ("components", 8, 1, 6)]
)
def test_each_network_is_built_once(
    grid: str, arms: int, students: int, teachers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the arms' fingerprints are those of models that were built one by one."""
    made: list[str] = []

    def counted(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def make(*arguments: Any, **settings: Any) -> Any:
            made.append(name)
            return original(*arguments, **settings)

        monkeypatch.setattr(module, name, make)

    counted(build, "build_detector")
    counted(teacher, "ImplicitTeacher")
    built = _built_arms(grid, tmp_path)
    assert len(built) == arms
    assert (made.count("build_detector"), made.count("ImplicitTeacher")) == (students, teachers)
    monkeypatch.undo()
    for trial in trials_of(describe(grid, "nano", overrides=OVERRIDES), tmp_path).one_seed()[::3]:
        assert built[trial.arm].fingerprint == build.build(trial.experiment, pretrained=False).fingerprint


@pytest.mark.slow
def test_all_that_is_wrong_with_an_arm_is_found_at_once(tmp_path: Path) -> None:
    edit_json(write_coco(tmp_path / "data") / "annotations/instances_val2017.json", lambda c: c.update(annotations=[]))
    wrong = (f"data.source=coco-json:{tmp_path / 'data'}", "detector.backbone.weights=/no.pkl", "log=[mlflow]")
    with pytest.raises(InputError) as refused:
        _built_arms("components", tmp_path, *wrong)
    first, *lines = str(refused.value).splitlines()
    assert first == "not ready, 3 things are in the way:"
    for words in ("there is no file /no.pkl", "has no object to evaluate on", "log mlflow"):
        assert sum(words in line for line in lines) == 1
    # A run need not know more than the first.
    with pytest.raises(InputError, match="arm 'baseline': log mlflow: its package is not installed") as one:
        _built_arms("components", tmp_path, *wrong, all_problems=False)
    assert "\n" not in str(one.value)


def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    """torch, detectron2 and Ray take seconds."""
    code = (
        "import sys\n"
        "from ablations.sweep_command import main\n"
        "status = main(['run', 'components', '--set', 'log=mlflow', '--output', sys.argv[1]])\n"
        "assert status == 2, status\n"
        "assert not {'torch', 'detectron2', 'ray'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: log mlflow: its package is not installed: pip install -e '.[mlflow]'\n"


def _trial(directory: Path) -> Trial:
    return Trial("LGD", Experiment(), directory)


def test_a_sweeps_files_must_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of ten trials leaves 10 MiB; the checkpoints of two, 100 MiB each, are there at a time."""
    built = DryBuilt("f", FilesSize(checkpoints=100 * 2**20, results=10 * 2**20))
    trials = [(_trial(tmp_path / str(i)), built) for i in range(10)]
    for free, fits in ((300, True), (299, False)):
        monkeypatch.setattr(disk_and_memory, "free_space", lambda _, free=free: free * 2**20)
        if fits:
            check_disk(tmp_path, trials, 2)
            continue
        with pytest.raises(InputError, match="299 MiB free, and .* of 10 trials need about 300 MiB") as refused:
            check_disk(tmp_path, trials, 2)
        assert "\n" not in str(refused.value)
    check_disk(tmp_path, trials, 1)
    # A teacher that the trials share leaves its files once.
    taught = [(trial, replace(built, teacher=replace(built, fingerprint="t"))) for trial, _ in trials]
    monkeypatch.setattr(disk_and_memory, "free_space", lambda _: 310 * 2**20)
    check_disk(tmp_path, taught, 2)
    monkeypatch.setattr(disk_and_memory, "free_space", lambda _: 309 * 2**20)
    with pytest.raises(InputError, match="310 MiB"):
        check_disk(tmp_path, taught, 2)


@pytest.mark.parametrize(("gpus", "concurrent", "total"), [(0.0, 4, 8), (0.5, 4, 4), (1.0, 4, 2)])
def test_memory_is_a_note_unless_it_is_clearly_too_much(
    gpus: float, concurrent: int, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, resources = [DryBuilt("f", memory=2 * 2**30)], Resources(1, gpus, concurrent)
    for name in ("_free_memory", "_free_gpu_memory"):
        monkeypatch.setattr(disk_and_memory, name, lambda: int(total / 1.4 * 2**30))
    note = check_memory(built, resources)
    assert note.startswith("a step needs about 2.0 GiB of memory")
    assert (f"side by side about {total}.0 GiB" in note) == (total > 2)
    assert f"{total / 1.4:.1f} GiB free" in note
    for name in ("_free_memory", "_free_gpu_memory"):
        monkeypatch.setattr(disk_and_memory, name, lambda: int(total / 1.6 * 2**30))
    with pytest.raises(InputError, match="GiB free: set schedule.batch lower"):
        check_memory(built, resources)
    assert check_memory([DryBuilt("f")], resources) == ""


@pytest.mark.parametrize(
    ("visible", "order", "names", "expected"),
    [
        (None, "", ["H100", "H100"], 1),
        ("1", "", ["H100", "H100"], 7),
        ("0, 1", "", ["H100", "H100"], 1),
        ("GPU-b", "", ["H100", "T400"], 7),
        # CUDA's first may be NVML's second.
        ("1", "", ["H100", "T400"], None),
        ("1", "PCI_BUS_ID", ["H100", "T400"], 7),
        ("-1", "", ["H100", "H100"], None),
        ("5", "", ["H100", "H100"], None),
    ],
)
def test_the_memory_of_gpus_that_are_not_visible_is_not_asked_for(
    visible: str | None, order: str, names: list[str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_uuid(uuid: str) -> int:
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetName=names.__getitem__,
        nvmlDeviceGetMemoryInfo=lambda i: SimpleNamespace(free=(1, 7)[i]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order or None)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert disk_and_memory._free_gpu_memory() == expected
