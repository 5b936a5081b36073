"""Which commands plan a sweep, a search or what a directory lacks, and which train it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ablations import run as door
from ablations import sweep_command
from ablations.plan import describe, search_spec
from lgd.results.sweep_spec import SweepSpec

FILES = ["--train-json", "/d/t.json", "--val-json", "/d/v.json", "--images", "/d/i"]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, SweepSpec]]:
    """What would be trained or planned; nothing is."""
    found: list[tuple[str, SweepSpec]] = []

    def note(what: str, spec: SweepSpec) -> int:
        found.append((what, spec))
        return 0

    for name, what in (("_train", "train"), ("_dry_run", "plan")):
        monkeypatch.setattr(
            sweep_command, name,
            lambda spec, directory, options, what=what: note(what, spec),
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("arguments", "flat", "what", "samples"),
    [
        (["run", "components"], ["--grid", "components"], "train", None),
        (["plan", "components"], ["--grid", "components", "--dry-run"], "plan", None),
        (["search", "components"], ["--grid", "components", "--search", "optuna"], "train", 20),
        (["search", "components", "--plan"], ["--grid", "components", "--search", "optuna", "--dry-run"], "plan", 20),
        (
            ["search", "components", "--samples", "3", "--measure"],
            ["--grid", "components", "--search", "optuna", "--samples", "3", "--dry-run", "--measure"],
            "plan",
            3,
        ),
    ],
)
def test_a_new_sweep(
    arguments: list[str],
    flat: list[str],
    what: str,
    samples: int | None,
    begun: list[tuple[str, SweepSpec]],
    tmp_path: Path,
) -> None:
    output = ["--output", str(tmp_path)]
    assert sweep_command.main([*arguments, *output]) == 0
    assert door.main([*flat, *output]) == 0
    assert [x for x, _ in begun] == [what, what]
    assert [x.search and x.search.samples for _, x in begun] == [samples, samples]


@pytest.mark.parametrize(
    ("more", "flat", "what"), [([], [], "train"), (["--plan"], ["--dry-run"], "plan"), ([], ["--verbose"], "train")]
)
def test_what_a_directory_lacks(
    more: Sequence[str], flat: Sequence[str], what: str, begun: list[tuple[str, SweepSpec]], tmp_path: Path
) -> None:
    """Also where its data lies elsewhere now, and its search gets more samples."""
    spec = describe(
        "components", "nano", data="coco-files:/old/t.json,/old/v.json,/old/i", search=search_spec(3, ["AP"], False)
    )
    spec.write(tmp_path)
    assert sweep_command.main(["resume", str(tmp_path), *more, *FILES, "--samples", "5"]) == 0
    assert door.main(["--resume", str(tmp_path), *flat, *FILES, "--samples", "5"]) == 0
    assert [x for x, _ in begun] == [what, what]
    for _, found in begun:
        assert found.overrides == ("data.source=coco-files:/d/t.json,/d/v.json,/d/i",)
        assert found.search is not None
        assert found.search.samples == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resume", "/results", "--grid", "main"], "take the sweep as it is: leave out --grid"),
        (["--status", "/results", "--search", "optuna"], "take the sweep as it is: leave out --search"),
        (["--status", "/results", "--resume", "/others"], "are commands of their own: give one of them"),
        (["--list", "--resume", "/others"], "are commands of their own: give one of them"),
    ],
)
def test_what_would_be_left_out_is_refused(
    options: list[str], words: str, begun: list[tuple[str, SweepSpec]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(options) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(words)
    assert begun == []


@pytest.mark.parametrize(
    ("option", "flag"),
    [(["--seeds", "3"], "seeds"), (["--early-stop"], "early-stop"), (["--set", "seed=1"], "set")],
)
def test_a_directorys_sweep_is_taken_as_it_is(
    option: list[str], flag: str, begun: list[tuple[str, SweepSpec]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["--resume", "/results", "--dry-run", *option]) == 2
    assert capsys.readouterr().err == f"error: --resume and --status take the sweep as it is: leave out --{flag}\n"
    assert begun == []
