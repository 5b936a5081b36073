"""The paper's tables beside real tiny runs, and what the numbers in them come from."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest

from analysis.frame import row_dicts
from analysis.image_intervals import annotations_of
from analysis.load import Run, load_runs
from analysis.noise_floor import noise_floor, noise_floor_text, sentences
from analysis.table_builders.build import build
from analysis.table_builders.frontier import frontier
from analysis.table_builders.paper_costs import costs
from analysis.table_builders.paper_scores import comparison
from analysis.tables import FORMATS, main
from analysis.verdicts.sentences import summary
from lgd.config.experiment import Experiment
from lgd.config.grids import NAMES, Trial, experiment_of, grid, plan
from lgd.config.presets import NANO, PAPER
from lgd.results.record import Pretraining, Record, Scores

ROOT = Path(__file__).parents[3]

BASE, LGD, FGFI = (f"RetinaNet R-50 2x ms {x}" for x in ("baseline", "LGD", "FGFI (R-101)"))


def _scores(ap: float) -> Scores:
    return Scores(AP=ap, AP50=ap + 20, AP75=ap - 5, APs=None, APm=ap, APl=ap)


def _run(trial: Trial, ap: float, preset: str = "paper", **changes: Any) -> Run:
    """The record that a trial would leave, with a score made up."""
    record = Record.model_validate(
        {
            "status": "finished", "preset": preset, "arm": trial.arm, "experiment": trial.experiment,
            "student": _scores(ap), "finished": "2025-01-02T03:05:06+00:00", **changes,
        }
    )  # fmt: skip
    return Run(record, trial.directory)


def _trials(table: str, seeds: int = 1) -> dict[tuple[str, int], Trial]:
    found = plan(grid(table, "paper"), PAPER, seeds, [], Path("/r"))
    return {(t.arm, t.experiment.seed): t for t in found}


def _row(frame: pd.DataFrame, setting: str, method: str, metric: str = "box_AP") -> dict[str, Any]:
    found = frame[(frame["setting"] == setting) & (frame["method"] == method) & (frame["metric"] == metric)]
    assert len(found) == 1
    return {str(k): None if pd.isna(v) else v for k, v in found.iloc[0].items()}


R50 = "RetinaNet R-50 2x ms"


def test_reported_reproduced_and_difference() -> None:
    trials = _trials("teacher-based", 3)
    runs = [_run(trials[BASE, s], 38.0 + s) for s in range(3)] + [_run(trials[LGD, s], 39.0 + 2 * s) for s in range(3)]
    frame = comparison(runs, "teacher-based")
    assert len(frame) == 15
    lgd = _row(frame, R50, "LGD")
    assert (lgd["reported"], lgd["reproduced"], lgd["seeds"], lgd["pairs"]) == (40.3, 41.0, 3, 3)
    assert lgd["difference"] == pytest.approx(0.7)
    assert lgd["reported_gain"] == pytest.approx(1.5)
    # Gains 1, 2, 3: the interval of tests/unit/analysis/test_stats.py.
    assert lgd["gain"] == pytest.approx(2.0)
    assert lgd["gain_low"] == pytest.approx(2 - 2.484138, abs=1e-5)
    assert lgd["mark"] == ""
    empty = _row(frame, R50, "FGFI (R-101)")
    assert (empty["reported"], empty["seeds"]) == (39.8, 0)
    assert {empty[x] for x in ("reproduced", "difference", "gain", "mark")} == {None}
    assert _row(frame, R50, "LabelEnc")["skipped"] is None
    free = comparison([], "teacher-free")
    assert "needs a softmax over classes" in _row(free, "RetinaNet R-50 1x ss", "tf-KD")["skipped"]
    assert set(free["method"][free["skipped"].notna()]) == {"tf-KD"}
    assert _row(frame, R50, "baseline")["gain"] is None


def test_a_run_counts_by_what_it_trained() -> None:
    """Under another grid's name, on another machine, with other threads: the same training."""
    trial = plan(grid("components", "paper"), PAPER, 1, [], Path("/r"))[1]
    assert trial.arm == "LGD"
    moved = trial.experiment.override({"threads": 7, "data.source": "coco-json:/else/datasets/coco", "device": "cuda"})
    run = _run(Trial("LGD", moved, trial.directory), 40.0, grid="components", overrides=["threads=7"])
    assert _row(comparison([run], "teacher-based"), R50, "LGD")["reproduced"] == 40.0
    assert _row(comparison([run], "teacher-based"), R50, "LGD")["mark"] == ""
    named = run.record.model_copy(update={"preset": "retinanet_r50_2x_ms", "arm": "lgd", "grid": ""})
    assert _row(comparison([Run(named, run.directory)], "teacher-based"), R50, "LGD")["mark"] == ""
    other = trial.experiment.override({"schedule.steps": 90_000})
    assert comparison([_run(Trial("LGD", other, trial.directory), 40.0)], "teacher-based")["reproduced"].isna().all()


