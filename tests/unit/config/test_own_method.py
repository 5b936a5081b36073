"""docs/own-method.md: the method on the page is trained, from a file outside the repository and as an entry point."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablations import sweep_command
from ablations.plan import read_sweep, trials_of
from analysis.grid_runs import runs_of_grid
from analysis.load import Run
from lgd.config import method as registry
from lgd.config.experiment import parse, settings
from lgd.config.method import UnloadedMethod, check_method_named_again, import_named, known_methods, title_of
from lgd.errors import InputError
from lgd.results.record import Record, load
from lgd.results.sweep_spec import SweepSpec
from lgd.training.build import build
from lgd.training.teacher import train_with_teacher
from tests.helpers import quick_experiment

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "own-method.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on Python's path with the page's file and the metadata of its entry point."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (point,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    place = tmp_path / "site"
    metadata = place / "attention_transfer-1.0.dist-info"
    metadata.mkdir(parents=True)
    (place / "attention_transfer.py").write_text(source)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: attention-transfer\nVersion: 1.0\n")
    assert point.startswith('[project.entry-points."lgd.methods"]\n')
    (metadata / "entry_points.txt").write_text("[lgd.methods]\n" + point.partition("\n")[2].replace('"', ""))
    monkeypatch.syspath_prepend(place)
    for cached in (registry.import_method, registry._entry_points):
        cached.cache_clear()
    yield place
    sys.modules.pop("attention_transfer", None)
    for cached in (registry.import_method, registry._entry_points):
        cached.cache_clear()


NAMES = ("attention_transfer:AttentionTransfer", "attention")


@pytest.mark.parametrize("name", NAMES)
def test_the_method_of_the_page_is_trained(name: str, package: Path, tmp_path: Path) -> None:
    import_named([f"method.name={name}"])
    experiment = quick_experiment(**{"method.name": name, "method.weight": 2, "method.teacher.gate": False})
    assert experiment.teacher is not None
    record = train_with_teacher(experiment, tmp_path / "run")
    assert record.status == "finished"
    assert record.pretraining is not None
    assert all(value > 0 for _, value in record.losses["loss_distill"])
    assert parse(experiment.model_dump(mode="json")) == experiment
    assert load(tmp_path / "run" / "record.json").experiment == experiment
    with pytest.raises(InputError, match="no setting 'method.wieght'; did you mean 'method.weight'"):
        experiment.override(["method.wieght=2"])
    with pytest.raises(InputError, match="attention transfer is not defined on POTO"):
        experiment.override(["detector.name=poto"])


def test_an_installed_method_is_among_the_known_ones(package: Path) -> None:
    assert known_methods()[-1] == "attention"
    with pytest.raises(InputError, match="did you mean attention"):
        quick_experiment(**{"method.name": "atention"})


def test_a_record_does_not_run_the_code_that_it_names(package: Path, tmp_path: Path) -> None:
    """It is read without the class; only a command's own options import it."""
    described: dict[str, Any] = quick_experiment(method__name="baseline").model_dump(mode="json")
    described["method"] = {"name": NAMES[0], "weight": 3.0, "teacher": {"seed": 1}}
    path = tmp_path / "record.json"
    record = Record(status="finished", experiment=parse({**described, "method": {"name": "baseline"}}))
    path.write_text(record.model_copy(update={"experiment": parse(described)}).model_dump_json())
    found = load(path).experiment
    assert isinstance(found.method, UnloadedMethod)
    assert found.method.model_dump() == described["method"]
    assert settings(found)["method.name"] == NAMES[0]
    assert found.override({"method.name": "baseline", "seed": 1}).seed == 1
    assert "attention_transfer" not in sys.modules
    with pytest.raises(InputError, match=f"say --method {NAMES[0]} to run it"):
        check_method_named_again([NAMES[0]], None, tmp_path)
    check_method_named_again([NAMES[0], "pkd"], NAMES[0], tmp_path)


