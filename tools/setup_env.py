"""Make .venv and install the project with its pinned dependencies into it: `python tools/setup_env.py`.

`--dev` adds the tests' tools, `--storage` what object storage needs. A set-up that is up to date ends at once; an
interrupted one is redone. Standard library only, and no syntax newer than Python 3.6, so that an old Python gets one
clear line too.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOWEST = (3, 11)
TOO_NEW = (3, 13)


def python_problem(version: tuple, executable: str) -> str:
    """One line for a Python that the project does not run on; empty for one that it does."""
    if LOWEST <= tuple(version[:2]) < TOO_NEW:
        return ""
    found = ".".join(str(part) for part in version[:3])
    return (
        f"set-up: error: Python 3.11 or 3.12 is needed, and {executable} is Python {found}; "
        "name another one: make setup PYTHON=python3.11"
    )


if python_problem(sys.version_info, sys.executable):  # before annotations that old versions cannot evaluate
    sys.exit(python_problem(sys.version_info, sys.executable))

ROOT = Path(__file__).resolve().parent.parent
# A change to one of these makes the environment out of date.
INPUTS = ("constraints.txt", "pyproject.toml", "hatch_build.py", "tools/repack_detectron2.py", "tools/setup_env.py")
HEARTBEAT_SECONDS = 30.0
# Extras of the project that may be asked for, and what they are called.
EXTRAS = {"dev": "its development tools", "storage": "the packages for object storage"}

# Stale or foreign paths that would leak into the new environment, and pip options that point out of it.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "PIP_PREFIX", "PIP_TARGET", "PIP_ROOT")

UNREACHABLE = re.compile(
    "Failed to establish a new connection|Max retries exceeded|connection broken|Connection refused|"
    "Name or service not known|Temporary failure in name resolution|Connection ?(Reset|Timeout)|Read timed out|"
    "ReadTimeout|ProxyError|CERTIFICATE_VERIFY_FAILED",
    re.IGNORECASE,
)


class SetupError(Exception):
    """The set-up cannot go on; the message is one line for the user."""


class Layout:
    """The files of one checkout that the set-up reads and writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.stamp = self.venv / "setup.json"
        self.unfinished = self.venv / "setup.unfinished"
        self.log = self.venv / "setup.log"

    def inputs_hash(self) -> str:
        """A hash over everything that decides what is installed."""
        digest = hashlib.sha256()
        for name in INPUTS:
            content = (self.root / name).read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def read_stamp(self) -> dict[str, object]:
        """Content of the stamp of the last finished set-up; empty if there was none, or it cannot be read."""
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def write_stamp(self, stamp: dict[str, object]) -> None:
        """Write the stamp in one piece; only a set-up that has finished does so."""
        partial = self.stamp.with_suffix(".partial")
        partial.write_text(json.dumps(stamp, indent=1) + "\n")
        partial.replace(self.stamp)


def say(text: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"set-up: {text}", flush=True)


def python_name() -> str:
    """The version that decides which wheels are installed, such as 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def venv_python_name(venv: Path) -> str:
    """The Python version that an environment was made with, as its own file says; empty if it does not."""
    try:
        found = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", (venv / "pyvenv.cfg").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1) if found else ""


def is_current(stamp: dict[str, object], wanted: dict[str, object]) -> bool:
    """Whether a finished set-up covers the wanted one; an extra on top does no harm."""
    same = all(stamp.get(key) == wanted[key] for key in ("inputs", "python", "root"))
    return same and all(bool(stamp.get(extra)) or not wanted[extra] for extra in EXTRAS)


def clean_environment() -> dict[str, str]:
    """The user's environment, pip's settings included, without what would leak into .venv."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONNOUSERSITE="1")
    return environment


def without_addresses(text: str) -> str:
    """The text without URLs, which may hold a password."""
    return re.sub(r"\S+://\S+", "...", text)


def failure_reason(output: str) -> str:
    """Why a command failed, in a few words, from what it printed."""
    if "No space left on device" in output:
        return "the disk is full"
    if UNREACHABLE.search(output):
        return "the package registry cannot be reached"
    # pip says no more than this where it was told not to retry.
    lacking = re.search(r"No matching distribution found for (\S+)|user requested \(constraint\) (\S+)", output)
    if lacking and " depends on " not in output:
        return f"the package registry cannot be reached, or does not have {lacking[1] or lacking[2]}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match("error: (?!ResolutionImpossible)", line, re.IGNORECASE)]
    final = (errors or lines or ["it printed nothing"])[-1]
    return without_addresses(re.sub("^error: ", "", final, flags=re.IGNORECASE))[:200]


def last_activity(log: Path, start: int) -> str:
    """pip's last action, from its log, as one short line."""
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").splitlines()
    doing = [line.strip() for line in lines if re.match(r" *(Collecting|Downloading|Installing|Building) ", line)]
    # The full list of packages is in the log.
    return without_addresses(doing[-1].replace("collected packages:", "packages:"))[:60] if doing else ""


