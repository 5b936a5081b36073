"""What a sweep refuses, warns of and lists before anything is trained."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ablations.limits import Budget, Placement
from ablations.run import main
from lgd.config.component_arms import COMPONENTS
from lgd.config.grids import NAMES, grid, plan
from lgd.config.presets import NANO
from lgd.detectors import weight_sources
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.training.build import build, dry_build
from tests.helpers_data import VOC_SPLITS, edit_json, write_coco, write_voc
from tests.integration.commands import OVERRIDES, QUICK


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "colours"], "no grid 'colours'"),
        (["--grid", "components", "--preset", "huge"], "no preset 'huge'"),
        (["--grid", "components", "--seeds", "0"], "--seeds 0"),
        (["--grid", "components", "--set", "schedule.step=3"], "did you mean 'schedule.steps'"),
        (["--grid", "components", "--set", "method.context=false"], "arm 'ours without mapper'"),
        (["--grid", "components", "--arms", "LGD,nothing"], "no arm 'nothing'"),
        (["--grid", "teacher-free", "--arms", "RetinaNet R-50 1x ss tf-KD"], "needs a softmax over classes"),
        (["--grid", "components", "--data", "coco-json:/nowhere"], "/nowhere"),
        (["--grid", "components", "--data", "cifar:/x"], "cifar"),
        (["--grid", "components", "--cpus", "5000"], "5000 CPU and"),
        (["--grid", "components", "--gpus", "77"], "--gpus 77"),
        (["--grid", "components", "--set", "method.name=baseline"], "no setting 'method.residual'"),
        (["--grid", "components", "--cpus", "0"], "--cpus 0"),
        (["--grid", "components", "--gpus", "-1"], "--gpus -1"),
        (["--grid", "components", "--set", "precision=fp16", "--set", "device=auto", "--gpus", "0"], "needs a GPU"),
        (["--grid", "components", "--dry-run", "--price-per-gpu-hour", "-1"], "--price-per-gpu-hour -1"),
        (["--grid", "components", "--price-per-gpu-hour", "1"], "need --dry-run"),
        (
            ["--grid", "components", "--dry-run", "--set", "detector.backbone.weights=/no.pkl"],
            "there is no file /no.pkl",
        ),
        (["--grid", "components", "--dry-run", "--set", "log=[mlflow]"], "log mlflow: its package is not installed"),
        (["--resume", "/nowhere", "--seeds", "3"], "leave out --seeds"),
        (["--status", "/nowhere", "--set", "seed=1"], "leave out --set"),
        (["--status", "/nowhere"], "/nowhere"),
        (["--resume", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = [*QUICK, "--output", str(tmp_path / "out")] if "--grid" in arguments else []
    assert main([*more, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "components", *QUICK, "--dry-run", "--seeds", "2", "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("lgd-residual-ours-seed1 ") for line in lines)
    # The cost comes first, and the settings on request.
    assert lines[1].startswith("16 of 16 trials to run")
    assert "predict" in lines[2]
    assert not any("schedule.batch" in line for line in lines)
    assert lines[-1] == "ready"
    assert not (tmp_path / "out").exists()


def test_a_paper_sweep_offline_names_data_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What must be downloaded is printed although the data is missing, and what cannot be had is in the list."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(weight_sources, "urlopen", offline)
    weight_sources._content_length.cache_clear()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    arms = ["--arms", "baseline,LGD", "--output", str(tmp_path / "out")]
    assert main(["--grid", "components", "--preset", "paper", *arms, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "R-50.pkl: to be downloaded" in said.out
    first, *lines = said.err.splitlines()
    assert first == "error: not ready, 2 things are in the way:"
    assert any("datasets/coco does not exist" in line for line in lines)
    assert any("R-50.pkl are not on this machine and cannot be downloaded" in line for line in lines)


def test_a_rate_off_the_linear_rule_is_remarked_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--grid", "components", *QUICK, "--arms", "baseline", "--dry-run", "--output", str(tmp_path / "out")]
    assert main(common) == 0
    assert capsys.readouterr().err == ""
    assert main([*common, "--set", "schedule.lr=0.05"]) == 0
    assert capsys.readouterr().err == (
        "warning: schedule.lr 0.05 is not what the linear scaling rule gives for 2 images per step: 0.0125"
        " (0.1 for 16); schedule.lr=auto follows the rule\n"
    )


@pytest.mark.parametrize(
    ("option", "seconds"), [("90s", 90), ("1.5m", 90), ("45m", 2700), ("8h", 28_800), ("2d", 172_800)]
)
def test_a_sweeps_time(option: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(max_time=option)
    assert budget.exceeded(1e9) == ""
    now[0] += seconds - 0.001
    assert budget.exceeded(0) == ""
    now[0] += 0.001
    assert budget.exceeded(0) == f"--max-time {option} is over"


@pytest.mark.parametrize("option", ["8", "0h", "-1h", "8 hours"])
def test_a_time_needs_its_unit(option: str) -> None:
    """Eight of what? Seconds end a sweep that was to have hours."""
    with pytest.raises(InputError, match=f"--budget {option}: a time such as 90s, 45m or 8h"):
        Budget(max_time=option, option="--budget")


def test_a_sweeps_gpu_hours() -> None:
    budget = Budget(max_gpu_hours=1.5)
    assert budget.exceeded(1.5 * 3600 - 1) == ""
    assert budget.exceeded(1.5 * 3600) == "--max-gpu-hours 1.5 are used"
    assert Budget().exceeded(1e12) == ""


def test_list_names_every_arm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for name in NAMES:
        assert name in said
    assert main(["--list", "--grid", "components"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in ("baseline", "without encoder", "label queries"):
        assert name in said
    assert main(["--list", "--grid", "table9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the paper: mMR 46.4 %" in said
    assert "without encoder" not in said


def test_a_directory_holds_one_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "schema_version": 1, "grid": "components", "preset": "small", "overrides": [],
                "arms": ["baseline"], "reference": "baseline", "seeds": 1,
            }
        )
    )  # fmt: skip
    assert main(["--grid", "components", "--preset", "nano", "--output", str(tmp_path)]) == 2
    assert "preset 'small', not 'nano'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_directory_holds_several_grids_of_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a second table shares with the first is not trained again."""
    for trial in plan(grid("teacher-based", "nano"), NANO, 1, [*OVERRIDES, "method.from_step=2"], tmp_path):
        if trial.arm in ("RetinaNet R-50 2x ms baseline", "RetinaNet R-50 2x ms LGD"):
            shown = build(trial.experiment, pretrained=False).fingerprint
            Record(status="finished", arm=trial.arm, experiment=trial.experiment, fingerprint=shown).save(
                trial.directory
            )
    more = [*QUICK, "--set", "method.from_step=2", "--output", str(tmp_path), "--dry-run"]
    assert main(["--grid", "table7", *more]) == 0
    said = capsys.readouterr().out
    assert "2 of 4 trials to run" in said
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "schema_version": 1, "grid": "teacher-based", "preset": "nano", "arms": ["RetinaNet R-50 2x ms LGD"],
                "overrides": [*OVERRIDES, "method.from_step=2"], "reference": "", "seeds": 3,
            }
        )
    )  # fmt: skip
    assert main(["--grid", "table7", *more, "--accept-other-code"]) == 0
    assert "2 of 4 trials to run" in capsys.readouterr().out