def test_a_sweep_does_not_run_the_code_that_it_names(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither its description nor its records' overrides import it; ``lgd sweep resume`` wants it named again."""
    named = f"method.name={NAMES[0]}"
    sets = (named, "method.weight=3", "method.teacher.backbone.name=resnet18")
    SweepSpec(grid="components", preset="nano", overrides=sets, arms=("LGD",), seeds=1).write(tmp_path)
    assert sweep_command.main(["status", str(tmp_path)]) == 0
    (trial,) = trials_of(read_sweep(tmp_path), tmp_path).trials
    assert isinstance(trial.experiment.method, UnloadedMethod)
    described = {"name": NAMES[0], "weight": 3, "teacher": {"backbone": {"name": "resnet18"}}}
    assert trial.experiment.method.model_dump() == described
    record = Record(status="finished", preset="small", experiment=trial.experiment, overrides=list(sets))
    assert runs_of_grid([Run(record, tmp_path)], "table12").runs == {}
    assert title_of(NAMES[0]) == NAMES[0]
    with pytest.raises(InputError, match=f"say --method {NAMES[0]} to run it"):
        build(trial.experiment)
    assert sweep_command.main(["resume", str(tmp_path)]) == 2
    assert f"say --method {NAMES[0]} to run it" in capsys.readouterr().err.splitlines()[-1]
    assert "attention_transfer" not in sys.modules
    options = argparse.Namespace(directory=tmp_path, method=NAMES[0], detector=None, data=None, samples=None)
    spec, _ = sweep_command.old_sweep(tmp_path, options), capsys.readouterr()
    (trial,) = trials_of(spec, tmp_path).trials
    assert type(trial.experiment.method).__name__ == "AttentionTransfer"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing:Here", "method nothing:Here: nothing:Here cannot be imported"),
        (
            "json:JSONDecoder",
            "method json:JSONDecoder: json:JSONDecoder is no subclass of lgd.config.base_method",
        ),
        (".nothing:Here", "method .nothing:Here: .nothing:Here cannot be imported: TypeError: .*relative import"),
        ("pkdd", "no method 'pkdd': choose one of baseline, lgd, fgfi, pkd.*did you mean pkd"),
        (3, "no method '3'"),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(name: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        import_named([], str(name))
        quick_experiment(**{"method.name": name})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys\nsys.exit(0)", "cannot be imported: calls sys.exit: SystemExit: 0 .own_a.py:2."),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero .own_b.py:1."),
        ("def f(:", "cannot be imported: SyntaxError: .*own_c.py, line 1"),
        ("class X(Method):\n    weight: float", "its setting weight has no default"),
        ("class X(Method):\n    def refusal(self, *_):\n        return missing", "NameError: .*missing.* .own_e.py:4."),
        (
            "class X(Method):\n    def build(self, parts):\n        raise SystemExit('no')",
            "calls sys.exit: .*own_f.py:4.",
        ),
        (
            "class X(Method):\n    def build(self, parts):\n        return parts.nothing",
            "AttributeError: .*own_g.py:4.",
        ),
    ],
)
def test_what_a_methods_own_code_raises_is_one_line(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = f"own_{'abcdefg'[request.node.callspec.indices['code']]}"
    head = "from lgd.config.base_method import Method; " if code.startswith("class") else ""
    (tmp_path / f"{name}.py").write_text(f"{head.strip('; ')}\n{code}\n" if head else f"{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        import_named([], f"{name}:X")
        build(quick_experiment(**{"method.name": f"{name}:X"}))
    assert "\n" not in str(caught.value)


def test_a_method_is_imported_by_its_older_key_too() -> None:
    with pytest.raises(InputError, match="method nothing:Here: nothing:Here cannot be imported"):
        import_named([" method.fgfi.name = 'nothing:Here'"])


def test_built_in_methods_load_without_torch() -> None:
    code = (
        "import sys\nfrom lgd.config.method import BUILT_IN, make\nfrom lgd.config.experiment import Experiment\n"
        "[make(name) for name in BUILT_IN]; Experiment().override({'method.name': 'fgd'}).teacher\n"
        "print(sorted({'torch', 'detectron2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
