"""The set-up's parts, without a network: repacking detectron2, the stamp, and the one-line errors."""

import base64
import csv
import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import repack_detectron2, setup_env

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL_ZOO_SOURCE = """\
import os
import pkg_resources


def get_config_file(config_path):
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
    return cfg_file
"""


# -- repacking ------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A small wheel in the shape of the published one."""
    wheel = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", b"\x7fELF")
        archive.writestr("detectron2/__init__.py", "__version__ = '0.7.2'\n")
        archive.writestr("detectron2/model_zoo/__init__.py", "from .model_zoo import get_config_file\n")
        archive.writestr("detectron2/model_zoo/model_zoo.py", MODEL_ZOO_SOURCE)
        archive.writestr("detectron2/model_zoo/configs/Base.yaml", "MODEL: {}\n")
        archive.writestr("tools/__init__.py", "")
        archive.writestr("sal_detectron2-0.7.2.dist-info/LICENSE", "the licence\n")
        archive.writestr("sal_detectron2-0.7.2.dist-info/METADATA", "Requires-Dist: numpy<2\n")
    return wheel


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def repacked(published: Path, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return repack_detectron2.repack(published, directory, sha256(published))


def test_repack_keeps_python_files_configs_and_licence(published: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(repacked(published, tmp_path / "out")) as wheel:
        names = set(wheel.namelist())
        licence = wheel.read(f"{repack_detectron2.DIST_INFO}/licenses/LICENSE")
    code = {name for name in names if not name.startswith(repack_detectron2.DIST_INFO)}
    assert code == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/__init__.py",
        "detectron2/model_zoo/model_zoo.py",
        "detectron2/model_zoo/configs/Base.yaml",
    }
    assert licence == b"the licence\n"


def test_repacked_model_zoo_finds_configs_without_pkg_resources(published: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    with zipfile.ZipFile(repacked(published, tmp_path / "out")) as wheel:
        wheel.extractall(installed)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import detectron2.model_zoo as zoo; "
    code += "sys.stdout.write(zoo.get_config_file('Base.yaml')); assert 'pkg_resources' not in sys.modules"
    done = subprocess.run([sys.executable, "-I", "-c", code, installed], capture_output=True, text=True, check=True)
    assert Path(done.stdout) == installed / "detectron2/model_zoo/configs/Base.yaml"


def test_record_lists_every_file_with_its_hash(published: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(repacked(published, tmp_path / "out")) as wheel:
        record = f"{repack_detectron2.DIST_INFO}/RECORD"
        rows = list(csv.reader(wheel.read(record).decode().splitlines()))
        assert [row[0] for row in rows] == wheel.namelist()
        for name, digest, size in rows:
            if name == record:
                assert (digest, size) == ("", "")
                continue
            content = wheel.read(name)
            encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={encoded}", str(len(content)))


def test_metadata_has_the_corrected_requirements(published: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(repacked(published, tmp_path / "out")) as wheel:
        metadata = wheel.read(f"{repack_detectron2.DIST_INFO}/METADATA").decode()
    assert f"Version: {repack_detectron2.REPACKED_VERSION}\n" in metadata
    for name in ("fvcore", "iopath", "omegaconf", "hydra-core", "pycocotools"):
        assert f"Requires-Dist: {name}" in metadata
    assert "numpy<2" not in metadata


def test_repack_is_deterministic_and_leaves_nothing_else(published: Path, tmp_path: Path) -> None:
    first = repacked(published, tmp_path / "first")
    second = repacked(published, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()
    assert list((tmp_path / "first").iterdir()) == [first]


def test_unexpected_file_is_refused(published: Path, tmp_path: Path) -> None:
    with pytest.raises(repack_detectron2.RepackError, match=r"^sal_detectron2\S+ is not the file expected") as caught:
        repack_detectron2.repack(published, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / repack_detectron2.WHEEL_NAME).exists()


def test_model_zoo_that_cannot_be_mended_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("detectron2/model_zoo/model_zoo.py", "import os\n")
        archive.writestr("other.dist-info/LICENSE", "")
    with pytest.raises(repack_detectron2.RepackError, match="pkg_resources"):
        repack_detectron2.repack(wheel, tmp_path, sha256(wheel))


def test_cache_is_used_before_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(directory: Path) -> Path:
        raise AssertionError("downloaded although cached")

    monkeypatch.setenv("LGD_CACHE", str(tmp_path / "a cache"))
    monkeypatch.setattr(repack_detectron2, "download", no_download)
    cached = tmp_path / "a cache" / "wheels" / repack_detectron2.WHEEL_NAME
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert repack_detectron2.ensure_wheel() == cached


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ((False, None), ["detectron2 @ file:///wheel"]),
        ((False, "0.6"), ["detectron2 @ file:///wheel"]),  # metadata left behind, nothing to import
        ((True, None), list(repack_detectron2.REQUIREMENTS)),
        ((True, "0.6"), ["detectron2"]),
        ((True, repack_detectron2.REPACKED_VERSION), ["detectron2"]),
        ((True, "0.7.2+lgd0"), ["detectron2 @ file:///wheel"]),
    ],
)
def test_requirement_respects_an_installed_detectron2(
    installed: tuple[bool, str | None], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repack_detectron2, "find_installed", lambda python: installed)
    monkeypatch.setattr(repack_detectron2, "ensure_wheel", lambda: Path("/wheel"))
    assert repack_detectron2.requirements() == expected


def test_a_clone_in_the_working_directory_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert repack_detectron2.find_installed(str(tmp_path / "empty/bin/python")) == (False, None)


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/sh\necho WARNING: trying\necho ERROR: HTTP error 404 for https://user:secret@host/x\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(repack_detectron2.RepackError, match="HTTP error 404 for the registry") as caught:
        repack_detectron2.download(tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


# -- setting up -----------------------------------------------------------------------------------------


class Steps:
    """Stands in for `setup_env.run_step`: notes the steps, and fails at the one named."""

    def __init__(self, fail_at: str = "") -> None:
        self.fail_at = fail_at
        self.titles: list[str] = []
        self.installed: list[str] = []

    def __call__(self, layout: setup_env.Layout, title: str, command: list[str]) -> None:
        self.titles.append(title)
        if "--editable" in command:
            self.installed.append(command[-1].removeprefix(str(layout.root)))
        if self.fail_at and self.fail_at in title:
            raise setup_env.SetupError(f"{title} failed")
        if "venv" in command:
            make_venv(layout.root)

    def count(self, words: str) -> int:
        return sum(words in title for title in self.titles)


def make_venv(root: Path, python: str = f"{sys.version_info.major}.{sys.version_info.minor}") -> None:
    """The files by which the set-up recognises an environment with pip."""
    pip = root / ".venv" / "lib" / f"python{python}" / "site-packages" / "pip"
    pip.mkdir(parents=True)
    (pip / "__init__.py").touch()
    (root / ".venv" / "bin").mkdir()
    (root / ".venv" / "bin" / "python").touch()
    (root / ".venv" / "pyvenv.cfg").write_text(f"version = {python}.0\n")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    for name in setup_env.INPUTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr(setup_env, "run_step", steps)
    return steps


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13), (3, 13, 0)])
def test_wrong_python_is_one_line(version: tuple[int, ...]) -> None:
    problem = setup_env.python_problem(version, "/usr/bin/python")
    assert ".".join(map(str, version)) in problem
    assert "3.11 or 3.12" in problem
    assert "\n" not in problem


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 9)])
def test_right_python_is_no_problem(version: tuple[int, ...]) -> None:
    assert setup_env.python_problem(version, "/usr/bin/python") == ""


