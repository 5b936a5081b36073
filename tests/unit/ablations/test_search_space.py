"""What a search varies: all of its settings, some of them, or within other ranges."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from ablations.named_code import code_options
from ablations.plan import describe, merge, read_sweep, search_base, search_spec
from ablations.run import main
from ablations.search.optuna_search import Search, search_of
from ablations.search.search_results import command as command_of
from ablations.search.search_space import (
    RANGES,
    RANGES_OF_OTHERS,
    SearchSpace,
    normalized,
    proposed_trial,
    suggest,
)
from lgd.config.method import import_method
from lgd.errors import InputError
from lgd.results.sweep_spec import SearchSpec, SweepSpec
from tests.helpers_search import base_of, driver

COMPONENTS = ("mapper", "encoder", "adapter")


def _spec(fixed: list[str], narrowed: list[str] | None = None) -> SweepSpec:
    search = SearchSpec(samples=3, objectives=("AP",), early_stop=False, space=normalized(narrowed or []))
    return describe("components", "nano", overrides=fixed, search=search)


def _search(spec: SweepSpec, directory: Path) -> Search:
    found = search_of(spec, directory)
    assert found is not None
    return found


def _methods(search: Search, count: int = 60) -> list[dict[str, Any]]:
    """The methods of proposals at random, each of which can be trained."""
    base, found = base_of(search), []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for _ in range(count):
        trial = study.ask()
        suggest(trial, base, search.space)
        proposed = proposed_trial({**trial.params, "base": base, "name": "x"})
        found.append(dict(proposed["experiment"]["method"]))
    return found


@pytest.mark.parametrize(
    ("fixed", "values"),
    [
        (["method.mapper=true", "method.encoder=true", "method.adapter=true"], dict.fromkeys(COMPONENTS, True)),
        (["method.encoder=false"], {"encoder": False}),
        # Neither works without the encoder.
        (["method.variant=label_only"], {"variant": "label_only", "encoder": True, "adapter": True}),
        (["method.adapter=false", "method.lr_factor=0.7"], {"adapter": False, "lr_factor": 0.7}),
        (["method.distill_weight=0"], {"distill_weight": 0}),
    ],
)
def test_what_is_set_is_the_same_in_every_trial(fixed: list[str], values: dict[str, Any], tmp_path: Path) -> None:
    methods = _methods(_search(_spec(fixed), tmp_path))
    for key, value in values.items():
        assert {x[key] for x in methods} == {value}
    others = [x.removeprefix("method.") for x in SearchSpace().searched if x.removeprefix("method.") not in values]
    varied = {x for x in others if len({method[x] for method in methods}) > 1}
    # Without an encoder one variant is left.
    assert varied == {*others} - ({"variant"} if values.get("encoder") is False else set())


def test_weights_alone_are_searched_within_a_range(tmp_path: Path) -> None:
    spec = _spec(
        [*(f"method.{x}=true" for x in COMPONENTS), "method.variant=appearance_queries"],
        ["method.lr_factor=0.5:2", "method.distill_weight = 1 : 4"],
    )
    search = _search(spec, tmp_path)
    with driver(search) as searcher:
        proposed = [searcher.suggest(str(i)) for i in range(5)]
    assert {key for x in proposed for key in x} == {*RANGES, "base", "name"}
    methods = _methods(search)
    for key, (low, high) in (("lr_factor", (0.5, 2)), ("distill_weight", (1, 4)), ("instructive_weight", (0.1, 10))):
        found = [x[key] for x in methods]
        assert low <= min(found) < 1.5 * low
        assert high / 1.5 < max(found) <= high


@pytest.mark.parametrize("variants", ["label_queries,label_only", "appearance_only,label_queries"])
def test_a_choice_of_variants_holds_in_every_combination(variants: str, tmp_path: Path) -> None:
    """Also where one of them is left, which is not the base experiment's."""
    methods = _methods(_search(_spec([], [f"method.variant={variants}"]), tmp_path))
    assert {x["variant"] for x in methods} == {*variants.split(",")}
    assert {x["variant"] for x in methods if not x["adapter"]} == {"label_queries"}