def test_other_presets_and_changed_runs_are_marked_and_never_mixed() -> None:
    paper, tiny = _trials("teacher-based"), plan(grid("teacher-based", "nano"), NANO, 1, [], Path("/t"))
    by_arm = {t.arm: t for t in tiny}
    runs = [_run(by_arm[BASE], 8.0, "nano"), _run(by_arm[LGD], 9.0, "nano")]
    small = _row(comparison(runs, "teacher-based"), R50, "LGD")
    assert (small["mark"], small["reproduced"], small["gain"], small["difference"]) == ("nano", 9.0, 1.0, None)
    # A run of the paper's preset comes first, and is not compared with a tiny baseline.
    mixed = _row(comparison([*runs, _run(paper[LGD, 0], 40.0)], "teacher-based"), R50, "LGD")
    assert (mixed["mark"], mixed["reproduced"], mixed["gain"]) == ("", 40.0, None)
    arm = next(x for x in grid("teacher-based", "paper").arms if x.name == LGD)
    changed = Trial(LGD, experiment_of(arm, PAPER, ["precision=bf16"]), Path("/r"))
    row = _row(comparison([_run(changed, 40.0, overrides=["precision=bf16"])], "teacher-based"), R50, "LGD")
    assert (row["mark"], row["difference"]) == ("paper, changed", None)
    shown = build("teacher-based", runs)[1]
    assert any("9.0 (nano)" in cell for row in shown.rows for cell in row)
    assert any("not a reproduction" in note for note in shown.notes)


def test_a_number_known_from_another_table_says_so() -> None:
    frame, shown = build("main", [])
    base = _row(frame, R50, "baseline")
    assert (base["reported"], base["reported_where"]) == (38.8, "comparison to teacher-based methods")
    assert _row(frame, "FCOS R-50 2x ms", "baseline")["reported"] is None
    row = next(x for x in shown.rows if x[:2] == [R50, "baseline"])
    assert row[2:] == ["38.8 *", "–", "–", "–", "–", "–", "–"]


def test_masks_and_miss_rates() -> None:
    trials = _trials("table10")
    name = "Mask R-CNN R-50 1x ms LGD"
    frame = comparison([_run(trials[name, 0], 39.5, student_mask=_scores(36.0))], "table10")
    row = _row(frame, "Mask R-CNN R-50 1x ms", "LGD", "mask_AP")
    assert (row["reported"], row["reproduced"]) == (36.2, 36.0)
    frame, shown = build("table9", [])
    assert set(frame["metric"]) == {"mMR", "box_AP"}
    assert any("lower is better" in note for note in shown.notes)
    assert _row(frame, "Faster R-CNN R-50 30k ms CrowdHuman", "LGD", "mMR")["reported_gain"] == pytest.approx(-2.3)