def test_nothing_is_done_when_nothing_changed(checkout: Path, steps: Steps) -> None:
    setup_env.set_up(checkout, dev=True)
    done = len(steps.titles)
    setup_env.set_up(checkout, dev=True)
    setup_env.set_up(checkout, dev=False)
    assert len(steps.titles) == done


def test_changed_constraints_are_installed_again_into_the_same_venv(checkout: Path, steps: Steps) -> None:
    setup_env.set_up(checkout, dev=True)
    (checkout / "constraints.txt").write_text("torch==9\n")
    setup_env.set_up(checkout, dev=False)
    assert steps.count("making .venv") == 1
    assert steps.count("installing torch") == 2
    assert steps.count("development tools") == 2  # kept, though not asked for again


def test_development_tools_are_added_to_the_same_venv(checkout: Path, steps: Steps) -> None:
    setup_env.set_up(checkout, dev=False)
    setup_env.set_up(checkout, dev=True)
    assert steps.count("making .venv") == 1
    assert steps.count("development tools") == 1


def test_object_storage_is_asked_for_by_itself_and_then_kept(checkout: Path, steps: Steps) -> None:
    setup_env.set_up(checkout, dev=False)
    setup_env.set_up(checkout, dev=False, storage=True)
    setup_env.set_up(checkout, dev=False)  # nothing to do
    setup_env.set_up(checkout, dev=True)
    assert steps.installed == ["", "[storage]", "[dev,storage]"]
    assert steps.count("making .venv") == 1


