"""Ctrl-C while a command imports its modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lgd.signals import keep_handlers

ROOT = Path(__file__).parents[2]

# In place of a package: Ctrl-C in the middle of its import.
INTERRUPTED_IMPORT = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""


TRAIN = ["-m", "lgd.train", "retinanet_r50_2x_ms", "--method", "baseline", "--output", "out"]

COMMANDS = [
    ("pydantic", TRAIN),
    ("torch", TRAIN),
    ("PIL", ["-m", "lgd.data", "check", "voc:nowhere"]),
    ("pydantic", ["-m", "ablations.command", "sweep", "list"]),
    ("pydantic", [f"{ROOT}/ablations/run.py", "--list"]),
    ("pandas", ["-m", "analysis", "nowhere"]),
    ("pandas", ["-m", "analysis.evidence"]),
    ("pydantic", [f"{ROOT}/analysis/tables.py", "nowhere", "--table", "main"]),
    ("pandas", [f"{ROOT}/analysis/tables.py", "nowhere", "--table", "main"]),
    ("PIL", [f"{ROOT}/benchmarks/loader.py", "voc:nowhere"]),
    *(("pydantic", [f"{ROOT}/benchmarks/{name}.py"]) for name in ("breakdown", "cost", "roofline", "speed")),
]


@pytest.mark.parametrize(("package", "command"), COMMANDS)
def test_ctrl_c_during_imports_is_one_line(package: str, command: list[str], tmp_path: Path) -> None:
    """While the command itself is imported, and while it imports what it needs to do its work."""
    (tmp_path / f"{package}.py").write_text(INTERRUPTED_IMPORT)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("interrupted")
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_after_the_imports_is_the_commands_own(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(
        "import os, signal\nfrom lgd.cli import exit_status\n"
        "def main():\n    return exit_status(lambda: os.kill(os.getpid(), signal.SIGINT) or 0, 'go on with --resume')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from lgd.signals import run_command; run_command('command')"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "go on with --resume\n")


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with keep_handlers(signal.SIGINT):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) == before
