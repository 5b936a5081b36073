"""A detector from elsewhere in a sweep: which arms it has, what its directory says, and when its code may run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ablations.plan import (
    describe,
    detector_note,
    detector_sources,
    method_names,
    search_base,
    search_spec,
    trials_of,
)
from ablations.run import parser, subcommand_of
from ablations.sweep import resume_command
from ablations.sweep_command import old_sweep
from lgd.config.detector_source import check_named_again
from lgd.config.method import check_method_named_again
from lgd.config.paper import DetectorName
from lgd.config.presets import built_in_settings
from lgd.errors import InputError
from lgd.results.sweep_spec import SweepSpec

ZOO = "zoo:COCO-Detection/retinanet_R_50_FPN_1x.yaml"
GIVEN = [f"detector.source={ZOO}", 'detector.overrides=["MODEL.FPN.OUT_CHANNELS=32"]']


def test_every_arm_and_every_sample_of_a_search_trains_it() -> None:
    spec = describe("components", "nano", overrides=GIVEN)
    detectors = [x.experiment.detector for x in trials_of(spec, Path("results")).trials]
    assert len(detectors) == 8
    assert {(x.source, x.overrides) for x in detectors} == {(ZOO, ("MODEL.FPN.OUT_CHANNELS=32",))}
    assert detector_note(spec, None) == ""
    searched = describe("components", "nano", overrides=GIVEN, search=search_spec(3, ["AP"], False))
    assert search_base(searched).detector == detectors[0]


def test_arms_that_differ_only_in_the_detector_are_one() -> None:
    """The paper's table has six detectors with and without LGD; two trainings of this one are left of them."""
    spec = describe("main", "nano", overrides=GIVEN)
    trials = trials_of(spec, Path("results")).trials
    described = [x.experiment.model_dump_json() for x in trials]
    assert len(set(described)) == len(described)
    assert {x.experiment.detector.source for x in trials} == {ZOO}
    assert {spec.whole_grid.references[x] for x in spec.arms} <= set(spec.arms)
    note = detector_note(spec, None)
    assert note.startswith(f"note: all arms train {ZOO}, whatever detector their names say; ")
    assert "are left out" in note
    # Who names arms gets them.
    assert describe("main", "nano", overrides=GIVEN, arms=",".join(spec.arms)).arms == spec.arms


@pytest.mark.parametrize("detector", ["faster_rcnn", "fcos", "retinanet"])
def test_arms_that_a_built_in_detector_cannot_have_are_left_out(detector: DetectorName) -> None:
    """LGD without mapper needs the context object, which the paper's R-CNNs and FCOS with R-50 have not."""
    overrides = [f"{k}={v}" for k, v in built_in_settings(detector, "nano").items()]
    spec = describe("components", "nano", overrides=overrides)
    arms = {"ours without mapper", "baseline", "LGD"}
    if detector == "retinanet":
        assert arms <= set(spec.arms)
        assert detector_note(spec, None) == ""
        return
    assert arms - set(spec.arms) == {"ours without mapper"}
    assert detector_note(spec, None) == f"note: left out, for they cannot be of {detector}: ours without mapper"
    # Who names it is told why.
    with pytest.raises(InputError, match="context"):
        trials_of(describe("components", "nano", overrides=overrides, arms="baseline,ours without mapper"), Path("x"))


def test_a_resumed_sweep_runs_code_only_where_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    directory = tmp_path / "sweep"
    directory.mkdir()
    describe("components", "nano", overrides=[f"detector.source={path}"]).write(directory)
    resume = ["--resume", str(directory)]
    with pytest.raises(InputError, match=r"config\.py, which is Python code: say --detector .*config\.py to run it"):
        old_sweep(directory, parser().parse_args(resume))
    named = parser().parse_args([*resume, "--detector", str(path)])
    assert subcommand_of(named) == "resume"
    assert detector_sources(old_sweep(directory, named)) == [str(path)]
    with pytest.raises(InputError, match="--detector other.py: .* holds trainings of"):
        old_sweep(directory, parser().parse_args([*resume, "--detector", "other.py"]))
    with pytest.raises(InputError, match="leave out --detector-set"):
        subcommand_of(parser().parse_args([*resume, "--detector-set", "a=1"]))


def test_the_command_that_goes_on_names_the_code_again(tmp_path: Path) -> None:
    """A student's detector, another of its teacher, and a method, all of them Python code."""
    path = tmp_path / "a config.py"
    sets = [f"detector.source={path}", "method.name=own:Method", "method.teacher.detector=teachers:large"]
    spec = SweepSpec(grid="components", preset="nano", overrides=tuple(sets), arms=("LGD",), seeds=1)
    script, *arguments = shlex.split(resume_command(tmp_path / "sweep", spec).removeprefix("python "))
    assert script == "ablations/run.py"
    options = parser().parse_args(arguments)
    assert subcommand_of(options) == "resume"
    check_named_again(detector_sources(spec), options.detector, "sweep")
    check_method_named_again(method_names(spec), options.method, "sweep")
    plain = SweepSpec(grid="components", preset="nano", overrides=(), arms=("LGD",), seeds=1)
    assert resume_command(tmp_path, plain) == f"python ablations/run.py --resume {tmp_path}"
    with pytest.raises(InputError, match="--method own:Method is for --resume: .* --set method.name=NAME"):
        subcommand_of(parser().parse_args(["--grid", "components", "--method", "own:Method"]))
