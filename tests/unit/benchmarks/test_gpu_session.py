"""A session on a GPU: what is begun, stopped, written and gone on with; its commands are tried by tests/integration."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import gpu_session, performance_page
from benchmarks.gpu_plan import Measurement, plan
from benchmarks.gpu_results import figures, newer_sessions, newest_session, page, targets
from benchmarks.gpu_session import Session, main, run_limited
from lgd.config.experiment import settings
from lgd.config.grids import experiment_of, grid
from lgd.config.presets import preset


def _measurement(name: str, code: str, seconds: int = 10, least: int = 0) -> Measurement:
    return Measurement(name, "nothing", ("-c", code), ("-c", code), seconds, least)


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run measurements with these seconds left, on a made-up machine, and return their states."""
    monkeypatch.setattr(
        "benchmarks.gpu_session.provenance_columns",
        lambda dry, commit: {"device": "cuda", "gpu": "1 x G", "driver": "1", "cpu": "C", "python": "3", "torch": "2",
                             "git_commit": commit, "started": f"in the call of {commit[0]}"},
    )  # fmt: skip

    def run(
        *measurements: Measurement, left: float = 100, resume: bool = False, commit: str = "c" * 40
    ) -> dict[str, Any]:
        session = Session(tmp_path / "s", dry=False, commit=commit)
        session.open(resume=resume)
        for measurement in session.in_order(measurements):
            session.measure(measurement, time.monotonic() + left)
        return dict(json.loads((tmp_path / "s" / "session.json").read_text())["measurements"])

    return run


def _opened(directory: Path) -> Session:
    session = Session(directory, dry=False)
    session.open(resume=True)
    return session


def test_a_failure_does_not_end_a_session_and_what_is_done_is_not_done_again(measure: Any, tmp_path: Path) -> None:
    counts = f"open({str(tmp_path / 'count')!r}, 'a').write('x')"
    first = _measurement("first", counts)
    failing = _measurement("failing", "raise SystemExit(1)")
    late = _measurement("late", counts, seconds=1000)
    goes_on = _measurement("goes-on", "raise SystemExit(3)", seconds=1000, least=5)
    found = measure(failing, first, late, goes_on)
    assert {k: x["status"] for k, x in found.items()} == {
        "failing": "failed",
        "first": "done",
        "late": "no time left",
        "goes-on": "stopped",
    }
    frame = pd.read_csv(tmp_path / "s" / "session.csv").set_index("measurement")
    assert frame.loc["first", "git_commit"] == "c" * 40
    assert str(frame.loc["first", "command"]).startswith("python -c")
    found = measure(failing, first, late, _measurement("goes-on", counts, 1000, 5), left=2000, resume=True)
    assert {k: x["status"] for k, x in found.items()} == {
        "failing": "failed",
        "first": "done",
        "late": "done",
        "goes-on": "done",
    }
    # What failed is tried again, after all others.
    order = [x.name for x in _opened(tmp_path / "s").in_order([failing, first, late])]
    assert order == ["first", "late", "failing"]
    assert _opened(tmp_path / "s").failed
    # The first once, the late one once, and the one that goes on.
    assert (tmp_path / "count").read_text() == "xxx"


def test_each_row_has_the_commit_and_time_of_its_own_call(measure: Any, tmp_path: Path) -> None:
    first, late, second = _measurement("first", "pass"), _measurement("late", "pass", 1000), _measurement("2nd", "pass")
    measure(first, late, commit="a" * 40)
    shown = page(tmp_path / "s")
    assert f"commit {'a' * 12}; in the call of a.\n" in shown
    measure(first, second, resume=True, commit="b" * 40)
    frame = pd.read_csv(tmp_path / "s" / "session.csv").set_index("measurement")
    assert frame["git_commit"].to_dict() == {"first": "a" * 40, "late": "a" * 40, "2nd": "b" * 40}
    assert frame["started"].to_dict() == {x: f"in the call of {y}" for x, y in zip(frame.index, "aab", strict=True)}
    shown = page(tmp_path / "s")
    # What was not begun was measured by neither.
    assert f"commit {'a' * 12}; in the call of a: first.\n" in shown
    assert f"commit {'b' * 12}; in the call of b: 2nd.\n" in shown


