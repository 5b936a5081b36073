"""The verdict: what is missing of an arm, or of its cost."""

from __future__ import annotations

from pathlib import Path

from analysis.verdicts.sentences import sentence
from lgd.results.record import Pretraining

from .conftest import MakeRecord
from .made_arms import ended, one_verdict, trained


def test_seeds_that_diverged_are_not_missing_by_chance(make_record: MakeRecord, directory: Path) -> None:
    """What is left of the arm that lost them favours it: no answer in its favour stands."""
    base, better = trained(make_record, "baseline", 30.0), trained(make_record, "LGD", 32.0)
    worse = trained(make_record, "LGD", 28.0)
    verdict = one_verdict([*base, *ended(better, "diverged", (3, 4))], directory)
    assert (verdict.answer, verdict.decided) == ("unknown", True)
    assert "cannot be said: 2 of 5 seeds of LGD diverged, which no interval counts." in sentence(verdict)
    verdict = one_verdict([*ended(base, "diverged", (0,)), *better], directory)
    assert verdict.answer == "worth it"
    assert sentence(verdict).endswith("But 1 of 5 seeds of baseline diverged, which no interval counts.")
    assert one_verdict([*base, *ended(worse, "diverged", (3,))], directory).answer == "not worth it"
    assert one_verdict([*ended(base, "diverged", (3,)), *worse], directory).answer == "unknown"
    # The same seeds of both say nothing for either; nor does what another cause ended.
    both = [*ended(base, "diverged", (4,)), *ended(better, "diverged", (4,))]
    assert sentence(one_verdict(both, directory)).endswith("LGD is worth it here.")
    verdict = one_verdict([*base, *ended(better, "failed", (4,))], directory)
    assert sentence(verdict).endswith("worth it here. But 1 of 5 seeds of LGD failed, which no interval counts.")


def test_a_given_teacher_of_unknown_hours_is_named(make_record: MakeRecord, directory: Path) -> None:
    teacher = {
        "fingerprint": "0", "backbone": "r101", "weights": "teacher.pth", "steps": 0, "AP": 40.0,
        "device_seconds": {"evaluation": 1.0}, "reused": True,
    }  # fmt: skip
    base, better = trained(make_record, "baseline", 30.0), trained(make_record, "LGD", 32.0)
    for known in (True, False):
        given = Pretraining.model_validate({**teacher, "hours_known": known})
        verdict = one_verdict([*base, *(x.model_copy(update={"pretraining": given}) for x in better)], directory)
        assert verdict.answer == "worth it"
        assert (
            "But the training of its teacher is not in the cost: method.teacher.hours" in sentence(verdict)
        ) != known


def test_longer_baselines_that_diverged_are_not_missing_by_chance(make_record: MakeRecord, directory: Path) -> None:
    """What is left of them favours them: no answer against the arm stands on it."""
    base, arm = trained(make_record, "baseline", 30.0), trained(make_record, "LGD", 31.0, 190.0)
    longer = trained(make_record, "baseline at the cost of LGD", 33.0, 190.0)
    assert one_verdict([*base, *arm, *longer], directory).answer == "not worth it"
    verdict = one_verdict([*base, *arm, *ended(longer, "diverged", (3, 4))], directory)
    assert verdict.answer == "unknown"
    said = sentence(verdict)
    assert "2 of 5 seeds of baseline at the cost of LGD diverged, which no interval counts" in said
    # Of fewer seeds than the gain is over.
    assert said.count("] (3 seeds)") == 2


def test_more_seeds_than_anybody_trains_are_not_counted(make_record: MakeRecord, directory: Path) -> None:
    base = [*trained(make_record, "baseline", 30.0)]
    wild = [
        x.model_copy(update={"student": x.student.model_copy(update={"AP": 30.0 + 20 * (-1) ** i})})
        for i, x in enumerate(trained(make_record, "LGD", 30.0))
        if x.student
    ]
    assert "; more than 1,000 seeds would be needed, as the 5 seeds spread by 21.9 AP" in sentence(
        one_verdict([*base, *wild], directory)
    )
