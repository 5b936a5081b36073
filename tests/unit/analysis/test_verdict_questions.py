"""The verdict: which arms are asked about, of which seeds, and what is said of those without a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.plan import describe
from analysis.load import Run
from analysis.report.html_report import write_page
from analysis.stats.sequential import confidence_at_each_look
from analysis.table_builders.sweep_table import Sweep
from analysis.verdicts.next_step import ANOTHER_LOOK, ON_YOUR_DATA, next_step
from analysis.verdicts.questions import asked
from analysis.verdicts.sentences import conclusion, hours_text, notes, numbers, overall, parts, sentence, summary
from analysis.verdicts.verdict import verdicts
from lgd.config.extra_arms import ExtraArms
from lgd.results.record import Record

from .conftest import MakeRecord
from .made_arms import ended, one_verdict, trained

LONGER = "baseline at the cost of LGD"

RESUME = "python ablations/run.py --resume "


def _of_seeds(
    make: MakeRecord, arm: str, aps: Sequence[float], seconds: float = 190.0, changes: Mapping[str, Any] | None = None
) -> list[Record]:
    """An arm's seeds from 0 on; changes: of its settings."""
    records = [make(arm, seed, ap, seconds) for seed, ap in enumerate(aps)]
    return [x.model_copy(update={"experiment": x.experiment.override(changes or {})}) for x in records]


def _longer(make: MakeRecord, aps: Sequence[float]) -> list[Record]:
    return _of_seeds(make, LONGER, aps, changes={"method.name": "baseline", "schedule.steps": 1100})


# ------------------------------------------------------------------------------------ the best of several


def test_the_best_arm_gains_most_over_its_own_reference(make_record: MakeRecord, tmp_path: Path) -> None:
    """Not the one with the highest AP: that depends on the detector, too."""
    records = []
    for title, detector, base, gains in (
        ("RetinaNet", "retinanet", 20.0, (2.0, 1.0)),
        ("FCOS", "fcos", 40.0, (0.5, 0.1)),
    ):
        for arm, ap in (("baseline", base), ("LGD", base + gains[0]), ("without adapter", base + gains[1])):
            own: dict[str, Any] = {"detector.name": detector, "method.name": "baseline" if arm == "baseline" else "lgd"}
            if arm == "without adapter":
                own["method.adapter"] = False
            records += _of_seeds(make_record, f"{title} {arm}", (ap, ap + 0.1, ap - 0.1), changes=own)
    records = [x.model_copy(update={"grid": "evidence"}) for x in records]
    verdict = one_verdict(records, tmp_path)
    assert (verdict.question.arm, verdict.question.reference) == ("RetinaNet LGD", "RetinaNet baseline")
    assert verdict.question.best_of == 4


def test_an_arm_of_one_seed_is_not_the_best_where_others_have_three(make_record: MakeRecord, tmp_path: Path) -> None:
    records = trained(make_record, "baseline", 30.0)
    for i in range(4):
        records += trained(make_record, f"arm {i}", 30.5 + i / 10, 190.0)
    lucky = _of_seeds(make_record, "lucky", (33.0,))
    verdict = one_verdict([*records, *lucky], tmp_path)
    assert (verdict.question.arm, verdict.question.best_of) == ("arm 3", 4)
    # Where all have one, the best of them.
    alone = [x for x in [*records, *lucky] if x.experiment.seed == 0]
    verdict = one_verdict(alone, tmp_path)
    assert (verdict.question.arm, verdict.question.best_of) == ("lucky", 5)
    assert "is the best of 5 arms by its mean gain" in summary(alone, tmp_path).notes[0]
    assert "lucky: +3.0 AP (one seed) for 1.90x the training cost" in sentence(verdict)


def test_arms_without_imitation_are_no_question(make_record: MakeRecord, tmp_path: Path) -> None:
    records = trained(make_record, "baseline", 30.0)
    for i in range(4):
        weight = {"method__instructive_weight": 1 + i / 10}
        records += trained(make_record, f"arm {i}", 30.5 + i / 10, 190.0, **weight)
        records += trained(make_record, f"arm {i} alone", 33.0, 190.0, **weight, method__distill_weight=0.0)
    verdict = one_verdict(records, tmp_path)
    assert (verdict.question.arm, verdict.question.best_of) == ("arm 3", 4)
    assert verdict.question.without_imitation == "arm 3 alone"


def _on_parts_of_the_images(make: MakeRecord, directory: Path) -> list[Record]:
    """LGD gains from few images and loses from all; PKD loses."""
    spec = describe("gain-by-data", "nano", seeds=3)
    spec.write(directory)
    records = []
    for fraction, gain in ((0.0625, 5.0), (0.25, 2.0), (1.0, -1.0)):
        suffix = f" on {100 * fraction:g}% of images"
        for arm, name, ap in (("baseline", "baseline", 0.0), ("LGD", "lgd", gain), ("PKD", "pkd", -2.0)):
            off = 0.05 * len(arm)
            aps = [20 + 20 * fraction + ap + x for x in (0.0, off, -off)]
            own = {"method.name": name, "data.train_fraction": fraction}
            of = _of_seeds(make, f"{arm}{suffix}", aps, 100.0 if arm == "baseline" else 190.0, own)
            records += [x.model_copy(update={"grid": "gain-by-data"}) for x in of]
    return records