def test_costs_are_table_7s_arithmetic() -> None:
    """Pre-training counted whole, amortised beside it; method-specific over the paired baseline."""
    trials = _trials("table7", 2)
    teacher_features = Pretraining(
        fingerprint="f", backbone="resnet101", steps=9, AP=40.0, device_seconds={"training": 7200.0, "setup": 3600.0},
        reused=False, shared_by=2,
    )  # fmt: skip
    hours = {BASE: (10.0, 12.0), LGD: (20.0, 24.0), FGFI: (15.0, 17.0)}
    runs = [
        _run(
            trials[arm, seed], 40.0, device_seconds={"training": 3600 * (x - 1), "evaluation": 3600},
            pretraining=teacher_features if arm == FGFI else None,
        )
        for arm, each in hours.items()
        for seed, x in enumerate(each)
    ]  # fmt: skip
    frame = costs(runs)
    found = {(r["method"], r["quantity"]): (r["reported"], r["measured"]) for r in row_dicts(frame)}
    assert found["baseline", "overall"] == (pytest.approx(8 * 12.1), 11.0)
    assert found["FGFI (R-101)", "pre-training"] == (136.0, 3.0)
    assert found["FGFI (R-101)", "pre-training, shared"][1] == 1.5
    assert found["FGFI (R-101)", "overall"] == (284.0, 19.0)
    assert found["FGFI (R-101)", "overall, shared"][1] == 17.5
    assert found["FGFI (R-101)", "method-specific"] == (pytest.approx(8 * 23.4), 8.0)
    assert found["LGD", "method-specific"] == (pytest.approx(8 * 11.4), 11.0)
    assert found["LGD", "ratio to baseline"] == (pytest.approx(23.5 / 12.1), 2.0)
    saved = found["LGD", "below FGFI's method-specific"]
    assert saved == (pytest.approx(100 * (1 - 11.4 / 23.4)), pytest.approx(-37.5))
    assert found["LabelEnc", "overall"][0] == 196.0
    assert found["LabelEnc", "overall"][1] is None
    assert set(frame["method"]) == {"baseline", "FGFI (R-101)", "LabelEnc", "LGD"}


def test_the_frontier_counts_a_teachers_training() -> None:
    trials = _trials("table7")
    teacher_features = Pretraining(
        fingerprint="f", backbone="r", steps=9, AP=4.0, device_seconds={"training": 7200}, reused=True
    )
    made = ((BASE, 38.0, 1.0, None), (LGD, 40.0, 2.0, None), (FGFI, 39.0, 1.5, teacher_features))
    runs = [
        _run(trials[arm, 0], ap, grid="table7", device_seconds={"training": 3600 * x}, pretraining=teacher)
        for arm, ap, x, teacher in made
    ]
    frame = frontier(runs).set_index("arm")
    assert list(frame.index) == [BASE, LGD, FGFI]
    assert frame["gpu_hours"].tolist() == [1.0, 2.0, 3.5]
    assert frame["front"].tolist() == [True, True, False]
    assert frame.loc[FGFI, "extra_hours"] == 2.5
    assert frame["cost"].dropna().tolist() == [2.0, 3.5]
    assert frame.loc[LGD, "gain"] == 2.0


def test_noise_floor(make_record: Callable[..., Record]) -> None:
    trials = plan(grid("noise-floor", "nano"), NANO, 4, [], Path("/t"))
    values = [8.0, 9.0, 8.5, 7.5]
    frame = noise_floor([_run(t, ap, "nano") for t, ap in zip(trials, values, strict=True)])
    row = frame.iloc[0]
    assert (row["AP"], row["sd"]) == (fmean(values), pytest.approx(stdev(values)))
    assert row["detectable_3"] == pytest.approx(4.302653 * stdev(values) * (2 / 3) ** 0.5, rel=1e-5)
    (line,) = sentences(frame)
    assert line.startswith("Between 4 seeds of one training AP has a standard deviation of 0.65 points. Were two arms")
    # t(4, 0.975) = 2.776.
    assert line.endswith(f"±{2.776445 * stdev(values) * (2 / 5) ** 0.5:.2f} points.")
    # A difference as large as its interval's half is found more often than missed, of few seeds most.
    (note,) = noise_floor_text(frame).notes[:1]
    assert note.endswith("a true gain of that size is found in 61, 56, 52% of the cases.")
    # It is what the terminal says of such a sweep.
    records = [_run(t, ap, "nano").record for t, ap in zip(trials, values, strict=True)]
    of_grid = [x.model_copy(update={"grid": "noise-floor"}) for x in records]
    assert summary(of_grid, Path("/t")).lines == [line]
    assert summary(of_grid[:1], Path("/t")).lines == []
    assert noise_floor([]).empty


# -------------------------------------------------------------------------------------------- real trainings


