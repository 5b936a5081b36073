"""Repack detectron2 as a pure-Python wheel.

By hand: `python tools/repack_detectron2.py [--output DIR]`; hatch_build.py uses it when the project is
installed. The published wheel holds a compiled extension for one Python version, a stray `tools` package,
requirements that are out of date and an import of pkg_resources, which setuptools no longer has. Its
Python files and configs are kept, the rest is left out or mended. Standard library only.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCE = "sal-detectron2"
VERSION = "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# Count up whenever the repacked files change: the cache and installed copies go by the name.
REVISION = 1
REPACKED_VERSION = f"{VERSION}+lgd{REVISION}"
WHEEL_NAME = f"detectron2-{REPACKED_VERSION}-py3-none-any.whl"
DIST_INFO = f"detectron2-{REPACKED_VERSION}.dist-info"

# What the Python files import. Left out of the published list: numpy<2, omegaconf<2.4 (newer ones work)
# and black (only formats an exported config, and is optional there). fvcore and iopath were missing.
REQUIREMENTS = (
    "Pillow>=7.1",
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "numpy",
    "omegaconf>=2.1",
    "packaging",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)

DESCRIPTION = f"""\
The Python files and configs of {SOURCE} {VERSION}, repacked by lgd-suite.

Changed: no compiled extension; `detectron2.model_zoo` finds its configs without pkg_resources.
"""

MODEL_ZOO = "detectron2/model_zoo/model_zoo.py"
MODEL_ZOO_MENDS = (
    ("import pkg_resources\n", ""),
    (
        """\
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
""",
        """\
    # Changed by lgd-suite: was pkg_resources.resource_filename.
    cfg_file = os.path.join(os.path.dirname(__file__), "configs", config_path)
""",
    ),
)

# Runs in the environment that is installed into. A bare directory of that name is no detectron2.
PROBE = """\
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("detectron2")
try:
    version = importlib.metadata.version("detectron2")
except importlib.metadata.PackageNotFoundError:
    version = None