def test_what_was_stopped_is_tried_again_after_all_others(measure: Any, tmp_path: Path) -> None:
    def writes(name: str, code: str = "") -> str:
        return f"open({str(tmp_path / 'order')!r}, 'a').write({name!r} + ' '); {code}"

    slow = _measurement("slow", writes("slow", "import time; time.sleep(60)"), seconds=2)
    trained = _measurement("trained", writes("trained", "raise SystemExit(3)"), seconds=1000, least=5)
    other = _measurement("other", writes("other"), seconds=1000)
    found = measure(slow, trained, other)
    assert [x["status"] for x in found.values()] == ["stopped", "stopped", "no time left"]
    measure(_measurement("slow", writes("slow")), trained, other, left=2000, resume=True)
    # A training goes on from where it was stopped, in its turn.
    assert (tmp_path / "order").read_text().split() == ["slow", "trained", "trained", "other", "slow"]


def test_what_takes_too_long_is_asked_to_end_then_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_session, "GRACE", 0.5)
    polite = "import signal, time; signal.signal(2, lambda *_: (print('asked', flush=True), exit(0))); time.sleep(60)"
    stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()
    for code in (polite, stubborn):
        assert run_limited([sys.executable, "-c", code], tmp_path / "log", 1.0) is None
    assert time.monotonic() - start < 30
    assert (tmp_path / "log").read_text() == "asked\n"
    assert run_limited([sys.executable, "-c", "raise SystemExit(4)"], tmp_path / "log", 60) == 4


