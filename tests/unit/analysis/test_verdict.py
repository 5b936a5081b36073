"""The verdict: from records to a sentence, or to why there is none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ablations.plan import describe
from analysis.verdicts.next_step import ON_YOUR_DATA, next_step
from analysis.verdicts.questions import asked
from analysis.verdicts.sentences import largest, notes, overall, sentence, summary
from analysis.verdicts.verdict import verdicts
from lgd.config.extra_arms import AGAIN_SEEDS, ExtraArms
from lgd.results.record import Contention, EvaluationPoint, Record, Scores

from .conftest import MakeRecord
from .made_arms import ended, one_verdict, trained

LONGER = "baseline at the cost of LGD"


def test_a_gain_that_longer_training_does_not_reach(make_record: MakeRecord, directory: Path) -> None:
    records = [
        *trained(make_record, "baseline", 30.0),
        *trained(make_record, "LGD", 31.2, 190.0),
        *trained(make_record, LONGER, 30.6, 191.0, method__name="baseline", schedule__steps=1100),
        *trained(make_record, "bigger baseline at the cost of LGD", 30.4, 190.0, method__name="baseline"),
    ]
    verdict = one_verdict(records, directory)
    assert verdict.answer == "worth it"
    assert verdict.decided
    # t(4, 0.975) = 2.776, s = 0.158 over five seeds. LGD and the longer baseline have the same spread here.
    assert sentence(verdict) == (
        "LGD: +1.2 AP [+1.0, +1.4] over 5 seeds for 1.90x the training cost (+0.025 CPU-h);"
        " the same cost spent on longer training of baseline: +0.6 [+0.4, +0.8];"
        " on a bigger backbone: +0.4 [+0.2, +0.6];"
        " LGD over longer training: +0.6 [+0.6, +0.6]. LGD is worth it here."
    )
    assert next_step([verdict], directory, records).command == ON_YOUR_DATA


def test_a_gpu_sweep_says_gpu_hours(make_record: MakeRecord, directory: Path) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    on_gpu = [x.model_copy(update={"hardware": {"gpu": "H100"}}) for x in records]
    assert "(+0.025 GPU-h)" in sentence(one_verdict(on_gpu, directory))


def test_an_arm_that_costs_no_more_needs_no_longer_baseline(make_record: MakeRecord, directory: Path) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 105.0)]
    assert one_verdict(records, directory).answer == "worth it"


def test_without_the_equal_cost_baseline_a_gain_is_only_a_gain(make_record: MakeRecord, plain_directory: Path) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    verdict = one_verdict(records, plain_directory)
    assert verdict.answer == "gain"
    assert "was not measured (--equal-cost)" in sentence(verdict)
    command = next_step([verdict], plain_directory, records).command
    assert command.startswith("python ablations/run.py --grid components --preset nano --seeds 5 --equal-cost longer")


@pytest.mark.parametrize(
    ("longer", "seconds", "words"),
    [
        # The one that trained less is behind, the one that trained more is ahead: that may be all there is to it.
        (30.6, 95.0, "cannot be said: the longer training of baseline cost 0.50x what LGD did, not the same."),
        (32.0, 380.0, "cannot be said: the longer training of baseline cost 2.00x what LGD did, not the same."),
        # Although it trained less it is ahead, and the other way round.
        (32.0, 95.0, "LGD is not worth it here: longer training is the better use of that cost."),
        (30.6, 380.0, "LGD is worth it here."),
    ],
)
def test_longer_training_has_to_cost_the_same(
    longer: float, seconds: float, words: str, make_record: MakeRecord, directory: Path
) -> None:
    records = [
        *trained(make_record, "baseline", 30.0),
        *trained(make_record, "LGD", 31.2, 190.0),
        *trained(make_record, LONGER, longer, seconds, method__name="baseline", schedule__steps=1100),
    ]
    assert sentence(one_verdict(records, directory)).endswith(words)


def test_a_machine_that_was_busier_makes_no_training_longer(make_record: MakeRecord, directory: Path) -> None:
    """1.9 times the steps cost 1.9 times as much, whatever the clock said of them."""
    lgd = trained(make_record, "LGD", 31.2, 190.0)
    longer = trained(make_record, LONGER, 32.0, 380.0, method__name="baseline", schedule__steps=1140)
    steps = {record.experiment.schedule.steps for record in lgd}
    assert steps == {600}

    def cores(records: list[Record], used: float) -> list[Record]:
        busy = Contention(own_cores=used, other_cores=0.5, cores=2)
        return [record.model_copy(update={"contention": busy}) for record in records]

    for used, ratio in ((0.95, 2.0), (0.5, 1.0)):
        records = [*trained(make_record, "baseline", 30.0), *cores(lgd, 0.97), *cores(longer, used)]
        verdict = one_verdict(records, directory)
        assert verdict.equal_cost_ratio == pytest.approx(ratio)
        assert bool(verdict.obstacles) == (ratio == 2)
        assert (
            "the same cost by its steps, measured 2.00x at another load of the cores, spent" in sentence(verdict)
        ) == (ratio == 1)
    # A GPU's clock is believed, whatever the loaders had to do.
    on_gpu = [x.model_copy(update={"hardware": {"gpu": "1 x H100"}}) for x in records]
    assert one_verdict(on_gpu, directory).equal_cost_ratio == pytest.approx(2.0)


def test_where_hardware_was_unlike_nothing_is_said_of_the_same_cost(make_record: MakeRecord, directory: Path) -> None:
    other = {"gpu": "none", "cpu": "another", "cores": "2"}
    records = [
        *trained(make_record, "baseline", 30.0),
        *(x.model_copy(update={"hardware": other}) for x in trained(make_record, "LGD", 31.2, 190.0)),
        *trained(make_record, LONGER, 30.1, 190.0, method__name="baseline", schedule__steps=950),
    ]
    verdict = one_verdict(records, directory)
    assert (verdict.answer, verdict.equal_cost_ratio) == ("unknown", None)
    assert "trained on unlike hardware" in sentence(verdict)
    assert "the same cost" not in sentence(verdict)


def test_an_arm_that_loses_loses_whatever_longer_training_cost(make_record: MakeRecord, directory: Path) -> None:
    records = [
        *trained(make_record, "baseline", 30.0),
        *trained(make_record, "LGD", 28.0, 190.0),
        *trained(make_record, LONGER, 32.0, 380.0, method__name="baseline", schedule__steps=1100),
    ]
    verdict = one_verdict(records, directory)
    assert (verdict.answer, verdict.obstacles) == ("not worth it", ())


def test_a_table_of_lengths_says_what_the_same_cost_buys(make_record: MakeRecord, plain_directory: Path) -> None:
    directory = plain_directory
    double = trained(make_record, "baseline at 2x steps", 33.0, 200.0, method__name="baseline", schedule__steps=1100)
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0), *double]
    (verdict,) = (x for x in verdicts(records, asked(directory, records)) if x.question.arm == "LGD")
    assert "was not measured (--equal-cost)" in sentence(verdict)
    records = [x.model_copy(update={"grid": "schedule-length"}) for x in records]
    (verdict,) = (x for x in verdicts(records, asked(directory, records)) if x.question.arm == "LGD")
    assert sentence(verdict).endswith("what the same cost buys in longer training is in the table of lengths.")
    assert next_step([verdict], directory, records).command == ON_YOUR_DATA


@pytest.mark.parametrize(
    ("lgd", "longer", "words"),
    [
        (29.0, None, "LGD is not worth it here: it loses AP."),
        (30.1, None, "LGD is not worth it here: it is not 0.5 AP or more ahead of the baseline."),
        (30.5, 32.0, "LGD is not worth it here: longer training is the better use of that cost."),
        (31.2, 30.6, "LGD is worth it here."),
        # More AP for the same cost, and less than what matters.
        (31.2, 31.1, "LGD is not worth it here: it is ahead of longer training, but by less than 0.5 AP."),
        (30.3, None, "LGD is not worth it here: it gains, but by less than 0.5 AP."),
        # Longer training may do harm; to beat it is not enough.
        (29.5, 28.0, "LGD is not worth it here: it loses AP."),
    ],
)
def test_the_last_words(lgd: float, longer: float | None, words: str, make_record: MakeRecord, directory: Path) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", lgd, 190.0)]
    if longer is not None:
        records += trained(make_record, LONGER, longer, 190.0, method__name="baseline", schedule__steps=1100)
    assert sentence(one_verdict(records, directory)).endswith(words)


def test_too_few_seeds_says_how_many_more(make_record: MakeRecord, plain_directory: Path) -> None:
    directory = plain_directory
    spread = [make_record("LGD", seed, 30.2 + off, 190.0) for seed, off in enumerate((1.5, -1.5, 0.0, 1.0, -1.0))]
    records = [*trained(make_record, "baseline", 30.0), *spread]
    verdict = one_verdict(records, directory)
    assert not verdict.decided
    assert verdict.more_seeds is not None
    text = sentence(verdict)
    assert f"about {verdict.more_seeds} more seeds ({5 + verdict.more_seeds} in all) would tell with 80% power" in text
    looks = f"--until-decided --seeds 5 --max-seeds {5 + verdict.more_seeds + verdict.more_seeds % 2} "
    assert looks in next_step([verdict], directory, records).command
    two = [x for x in records if x.experiment.seed < 2]
    assert "2 seeds tell nothing of the spread" in sentence(one_verdict(two, directory))
    assert one_verdict(two, directory).more_seeds is None
    alone = [x for x in records if x.arm == "LGD"]
    assert "no finished seed in common" in sentence(one_verdict(alone, directory))


def test_what_keeps_the_comparison_from_being_fair(make_record: MakeRecord, directory: Path) -> None:
    base = trained(make_record, "baseline", 30.0)
    slow = trained(make_record, "LGD", 29.0, 190.0, schedule__lr_per_16=0.002)
    verdict = one_verdict([*base, *slow], directory)
    assert verdict.answer == "unknown"
    assert "they were trained at unequal learning rates (0.001 and 0.005)" in sentence(verdict)
    assert "--grid learning-rate --preset nano" in next_step([verdict], directory, [*base, *slow]).command
    floor = [*trained(make_record, "baseline", 3.0), *trained(make_record, "LGD", 2.0, 190.0)]
    verdict = one_verdict(floor, directory)
    assert "both are below AP 5" in sentence(verdict)
    assert "--grid schedule-length --preset nano" in next_step([verdict], directory, floor).command
    ceiling = [*trained(make_record, "baseline", 97.0), *trained(make_record, "LGD", 96.0, 190.0)]
    assert "both are above AP 95" in sentence(one_verdict(ceiling, directory))


def _with_teacher(records: list[Record], teacher: float) -> list[Record]:
    """Evaluated once, at the end, with this AP of the teacher."""
    scores = Scores(AP=teacher, AP50=None, AP75=None, APs=None, APm=None, APl=None)
    return [
        x.model_copy(update={"evaluations": [EvaluationPoint(step=600, student=x.student, teacher=scores)]})
        for x in records
        if x.student
    ]


def test_a_teacher_that_never_led_says_nothing(make_record: MakeRecord, plain_directory: Path) -> None:
    directory = plain_directory
    base, worse = trained(make_record, "baseline", 30.0), trained(make_record, "LGD", 28.0, 190.0)
    told = "the teacher never beat the student, which says nothing for or against LGD at full length"
    verdict = one_verdict([*base, *_with_teacher(worse, 20.0)], directory)
    assert verdict.answer == "unknown"
    assert sentence(verdict).endswith(
        f"LGD is not worth it as trained here: it loses AP. That is no verdict on LGD itself: {told}."
    )
    assert one_verdict([*base, *_with_teacher(worse, 40.0)], directory).answer == "not worth it"
    assert overall([verdict] * 5).startswith(
        "Of 5 arms, 5 are not worth it as trained, with a teacher that never led ("
    )
    # With another reason not to trust the numbers they say nothing at all.
    low = [*trained(make_record, "baseline", 3.0), *_with_teacher(trained(make_record, "LGD", 1.0, 190.0), 0.5)]
    assert "Whether LGD is worth it here cannot be said: both are below AP 5" in sentence(one_verdict(low, directory))
    # A gain that is there all the same is one.
    better = trained(make_record, "LGD", 32.0, 190.0)
    verdict = one_verdict([*base, *_with_teacher(better, 20.0)], directory)
    assert verdict.answer == "gain"
    assert sentence(verdict).endswith(f"But {told}.")


def test_what_the_gain_is_made_of(make_record: MakeRecord, directory: Path) -> None:
    records = [
        *trained(make_record, "baseline", 30.0),
        *trained(make_record, "LGD", 31.2, 190.0),
        *trained(make_record, "only the teacher's loss", 30.9, 180.0, method__distill_weight=0.0),
        *trained(make_record, LONGER, 30.7, 191.0, method__name="baseline", schedule__steps=1100),
    ]
    verdict = one_verdict(records, directory)
    (line,) = notes(verdict, asked(directory, records))
    assert line == (
        "LGD's gain is +0.9 [+0.7, +1.1] from its second loss (only the teacher's loss) and +0.3 [+0.3, +0.3] from"
        " imitation; more training at the same cost gives +0.7 [+0.5, +0.9]."
    )


def test_the_baseline_twice(make_record: MakeRecord, directory: Path) -> None:
    """Paired with the first by seed, though its seeds are others."""
    second = [
        x.model_copy(update={"experiment": x.experiment.override({"seed": AGAIN_SEEDS + seed})})
        for seed, x in enumerate(trained(make_record, "baseline again", 30.1, method__name="baseline"))
    ]
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0), *second]
    lines = summary(records, directory).notes
    assert (
        "baseline trained a second time with other seeds differs by +0.1 AP [-0.1, +0.3] (5 seeds each): what no"
        " difference looks like here."
    ) in lines


def test_the_best_of_many_arms_pays_for_being_chosen(make_record: MakeRecord, tmp_path: Path) -> None:
    records = trained(make_record, "baseline", 30.0)
    for i in range(5):
        records += trained(make_record, f"arm {i}", 30.5 + i / 10, 190.0)
    verdict = one_verdict(records, tmp_path)
    assert (verdict.question.arm, verdict.question.best_of) == ("arm 4", 5)
    assert verdict.gain is not None
    assert verdict.gain.confidence == pytest.approx(0.99)
    assert "arm 4 is the best of 5 arms with 3 seeds or more by its mean gain" in summary(records, tmp_path).notes[0]


MANY = (("LGD", 31.0), ("FGFI", 29.0), ("PKD", 29.5), ("CWD", 32.0), ("MGD", 30.0))


def test_many_verdicts_are_counts_and_the_largest_gain(make_record: MakeRecord, tmp_path: Path) -> None:
    describe("pays", "nano", seeds=5).write(tmp_path)
    records = trained(make_record, "baseline", 30.0)
    for arm, ap in MANY:
        records += trained(make_record, arm, ap, 190.0)
    (line,) = summary(records, tmp_path).verdicts
    assert line.conclusion == (
        "Of 5 arms, 3 are not worth it (FGFI, PKD, MGD); 2 are gaining, with nothing known of longer training at the"
        " same cost (LGD, CWD). The largest of 5 gains over the baseline is +2.0 AP [+1.8, +2.2] (CWD); picking the"
        " largest overstates it."
    )


def test_of_many_verdicts_the_largest_margin_at_equal_cost_is_told(make_record: MakeRecord, tmp_path: Path) -> None:
    """It may be another arm's than the largest gain, and of fewer arms; those whose comparison is not fair are none."""
    describe("pays", "nano", seeds=5, extra=ExtraArms(equal_cost=("longer",))).write(tmp_path)
    records = trained(make_record, "baseline", 30.0)
    for arm, ap in MANY:
        records += trained(make_record, arm, ap, 190.0)
    for arm, ap in (("LGD", 30.4), ("CWD", 31.7)):
        longer = f"baseline at the cost of {arm}"
        records += trained(make_record, longer, ap, 190.0, method__name="baseline", schedule__steps=1100)
    found = verdicts(records, asked(tmp_path, records))
    assert largest(found) == (
        "The largest of 5 gains over the baseline is +2.0 AP [+1.8, +2.2] (CWD), the largest of 2 gains over the"
        " baseline at equal cost is +0.6 AP [+0.6, +0.6] (LGD); picking the largest overstates it."
    )
    assert overall(found).endswith(f"). {largest(found)}")
    obstructed = [
        replace(x, obstacles=("they were trained at unequal learning rates",)) if x.question.arm == "CWD" else x
        for x in found
    ]
    assert largest(obstructed) == (
        "The largest of 4 gains over the baseline is +1.0 AP [+0.8, +1.2] (LGD), the only gain over the baseline at"
        " equal cost is +0.6 AP [+0.6, +0.6] (LGD); picking the largest overstates it."
    )
    assert largest([replace(x, obstacles=("of no use",)) for x in found]) == ""


