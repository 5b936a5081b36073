"""The code that computes a sweep's numbers: trials of different code do not mix in one table."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from ablations.named_code import detector_sources, method_names
from lgd.config.detector_source import ZOO, kind_of, portable_detector, runs_code
from lgd.errors import InputError
from lgd.results.record import FILE
from lgd.results.sweep_spec import SWEEP_FILE, CodeVersion, SweepSpec
from lgd.storage.outputs import shown


def code_version(spec: SweepSpec) -> CodeVersion:
    """Versions of the packages that compute a sweep's numbers, and by a digest the files of this one and those that the
    sweep's detector and method are in, where they are the user's own."""
    import lgd
    from lgd.results import provenance

    root = Path(lgd.__file__).parent
    files = {path.relative_to(root.parent).as_posix(): _digest(path) for path in sorted(root.rglob("*.py"))}
    return CodeVersion(versions=provenance.versions(), files=files | _own_files(spec))


def check_code(directory: Path) -> None:
    """Refuse to mix trials of different code in one table."""
    if not (directory / SWEEP_FILE).exists() or not list(directory.glob(f"trials/*/{FILE}")):
        return
    spec = SweepSpec.read(directory)
    different = "it does not say by which" if spec.code is None else _difference(spec.code, code_version(spec))
    if different:
        raise InputError(
            f"{shown(directory)} holds trials that other code ran ({different}): choose another --output, or say"
            " --accept-other-code"
        )


def _own_files(spec: SweepSpec) -> dict[str, str]:
    """By what names them: a config file, or package.module:name, whose own file is meant and none that it imports."""
    detectors = [x for x in detector_sources(spec) if runs_code(x) or (kind_of(x) == "yaml" and not x.startswith(ZOO))]
    functions = [x for x in detectors if kind_of(x) == "function"] + [x for x in method_names(spec) if ":" in x]
    files = [x for x in detectors if x not in functions]
    portable = [portable_detector(x) for x in files]
    # By its last parts, as the directory may be elsewhere tomorrow.
    paths = {short if portable.count(short) == 1 else x: Path(x) for x, short in zip(files, portable, strict=True)}
    paths |= {x: path for x in functions if (path := _module_file(x)) is not None}
    return {name: _digest(path) for name, path in paths.items() if path.is_file()}


def _module_file(name: str) -> Path | None:
    """The file of the module in package.module:name, looked up without importing it; None where it is not there."""
    inner = Path(*name.partition(":")[0].split("."))
    # The working directory last, as where it is imported (lgd/detectors/from_elsewhere.py).
    places = [Path(x) / y for x in (*sys.path, "") for y in (inner.with_suffix(".py"), inner / "__init__.py")]
    return next((x for x in places if x.is_file()), None)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _difference(there: CodeVersion, here: CodeVersion) -> str:
    """In one line; empty where there is none."""
    versions = [
        f"{name} {there.versions.get(name, 'none')} there and {here.versions.get(name, 'none')} here"
        for name in sorted({*there.versions, *here.versions})
        if there.versions.get(name) != here.versions.get(name)
    ]
    files = [x for x in sorted({*there.files, *here.files}) if there.files.get(x) != here.files.get(x)]
    named = files[:5] + ([f"{len(files) - 5} more"] if len(files) > 5 else [])
    return ", ".join(versions + ([f"changed: {', '.join(named)}"] if files else []))
