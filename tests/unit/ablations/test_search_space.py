"""What a search varies: all of its settings, some of them, or within other ranges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from ablations.plan import describe, merge, search_base, search_spec
from ablations.run import main
from ablations.search.optuna_search import Search, search_of
from ablations.search.search_space import RANGES, SEARCHED, SearchSpace, normalized, proposed_trial, suggest
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
    others = [x.removeprefix("method.") for x in SEARCHED if x.removeprefix("method.") not in values]
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
        ([], ["method.mapper=true,false"], "--search-space method.mapper=true,false: method.distill_weight,"),
        ([], ["schedule.lr=1:2"], "--search-space schedule.lr=1:2: method.distill_weight, method.instructive_weight"),
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
