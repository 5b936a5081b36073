"""A detector from elsewhere in a sweep: which arms it has, what its directory says, and when its code may run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ablations import sweep
from ablations.named_code import detector_note, detector_sources, method_names
from ablations.plan import describe, search_base, search_spec, trials_of
from ablations.run import main, parser, subcommand_of
from ablations.sweep import resume_command
from ablations.sweep_command import old_sweep
from lgd.config.detector_source import check_named_again
from lgd.config.method import check_method_named_again
from lgd.config.paper import DetectorName
from lgd.config.presets import TINY, built_in_settings
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


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize(
    ("sets", "option"),
    [
        (["detector.source={evil}"], "--detector"),
        (["method.name=pkd", "method.teacher.detector={evil}"], "--detector"),
        # By the keys that these had once, which still set them.
        (["method.name=pkd", "method.fgfi.teacher.detector={evil}"], "--detector"),
        (["method.fgfi.name=pkd", " method.fgfi.teacher.detector = {evil}"], "--detector"),
        (["method.name=evil_package:Method"], "--method"),
        (["method.fgfi.name=evil_package:Method"], "--method"),
        ([" method.fgfi.name ='evil_package:Method'", "method.name=pkd"], "--method"),
    ],
)
def test_no_key_of_a_results_directory_names_code_unasked(
    sets: list[str],
    option: str,
    search: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("run", "dry_run"):
        # Where they are reached, the code would run.
        monkeypatch.setattr(sweep, name, lambda *_, **__: 0)
    evil, ran = tmp_path / "evil.py", tmp_path / "ran"
    evil.write_text(f"open({str(ran)!r}, 'w')\n")
    overrides = tuple(x.format(evil=evil) for x in sets)
    searched = search_spec(2, ["AP"], False) if search else None
    directory = tmp_path / "sweep"
    SweepSpec(grid="components", preset="nano", overrides=overrides, arms=("LGD",), seeds=1, search=searched).write(
        directory
    )
    for more in ([], ["--dry-run"], ["--samples", "3"] if search else []):
        assert main(["--resume", str(directory), *more]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert f"Python code: say {option} " in said[0]
    assert main(["--status", str(directory)]) == 0
    assert not ran.exists()


def test_code_that_only_an_arms_own_method_would_run_is_named(tmp_path: Path) -> None:
    """The base has no teacher; the grid's arms have. And a teacher is known by its file alone."""
    sets = ("method.fgfi.teacher.detector=teachers:large",)
    spec = SweepSpec(grid="methods", preset="small", overrides=sets, arms=("FGFI",), seeds=1)
    assert detector_sources(spec) == ["teachers:large"]
    student = TINY.override({"detector.source": "torchvision:retinanet_resnet50_fpn_v2"})
    (tmp_path / "student.json").write_text(json.dumps({"experiment": student.model_dump(mode="json")}))
    given = ("method.name=pkd", f"method.teacher.weights={tmp_path}/student.pth")
    spec = SweepSpec(grid="components", preset="tiny", overrides=given, arms=("LGD",), seeds=1)
    assert detector_sources(spec) == ["torchvision:retinanet_resnet50_fpn_v2"]


def test_the_command_that_goes_on_is_told_whatever_became_of_a_teachers_files(tmp_path: Path) -> None:
    """An interrupt, or a status, must not end with another error."""
    (tmp_path / "student.json").write_text("{")
    given = ("detector.source=mine:detector", "method.name=pkd", f"method.teacher.weights={tmp_path}/student.pth")
    spec = SweepSpec(grid="components", preset="tiny", overrides=given, arms=("LGD",), seeds=1)
    with pytest.raises(InputError):
        detector_sources(spec)
    assert "--detector mine:detector" in resume_command(tmp_path / "sweep", spec)


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
    with pytest.raises(InputError, match="--method own:Method is for --search and --resume: .* --set method.name=NAME"):
        subcommand_of(parser().parse_args(["--grid", "components", "--method", "own:Method"]))
