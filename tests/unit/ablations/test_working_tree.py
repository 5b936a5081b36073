"""What of a working tree is sent with a job."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from ablations.working_tree import MAX_MIB, check_size, pack
from lgd.errors import InputError

FILES = (
    "lgd/a.py", "own_method.py", "results/x/record.json", ".venv/bin/python", "benchmarks/results/old.csv",
    "benchmarks/cost.py", "lgd/__pycache__/a.pyc", "datasets/coco/1.jpg", "ignored.bin", ".env",
    ".env.local", "deploy/bucket.env",
)  # fmt: skip

SENT = {".gitignore", "lgd/a.py", "own_method.py", "benchmarks/cost.py"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with everything that may lie in one."""
    root = tmp_path / "tree"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "lgd" / "a.py").chmod(0o755)
    (root / ".gitignore").write_text("/ignored.bin\n")
    return root


def names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


@pytest.mark.parametrize("repository", [True, False], ids=["git", "no git"])
def test_results_environments_and_caches_stay_here(tree: Path, tmp_path: Path, repository: bool) -> None:
    if repository:
        subprocess.run(["git", "init", "-q", str(tree)], check=True)
        subprocess.run(["git", "-C", str(tree), "add", "lgd/a.py", "benchmarks/cost.py"], check=True)
        # Known to git, and deleted since.
        (tree / "gone.py").write_text("")
        subprocess.run(["git", "-C", str(tree), "add", "gone.py"], check=True)
        (tree / "gone.py").unlink()
    archive = pack(tree, tmp_path)
    # Without git nobody says what is ignored.
    assert names(archive) == SENT | (set() if repository else {"ignored.bin"})
    with zipfile.ZipFile(archive) as opened:
        assert opened.read("own_method.py") == b"own_method.py"
        assert opened.getinfo("lgd/a.py").external_attr >> 16 == 0o755


def test_the_same_tree_is_the_same_archive(tree: Path, tmp_path: Path) -> None:
    first = pack(tree, tmp_path)
    content = first.read_bytes()
    os.utime(tree / "own_method.py", (1, 1))
    assert pack(tree, tmp_path) == first
    assert first.read_bytes() == content
    (tree / "own_method.py").write_text("changed")
    assert pack(tree, tmp_path).name != first.name


def test_what_is_too_much_is_one_line() -> None:
    sizes = {"a.py": 1000, "data/images.npz": MAX_MIB * 2**20, "b.bin": 3 * 2**20}
    with pytest.raises(InputError) as caught:
        check_size(sizes, Path("/tree"))
    assert str(caught.value) == (
        "/tree: 203 MiB to send, and 200 MiB is the limit; list in .gitignore what the job does not need"
        " (largest: data/images.npz, 200 MiB, b.bin, 3 MiB, a.py, 0 MiB)"
    )
    check_size({"a": MAX_MIB * 2**20}, Path("/tree"))


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no files to send"):
        pack(tmp_path, tmp_path)


@pytest.mark.parametrize("repository", [True, False], ids=["git", "no git"])
def test_a_name_that_is_no_utf_8_is_one_line(tree: Path, tmp_path: Path, repository: bool) -> None:
    if repository:
        subprocess.run(["git", "init", "-q", str(tree)], check=True)
    (tree / os.fsdecode(b"caf\xe9.py")).write_text("")
    with pytest.raises(InputError, match=r"the name of 'caf\\udce9.py' is no UTF-8: rename it, or list it in"):
        pack(tree, tmp_path)
