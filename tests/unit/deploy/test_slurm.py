"""deploy/slurm.sbatch, run here with stand-ins for Slurm's and Ray's commands that note what they are called with."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ablations.submit import checked_command

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "deploy" / "slurm.sbatch"

NOTE = '#!/bin/bash\nprintf "%s\\n" "$(basename "$0") $*" >> "$CALLS"\n'

STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" n1 n2 n3 | head -n "$SLURM_JOB_NUM_NODES"; fi',
    # One line a node, as Ray 2.60 prints them.
    "ray": """
if [ "$1" = status ]; then
    printf "Active:\\n"
    for node in $(seq "$UP"); do echo " 1 node_0123abcd$node"; done
    printf "Pending:\\n 7 another\\n"
fi""",
    "srun": "",
    "lgd": """
trap 'echo "lgd got TERM" >> "$CALLS"; exit 130' TERM
if [ "$LGD" = wait ]; then echo "lgd waits" >> "$CALLS"; while :; do sleep 0.1; done; fi
exit "$LGD" """,
}


def start(directory: Path, nodes: int, up: int, lgd: str, script: Path = SCRIPT) -> tuple[subprocess.Popen[str], Path]:
    """The script under way in a directory of its own, and the file that what it calls is noted in."""
    programs = directory / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"{NOTE}{body}\n")
        (programs / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(directory), "SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_NODELIST": "n[1-3]"}
    told = {"SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_ID": "17", "USER": "me", "START_SECONDS": "0"}
    noted = {"CALLS": str(directory / "calls"), "UP": str(up), "LGD": lgd}
    process = subprocess.Popen(
        ["bash", str(script)], env={**os.environ, **slurm, **told, **noted}, stderr=subprocess.PIPE, text=True
    )
    return process, directory / "calls"


def finish(process: subprocess.Popen[str], calls: Path) -> tuple[int, list[str], str]:
    """Exit status, the calls but those that only ask for something, and what was said on standard error."""
    error = process.communicate(timeout=60)[1]
    asking = ("ray status", "ray get-auth-token", "scontrol show")
    return process.returncode, [x for x in calls.read_text().splitlines() if not x.startswith(asking)], error


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_head_workers_and_command(tmp_path: Path) -> None:
    status, calls, _ = finish(*start(tmp_path, nodes=3, up=3, lgd="0"))
    assert status == 0
    # The steps run beside the script: what they note may come later than what comes after them.
    assert sorted(calls) == [
        "lgd sweep run main --preset paper --workers 4 --output results/main --max-time 23h --address n1:6379",
        "srun --nodes=1 --ntasks=1 --nodelist=n1 ray start --head --port=6379 --num-cpus=64"
        " --dashboard-host=127.0.0.1 --temp-dir=/tmp/ray-me --disable-usage-stats --block",
        "srun --nodes=2 --ntasks=2 --exclude=n1 ray start --address=n1:6379 --num-cpus=64"
        " --disable-usage-stats --block",
    ]


def test_one_node_has_no_workers_beside_the_head(tmp_path: Path) -> None:
    _, calls, _ = finish(*start(tmp_path, nodes=1, up=1, lgd="0"))
    assert sum(x.startswith("srun") for x in calls) == 1


@pytest.mark.parametrize(("lgd", "requeued"), [("0", False), ("1", False), ("2", False), ("3", True), ("130", True)])
def test_what_is_not_finished_goes_back_to_the_queue(tmp_path: Path, lgd: str, requeued: bool) -> None:
    status, calls, _ = finish(*start(tmp_path, nodes=1, up=1, lgd=lgd))
    assert status == int(lgd)
    assert ("scontrol requeue 17" in calls) == requeued


def test_a_budget_of_gpu_hours_is_not_spent_again(tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    assert text.count("command=(") == 1
    script = tmp_path / "budget.sbatch"
    script.write_text(text.replace("command=(", "command=(--max-gpu-hours 3 "))
    status, calls, _ = finish(*start(tmp_path, nodes=1, up=1, lgd="3", script=script))
    assert status == 3
    assert "scontrol requeue 17" not in calls


def test_the_signal_reaches_the_command_and_its_end_is_waited_for(tmp_path: Path) -> None:
    process, calls = start(tmp_path, nodes=1, up=1, lgd="wait")
    try:
        deadline = time.monotonic() + 60
        while not (calls.exists() and "lgd waits" in calls.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        status, noted, _ = finish(process, calls)
    finally:
        process.kill()
    assert status == 130
    assert noted[-2:] == ["lgd got TERM", "scontrol requeue 17"]


def test_a_node_that_does_not_come_up_is_said(tmp_path: Path) -> None:
    status, calls, error = finish(*start(tmp_path, nodes=3, up=2, lgd="0"))
    assert status == 1
    assert "slurm.sbatch: error: 2 of 3 Ray nodes came up" in error
    assert not any(x.startswith("lgd") for x in calls)


def test_its_command_is_one_of_lgd_and_few_lines_are_to_be_filled_in() -> None:
    lines = SCRIPT.read_text().splitlines()
    (command,) = (shlex.split(x[len("command=(") : -1]) for x in lines if x.startswith("command=("))
    command[command.index("results/main")] = "/shared/main"
    assert checked_command(command, ROOT) == [*command, "--address", "auto"]
    assert 0 < sum("FILL IN" in x for x in lines) <= 4