def test_failed_setup_is_taken_up_again(checkout: Path, steps: Steps) -> None:
    steps.fail_at = "installing torch"
    with pytest.raises(setup_env.SetupError):
        setup_env.set_up(checkout, dev=False)
    steps.fail_at = ""
    setup_env.set_up(checkout, dev=False)
    assert steps.count("making .venv") == 1
    assert steps.count("installing the project") == 1


def test_interrupted_setup_starts_afresh(checkout: Path, steps: Steps) -> None:
    setup_env.set_up(checkout, dev=False)
    layout = setup_env.Layout(checkout)
    layout.stamp.unlink()
    layout.unfinished.touch()
    (layout.venv / "half-installed").touch()
    setup_env.set_up(checkout, dev=False)
    assert steps.count("making .venv") == 2
    assert not (layout.venv / "half-installed").exists()
    assert not layout.unfinished.exists()


def test_moved_checkout_is_set_up_anew(checkout: Path, steps: Steps) -> None:
    setup_env.set_up(checkout, dev=False)
    moved = checkout.rename(checkout.with_name("moved"))
    setup_env.set_up(moved, dev=False)
    assert steps.count("making .venv") == 2


def test_venv_made_by_hand_is_kept(checkout: Path, steps: Steps) -> None:
    make_venv(checkout)
    setup_env.set_up(checkout, dev=False)
    assert steps.count("making .venv") == 0
    assert steps.count("installing torch") == 1


def test_venv_made_by_hand_with_another_python_is_not_deleted(checkout: Path, steps: Steps) -> None:
    make_venv(checkout, python="3.9")
    with pytest.raises(setup_env.SetupError, match=r"made by hand with Python 3\.9"):
        setup_env.set_up(checkout, dev=False)
    assert (checkout / ".venv/bin/python").exists()
    assert steps.titles == []


def test_missing_venv_module_is_one_line(checkout: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ensurepip" else name)
    with pytest.raises(setup_env.SetupError, match="lacks the module ensurepip") as caught:
        setup_env.set_up(checkout, dev=False)
    assert "\n" not in str(caught.value)
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (
            "WARNING: Retrying: Failed to establish a new connection: https://me:secret@host/simple\n"
            "ERROR: No matching distribution found for torch==2",
            "the package registry cannot be reached",
        ),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: HTTP error 403 while getting https://me:secret@host/torch", "HTTP error 403 while getting ..."),
        (
            "ERROR: Cannot install torch because of conflicts\nThe conflict is caused by:\n"
            "    The user requested torch\n    The user requested (constraint) torch==2\n"
            "ERROR: ResolutionImpossible: for help visit https://host/",
            "the package registry cannot be reached, or does not have torch==2",
        ),
        (
            "ERROR: Cannot install a and b because of conflicts\n    a 1 depends on c<2\n    b 1 depends on c>2\n"
            "ERROR: ResolutionImpossible: for help visit https://host/",
            "Cannot install a and b because of conflicts",
        ),
        ("", "it printed nothing"),
    ],
)
def test_failing_pip_is_one_line_with_its_log(
    printed: str, reason: str, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = setup_env.Layout(checkout)
    layout.venv.mkdir()
    fake_pip = [sys.executable, "-c", "import sys; print(sys.argv[1]); sys.exit(1)", printed]
    with pytest.raises(setup_env.SetupError) as caught:
        setup_env.run_step(layout, "installing torch", fake_pip)
    assert str(caught.value) == f"installing torch failed: {reason} (log: .venv/setup.log)"
    assert printed in layout.log.read_text()
    assert "secret" not in capsys.readouterr().out


def test_failure_ends_with_status_1_and_no_traceback(
    checkout: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps.fail_at = "installing torch"
    monkeypatch.setattr(setup_env, "ROOT", checkout)
    assert setup_env.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("set-up: error: installing torch")
    assert error.count("\n") == 1


def test_environment_of_pip_keeps_its_settings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TIMEOUT", "5")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    environment = setup_env.clean_environment()
    assert environment["PIP_TIMEOUT"] == "5"
    assert environment["PATH"] == os.environ["PATH"]
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & environment.keys()


def test_every_input_of_the_stamp_exists() -> None:
    assert all((REPOSITORY / name).is_file() for name in setup_env.INPUTS)


def test_a_disk_that_locks_nothing_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS, of a file that is opened for reading."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("tools.setup_env.fcntl.flock", refuse)
    with setup_env.alone():
        pass
