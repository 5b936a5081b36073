"""Arms as interventions, and the plan of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.grids import COMPONENTS, GRIDS, Arm, Grid, grid, plan
from ablations.presets import PAPER, SMALL, TINY
from lgd.errors import InputError
from lgd.experiment import Experiment


@pytest.mark.parametrize("base", [TINY, SMALL, PAPER], ids=["tiny", "small", "paper"])
@pytest.mark.parametrize("chosen", GRIDS.values(), ids=lambda g: g.name)
def test_every_arm_of_every_grid_is_possible_and_distinct(chosen: Grid, base: Experiment, tmp_path: Path) -> None:
    trials = plan(chosen, base, 1, [], tmp_path)
    assert len({t.experiment for t in trials}) == len(chosen.arms)
    assert len({t.directory for t in trials}) == len(chosen.arms)
    assert chosen.reference in {t.arm for t in trials}


def test_seeds_run_one_after_the_other(tmp_path: Path) -> None:
    trials = plan(COMPONENTS, TINY, 2, ["seed=5"], tmp_path)
    assert [t.experiment.seed for t in trials] == [5] * 8 + [6] * 8
    assert trials[0].name == "baseline-seed5"
    assert trials[0].directory.is_absolute()


def test_an_arms_own_change_comes_on_top_of_the_overrides(tmp_path: Path) -> None:
    trials = plan(COMPONENTS, TINY, 1, ["method.distill_weight=0.5", "schedule.steps=99"], tmp_path)[:2]
    assert [t.experiment.method.name for t in trials] == ["baseline", "lgd"]
    assert all(t.experiment.method.distill_weight == 0.5 for t in trials)
    assert all(t.experiment.schedule.steps == 99 for t in trials)


def test_an_impossible_arm_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="arm 'without mapper': .*context object"):
        plan(COMPONENTS, TINY, 1, ["method.context=false"], tmp_path)


def test_unknown_grid() -> None:
    with pytest.raises(InputError, match="no grid 'colours'.*components"):
        grid("colours")


def test_slugs_are_file_names() -> None:
    assert Arm("FGFI (R-101-DCNv2)").slug == "fgfi-r-101-dcnv2"
