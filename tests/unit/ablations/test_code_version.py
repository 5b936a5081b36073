"""The code that trials were run by: the suite's, and the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.code_version import check_code, code_version
from lgd.errors import InputError
from lgd.results.sweep_spec import SweepSpec


def _spec(*overrides: str) -> SweepSpec:
    return SweepSpec(grid="components", preset="nano", overrides=overrides, arms=("baseline",), seeds=1)


def _with_a_trial(directory: Path, spec: SweepSpec) -> Path:
    spec.model_copy(update={"code": code_version(spec)}).write(directory)
    (directory / "trials" / "baseline").mkdir(parents=True)
    (directory / "trials" / "baseline" / "record.json").write_text("{}")
    return directory


@pytest.mark.parametrize(
    ("file", "setting", "named"),
    [
        ("mine.py", "detector.source=mine:build", "mine:build"),
        ("mine.py", "method.teacher.detector=mine:build", "mine:build"),
        ("package/mine.py", "method.name=package.mine:Method", "package.mine:Method"),
        ("package/__init__.py", "detector.source=package:build", "package:build"),
        ("configs/mine.py", "detector.source={}", "configs/mine.py"),
        ("configs/mine.yaml", "detector.source={}", "configs/mine.yaml"),
    ],
)
def test_a_changed_file_of_the_users_own_is_other_code(
    file: str, setting: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    # Looked at, not run.
    path.write_text("raise SystemExit")
    directory = _with_a_trial(tmp_path / "out", _spec(setting.format(path)))
    check_code(directory)
    path.write_text("raise SystemExit(1)")
    with pytest.raises(InputError, match=f"trials that other code ran .changed: {named}.*--accept-other-code"):
        check_code(directory)


@pytest.mark.parametrize(
    "setting", ["detector.source=torchvision:fcos_resnet50_fpn", "detector.source=zoo:COCO-Detection/x.yaml", "seed=1"]
)
def test_what_is_installed_is_told_by_its_version(setting: str) -> None:
    found = code_version(_spec(setting))
    assert all(x.startswith("lgd/") for x in found.files)
    assert {"torch", "torchvision", "detectron2"} <= found.versions.keys()
