"""Ctrl-C while a command imports its modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In place of a package: Ctrl-C in the middle of its import.
INTERRUPTED_IMPORT = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(30)
"""


@pytest.mark.parametrize("package", ["pydantic", "torch"])
def test_ctrl_c_during_imports_is_one_line(package: str, tmp_path: Path) -> None:
    """While the command itself is imported, and while it imports what it needs to train."""
    (tmp_path / f"{package}.py").write_text(INTERRUPTED_IMPORT)
    done = subprocess.run(
        [sys.executable, "-m", "lgd.train", "retinanet_r50_2x_ms", "--method", "baseline", "--output", "out"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr == "interrupted\n"


def test_an_interrupt_after_the_imports_is_the_commands_own(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(
        "import os, signal\nfrom lgd.cli import answer\n"
        "def main():\n    return answer(lambda: os.kill(os.getpid(), signal.SIGINT) or 0, 'go on with --resume')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from lgd.signals import run_command; run_command('command')"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "go on with --resume\n")