print(json.dumps({"importable": spec is not None and spec.origin is not None, "version": version}))
"""


class RepackError(Exception):
    """detectron2 could not be obtained; the message is one line for the user."""


def cache_dir() -> Path:
    """Where repacked wheels are kept: $LGD_CACHE, $XDG_CACHE_HOME/lgd or ~/.cache/lgd."""
    if chosen := os.environ.get("LGD_CACHE"):
        base = Path(chosen)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg, "lgd")
    else:
        base = Path.home() / ".cache" / "lgd"
    return base.expanduser().absolute() / "wheels"


def find_installed(python: str = sys.executable) -> tuple[bool, str | None]:
    """Whether `python` can import a detectron2, and the version that its metadata names, if it has any.

    In an isolated build `python` is the target environment's own, hidden by way of PYTHONPATH; -E undoes
    that, and -P keeps the working directory (a clone of detectron2, say) from counting as installed.
    """
    probe = subprocess.run([python, "-E", "-P", "-c", PROBE], capture_output=True, text=True)
    if probe.returncode != 0:
        raise RepackError(f"could not look for an installed detectron2 with {python}")
    found = json.loads(probe.stdout)
    return found["importable"], found["version"]


def requirements(python: str = sys.executable) -> list[str]:
    """The requirements that give `python` a working detectron2, or leave it the one that it has."""
    importable, version = find_installed(python)
    outdated = version is not None and "+lgd" in version and version != REPACKED_VERSION
    if not importable or outdated:
        return [f"detectron2 @ {ensure_wheel().as_uri()}"]
    if version is None:  # copied by hand, or under another name: pip would not see it, and replace it
        return list(REQUIREMENTS)
    return ["detectron2"]


def ensure_wheel(directory: Path | None = None) -> Path:
    """The repacked wheel in `directory` (default: the cache), made if it is not there yet."""
    directory = cache_dir() if directory is None else directory.absolute()
    wheel = directory / WHEEL_NAME
    if wheel.is_file():
        return wheel
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as scratch:
            return repack(download(Path(scratch)), directory)
    except OSError as error:
        raise RepackError(f"could not write to {directory}: {error.strerror} (LGD_CACHE names another)") from None


def download(directory: Path) -> Path:
    """Download the published wheel with pip, which knows the user's registry and proxy."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    # The files are Python only, so the tag of the wheel's extension does not matter.
    command += ["--no-deps", "--only-binary", ":all:", "--python-version", "3.10"]
    command += ["--dest", str(directory), f"{SOURCE}=={VERSION}"]
    pip = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    wheels = sorted(directory.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        errors = [line for line in pip.stdout.splitlines() if line.startswith("ERROR: ")] or [pip.stdout.strip()]
        detail = re.sub(r"\S+://\S+", "the registry", errors[-1].removeprefix("ERROR: ").split("\n")[-1])
        raise RepackError(f"pip could not download {SOURCE} {VERSION} (is the registry reachable?): {detail}")
    return wheels[0]


def repack(source: Path, directory: Path, sha256: str = SHA256) -> Path:
    """Write the pure wheel made from `source` into `directory`: all or nothing, the same bytes each time."""
    actual = hashlib.sha256(source.read_bytes()).hexdigest()
    if actual != sha256:
        raise RepackError(f"{source.name} is not the file expected: sha256 {actual}, not {sha256}")

    with zipfile.ZipFile(source) as archive:
        names = archive.namelist()
        kept = [name for name in names if name.startswith("detectron2/") and name.endswith((".py", ".yaml"))]
        licences = [name for name in names if re.fullmatch(r"[^/]+\.dist-info/LICENSE", name)]
        if MODEL_ZOO not in kept or len(licences) != 1:
            raise RepackError(f"{source.name} does not hold {MODEL_ZOO} and one LICENSE")
        files = {name: archive.read(name) for name in sorted(kept)}
        licence = archive.read(licences[0])

    files[MODEL_ZOO] = _mend_model_zoo(files[MODEL_ZOO].decode()).encode()
    files[f"{DIST_INFO}/licenses/LICENSE"] = licence
    files[f"{DIST_INFO}/METADATA"] = _metadata().encode()
    files[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: lgd-suite\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{DIST_INFO}/RECORD"] = _record(files).encode()

    wheel = directory / WHEEL_NAME
    partial = directory / f".{WHEEL_NAME}.{os.getpid()}"
    try:
        # Stored, not compressed: zlib's output differs between builds of it.
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name, data in files.items():
                entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                entry.create_system = 3  # Unix, for the permissions below
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, data)
        partial.replace(wheel)
    finally:
        partial.unlink(missing_ok=True)
    return wheel


def _mend_model_zoo(text: str) -> str:
    for old, new in MODEL_ZOO_MENDS:
        if text.count(old) != 1:
            raise RepackError(f"{MODEL_ZOO} is not as expected: cannot take pkg_resources out of it")
        text = text.replace(old, new)
    return text


def _metadata() -> str:
    fields = [
        ("Metadata-Version", "2.4"),
        ("Name", "detectron2"),
        ("Version", REPACKED_VERSION),
        ("Summary", "Object detection and segmentation; pure-Python repack"),
        ("Project-URL", "Source, https://github.com/facebookresearch/detectron2"),
        ("License-Expression", "Apache-2.0"),
        ("License-File", "LICENSE"),
        ("Requires-Python", ">=3.8"),
        *(("Requires-Dist", entry) for entry in REQUIREMENTS),
        ("Description-Content-Type", "text/markdown"),
    ]
    return "".join(f"{name}: {value}\n" for name, value in fields) + "\n" + DESCRIPTION


def _record(files: dict[str, bytes]) -> str:
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    return "".join(rows) + f"{DIST_INFO}/RECORD,,\n"


def main(arguments: list[str] | None = None) -> int:
    """Make the wheel and print its path."""
    parser = argparse.ArgumentParser(description="Repack detectron2 as a pure-Python wheel.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, help="directory for the wheel (default: the cache)")
    where.add_argument(
        "--unless-installed",
        action="store_true",
        help="only where this Python has no detectron2; print the requirements that a project takes",
    )
    options = parser.parse_args(arguments)
    try:
        if options.unless_installed:
            print(*requirements(), sep="\n")
        else:
            print(ensure_wheel(options.output))
    except RepackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
