"""What is checked before time is spent."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ablations.checks import Problems, _built, prepare
from ablations.cpu_time import check_cpu_time
from ablations.damaged import damage, set_aside
from ablations.plan import describe, trials_of
from ablations.ray_sweep import ray_log
from ablations.status import show_status
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.training import estimate


def test_problems_are_one_line_or_a_list() -> None:
    def refuse(text: str) -> None:
        raise InputError(text)

    problems = Problems(all_of_them=True)
    problems.refuse()
    for arm in ("a", "b", "c", "d"):
        with problems.noted(arm):
            refuse("no weights")
    with pytest.raises(InputError) as refused:
        problems.refuse()
    assert str(refused.value) == "arms 'a', 'b', 2 more: no weights"
    with problems.noted():
        refuse("no space")
    with pytest.raises(InputError) as refused:
        problems.refuse()
    assert str(refused.value).splitlines() == [
        "not ready, 2 things are in the way:",
        "  arms 'a', 'b', 2 more: no weights",
        "  no space",
    ]
    # A run need not know more than the first.
    with pytest.raises(InputError, match="arm 'a': no weights"), Problems(all_of_them=False).noted("a"):
        refuse("no weights")


def test_a_model_that_does_not_fit_is_one_line() -> None:
    def build() -> str:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory: you tried 5 bytes\nmore")

    with pytest.raises(InputError, match="does not fit into this machine's memory .*you tried 5 bytes"):
        _built(build)


@pytest.mark.parametrize(("seconds", "refused"), [(86_401.0, True), (80_000.0, False)])
def test_days_on_the_cpu_are_asked_about(
    seconds: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preset for the CPU is not even timed."""
    timed = []

    def measured(experiment: object) -> float:
        timed.append(experiment)
        return seconds

    monkeypatch.setattr(estimate, "cpu_seconds", measured)
    out = io.StringIO()
    console = Console(file=out, width=200)
    check_cpu_time(trials_of(describe("components", "tiny"), tmp_path).trials, 1, console)
    assert timed == []
    assert out.getvalue() == ""
    paper = trials_of(describe("components", "paper", arms="baseline"), tmp_path).trials
    if refused:
        with pytest.raises(InputError, match=r"1 of 1 trials would take about 24\.0 hours .* say --yes"):
            check_cpu_time(paper, 1, console)
    else:
        check_cpu_time(paper, 1, console)
        assert "about 22.2 hours on this machine's CPU" in out.getvalue()
    assert out.getvalue().startswith("no GPU for the trials: measuring how long the CPU will take\n")


def test_absurdly_many_images_get_a_line_at_once(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    spec = describe("components", "tiny", overrides=["data.shapes_train=1000000000"])
    with pytest.raises(InputError, match=r"arm 'baseline': 1,000,000,\d+ synthetic images"):
        prepare(trials_of(spec, tmp_path), console)


def test_a_damaged_record_blocks_nothing(tmp_path: Path) -> None:
    """It is named, left out, and may be trained again."""
    spec = describe("components", "tiny", arms="baseline,LGD")
    good, bad = (trial.directory for trial in trials_of(spec, tmp_path).trials)
    Record(status="finished", arm="baseline", experiment=trials_of(spec, tmp_path).trials[0].experiment).save(good)
    bad.mkdir(parents=True)
    (bad / "record.json").write_text('{"schema_version": 3, "status": "fin')
    out = io.StringIO()
    show_status(trials_of(spec, tmp_path), "lgd sweep resume DIR", Console(file=out, width=300, color_system=None))
    said = out.getvalue()
    assert "1 of 2 trials finished" in said
    assert f"left out: {bad / 'record.json'}:1: not a record" in said
    assert "to train it again: lgd sweep resume DIR --retrain-damaged" in said
    set_aside([good, bad])
    assert damage(bad) == ""
    assert (good / "record.json").exists()
    sweep = trials_of(spec, tmp_path)
    assert (len(sweep.trials), sweep.damaged) == (2, [])


def test_what_ray_says_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ray")
    before = logger.handlers[:]
    with ray_log(tmp_path / "ray.log"):
        logging.getLogger("ray.tune.execution.tune_controller").error("Trial task failed")
        print("An unexpected internal error", file=sys.stderr)
        print("[1/2] a line of ours")
    assert logger.handlers == before
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[1/2] a line of ours\n", "")
    assert (tmp_path / "ray.log").read_text() == "Trial task failed\nAn unexpected internal error\n"