def test_records_of_other_data_or_code_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = plan(COMPONENTS, NANO, 1, OVERRIDES, tmp_path)[0]
    Record(status="finished", arm=trial.arm, experiment=trial.experiment, fingerprint="0" * 16).save(trial.directory)
    assert main(["--grid", "components", "--arms", "baseline", *QUICK, "--output", str(tmp_path)]) == 2
    assert "made from other data or code" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--grid", "components", "--arms", "baseline", *QUICK, "--output", str(tmp_path / "file" / "out")]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("split", "purpose"), [("train", "to train on"), ("val", "to evaluate on")])
def test_a_dry_run_looks_for_what_only_training_would_miss(
    split: str, purpose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An arm that has its records needs nothing any more."""
    path = write_coco(tmp_path / "data") / f"annotations/instances_{split}2017.json"
    edit_json(path, lambda c: c.update(annotations=[]))
    changed = ["--set", "detector.name=mask_rcnn", "--dry-run"]
    command = ["--grid", "components", "--arms", "baseline", *QUICK]
    assert main([*command, "--data", f"coco-json:{tmp_path / 'data'}", "--dry-run"]) == 2
    assert f"{path} has no object {purpose}" in capsys.readouterr().err
    assert main([*command, "--data", f"voc:{write_voc(tmp_path / 'boxes', VOC_SPLITS)}", *changed]) == 2
    assert "has no segmentation, which mask_rcnn is scored with" in capsys.readouterr().err
    overrides = [*OVERRIDES, "detector.backbone.weights=/no.pkl"]
    trial = plan(COMPONENTS, NANO, 1, overrides, tmp_path)[0]
    Record(status="finished", arm=trial.arm, experiment=trial.experiment, fingerprint=dry_build(trial.experiment)).save(
        trial.directory
    )
    again = [*command, "--set", overrides[-1], "--output", str(tmp_path), "--accept-other-code", "--dry-run"]
    assert main(again) == 0
    assert "0 of 1 trials to run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overrides": None}, "overrides"),
        ({"seeds": "x"}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"arms": 3}, "arms"),
        ({"code": {}}, "code.versions"),
        ({"search": {"samples": 3}}, "search.objectives"),
    ],
)
def test_a_damaged_sweep_is_one_line(
    changes: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"schema_version": 1, "grid": "components", "preset": "nano", "overrides": [], "arms": [], "seeds": 1}
    (tmp_path / "sweep.json").write_text(json.dumps(whole | changes))
    for option in ("--status", "--resume"):
        assert main([option, str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path / 'sweep.json'}: {words}")
        assert said.count("\n") == 1


def test_the_way_to_go_on_says_how_trials_are_placed() -> None:
    placement = Placement(gpus=0.5, workers=4, spread=True, address="auto")
    assert placement.options == " --gpus 0.5 --workers 4 --address auto --spread"
    assert Placement().options == ""