@pytest.mark.parametrize(
    ("fixed", "narrowed", "words"),
    [
        ([], ["method.lr_factor=2"], "--search-space method.lr_factor=2: a range, LOW:HIGH"),
        ([], ["method.lr_factor=2:1"], "--search-space method.lr_factor=2:1: numbers above 0, the lower one first"),
        ([], ["method.lr_factor=0:1"], "--search-space method.lr_factor=0:1: numbers above 0, the lower one first"),
        ([], ["method.lr_factor=1:inf"], "--search-space method.lr_factor=1:inf: numbers above 0"),
        ([], ["method.lr_factor=1:2", "method.lr_factor=1:3"], "--search-space method.lr_factor is given twice"),
        ([], ["method.variant=label_only"], "--search-space method.variant=label_only: at least two of"),
        ([], ["method.variant=label_only,x"], "--search-space method.variant=label_only,x: at least two of"),
        (
            [],
            ["method.mapper=true,false"],
            "--search-space method.mapper=true,false: numbers of the method (",
        ),
        ([], ["schedule.lr=1:2"], "--search-space schedule.lr=1:2: numbers of the method (method.distill_weight,"),
        (["method.lr_factor=1"], ["method.lr_factor=1:2"], "--search-space method.lr_factor and --set method.lr_fact"),
        ([f"method.{x}=false" for x in COMPONENTS], [], "encoder, adapter and mapper are all off"),
        (
            [*(f"{x}=1" for x in RANGES), "method.encoder=false", "method.adapter=true", "method.mapper=true"],
            [],
            "--set of method.mapper, method.encoder, method.adapter, method.distill_weight, method.instructive_weight,"
            " method.lr_factor: nothing is left to search: leave one of them out",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    fixed: list[str], narrowed: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*(x for s in fixed for x in ("--set", s)), *(x for s in narrowed for x in ("--search-space", s))]
    search = ["--grid", "components", "--preset", "nano", "--search", "optuna", "--output", str(tmp_path / "out")]
    assert main([*search, *options]) == 2
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x]
    assert said.startswith("error: ")
    assert words in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fixed", "variants"),
    [
        (["method.encoder=false"], "label_queries,label_only"),
        (["method.adapter=false"], "appearance_only,label_only"),
        (["method.mapper=true", "method.encoder=false", "method.adapter=true"], "label_queries,label_only"),
    ],
)
def test_variants_that_do_not_work_with_what_is_fixed_are_one_line(
    fixed: list[str], variants: str, tmp_path: Path
) -> None:
    spec = _spec(fixed, [f"method.variant={variants}"])
    with pytest.raises(InputError, match=f"^--search-space method.variant=.*: none of these works with .*{fixed[-1]}"):
        search_of(spec, tmp_path)


def _of_method(name: str, narrowed: Sequence[str] = (), fixed: Sequence[str] = ()) -> SweepSpec:
    search = search_spec(3, ["AP"], False, method=name).model_copy(update={"space": normalized(narrowed)})
    return describe("components", "nano", overrides=fixed, search=search)


def test_another_method_is_searched_by_the_weight_of_its_loss(tmp_path: Path) -> None:
    search = _search(_of_method("pkd"), tmp_path)
    assert search.base.method.name == "pkd"
    assert search.base.teacher is not None
    methods = _methods(search)
    weights = [x["distill_weight"] for x in methods]
    low, high = RANGES_OF_OTHERS["method.distill_weight"]
    assert low <= min(weights) < 2 * low
    assert high / 2 < max(weights) <= high
    assert all({**x, "distill_weight": 1.0} == search.base.method.model_dump(mode="json") for x in methods)


def test_numbers_of_a_method_are_searched_where_a_range_is_said(tmp_path: Path) -> None:
    """Also one that is None unless it is set, as it follows from the detector."""
    spec = _of_method("mgd", ["method.ratio=0.3:0.9"], ["method.distill_weight=0.1"])
    methods = _methods(_search(spec, tmp_path))
    assert {x["distill_weight"] for x in methods} == {0.1}
    assert all(0.3 <= x["ratio"] <= 0.9 for x in methods)
    assert len({x["ratio"] for x in methods}) > 10


def test_a_method_with_lgds_components_is_searched_as_lgd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lgd_again.py").write_text(
        "from lgd.methods.label_guided import LGD\nclass Again(LGD):\n    title = 'again'\n    sharpness: float = 2.0\n"
    )
    import_method("lgd_again:Again")
    assert _search(_of_method("lgd_again:Again"), tmp_path).space == SearchSpace()


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("baseline", [], "--method baseline: it is what methods are compared with, or prepares one"),
        ("labelenc_stage1", [], "--method labelenc_stage1: it is what methods are compared with, or prepares one"),
        ("fgfi", ["--search-space", "method.levels=1:2"], "method.levels: no setting of method fgfi that takes"),
        ("pkd", ["--set", "method.name=cwd"], "--set method.name=cwd contradicts --method pkd: leave one of them out"),
        ("nothing", [], "no method 'nothing': choose one of"),
        (
            "pkd",
            ["--search-space", "method.weigt=1:2"],
            "no setting of method pkd that takes a range: those are",
        ),
        ("pkd", ["--search-space", "method.teacher=1:2"], "method.teacher: no setting of method pkd that"),
        (
            "mgd",
            ["--search-space", "method.ratio=0.1:2"],
            "--search-space method.ratio: must be 1 or less",
        ),
        ("pkd", ["--search-space", "method.variant=label_only,label_queries"], "variant: method pkd has no adapter"),
        (
            "pkd",
            ["--set", "method.encoder=false"],
            "--set method.encoder=false has no effect: no arm has",
        ),
        ("pkd", ["--set", "method.distill_weight=1"], "--set of method.distill_weight: nothing is left to search"),
    ],
)
def test_what_cannot_be_searched_of_a_method_is_one_line(
    method: str, options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["--grid", "components", "--preset", "nano", "--search", "optuna", "--output", str(tmp_path / "out")]
    assert main([*search, "--method", method, *options]) == 2
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x]
    assert said.startswith("error: ")
    assert words in said
    assert not (tmp_path / "out").exists()