def test_real_runs_fill_table_7(real_results: Path) -> None:
    runs = load_runs(real_results)
    assert [run.record.status for run in runs] == ["finished"] * 6
    frame = costs(runs)
    rows = {(r["method"], r["quantity"]): r for r in row_dicts(frame)}
    overall = {m: rows[m, "overall"]["measured"] for m in ("baseline", "LGD", "FGFI (R-101)")}
    records = [run.record for run in runs]
    assert all(r.data_wait is not None and 0 < r.data_wait < 1 for r in records)
    base = [r.gpu_hours for r in records if r.arm == BASE]
    fgfi = [r for r in records if r.arm == FGFI]
    assert overall["baseline"] == pytest.approx(fmean(base))
    assert overall["FGFI (R-101)"] == pytest.approx(
        fmean(r.gpu_hours + sum(r.pretraining.device_seconds.values()) / 3600 for r in fgfi if r.pretraining)
    )
    assert rows["LGD", "overall"]["mark"] == "nano, changed"
    assert rows["FGFI (R-101)", "pre-training"]["measured"] > rows["FGFI (R-101)", "pre-training, shared"]["measured"]
    assert len(frontier(runs)) == 3
    ours = _row(comparison(runs, "teacher-based"), R50, "LGD")
    assert (ours["seeds"], ours["mark"], ours["reported"]) == (2, "nano, changed", 40.3)