def _moved(record: Record, ap: float) -> Record:
    assert record.student is not None
    assert record.student.AP is not None
    return record.model_copy(update={"student": record.student.model_copy(update={"AP": record.student.AP + ap})})


def test_of_arms_on_different_data_none_is_the_best(make_record: MakeRecord, tmp_path: Path) -> None:
    """The highest AP is that on all images, where LGD loses; the gains from few images are counted beside it."""
    records = _on_parts_of_the_images(make_record, tmp_path)
    found = verdicts(records, asked(tmp_path, records))
    assert {x.question.arm: x.question.reference for x in found}["LGD on 25% of images"] == "baseline on 25% of images"
    assert {x.question.best_of for x in found} == {1}
    (line,) = summary(records, tmp_path).verdicts
    assert line.conclusion.startswith("Of 6 arms, 4 are not worth it (LGD on 100% of images, PKD on 100% of images, ")
    assert (
        "2 are gaining, with nothing known of longer training at the same cost (LGD on 25% of images, LGD on 6.25"
        in (line.conclusion)
    )
    # Its arms are not marked: no equal cost can be added, and no looks planned.
    assert next_step(found, tmp_path, records).command == ON_YOUR_DATA
    wide = [x if x.arm != "LGD on 25% of images" else _moved(x, (-1.0) ** x.experiment.seed) for x in records]
    step = next_step(verdicts(wide, asked(tmp_path, wide)), tmp_path, wide)
    assert "--until-decided" not in step.command
    assert step.takes.endswith(ANOTHER_LOOK)


def test_the_choice_is_paid_for_at_all_looks_together(make_record: MakeRecord, tmp_path: Path) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    there = replace(asked(tmp_path, records), looks=(3, 5, 7))
    of_four = tuple(replace(x, best_of=4) for x in there.questions)
    (verdict,) = verdicts(records, replace(there, questions=of_four))
    assert verdict.gain is not None
    assert verdict.gain.confidence == confidence_at_each_look((3, 5, 7), 1 - 0.05 / 4)
    # A quarter of each look's level errs more often than that.
    assert 1 - verdict.gain.confidence < (1 - confidence_at_each_look((3, 5, 7))) / 4


# --------------------------------------------------------------------------------- arms without a result


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_an_arm_that_ended_without_a_result_in_every_seed_has_that_verdict(
    status: str, make_record: MakeRecord, plain_directory: Path
) -> None:
    base, lgd = trained(make_record, "baseline", 30.0), trained(make_record, "LGD", 31.0, 190.0)
    records = [*base, *ended(lgd, status, (0, 1, 2, 3, 4))]
    verdict = one_verdict(records, plain_directory)
    assert (verdict.answer, verdict.decided, numbers(verdict)) == ("unknown", True, "")
    assert conclusion(verdict) == f"LGD: no verdict, for all 5 seeds of LGD {status}."
    assert overall([verdict] * 5).startswith("Of 5 arms, 5 are without a result (LGD, ")
    command = next_step([verdict], plain_directory, records).command
    # What diverged would again.
    assert command == (f"{RESUME}{plain_directory}" if status == "failed" else "")
    runs = [Run(x, plain_directory) for x in records]
    page = write_page(plain_directory, Sweep(["baseline", "LGD"], "baseline"), runs).read_text(encoding="utf-8")
    assert f"all 5 seeds of LGD {status}" in page
    assert "There is no verdict yet" not in page


def test_more_seeds_do_not_mend_a_baseline_that_diverged(make_record: MakeRecord, plain_directory: Path) -> None:
    base, lgd = trained(make_record, "baseline", 30.0), trained(make_record, "LGD", 31.0)
    verdict = one_verdict([*ended(base, "diverged", (0, 1, 2, 3, 4)), *lgd], plain_directory)
    assert verdict.decided
    assert conclusion(verdict) == "LGD: no verdict, for all 5 seeds of baseline diverged."
    mixed = ended(ended(base, "diverged", (0, 1)), "failed", (2, 3, 4))
    assert conclusion(one_verdict([*mixed, *lgd], plain_directory)).endswith(
        "for of 5 seeds of baseline 2 diverged and 3 failed."
    )
    # While others are to come, nothing is decided.
    begun = [x for x in ended(base, "diverged", (0, 1)) if x.experiment.seed < 2]
    verdict = one_verdict([*begun, *lgd], plain_directory)
    assert not verdict.decided
    assert "no finished seed in common yet" in conclusion(verdict)