def test_a_sweep_without_a_search_names_its_method_by_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "components", "--method", "pkd"]) == 2
    assert "--method pkd is for --search and --resume" in capsys.readouterr().err


def test_a_directory_keeps_the_method_that_is_searched(tmp_path: Path) -> None:
    _of_method("pkd").write(tmp_path)
    assert _search(read_sweep(tmp_path), tmp_path).base.method.name == "pkd"
    with pytest.raises(InputError, match="holds a search with objectives AP of method pkd, not objectives AP: choose"):
        merge(_of_method("lgd"), tmp_path)
    text = (tmp_path / "sweep.json").read_text().replace('"pkd"', '"nothing"')
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match=r"sweep\.json: no method 'nothing'"):
        read_sweep(tmp_path)


def test_a_method_that_is_code_is_searched_where_the_command_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablations.sweep.dry_run", lambda spec, directory, *_, **__: spec.write(directory) or 0)
    Path("searched_method.py").write_text(
        "from lgd.config.base_method import DistillationMethod\n"
        "class Mine(DistillationMethod):\n    title = 'mine'\n    sharpness: float = 2.0\n    softness: float = 1.0\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    command = ["--grid", "components", "--preset", "nano", "--search", "optuna", "--dry-run", "--output", str(out)]
    named = ["--method", "searched_method:Mine"]
    assert main([*command, *named, "--search-space", "method.sharpness=1:4", "--set", "method.softness=2"]) == 0
    assert "search space: method.distill_weight: 0.001 to 10; method.sharpness: 1 to 4" in capsys.readouterr().out
    spec = read_sweep(out)
    assert code_options(spec) == " --method searched_method:Mine"
    assert main(["--resume", str(out), "--dry-run", *named]) == 0
    # As in another process, and from somebody else.
    monkeypatch.delitem(sys.modules, "searched_method")
    assert main(["--resume", str(out), "--dry-run"]) == 2
    assert "names the method searched_method:Mine, which is Python code: say --method" in capsys.readouterr().err
    assert "searched_method" not in sys.modules
    again = command_of(spec, {"method.sharpness": 2.5}, 0, "there")
    assert "--arms LGD" in again
    assert "--set method.name=searched_method:Mine --set method.softness=2 --set method.sharpness=2.5" in again


def test_a_grid_has_no_search_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "components", "--search-space", "method.lr_factor=1:2"]) == 2
    assert "--search-space and --study need --search optuna" in capsys.readouterr().err
    assert main(["--resume", "/results", "--search-space", "method.lr_factor=1:2"]) == 2
    assert "leave out --search-space" in capsys.readouterr().err


def test_the_plan_says_what_is_searched_and_what_is_fixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablations.sweep.dry_run", lambda spec, directory, *_, **__: 0)
    options = ["--set", "method.mapper=true", "--set", "method.variant=label_only", "--search-space"]
    command = ["--grid", "components", "--preset", "nano", "--search", "optuna", "--dry-run", "--output", str(tmp_path)]
    assert main([*command, *options, "method.lr_factor=0.50:2"]) == 0
    line = (
        "search space: method.encoder, method.adapter: on or off; method.distill_weight: 0.1 to 10;"
        " method.instructive_weight: 0.1 to 10; method.lr_factor: 0.5 to 2;"
        " fixed: method.mapper=true, method.variant=label_only"
    )
    assert line in capsys.readouterr().out.splitlines()
    _spec(["method.mapper=true", "method.variant=label_only"], ["method.lr_factor=0.5:2"]).write(tmp_path)
    assert main(["--resume", str(tmp_path), "--dry-run"]) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_a_directory_keeps_its_space(tmp_path: Path) -> None:
    spec = _spec(["method.mapper=true"], ["method.lr_factor=0.5:2"])
    spec.write(tmp_path)
    assert SweepSpec.read(tmp_path) == spec
    # However it is written.
    again = _spec(["method.mapper=true"], ["method.lr_factor=0.50:2.0"])
    assert merge(again, tmp_path) == spec
    space = SearchSpace(("method.mapper",), {**RANGES, "method.lr_factor": (0.5, 2.0)})
    assert _search(spec, tmp_path).space == space
    with pytest.raises(InputError, match="holds a search with objectives AP, within method.lr_factor=0.5:2.0, not obj"):
        merge(_spec(["method.mapper=true"]), tmp_path)
    with pytest.raises(InputError, match="holds a sweep with overrides method.mapper=true, not none"):
        merge(_spec([], ["method.lr_factor=0.5:2"]), tmp_path)


def test_a_directory_from_before_there_were_spaces_is_searched_as_then(tmp_path: Path) -> None:
    spec = describe("components", "nano", search=search_spec(3, ["AP"], False))
    spec.write(tmp_path)
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["search"] == {"samples": 3, "objectives": ["AP"], "early_stop": False}
    search = _search(SweepSpec.read(tmp_path), tmp_path)
    assert search.space == SearchSpace()
    assert search.base == search_base(spec)
    # A shared study of then has no space in its settings.
    assert search._settings().keys() == {"goal", "experiment"}
