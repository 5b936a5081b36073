"""The question "does it pay here?", end to end: real trainings under Ray, a few steps each."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from ablations.pays import main
from tests.integration.commands import ONE_BY_ONE, QUICK, without_figures


def _pays(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), without_figures():
        status = main(arguments)
    assert status == 0, out.getvalue()
    return out.getvalue()


@pytest.mark.slow
def test_pays_trains_what_the_answer_needs_and_answers(tmp_path: Path, ray_session: None) -> None:
    """Baseline and method, then the baseline at equal cost; nothing is learnt in six steps, so no seed is added."""
    given = ["--data", "shapes", *QUICK, *ONE_BY_ONE, "--output", str(tmp_path)]
    said = _pays(*given)
    assert "preset nano: baseline, LGD, baseline at the cost of LGD; 3 seeds of each, then more, 15 at most" in said
    assert "6 trials, 6 to run" in said
    assert "9 trials, 3 to run" in said
    assert "after 3 seeds: LGD: " in said
    assert "cannot be said: both are below AP 5, where nothing has been learnt yet: train longer" in said
    assert "next: python ablations/run.py --grid schedule-length --preset nano" in said
    sweep = json.loads((tmp_path / "sweep.json").read_text())
    assert sweep["steps"]["baseline at the cost of LGD"] > 6
    assert (sweep["seeds"], sweep["looks"][:2]) == (3, [3, 5])
    assert "LGD over longer training" in (tmp_path / "table.md").read_text().splitlines()[0]
    # The same command goes on, with nothing left to do.
    assert "9 trials, 0 to run" in _pays(*given, "--accept-other-code")