def test_a_measurement_knows_the_commit_that_git_cannot_say(tmp_path: Path) -> None:
    code = "from lgd.results.provenance import git_commit; print(git_commit())"
    assert run_limited([sys.executable, "-c", code], tmp_path / "log", 60, commit="c" * 40) == 0
    assert (tmp_path / "log").read_text() == "c" * 40 + "\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--minutes", "0"], "--minutes 0"),
        (["--only", "speed"], "--only speed: choose from gpu-tests"),
        (["--dry", "--resume", "--output", "nowhere"], "--resume: nowhere/session.json does not exist"),
        (["--output", "anywhere"], "no GPU here"),
    ],
)
def test_wrong_input(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


def test_a_session_is_not_mixed_with_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, arguments, named in (
        ('{"dry": true, "measurements": {}}', [], "holds a session: --resume"),
        ('{"dry": false, "measurements": {}}', ["--resume"], "holds a session on a GPU"),
        ('{"dry": tr', ["--resume"], "session.json: damaged"),
    ):
        (tmp_path / "session.json").write_text(text)
        assert main(["--dry", "--output", str(tmp_path), *arguments]) == 2
        assert named in capsys.readouterr().err


def test_the_plan_names_each_measurement_once_and_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan"]) == 0
    printed = capsys.readouterr().out
    measurements = plan()
    assert len({x.name for x in measurements}) == len(measurements)
    for x in measurements:
        assert f"{x.name}: " in printed
        assert x.decides in printed
    assert f"all: {sum(x.seconds for x in measurements) / 60:.0f} min" in printed
    assert not any("--compile" in x.command for x in plan(compiles=False))
    assert any("coco-json:d" in x.command for x in plan(data="coco-json:d"))


@pytest.mark.parametrize(("detector", "rate", "detached"), [("atss", 0.01, False), ("mask_rcnn", 0.02, True)])
def test_further_detectors_are_trained_as_in_the_paper(detector: str, rate: float, detached: bool) -> None:
    (command,) = (x.command for x in plan() if x.name == f"train-{detector.replace('_', '-')}")
    overrides = [x for flag, x in itertools.pairwise(command) if flag == "--set"]
    arms = {x.name: x for x in grid("components", "small").arms}
    baseline, lgd = (experiment_of(arms[x], preset("small"), overrides) for x in ("baseline", "LGD"))
    assert {x.detector.name for x in (baseline, lgd)} == {detector}
    assert {x.schedule.lr_per_16 for x in (baseline, lgd)} == {rate}
    assert (baseline.method.name, lgd.method.name) == ("baseline", "lgd")
    assert settings(lgd)["method.detach_appearance"] is detached


def _speeds(directory: Path, rows: list[tuple[str, str, float, float]]) -> None:
    directory.mkdir(parents=True)
    frame = pd.DataFrame(rows, columns=["arm", "side", "median_ms", "peak_mib"])
    frame.assign(gpu="1 x NVIDIA H100", height=800, width=1252).to_csv(directory / "speed.csv", index=False)


def test_targets_are_of_the_fastest_form(tmp_path: Path) -> None:
    """LGD 210 ms, baseline 150: extra 0.4. FGFI 250 - 150 and its teacher 200: LGD's 60 of 300 are 80% less."""
    _speeds(
        tmp_path / "speed-retinanet",
        [
            ("baseline", "naive fp32", 268, 30000),
            ("baseline", "ours bf16", 150, 20000),
            ("LGD", "ours fp32", 300, 40960),
            ("LGD", "ours bf16", 210, 28 * 1024),
            ("FGFI", "ours bf16", 250, 30000),
            ("FGFI's teacher in training", "ours bf16", 200, 30000),
        ],
    )
    _speeds(tmp_path / "speed-retinanet-compiled-lgd", [("LGD", "ours bf16 compiled", 190, 24 * 1024)])
    assert targets(tmp_path)[0][1:] == ["190", "yes"]
    # FGFI was not compiled: what LGD saves is of the forms that both have.
    assert targets(tmp_path)[3][1:] == ["0.8", "yes"]
    (tmp_path / "speed-retinanet-compiled-lgd" / "speed.csv").unlink()
    speed = tmp_path / "speed-retinanet" / "speed.csv"
    sound = speed.read_text()
    pd.read_csv(speed).assign(loss_difference=[0, 2.1e5, 0, 0, 0, 0]).to_csv(speed, index=False)
    assert targets(tmp_path)[0][1:] == ["210", "losses differ"]
    speed.write_text(sound)
    # Others' figures are of batches of real images, and of one kind of GPU.
    pd.read_csv(speed).assign(width=1067).to_csv(speed, index=False)
    assert targets(tmp_path)[0][1:] == ["210", "smaller images"]
    pd.read_csv(speed).assign(gpu="1 x NVIDIA H200").to_csv(speed, index=False)
    assert targets(tmp_path)[0][1:] == ["210", "not on H100"]
    speed.write_text(sound)
    found = {row[0].split(",")[0] + row[0].split(",")[1]: row[1:] for row in targets(tmp_path)}
    assert found["RetinaNet + LGD ms"] == ["210", "yes"]
    assert found["RetinaNet + LGD GiB"] == ["28", "no"]
    assert found["LGD's extra over the fastest baseline at most 0.45"] == ["0.4", "yes"]
    assert found["LGD's method-specific cost below FGFI's at least 0.70"] == ["0.8", "yes"]
    assert found["Faster R-CNN + LGD ms"] == ["not measured", ""]
    assert figures("speed-retinanet", tmp_path / "speed-retinanet").startswith("FGFI 250 ms")
    assert figures("speed-retinanet", tmp_path / "nothing") == ""
    _speeds(tmp_path / "changes", [("LGD", "ours", 100, 1), ("LGD", "ours without Triton kernels", 150, 1)])
    assert figures("changes", tmp_path / "changes") == "ours 100 ms, ours without Triton kernels 150 ms"


def test_failed_tests_are_named(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>'
        '<testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert figures("gpu-tests", tmp_path) == "1 passed, 1 failed, 1 skipped: b"


def test_the_newest_session_on_a_gpu_is_shown(tmp_path: Path, measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert newest_session(tmp_path) is None
    for name, dry in (("gpu-session_h100_2026-01-01", False), ("gpu-session_2cores_2026-02-01", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "session.json").write_text(json.dumps({"dry": dry, "measurements": {}}))
    assert newest_session(tmp_path) == tmp_path / "gpu-session_h100_2026-01-01"
    assert newer_sessions(tmp_path) == []
    with_note = tmp_path / "gpu-session_h100_2026-01-02"
    with_note.mkdir()
    (with_note / "session.json").write_text(json.dumps({"dry": False, "measurements": {}}))
    (with_note / "note.md").write_text("**Known:**\n\n- Its clock was\n  wrong. More.\n")
    assert newest_session(tmp_path) == tmp_path / "gpu-session_h100_2026-01-01"
    assert newer_sessions(tmp_path) == [with_note]
    measure(_measurement("first", "pass"))
    shown = page(tmp_path / "s")
    assert "| first" in shown
    shutil.copytree(tmp_path / "s", newest_session(tmp_path) or tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(performance_page, "RESULTS", tmp_path)
    empty = f"{performance_page.begin_marker('gpu')}\n<!-- gpu:end -->"
    cost = performance_page.with_session(empty, Path("cost.md"))
    assert f"{shown}\nNewer, but not shown here" in cost
    assert "(performance.md#gpu-session_h100_2026-01-02). Its clock was wrong.\n" in cost
    assert "not measured" in shown
    assert "1 x G, driver 1" in shown