def test_kept_detections_give_an_interval_over_images(real_results: Path, tmp_path: Path) -> None:
    """Of two runs, one that finds everything and one that finds half."""
    copied = tmp_path / "results"
    shutil.copytree(real_results, copied)
    truth = annotations_of(load_runs(copied)[0].record)
    found = [{**{k: x[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for x in truth["annotations"]]
    for run in load_runs(copied):
        kept = found if run.record.arm == LGD else found[::2]
        with gzip.open(run.directory / "detections.json.gz", "wt", encoding="utf-8") as file:
            json.dump(kept, file)
    row = _row(comparison(load_runs(copied), "teacher-based", resamples=200), R50, "LGD")
    assert 0 < row["image_low"] < row["image_high"] <= 100
    assert _row(comparison(load_runs(copied), "teacher-based", resamples=0), R50, "LGD")["image_low"] is None
    # Other data than was scored says nothing of these detections.
    record = run.record.model_copy(update={"data": {**run.record.data, "fingerprint": "another"}})
    record.save(run.directory)
    assert _row(comparison(load_runs(copied), "teacher-based"), R50, "LGD")["image_low"] is None
    run.record.save(run.directory)
    (run.directory / "detections.json.gz").unlink()
    shown = build("teacher-based", load_runs(copied))[1]
    assert not any("bootstrap" in note for note in shown.notes)


def test_our_own_tables_have_intervals_over_images_too(make_record: Callable[..., Record], tmp_path: Path) -> None:
    """From the detections that both arms kept, on synthetic images that every machine has the same of."""
    small = {"data.shapes_train": 4, "data.shapes_val": 12, "data.shapes_side": 64}
    experiment = Experiment().override(small)
    truth = annotations_of(make_record("LGD", experiment=experiment))
    found = [{**{k: x[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9} for x in truth["annotations"]]
    for arm, kept in (("baseline", found[::2]), ("LGD", found), ("label only", None)):
        method = {"method.name": "baseline" if arm == "baseline" else "lgd"}
        make_record(arm, 0, 50.0, experiment=experiment.override(method)).save(tmp_path / "trials" / arm)
        if kept is not None:
            with gzip.open(tmp_path / "trials" / arm / "detections.json.gz", "wt", encoding="utf-8") as file:
                json.dump(kept, file)
    frame, shown = build("components", load_runs(tmp_path), resamples=100)
    rows = {row["arm"]: (row["AP_difference_image_low"], row["AP_difference_image_high"]) for row in row_dicts(frame)}
    assert 0 < rows["LGD"][0] < rows["LGD"][1]
    assert rows["baseline"] == rows["label only"] == (None, None)
    column = list(shown.header).index("over images")
    assert [row[column].startswith("[+") for row in shown.rows[:3]] == [False, True, False]
    assert any("bootstrap interval of the difference" in note for note in shown.notes)
    assert "over images" not in build("components", load_runs(tmp_path), resamples=0)[1].header


def test_of_several_presets_the_nearest_to_the_papers_is_shown(make_record: Callable[..., Record]) -> None:
    runs = [
        Run(make_record(arm, 0, ap + i, preset=preset), Path("/r"))
        for i, preset in enumerate(("nano", "small"))
        for arm, ap in (("baseline", 20.0), ("LGD", 22.0))
    ]
    frame, shown = build("components", runs)
    assert frame.set_index("arm").loc["LGD", "AP"] == 23.0
    assert "Left out: runs of preset nano." in shown.notes
    assert "Numbers from preset small: not a reproduction of the paper." in shown.notes
    assert not any("Left out" in note for note in build("components", runs[:2])[1].notes)


def test_directories_merge(real_results: Path, tmp_path: Path) -> None:
    """Two halves of a sweep, with one trial in both."""
    halves = tmp_path / "one", tmp_path / "two"
    for i, path in enumerate(sorted((real_results / "trials").glob("*/record.json"))):
        for half in {halves[i % 2], halves[0] if i == 1 else halves[i % 2]}:
            (half / "trials" / path.parent.name).mkdir(parents=True)
            shutil.copy(path, half / "trials" / path.parent.name)
    assert [x.record for x in load_runs(*halves)] == [x.record for x in load_runs(real_results)]


@pytest.mark.parametrize("table", [*NAMES, "gpu-hours"])
def test_every_table_in_every_format(table: str, real_results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for how in FORMATS:
        assert main([str(real_results), "--table", table, "--format", how, "--resamples", "0"]) == 0
        text = capsys.readouterr().out
        assert text.endswith("\n")
        if how == "csv":
            assert "," in text.splitlines()[0]


@pytest.mark.slow
def test_the_command_as_a_file_and_as_a_module(real_results: Path) -> None:
    """As a file, Python looks for modules beside it first."""
    said = []
    for how in (["analysis/tables.py"], ["-m", "analysis.tables"]):
        done = subprocess.run(
            [sys.executable, *how, str(real_results), "--table", "table7"],
            cwd=ROOT, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "| LGD " in said[0]


STUDY = "benchmarks/results/evidence_tiny_2cores_2026-11-24"


@pytest.mark.parametrize(
    ("table", "row"), [("gpu-hours", "| RetinaNet LGD (tiny) "), ("main", "| RetinaNet R-50 2x ms ")]
)
def test_a_table_loads_neither_torch_nor_detectron2_nor_ray(table: str, row: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['analysis/tables.py', {STUDY!r}, '--table', {table!r}]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "print(sorted({'torch', 'detectron2', 'ray', 'matplotlib', 'pycocotools'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert row in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere", "--table", "main"], "/nowhere: no such directory"),
        ([".", "--table", "table6"], "--table: invalid choice: 'table6'"),
        (["analysis", "--table", "main"], "no record.json in analysis"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_gain_needs_the_same_data() -> None:
    trials = _trials("teacher-based", 2)
    runs = [
        _run(trials[arm, seed], ap, data={"fingerprint": f"{arm if seed else 'the same'}"})
        for arm, each in ((BASE, (38.0, 38.0)), (LGD, (40.0, 45.0)))
        for seed, ap in enumerate(each)
    ]
    row = _row(comparison(runs, "teacher-based"), R50, "LGD")
    assert (row["gain"], row["pairs"], row["seeds"]) == (2.0, 1, 2)


def test_hours_that_hold_unequal_evaluations_say_so(make_record: Callable[..., Record]) -> None:
    points = [{"step": x, "student": _scores(9.0)} for x in (3, 6)]
    trials = _trials("table7")
    runs = [
        _run(trials[arm, 0], 40.0, device_seconds={"training": 9.0, "evaluation": 1.0}, evaluations=points[:times])
        for arm, times in ((BASE, 1), (LGD, 2))
    ]
    said = build("gpu-hours", runs)[1].notes
    assert any("Hours hold the evaluations, which differ between these runs (1 to 2 times)" in x for x in said)
    assert not any("Hours hold the evaluations" in x for x in build("gpu-hours", runs[:1])[1].notes)


def test_changed_runs_of_different_changes_are_not_one_arm() -> None:
    trials = _trials("table7", 2)
    runs = [_run(trials[LGD, x], 40.0, overrides=[f"schedule.lr=0.{x + 1}"]) for x in (0, 1)]
    assert frontier(runs)[["mark", "seeds"]].values.tolist() == [
        ["paper, changed: schedule.lr=0.1", 1],
        ["paper, changed: schedule.lr=0.2", 1],
    ]