def test_an_equal_cost_baseline_that_was_asked_for_is_waited_for(make_record: MakeRecord, directory: Path) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    verdict = one_verdict(records, directory)
    assert (verdict.answer, verdict.decided, verdict.awaited) == ("unknown", False, True)
    assert sentence(verdict).endswith(f"cannot be said: it gains, and {LONGER} has no result yet.")
    assert next_step([verdict], directory, records).command == f"{RESUME}{directory}"
    # A loss at equal steps is one whatever the longer training gives; an arm of the same cost needs none.
    worse = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 28.0, 190.0)]
    assert one_verdict(worse, directory).answer == "not worth it"
    cheap = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 105.0)]
    assert one_verdict(cheap, directory).answer == "worth it"


def test_an_equal_cost_baseline_that_diverged_is_not_called_unmeasured(
    make_record: MakeRecord, directory: Path
) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    lost = ended(_longer(make_record, (31.0,) * 5), "diverged", (0, 1, 2, 3, 4))
    verdict = one_verdict([*records, *lost], directory)
    assert (verdict.answer, verdict.decided) == ("gain", True)
    assert sentence(verdict).endswith(
        f"LGD gains; whether the same cost spent on longer training gains more is not known: all 5 seeds of {LONGER}"
        " diverged."
    )
    # There is no other longer training to add.
    assert next_step([verdict], directory, [*records, *lost]).command == ON_YOUR_DATA


# ----------------------------------------------------------------------------------------- unlike seeds


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_reason_is_the_difference_that_is_not_known(seeds: int, make_record: MakeRecord, directory: Path) -> None:
    """The gain is clear; what is missing is the longer training's other seeds."""
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    longer = _longer(make_record, (28.0, 27.9)[:seeds])
    verdict = one_verdict([*records, *longer], directory)
    assert (verdict.answer, verdict.more_seeds) == ("unknown", None)
    assert verdict.decisive is verdict.margin
    tell = "1 seed, which tells" if seeds == 1 else "2 seeds, which tell"
    assert sentence(verdict).endswith(
        f"cannot be said: the difference to longer training is known from {tell} nothing of the spread between seeds,"
        " at least 3 are needed."
    )
    assert next_step([verdict], directory, [*records, *longer]).command == f"{RESUME}{directory}"
    # Those that diverged are not run again: more seeds are what is left.
    gone = ended(_longer(make_record, (28.0,) * 5), "diverged", tuple(range(seeds, 5)))
    step = next_step([one_verdict([*records, *gone], directory)], directory, [*records, *gone])
    assert "--until-decided --seeds 5 --max-seeds 15" in step.command


def test_two_seeds_decide_nothing(make_record: MakeRecord, plain_directory: Path) -> None:
    records = [*_of_seeds(make_record, "baseline", (30.0, 30.0)), *_of_seeds(make_record, "LGD", (35.0, 35.1))]
    verdict = one_verdict(records, plain_directory)
    assert verdict.gain is not None
    assert verdict.gain.low is not None
    assert verdict.gain.low > 4
    assert verdict.answer == "unknown"
    assert "2 seeds tell nothing of the spread between seeds" in sentence(verdict)
    # A clear loss of five seeds stands beside a difference of two.
    worse = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 28.0, 190.0)]
    there = _longer(make_record, (27.0, 27.1))
    verdict = one_verdict([*worse, *there], plain_directory)
    assert sentence(verdict).endswith("LGD is not worth it here: it loses AP.")


def test_the_parts_of_a_gain_are_of_the_same_seeds(make_record: MakeRecord, plain_directory: Path) -> None:
    base, lgd = trained(make_record, "baseline", 30.0), _of_seeds(make_record, "LGD", (31.0, 31.4, 31.2, 36.0, 36.0))
    alone = _of_seeds(
        make_record, "only the teacher's loss", (30.5, 30.7, 30.6), changes={"method.distill_weight": 0.0}
    )
    verdict = one_verdict([*base, *lgd, *alone], plain_directory)
    assert verdict.gain is not None
    assert verdict.second_loss is not None
    assert verdict.imitation is not None
    assert verdict.gain.n == 5
    assert verdict.second_loss.seeds == verdict.imitation.seeds == (0, 1, 2)
    assert verdict.second_loss.mean + verdict.imitation.mean == pytest.approx((1.0 + 1.4 + 1.2) / 3)
    assert parts(verdict).count("] (3 seeds) from ") == 2


def test_a_verdict_between_planned_looks_says_so(make_record: MakeRecord, tmp_path: Path) -> None:
    extra = ExtraArms(equal_cost=("longer",))
    describe("components", "nano", arms="baseline,LGD", looks=(3, 5, 7), extra=extra).write(tmp_path)
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    between = "4 seeds are none of these looks: a verdict after them is not covered."
    for seeds, said in ((3, False), (4, True), (5, False)):
        some = [x for x in records if x.experiment.seed < seeds]
        assert (between in notes(one_verdict(some, tmp_path), asked(tmp_path, some))) == said


def test_hours_that_round_to_nothing_have_no_sign() -> None:
    assert [hours_text(x, on_gpu=True) for x in (0.0, -1e-9, 1e-9, -0.04, 9.96)] == [
        "+0 GPU-h", "+0 GPU-h", "+0 GPU-h", "-0.040 GPU-h", "+10.0 GPU-h",
    ]  # fmt: skip