def test_planned_looks_widen_the_interval(make_record: MakeRecord, directory: Path) -> None:
    records = [*trained(make_record, "baseline", 30.0), *trained(make_record, "LGD", 31.2, 190.0)]
    once = one_verdict(records, directory)
    describe("components", "nano", looks=(3, 5, 7)).write(directory)
    looked = one_verdict(records, directory)
    assert looked.gain is not None
    assert once.gain is not None
    assert looked.gain.confidence > once.gain.confidence
    assert looked.gain.low is not None
    assert once.gain.low is not None
    assert looked.gain.low < once.gain.low
    assert "Looks planned after 3, 5, 7 seeds" in summary(records, directory).notes[0]


def test_each_arm_at_its_best_rate(make_record: MakeRecord, directory: Path) -> None:
    """Trained at three rates each, arms are compared at the best of each, which none of the ends is."""
    describe("learning-rate", "nano", seeds=5).write(directory)
    records = []
    for factor, base, lgd in ((0.25, 20.0, 19.0), (0.5, 25.0, 22.0), (1.0, 24.0, 26.0), (2.0, 18.0, 21.0)):
        at = "" if factor == 1 else f" at {factor:g}x rate"
        for arm, name, ap in (("baseline", "baseline", base), ("LGD", "lgd", lgd)):
            rate = {"schedule__lr_per_16": 0.1 * factor, "method__name": name}
            records += trained(make_record, f"{arm}{at}", ap, 100.0, **rate)
    verdict = one_verdict(records, directory)
    assert (verdict.question.arm, verdict.question.reference) == ("LGD", "baseline at 0.5x rate")
    assert verdict.question.best_rates
    assert sentence(verdict).startswith(
        "LGD over baseline at 0.5x rate, each at its best learning rate: +1.0 AP [+1.0, +1.0] over 5 seeds"
    )
    low = [x for x in records if x.experiment.schedule.lr_per_16 <= 0.1]
    assert "is best at the highest learning rate tried" in sentence(one_verdict(low, directory))
    # The best of a rate's seeds is not its AP where the others diverged.
    lucky = ended(trained(make_record, "baseline at 2x rate", 27.0, schedule__lr_per_16=0.2), "diverged", (0, 1))
    assert one_verdict([x for x in records if x.arm != lucky[0].arm] + lucky, directory).question == verdict.question


