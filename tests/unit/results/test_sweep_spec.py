"""``sweep.json``: read and written by one type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lgd.errors import InputError
from lgd.results.sweep_spec import SWEEP_FILE, CodeVersion, SearchSpec, SweepEnd, SweepSpec

ROOT = Path(__file__).parents[3]
KEPT = sorted(ROOT.glob("benchmarks/results/*/sweep.json"))

WHOLE = SweepSpec(
    grid="components",
    preset="nano",
    overrides=("schedule.steps=6",),
    arms=("baseline", "LGD"),
    reference="baseline",
    seeds=2,
    steps={"longer": 7},
    search=SearchSpec(samples=3, objectives=("AP", "gpu_hours"), early_stop=False),
    code=CodeVersion(versions={"torch": "2"}, files={"lgd/cli.py": "0"}),
    ended=SweepEnd(why="", not_run=("LGD, seed 1",)),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for spec in (WHOLE, WHOLE.model_copy(update={"search": None, "code": None, "ended": None, "steps": {}})):
        spec.write(tmp_path)
        assert SweepSpec.read(tmp_path) == spec
    # What is not known is left out.
    assert set(json.loads((tmp_path / SWEEP_FILE).read_text())) == {
        *("schema_version", "grid", "preset", "overrides", "arms", "reference", "seeds"),
    }


def test_a_sweep_has_a_label() -> None:
    assert WHOLE.label == "components-nano-search"
    assert WHOLE.model_copy(update={"search": None}).label == "components-nano"
    for method, label in (("pkd", "pkd"), ("a.module:Attention", "Attention")):
        search = SearchSpec(samples=3, objectives=("AP",), early_stop=False, method=method)
        assert WHOLE.model_copy(update={"search": search}).label == f"components-nano-search-{label}"


def test_the_method_of_a_search_is_kept(tmp_path: Path) -> None:
    search = SearchSpec(samples=3, objectives=("AP",), early_stop=False, method="pkd")
    spec = WHOLE.model_copy(update={"search": search})
    spec.write(tmp_path)
    assert SweepSpec.read(tmp_path) == spec
    assert search.description == "objectives AP of method pkd"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_kept_results_stay_readable(path: Path) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    spec = SweepSpec.read(path.parent)
    assert json.loads(spec.model_dump_json(exclude_unset=True)) == raw


def test_there_are_kept_results() -> None:
    assert len(KEPT) >= 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *[(x, "not a sweep's description") for x in ("{", "\xff", "[" * 100_000)],
        *[(x, "another version") for x in ("[]", "{}", '{"schema_version": 2}')],
        ('{"schema_version": 1}', "grid: is missing"),
    ],
)
def test_what_is_no_sweep_is_one_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / SWEEP_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=words) as refused:
        SweepSpec.read(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / SWEEP_FILE}: ")
    assert "\n" not in str(refused.value)


def test_reading_a_sweep_loads_no_torch() -> None:
    code = "import sys, lgd.results.sweep_spec; print({'torch', 'detectron2', 'ray', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
