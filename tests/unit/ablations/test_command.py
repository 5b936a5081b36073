"""The console script: light, quick, and one line for what is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from ablations.command import BENCHMARKS, COMMANDS, main
from ablations.plan import describe
from lgd.config.grids import NAMES

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "pandas", "detectron2", "matplotlib", "optuna")

SUBCOMMANDS = ("run", "search", "plan", "resume", "status", "list")


def _loaded(*arguments: str) -> tuple[str, str, str]:
    """What ``lgd`` printed in a process of its own, and which of HEAVY it loaded: that is what makes it slow."""
    code = (
        "import sys\nfrom ablations.command import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print(*sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *err, loaded = done.stderr.splitlines()
    return done.stdout, "\n".join(err), loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["nonsense"],
        ["bench", "--help"],
        *[["sweep", x, "--help"] for x in SUBCOMMANDS],
        ["sweep", "run", "components", "--nonsense"],
        ["sweep", "run"],
        *[[x, "--help"] for x in COMMANDS],
        *[["bench", x, "--help"] for x in BENCHMARKS],
    ],
    ids=" ".join,
)
def test_help_and_errors_are_quick(arguments: list[str]) -> None:
    out, err, loaded = _loaded(*arguments)
    assert loaded == ""
    if "--help" in arguments:
        assert out.startswith(f"usage: lgd {' '.join(arguments[:-1])}".rstrip())
        assert err == ""
    else:
        assert re.fullmatch("error: .*", err)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["bench"],
        ["completion"],
        *[["sweep", x] for x in SUBCOMMANDS],
        *[[x] for x in COMMANDS],
        *[["bench", x] for x in BENCHMARKS],
        ["data", "check"],
    ],
    ids=lambda command: " ".join(["lgd", *command]),
)
def test_each_command_has_a_short_help_with_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    _, description, *_ = said.split("\n\n")
    assert re.fullmatch(r"[A-Z].*\.(\nExit status: .*)?", description)
    examples = said.partition("examples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith(" ".join(["  lgd", *command, ""])) for line in examples)
    assert len(said.splitlines()) < 70


def test_options_belong_to_their_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, option in (
        (["run", "components", "--measure"], "--measure"),
        (["run", "components", "--samples", "3"], "--samples"),
        (["plan", "components", "--samples", "3"], "--samples"),
        (["plan", "components", "--resume", "DIR"], "--resume"),
        (["resume", "DIR", "--seeds", "3"], "--seeds"),
        (["status", "DIR", "--cpus", "1"], "--cpus"),
    ):
        assert main(["sweep", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"error: unrecognized arguments: {option}")


def test_status_is_quick(tmp_path: Path) -> None:
    """Also of a grid whose arms train for as long as others took."""
    describe("evidence", "nano").write(tmp_path)
    out, err, loaded = _loaded("sweep", "status", str(tmp_path))
    assert "0 of 115 trials finished" in out
    assert err == ""
    assert loaded == ""


def test_a_busy_lock_answers_before_anything_is_loaded(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"):
        _, err, loaded = _loaded("sweep", "run", "components", "--output", str(tmp_path))
    assert err == f"error: {tmp_path}: another sweep is at work there; wait for it, or choose another --output"
    assert loaded == ""


def test_the_grids_of_ones_own_data_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "list", "--preset", "finetune"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"components", "pays"} < set(listed)
    assert "main" not in listed


def test_the_list_of_grids_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(NAMES) + 1
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines[:-1]] == [*NAMES]
    assert main(["sweep", "list", "components"]) == 0
    assert "without encoder" in capsys.readouterr().out


@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_an_interrupt_while_things_are_imported_is_one_line(delay: float, tmp_path: Path) -> None:
    options = ["--grid", "components", "--preset", "nano", "--dry-run"]
    command = [sys.executable, str(ROOT / "ablations" / "run.py"), *options]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "components grid, preset nano: checking 8 arms ...\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err in ("interrupted\n", "interrupted before a trial began\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shells_completion_knows_the_commands_and_their_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    for word in ("ray-overhead", "--early-stop", "--resamples", "--gpus-per-worker", "--draw"):
        assert word in said