def test_verdicts_of_simulated_sweeps_are_right_as_often_as_they_should(
    make_record: MakeRecord, tmp_path: Path
) -> None:
    """Of methods that do nothing, one in forty is taken for a gain; of those that gain much, most are found."""
    generator, base = np.random.default_rng(0), [make_record("baseline", seed, 30.0, 100.0) for seed in range(5)]
    lgd = [make_record("LGD", seed, 30.0, 100.0) for seed in range(5)]
    there = asked(tmp_path, [*base, *lgd])

    def answers(truth: float, sweeps: int = 300) -> list[str]:
        found: list[str] = []
        for _ in range(sweeps):
            for i, record in enumerate(lgd):
                assert record.student is not None
                scores = record.student.model_copy(update={"AP": 30.0 + truth + generator.normal(0, 1.0)})
                lgd[i] = record.model_copy(update={"student": scores})
            found.append(verdicts([*base, *lgd], there)[0].answer)
        return found

    assert answers(0.0).count("worth it") <= 0.025 * 300 + 3 * (300 * 0.025 * 0.975) ** 0.5
    # The power of five seeds at twice their spread is 0.9.
    assert answers(2.0).count("worth it") > 0.85 * 300


def test_a_verdict_loads_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from pathlib import Path; from analysis.load import load_records;"
        " from analysis.verdicts.sentences import summary;"
        " directory = Path('benchmarks/results/evidence-bccd_tiny_2cores_2026-11-25');"
        " assert any('RetinaNet LGD: ' in x for x in summary(load_records(directory), directory).lines);"
        " print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