def run_step(layout: Layout, title: str, command: list[str]) -> None:
    """Run a command with its output in the log, and say what it is for and how long it took."""
    say(f"{title} ...")
    began = time.monotonic()
    with layout.log.open("ab") as log:
        log.write(f"\n== {title}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=layout.root,
            env=clean_environment(),
        )
        try:
            while True:
                try:
                    status = process.wait(timeout=HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    activity = last_activity(layout.log, start)
                    say(f"  {time.monotonic() - began:.0f} s{activity and ': ' + activity}")
        except KeyboardInterrupt:
            process.wait()  # the terminal sent it the same signal
            raise
    if status != 0:
        output = layout.log.read_bytes()[start:].decode(errors="replace")
        raise SetupError(f"{title} failed: {failure_reason(output)} (log: {layout.log.relative_to(layout.root)})")
    say(f"  done in {time.monotonic() - began:.0f} s")


def prepare_venv(layout: Layout, stamp: dict[str, object]) -> None:
    """Keep .venv where it is sound; make it anew where it is missing, broken, moved or half made."""
    ours = bool(stamp) or layout.unfinished.exists()
    sound = layout.python.exists() and any(layout.venv.glob("lib/python*/site-packages/pip/__init__.py"))
    moved = bool(stamp) and stamp.get("root") != str(layout.root)
    other = venv_python_name(layout.venv) != python_name()
    if sound and not (layout.unfinished.exists() or moved or other):
        return
    if sound and not ours:  # not ours to delete
        raise SetupError(
            f".venv was made by hand with Python {venv_python_name(layout.venv)}, and this is Python "
            f"{python_name()}: remove it, or name its Python: make setup PYTHON=..."
        )
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"{sys.executable} lacks the module {missing[0]}, which makes environments: install it (on Debian "
            f"and Ubuntu: apt install python{python_name()}-venv), or name another Python: make setup PYTHON=..."
        )
    if layout.unfinished.exists():
        say("the last set-up was interrupted: starting afresh")
    # Emptied instead of removed, because .venv may be a link to another disk.
    layout.venv.mkdir(exist_ok=True)
    layout.stamp.unlink(missing_ok=True)
    layout.unfinished.touch()
    for path in list(layout.venv.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != layout.unfinished:
            path.unlink()
    run_step(layout, f"making .venv with Python {python_name()}", [sys.executable, "-m", "venv", str(layout.venv)])


def set_up(root: Path, dev: bool, storage: bool = False) -> None:
    """Bring .venv up to date. Extras that it has been set up with are kept."""
    layout = Layout(root)
    wanted: dict[str, object] = {
        "inputs": layout.inputs_hash(),
        "python": python_name(),
        "root": str(root),
        "dev": dev,
        "storage": storage,
    }
    stamp = layout.read_stamp()
    if layout.python.exists() and is_current(stamp, wanted):
        return
    began = time.monotonic()
    wanted.update((extra, bool(wanted[extra] or stamp.get(extra))) for extra in EXTRAS)
    extras = [extra for extra in EXTRAS if wanted[extra]]
    named = f"[{','.join(extras)}]" if extras else ""
    prepare_venv(layout, stamp)
    layout.stamp.unlink(missing_ok=True)
    layout.unfinished.touch()
    layout.log.write_bytes(b"")

    install = [str(layout.python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    install += ["--constraint", str(root / "constraints.txt")]
    try:
        # Builds use these, pinned, instead of whatever is newest on the day.
        run_step(layout, "installing the build tools", [*install, "editables", "hatchling", "setuptools", "wheel"])
        run_step(
            layout,
            "installing torch and torchvision (a minute from a near registry, longer on a slow line)",
            [*install, "torch", "torchvision"],
        )
        run_step(
            layout,
            "repacking detectron2, unless it is there already",
            [str(layout.python), str(root / "tools" / "repack_detectron2.py"), "--unless-installed"],
        )
        run_step(
            layout,
            " with ".join(["installing the project", *(EXTRAS[x] for x in extras)]) + " (a minute or two)",
            [*install, "--no-build-isolation", "--use-pep517", "--editable", f"{root}{named}"],
        )
        run_step(
            layout,
            "checking that it imports",
            [str(layout.python), "-c", "import torch, torchvision, detectron2.model_zoo, lgd"],
        )
    except SetupError:
        # pip leaves whole packages when it fails by itself, so the next try may go on from here.
        layout.write_stamp({"root": str(root), **{extra: bool(stamp.get(extra)) for extra in EXTRAS}})
        layout.unfinished.unlink(missing_ok=True)
        raise
    layout.write_stamp(wanted)
    layout.unfinished.unlink()
    say(f"ready in {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, no other set-up of this checkout: they would write over each other."""
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # NFS refuses this lock on a file that is opened for reading: nobody else is kept out there.
            pass
        yield


def main(arguments: list[str] | None = None) -> int:
    """Set up this checkout; the exit status is 1 for a failure that has been explained in one line."""
    parser = argparse.ArgumentParser(description="Make .venv and install the project into it.")
    parser.add_argument("--dev", action="store_true", help="with the tools that the tests need")
    parser.add_argument("--storage", action="store_true", help="with what s3://, gs:// and az:// URLs need")
    options = parser.parse_args(arguments)
    try:
        with alone():
            set_up(ROOT, options.dev, options.storage)
    except (SetupError, OSError) as error:
        print(f"set-up: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the next one starts afresh", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
