"""What a sweep is made of, and what is refused before anything is built."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ablations.plan import describe, merge, read_sweep, search_note, search_spec, trials_of, with_data_at, with_samples
from lgd.errors import InputError
from lgd.results.sweep_spec import SearchSpec

SEARCH = SearchSpec(samples=20, objectives=("AP",), early_stop=False)


@pytest.mark.parametrize("seeds", [1_251, 1_000_000, 10**15])
def test_absurd_sizes_get_a_line_at_once(seeds: int) -> None:
    begun = time.process_time()
    with pytest.raises(InputError, match=f"--seeds {seeds}: .* trials of 8 arms; a sweep has at most 10,000"):
        describe("components", "nano", seeds=seeds)
    with pytest.raises(InputError, match="--samples 1000000: a search has at most 10,000"):
        search_spec(1_000_000, ["AP"], False)
    assert time.process_time() - begun < 1
    assert describe("components", "nano", seeds=1_250).seeds == 1_250


def test_a_setting_that_an_arm_overrules_is_refused() -> None:
    with pytest.raises(InputError, match=r"--set method\.encoder=true has no effect on arm 'ours without encoder'"):
        describe("components", "nano", overrides=["method.encoder=true"])
    assert describe("components", "nano", overrides=["method.encoder=true"], arms="baseline,LGD").arms == (
        "baseline",
        "LGD",
    )


def test_a_setting_of_some_arms_methods_is_read_again(tmp_path: Path) -> None:
    """The preset's own method, LGD, has it not."""
    spec = describe("methods", "nano", overrides=["method.teacher.gate=false"], arms="baseline,PKD")
    spec.write(tmp_path)
    assert read_sweep(tmp_path) == spec


def test_a_setting_that_no_arm_has_is_refused() -> None:
    for search in (None, SEARCH):
        with pytest.raises(InputError, match=r"^--set method.teacher.gate=false has no effect: no arm has a method"):
            describe("components", "nano", overrides=["method.teacher.gate=false"], search=search)


def test_a_sweep_until_it_is_decided_has_a_question() -> None:
    for name, arms in (("noise-floor", None), ("components", "baseline"), ("components", "LGD")):
        with pytest.raises(InputError, match=r"^--until-decided: of these arms of grid .* none is compared"):
            describe(name, "nano", arms=arms, looks=(3, 5))
    assert describe("components", "nano", arms="baseline,LGD", looks=(3, 5)).seeds == 3


def test_a_link_to_the_data_is_the_data(tmp_path: Path) -> None:
    """Older versions named in sweep.json what it links to."""
    real, link, output = tmp_path / "real", tmp_path / "link", tmp_path / "results"
    real.mkdir()
    output.mkdir()
    link.symlink_to(real)
    describe("components", "nano", overrides=[f"data.source=voc:{real}"]).write(output)
    merged = merge(describe("components", "nano", overrides=[f"data.source=voc:{link}"], seeds=5), output)
    assert (merged.overrides, merged.seeds) == ((f"data.source=voc:{real}",), 5)
    with pytest.raises(InputError, match="holds a sweep with overrides"):
        merge(describe("components", "nano", overrides=[f"data.source=voc:{tmp_path}"]), output)


def test_the_smallest_gain_of_a_directory_changes_where_it_is_said(tmp_path: Path) -> None:
    describe("components", "nano", min_gain=1.0).write(tmp_path)
    for said, min_gain in ((None, 1.0), (0.5, 0.5), (0.7, 0.7)):
        assert merge(describe("components", "nano", min_gain=said), tmp_path).min_gain == min_gain


def test_an_arms_own_comma_divides_no_name() -> None:
    """As ``LabelEnc, nothing inherited`` has one, beside the arm ``LabelEnc``."""
    wanted = ("baseline", "LabelEnc, nothing inherited")
    assert describe("methods", "nano", arms=",".join(wanted)).arms == wanted
    assert describe("methods", "nano", arms="LabelEnc , nothing inherited,LabelEnc").arms == ("LabelEnc", wanted[1])
    with pytest.raises(InputError, match="has no arm 'nothing inherited': it has "):
        describe("methods", "nano", arms="baseline,nothing inherited")


def test_another_sweeps_directory_is_refused(tmp_path: Path) -> None:
    """More seeds and arms of the same sweep are welcome, and the paper's tables share trainings."""
    components = describe("components", "nano", arms="baseline")
    components.write(tmp_path)
    more = describe("components", "nano", arms="LGD", seeds=3)
    assert merge(more, tmp_path).arms == ("baseline", "LGD")
    for other, words in (
        (describe("loss-weights", "nano"), "holds the sweep of grid components"),
        (describe("table7", "nano"), "holds the sweep of grid components"),
        (describe("components", "small"), "preset 'nano', not 'small'"),
        (describe("components", "nano", overrides=["seed=1"]), "overrides none, not seed=1"),
        (describe("components", "nano", search=SEARCH), "holds a sweep with no search, not objectives AP"),
    ):
        with pytest.raises(InputError, match=words):
            merge(other, tmp_path)
    describe("table7", "nano").write(tmp_path)
    assert merge(describe("teacher-based", "nano"), tmp_path).grid == "teacher-based"


def test_a_search_says_what_it_leaves_out() -> None:
    spec = describe("components", "nano", search=SEARCH)
    assert search_note(spec, None) == (
        "note: the search trains arm 'baseline' of grid components, to compare its own trials to, and no other"
    )
    spec = describe("components", "nano", arms="LGD", search=SEARCH)
    assert search_note(spec, "LGD") == (
        "note: the search trains its own trials only; to compare them, add arm 'baseline' to --arms"
    )
    spec = describe("main", "nano", search=SEARCH)
    assert search_note(spec, None) == (
        "note: the search trains its own trials and no arm of grid main, which names none to compare all to"
    )
    assert search_note(describe("components", "nano"), None) == ""
    assert search_note(describe("noise-floor", "nano", search=SEARCH), None) == ""


def test_a_sweep_goes_on_with_more_samples_and_its_data_elsewhere(tmp_path: Path) -> None:
    spec = describe("components", "nano", data="coco-json:/a", search=SEARCH)
    assert with_samples(spec, 30, tmp_path).search == SearchSpec(samples=30, objectives=("AP",), early_stop=False)
    assert with_data_at(spec, "coco-json:/b").overrides == ("data.source=coco-json:/b",)
    with pytest.raises(InputError, match="has no such data"):
        with_data_at(spec, "voc:/b")
    with pytest.raises(InputError, match="holds no search"):
        with_samples(describe("components", "nano"), 30, tmp_path)


def test_trials_with_a_damaged_record_are_left_out_and_named(tmp_path: Path) -> None:
    spec = describe("components", "nano", arms="baseline,LGD", seeds=2)
    whole = trials_of(spec, tmp_path)
    assert len(whole.trials) == 4
    damaged = whole.trials[1].directory
    damaged.mkdir(parents=True)
    (damaged / "record.json").write_text("{")
    sweep = trials_of(spec, tmp_path)
    assert [t.name for t in sweep.trials] == [t.name for t in whole.trials if t.directory != damaged]
    assert len(sweep.damaged) == 1
    assert sweep.damaged[0].startswith(f"{damaged / 'record.json'}:1: not a record")
