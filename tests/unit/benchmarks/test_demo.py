"""What timing the demo does: a clone, the two targets one after the other, and what came of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.demo import main

STUDY = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("components_tiny_*"))[-1]

MAKEFILE = """
setup:
\ttouch environment
demo:
\ttest -e environment
\tmkdir results && mv kept results/components-tiny
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With a Makefile that "trains" the first seed of a kept study."""
    place = tmp_path / "repository"
    for trial in STUDY.glob("trials/*-seed0"):
        shutil.copytree(trial, place / "kept" / "trials" / trial.name)
    (place / "Makefile").write_text(MAKEFILE)
    _git(place, "init", "--quiet")
    _commit(place)
    return place


def _git(place: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], cwd=place, check=True)


def _commit(place: Path) -> None:
    _git(place, "add", "--all")
    _git(place, "commit", "--quiet", "--message", "as it is")


def test_both_targets_are_timed(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo.csv"
    assert main(["--repository", str(repository), "--output", str(output)]) == 0
    frame = pd.read_csv(output)
    assert list(frame["target"]) == ["setup", "demo"]
    assert (frame["seconds"] >= 0).all()
    trials = [*(repository / "kept" / "trials").iterdir()]
    assert set(frame["trainings"]) == {len(trials)}
    assert 0 < frame["baseline_ap"].iloc[0] < 100
    text = output.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert main(["--table", str(output)]) == 0
    assert text in capsys.readouterr().out
    # The repository itself is left as it was.
    assert not (repository / "environment").exists()


def test_what_fails_is_told_in_one_line(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "Makefile").write_text(MAKEFILE.replace("touch environment", "@echo no space left >&2; exit 1"))
    _commit(repository)
    output = tmp_path / "demo.csv"
    assert main(["--repository", str(repository), "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert "make --no-print-directory setup failed: " in said
    assert said.count("\n") == 1
    assert not output.exists()
    assert main(["--repository", str(tmp_path / "nowhere"), "--output", str(output)]) == 2
    assert "git clone" in capsys.readouterr().err


def test_an_installed_package_has_nothing_to_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.options._CHECKOUT", tmp_path)
    assert main(["--output", str(tmp_path / "x.csv")]) == 2
    assert capsys.readouterr().err == "error: no checkout here, for this package is installed: say --repository DIR\n"
