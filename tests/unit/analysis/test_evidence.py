"""The evidence page and its studies' pages: built from records, and what their words follow from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablations.equal_time import with_steps
from analysis.evidence.page import (
    OLDER_TEMPLATE,
    STUDIES_TEMPLATE,
    kept_studies,
    main,
    older_page,
    page,
    readme,
    studies_page,
)
from analysis.evidence.studies import Study, comparisons, keep, load_studies, write_tables
from analysis.evidence.study_page import difference_text, own_loss, study_page
from analysis.load import load_runs
from analysis.stats.differences import mean_interval, paired_difference, verdict
from lgd.config.arms import Grid
from lgd.config.grids import EVIDENCE, NOISE_FLOOR, grid, plan
from lgd.config.presets import preset
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.results.sweep_spec import SWEEP_FILE

ROOT = Path(__file__).parents[3]

SEEDS = 5

GAINS = {
    "RetinaNet LGD": 2.0,
    "RetinaNet without encoder": 0.0,
    "RetinaNet without mapper": -3.0,
    "RetinaNet baseline in equal time": 3.0,
    "FCOS LGD": 0.0,
    "FCOS LGD at weight 0.3": 4.0,
    "FCOS baseline in equal time": 2.5,
}
"""Of the arms that are not their baseline, points; half a point of noise of their own on top. Those not named: none."""

Make = Callable[..., Path]


def _scores(ap: float) -> dict[str, Any]:
    return {"AP": ap, "AP50": ap + 20, "AP75": ap - 5, "APs": None, "APm": None, "APl": None}


@pytest.fixture
def results(tmp_path: Path) -> Make:
    """A directory as a sweep leaves it, of all arms but those without a detector named in GAINS."""

    def make(name: str, whole: Grid, size: str = "nano", seeds: int = SEEDS, **changes: Any) -> Path:
        directory = tmp_path / "results" / name
        arms = tuple(with_steps(arm, {arm.name: 950} if arm.time_budget_from else {}) for arm in whole.arms)
        chosen = Grid(whole.name, whole.title, arms, whole.reference)
        for trial in plan(chosen, preset(size), seeds, [], directory):
            x = trial.experiment
            noise = 0.5 * ((-1) ** x.seed) * (len(trial.arm) % 3)
            ap = 20 + 2 * x.seed + GAINS.get(trial.arm, 0.0) + noise
            teacher_features = x.method.name == "lgd"
            seconds = 200.0 if teacher_features else 100.0
            points = [
                {"step": step, "student": _scores(ap - 4 + at), "teacher": _scores(ap) if teacher_features else None}
                for at, step in enumerate((100, 200, 300, 400, 500))
            ]
            record = {
                "status": "finished", "grid": whole.name, "preset": size, "arm": trial.arm, "experiment": x,
                "steps": x.schedule.steps, "student": _scores(ap),
                "teacher": _scores(ap + 1) if teacher_features else None,
                "evaluations": points, "device_seconds": {"training": seconds, "evaluation": 7.0},
                "seconds": {"training": seconds}, "data": {"train_images": 1000},
                "hardware": {"cpu": "A processor", "cores": "2", "memory_gib": "8", "gpu": "none"},
                "versions": {"torch": "2.11.0", "detectron2": "0.6"}, "git_commit": "0123456789abcdef",
                "started": "2025-01-02T03:04:05+00:00", "finished": "2025-01-02T03:05:06+00:00", **changes,
            }  # fmt: skip
            Record.model_validate(record).save(trial.directory)
            (trial.directory / "student.pth").write_bytes(b"weights")
            (trial.directory / "metrics.json").write_text("{}\n")
        described = {
            "schema_version": 1, "grid": whole.name, "preset": size, "overrides": [], "seeds": seeds,
            "arms": [arm.name for arm in whole.arms], "reference": whole.reference,
        }  # fmt: skip
        (directory / "sweep.json").write_text(json.dumps(described))
        return directory

    return make


def _study_page(directory: Path) -> str:
    (study,) = load_studies([directory])
    return study_page(study, comparisons([study]))


def _page(*directories: Path) -> str:
    studies = load_studies(directories)
    return page(studies, comparisons(studies), Path("docs/evidence.md"))


@pytest.mark.slow
@pytest.mark.parametrize(("head", "field"), [("attention to the own label", "attention"), ("label use", "label_use")])
def test_what_is_measured_of_a_teacher_is_shown(head: str, field: str, results: Make) -> None:
    assert head not in _study_page(results("without", grid(EVIDENCE, "nano"), seeds=2))
    points = [{"step": 500, "student": _scores(20), "teacher": _scores(30), field: 0.256}]
    text = _study_page(results("with", grid(EVIDENCE, "nano"), seeds=2, evaluations=points))
    assert head in text
    row = next(line for line in text.splitlines() if line.startswith("| RetinaNet LGD") and "0.26" in line)
    table = text[: text.index(row)].splitlines()[::-1]
    columns = next(line for line in table if line.startswith("| arm")).split("|")
    assert row.split("|")[[x.strip() for x in columns].index(head)].strip() == "0.26"


def test_the_course_of_a_training_is_shown_with_its_teacher(results: Make, tmp_path: Path) -> None:
    text = _study_page(results("nano", grid(EVIDENCE, "nano"), seeds=2))
    head = "mean over seeds, after step"
    columns = next(line for line in text.splitlines() if line.startswith(f"| {head}")).split("|")
    assert [x.strip() for x in columns[2:-1]] == ["100", "200", "300", "400", "500"]

    def row(name: str) -> list[float]:
        line = next(x for x in text[text.index(head) :].splitlines() if x.startswith(f"| {name} "))
        return [float(x) for x in line.split("|")[2:-1]]

    records = [x.record for x in load_runs(tmp_path / "results" / "nano") if x.record.arm == "RetinaNet LGD"]
    assert len(records) == 2
    for name, of in (("RetinaNet LGD", "student"), ("RetinaNet LGD: its teacher", "teacher")):
        scores = [[getattr(point, of).AP for point in x.evaluations] for x in records]
        assert row(name) == pytest.approx([sum(x) / 2 for x in zip(*scores, strict=True)], abs=0.051)
    # Its steps are others.
    assert "RetinaNet baseline in equal time: its teacher" not in text
    assert "attention" not in text
    one = [{"step": 500, "student": _scores(20), "teacher": _scores(30)}]
    assert head not in _study_page(results("ends", grid(EVIDENCE, "nano"), seeds=2, evaluations=one))


@pytest.mark.slow
def test_the_students_own_losses_are_compared(results: Make) -> None:
    curve = [(20 * i, 1.0) for i in range(1, 9)]
    losses = {
        "total_loss": [(160, 99.0)], "loss_distill": [(160, 9.0)], "instructive/loss_cls": [(160, 9.0)],
        "loss_cls": [*curve, (180, 0.5), (200, 0.25)], "loss_box_reg": [(200, 0.5)],
    }  # fmt: skip
    place = results("nano", grid(EVIDENCE, "nano"), seeds=2, losses=losses)
    record = next(x.record for x in load_runs(place) if x.record.arm == "RetinaNet LGD")
    # Of ten points the last two, of one the one.
    assert own_loss(record) == 0.375 + 0.5
    assert own_loss(record.model_copy(update={"losses": {}})) is None
    text = _study_page(place)
    assert "own losses over baseline" in text
    assert "+0.000 [+0.000, +0.000]" in text
    assert difference_text(paired_difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5}), 3) == "-0.500 [-0.500, -0.500]"
    assert difference_text(None, 3) == "–"


def _difference(place: Path, arm: str, reference: str) -> str:
    runs = {(r.record.arm, r.record.experiment.seed): r.record for r in load_runs(place)}
    a, b = ({s: runs[x, s].student.AP for s in range(SEEDS)} for x in (arm, reference))  # type: ignore[union-attr]
    found = paired_difference(a, b)  # type: ignore[arg-type]
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return f"{found.mean + 0.0:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


@pytest.mark.slow
def test_what_a_study_says_follows_from_its_records(results: Make) -> None:
    place = results("evidence-nano", grid(EVIDENCE, "nano"))
    (place / "notes.md").write_text("### Why\n\nBecause *so*.\n")
    text = _study_page(place)
    helped, harmed, noise = (
        text.split(head)[1].split("**")[0]
        for head in (
            "**Helped: more AP than what it is compared with.**",
            "**Did harm: less AP.**",
            "**Within noise.**",
        )
    )
    gain = _difference(place, "RetinaNet LGD", "RetinaNet baseline")
    assert f"RetinaNet LGD over RetinaNet baseline: {gain}" in helped
    assert "RetinaNet without mapper over RetinaNet baseline: -" in harmed
    assert "RetinaNet without mapper over RetinaNet LGD: -" in harmed
    assert "RetinaNet without encoder over RetinaNet baseline: " in noise
    assert "FCOS LGD over FCOS baseline: " in noise
    ahead = _difference(place, "FCOS LGD", "FCOS baseline in equal time")
    assert f"FCOS LGD against FCOS baseline in equal time: AP {ahead}, 5 seeds: less, beyond noise." in text
    longer = _difference(place, "RetinaNet baseline in equal time", "RetinaNet baseline")
    assert f"change its AP by {longer}: it had not converged" in text
    # Ten arms against RetinaNet's baseline, nine against LGD whole; five and four of each of the two other detectors.
    assert "37 comparisons have an interval: by chance alone, 1.9 " in text
    for words in (
        "> **Preset nano on a CPU: no evidence", "950", "### Why\n\nBecause *so*.\n", "git commit 0123456789ab",
        "A processor, 2 cores, 8 GiB, no GPU",
        "python ablations/run.py --grid evidence --preset nano --seeds 5 --output results/evidence-nano",
        "Between step 400 and step 500 the baseline's AP rose by 1.0 points",
    ):  # fmt: skip
        assert words in text


@pytest.mark.slow
def test_the_page_shows_gains_with_intervals_and_costs(results: Make) -> None:
    place, floor = results("evidence-nano", grid(EVIDENCE, "nano")), results("noise-floor-nano", NOISE_FLOOR, seeds=10)
    (place.parent / "notes.md").write_text('## Why\n\nIt is {{ gain("evidence", "FCOS LGD at weight 0.3") }}.\n')
    text = _page(place, floor)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    columns = next(row for row in rows if row[0] == "detector")
    table = {row[0]: dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)}
    gain = _difference(place, "RetinaNet LGD", "RetinaNet baseline")
    assert table["RetinaNet"]["LGD"] == f"{gain} (5; 2.00x)"
    timed = _difference(place, "FCOS LGD", "FCOS baseline in equal time")
    assert table["FCOS"]["LGD, equal time"] == f"{timed} (5; 2.00x)"
    # What one detector alone has is on its study's page.
    assert columns[2:] == [
        "LGD", "without adapter", "without imitation", "LGD at weight 0.3", "without adapter at weight 0.3",
        "LGD, equal time",
    ]  # fmt: skip
    assert {"RetinaNet", "FCOS", "Faster R-CNN"} < table.keys()
    assert "compared with its own baseline 3 times, on shapes" in text
    assert f"It is {_difference(place, 'FCOS LGD at weight 0.3', 'FCOS baseline')}." in text
    assert "[evidence-nano](" in text
    assert "at which nothing has been trained here yet" in text


def test_a_seed_says_nothing_on_the_page(results: Make) -> None:
    text = _page(results("evidence-nano", grid(EVIDENCE, "nano"), seeds=2))
    assert "| RetinaNet | LGD |" not in text
    assert "![" not in text


def test_notes_that_name_what_was_not_compared_are_refused(results: Make) -> None:
    place = results("evidence-nano", grid(EVIDENCE, "nano"), seeds=2)
    for expression in ('gain("elsewhere", "FCOS LGD")', 'gain("evidence", "FCOS")', "unknown", "1 +"):
        (place.parent / "notes.md").write_text(f"{{{{ {expression} }}}}")
        with pytest.raises(InputError, match="notes"):
            _page(place)


def test_the_noise_floor_has_a_page(results: Make) -> None:
    text = _study_page(results("noise-floor-nano", NOISE_FLOOR, seeds=10))
    assert "10 seeds of one training AP has a standard deviation of" in text
    assert "| baseline (nano) |" in text


def test_records_are_kept_without_weights_and_build_the_same(results: Make, tmp_path: Path) -> None:
    whole = grid(EVIDENCE, "nano")
    one_detector = replace(whole, arms=tuple(arm for arm in whole.arms if arm.name.startswith("FCOS")))
    place = results("evidence-nano", one_detector, seeds=2)
    output, kept = tmp_path / "docs" / "evidence.md", tmp_path / "kept"
    assert main([str(place), "--output", str(output), "--keep", str(kept)]) == 0
    first = output.read_text(encoding="utf-8")
    files = {x.name for x in (kept / "evidence_nano_2cores_2025-01-02").rglob("*") if x.is_file()}
    assert {"record.json", "metrics.json", "sweep.json", "records.csv", "table.md", "README.md"} <= files
    assert {"fcos-arms.png", "fcos-arms.svg", "fcos-curves.png", "fcos-curves.svg"} <= files
    assert "student.pth" not in files
    page_of_study = (kept / "evidence_nano_2cores_2025-01-02" / "README.md").read_text(encoding="utf-8")
    for name in (x for x in files if x.endswith(".png")):
        assert f"]({name})" in page_of_study
    copied = load_runs(kept / "evidence_nano_2cores_2025-01-02")
    assert [x.record for x in copied] == [x.record for x in load_runs(place)]
    studies = load_studies(kept_studies(kept))
    assert page(studies, comparisons(studies), output) == first


@pytest.mark.slow
def test_two_sweeps_are_not_mixed(results: Make, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    older, newer = results("older", grid(EVIDENCE, "nano"), seeds=2), results("newer", grid(EVIDENCE, "nano"), seeds=1)
    keep(older, kept)
    with pytest.raises(InputError, match=r"seed1/record\.json is no trial of .*newer"):
        keep(newer, kept)
    # The same one with more in it is.
    keep(newer, tmp_path / "grows")
    keep(older, tmp_path / "grows")
    assert len(load_runs(tmp_path / "grows")) == len(load_runs(older))


def test_a_gpu_study_of_part_of_the_arms(results: Make) -> None:
    hardware = {"cpu": "A processor", "cores": "16", "memory_gib": "128", "gpu": "A GPU"}
    place = results("evidence-small", grid(EVIDENCE, "small"), "small", 1, hardware=hardware)
    text = _study_page(place)
    assert "Preset small on a GPU" in text
    assert "RetinaNet FGFI over RetinaNet baseline" in text
    # One seed decides nothing.
    assert "**Helped: more AP than what it is compared with.**\n\nNone." in text
    assert "one seed in common or none" in text
    assert "nothing has been trained here yet" not in _page(place)


def test_a_study_without_baselines_compares_with_lgd_alone(results: Make) -> None:
    place = results("variants", grid(EVIDENCE, "nano"), seeds=2)
    for path in place.glob("trials/*baseline*/record.json"):
        path.unlink()
    text = _study_page(place)
    assert "No arm has a finished seed in common with RetinaNet baseline" in text
    assert "RetinaNet without adapter over RetinaNet LGD: " in text


def test_directories_without_such_runs_are_refused(
    tmp_path: Path, results: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--output", str(tmp_path / "x.md")]) == 2
    assert "no run of a grid" in capsys.readouterr().err
    with pytest.raises(InputError, match="no trials"):
        keep(tmp_path / "empty", tmp_path / "kept")
    (floor,) = load_studies([results("a", NOISE_FLOOR, seeds=2)])
    assert len(floor.runs) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [([1.0, 1.1, 0.9], "more"), ([-1.0, -1.1, -0.9], "less"), ([1.0, -1.0, 0.1], "noise"), ([5.0], ""), ([], "")],
)
def test_an_interval_decides(values: list[float], said: str) -> None:
    zeros = dict.fromkeys(range(len(values)), 0.0)
    found = paired_difference(dict(enumerate(values)), zeros)
    assert (verdict(found.low, found.high) if found else "") == said
    assert (mean_interval(values) is None) is (not values)


# ------------------------------------------------------------------------------------------- committed pages


@pytest.fixture(scope="module")
def committed() -> tuple[list[Study], pd.DataFrame]:
    studies = load_studies(kept_studies(ROOT / "benchmarks" / "results"))
    return studies, comparisons(studies)


def test_the_committed_page_is_what_the_command_generates(committed: tuple[list[Study], pd.DataFrame]) -> None:
    """When records, templates or notes change: ``python -m analysis.evidence``."""
    output = ROOT / "docs" / "evidence.md"
    assert page(*committed, output) == output.read_text(encoding="utf-8")
    # The bars of tables are no words.
    assert len([x for x in output.read_text(encoding="utf-8").split() if x != "|"]) < 1800
    assert page(*committed, output, STUDIES_TEMPLATE) == studies_page(output).read_text(encoding="utf-8")
    older = older_page(committed[0], output)
    assert older is not None
    assert page(*committed, older, OLDER_TEMPLATE) == older.read_text(encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme(*committed, text) == text
    assert (output.parent / "figures" / "gain-against-cost.png").exists()


def test_the_committed_pages_of_studies_are_what_the_command_generates(
    committed: tuple[list[Study], pd.DataFrame], tmp_path: Path
) -> None:
    studies, table = committed
    assert len(studies) >= 7
    for study in studies:
        written = study.directory / "README.md"
        text = written.read_text(encoding="utf-8")
        assert study_page(study, table[table["study"] == study.name]) == text, study.name
        assert not re.search(r"\{\w+[:}]", text), "a name that was to be filled in"
        there = tmp_path / study.name
        there.mkdir()
        (there / SWEEP_FILE).write_bytes((study.directory / SWEEP_FILE).read_bytes())
        for path in write_tables(there, study.runs):
            assert path.read_bytes() == (study.directory / path.name).read_bytes(), path
        assert all((study.directory / name).exists() for name in re.findall(r"!\[.*?\]\((.*?)\)", text))
