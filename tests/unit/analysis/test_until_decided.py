"""The rule of ``--until-decided`` and ``lgd pays`` on simulated sweeps whose truth is known: two differences, the gain
at equal steps and the margin at equal cost, looked at after 3, 5, ... 15 seeds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ablations.plan import describe
from ablations.rounds import LEAST_CHANCE, looks, next_look
from analysis.stats.differences import paired_difference, t_quantile
from analysis.stats.sequential import confidence_at_each_look, predictive_power
from analysis.verdicts.questions import asked
from analysis.verdicts.verdict import Verdict, chance_to_decide, verdicts
from lgd.config.extra_arms import ExtraArms
from lgd.results.record import Record
from lgd.results.sweep_spec import SweepSpec

from .conftest import MakeRecord

SWEEPS = 10_000

LOOKS = looks(None, None)
CONFIDENCE = confidence_at_each_look(LOOKS)

MIN_GAIN, SPREAD = 1.0, 1.3
"""The smallest difference that matters, and the standard deviation of a seed's difference, points of AP."""

WORTH_IT, NOT_WORTH_IT, UNKNOWN = "worth it", "not worth it", "unknown"

Floats = NDArray[np.float64]


class Ended(NamedTuple):
    """How sweeps ended: their answers, the seeds that they trained, and how often they looked (SWEEPS)."""

    answer: NDArray[np.str_]
    seeds: NDArray[np.int64]
    looks: NDArray[np.int64]

    def rate(self, answer: str) -> float:
        return float(np.mean(self.answer == answer))


def _margin(rate: float) -> float:
    """Three standard errors of a rate over so many sweeps."""
    return float(3 * np.sqrt(rate * (1 - rate) / SWEEPS))


def _arms(gain: float, margin: float, sweeps: int = SWEEPS, spread: float = SPREAD) -> Floats:
    """AP (3, sweeps, seeds) of an arm, its baseline and the baseline at equal cost: each has noise of its own, and
    what a seed does to all three."""
    generator = np.random.default_rng(3)
    shared = generator.normal(30, 2, (sweeps, LOOKS[-1]))
    noise = generator.normal(0, spread / np.sqrt(2), (3, sweeps, LOOKS[-1]))
    return shared + noise + np.array([gain, 0.0, gain - margin])[:, None, None]


def _differences(arms: Floats) -> Floats:
    """Gain and margin (2, sweeps, seeds)."""
    return arms[0] - arms[1:]


def _answers(differences: Floats, confidence: float = CONFIDENCE) -> tuple[NDArray[np.str_], Floats, Floats]:
    """What a look at these seeds says, with means and standard deviations (2, sweeps).

    As ``analysis.verdicts.verdict._answer`` does.
    """
    seeds = differences.shape[-1]
    mean, spread = differences.mean(axis=-1), differences.std(axis=-1, ddof=1)
    half = t_quantile(confidence, seeds - 1) * spread / np.sqrt(seeds)
    gains, fails = (mean - half > 0).all(axis=0), (mean + half < MIN_GAIN).any(axis=0)
    return np.where(fails, NOT_WORTH_IT, np.where(gains, WORTH_IT, UNKNOWN)), mean, spread


def _sweep(differences: Floats, *, skip: bool = False) -> Ended:
    """Run the rule. skip: looks without a chance to decide, as the product does; else every planned look is taken."""
    sweeps = differences.shape[1]
    found = Ended(np.full(sweeps, UNKNOWN, "<U12"), np.full(sweeps, LOOKS[-1]), np.zeros(sweeps, int))
    following = np.full(sweeps, LOOKS[0])
    for n in LOOKS:
        here = np.flatnonzero((found.answer == UNKNOWN) & (following == n))
        answer, mean, spread = _answers(differences[:, here, :n])
        found.answer[here], found.seeds[here] = answer, n
        found.looks[here] += 1
        left = answer == UNKNOWN
        if n < LOOKS[-1]:
            rest = [x for x in LOOKS if x > n]
            following[here[left]] = _next_looks(mean[:, left], spread[:, left], n, rest) if skip else rest[0]
    return found


def _next_looks(mean: Floats, spread: Floats, seeds: int, rest: list[int]) -> NDArray[np.int64]:
    """``ablations.rounds.next_look`` of many sweeps with one arm."""
    found = np.full(mean.shape[1], rest[-1])
    for n in reversed(rest):
        each = [predictive_power(*x, seeds, n - seeds, CONFIDENCE, MIN_GAIN) for x in zip(mean, spread, strict=True)]
        chance = np.minimum(*(above for above, _ in each)) + sum(below for _, below in each)
        found[chance >= LEAST_CHANCE] = n
    return found


def _records(make: MakeRecord, arms: Floats, seeds: int) -> list[Record]:
    """arms: AP (3, seeds) of one sweep."""
    longer = {"method.name": "baseline", "schedule.steps": 1100}
    records = []
    for name, aps in zip(("LGD", "baseline", "baseline at the cost of LGD"), arms, strict=True):
        for seed in range(seeds):
            record = make(name, seed, float(aps[seed]), 100.0 if name == "baseline" else 190.0)
            changed = record.experiment.override(longer) if name.startswith("baseline at") else record.experiment
            records.append(record.model_copy(update={"experiment": changed}))
    return records


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the description of a sweep that looks again and again."""
    place = tmp_path_factory.mktemp("sweep")
    extra = ExtraArms(equal_cost=("longer",))
    describe("components", "nano", arms="baseline,LGD", extra=extra, looks=LOOKS, min_gain=MIN_GAIN).write(place)
    return place


def _verdict(make: MakeRecord, directory: Path, arms: Floats, seeds: int) -> Verdict:
    records = _records(make, arms, seeds)
    (found,) = verdicts(records, asked(directory, records))
    return found


@pytest.mark.parametrize(("gain", "margin"), [(0.0, 0.0), (MIN_GAIN, MIN_GAIN), (4 * MIN_GAIN, 2 * MIN_GAIN)])
def test_the_simulated_rule_is_the_products(
    gain: float, margin: float, make_record: MakeRecord, directory: Path
) -> None:
    """Of some sweeps of each truth every look: the answer and the look that follows."""
    arms, spec = _arms(gain, margin, 10), SweepSpec.read(directory)
    told = set()
    for sweep in range(arms.shape[1]):
        for n in LOOKS:
            answer, mean, spread = _answers(_differences(arms[:, sweep : sweep + 1, :n]))
            found = _verdict(make_record, directory, arms[:, sweep], n)
            assert (found.answer, found.decided) == (answer[0], answer[0] != UNKNOWN)
            rest = [x for x in LOOKS if x > n]
            if not found.decided and rest:
                following = next_look([found], spec.model_copy(update={"seeds": n}))
                assert following == _next_looks(mean, spread, n, rest)[0]
            told.add(found.answer)
    assert len(told) > 1


@pytest.mark.parametrize(
    ("gain", "margin", "wrong", "rate"),
    [
        # Of what does nothing both intervals would have to lie above zero at once.
        (0.0, 0.0, WORTH_IT, 0.025),
        # Right is "not worth it": the same cost buys as much otherwise. The interval of the margin alone can err.
        (MIN_GAIN, 0.0, WORTH_IT, 0.025),
        (4 * MIN_GAIN, 0.0, WORTH_IT, 0.025),
        (4 * MIN_GAIN, MIN_GAIN, NOT_WORTH_IT, 0.025),
        # Either of the two can err.
        (MIN_GAIN, MIN_GAIN, NOT_WORTH_IT, 0.05),
        (4 * MIN_GAIN, 4 * MIN_GAIN, NOT_WORTH_IT, 0.0),
    ],
)
@pytest.mark.parametrize("skip", [False, True], ids=["every look", "looks skipped"])
def test_a_wrong_answer_is_as_rare_as_promised(gain: float, margin: float, wrong: str, rate: float, skip: bool) -> None:
    found = _sweep(_differences(_arms(gain, margin)), skip=skip)
    assert found.rate(wrong) <= rate + _margin(rate or 1 / SWEEPS)
    # And sweeps do end: with the right answer more often than not, where the truth lies off both bounds.
    if (gain, margin) != (MIN_GAIN, MIN_GAIN):
        right = NOT_WORTH_IT if wrong == WORTH_IT else WORTH_IT
        assert found.rate(right) > 0.5


def test_two_differences_err_more_often_than_one() -> None:
    """Why 2.5% cannot be promised where both are just as large as what matters."""
    found = _sweep(_differences(_arms(MIN_GAIN, MIN_GAIN)))
    assert found.rate(NOT_WORTH_IT) > 0.025 + _margin(0.025)


@pytest.mark.parametrize(("gain", "margin", "wrong"), [(4.0, 0.0, WORTH_IT), (4.0, MIN_GAIN, NOT_WORTH_IT)])
def test_a_fixed_sweep_that_goes_on_with_planned_looks_errs_in_five_percent_at_most(
    gain: float, margin: float, wrong: str
) -> None:
    """As ``next:`` has it go on: its first look was taken at 95%, which the looks that follow did not plan."""
    differences = _differences(_arms(gain, margin))
    first, _, _ = _answers(differences[..., : LOOKS[0]], 0.95)
    planned = _sweep(differences).answer
    rate = np.mean(np.where(first == UNKNOWN, planned, first) == wrong)
    assert 0.025 + _margin(0.025) < rate <= 0.05
    assert np.mean(planned == wrong) <= 0.025 + _margin(0.025)


@pytest.mark.parametrize("truth", [0.0, MIN_GAIN, 2 * MIN_GAIN])
@pytest.mark.parametrize("spread", [SPREAD, 3.0])
def test_skipping_looks_that_cannot_decide_saves_rounds_and_costs_hardly_a_seed(truth: float, spread: float) -> None:
    differences = _differences(_arms(truth, truth, spread=spread))
    every, some = _sweep(differences), _sweep(differences, skip=True)
    # A sweep that skips looks ends at none that the other has not taken: as early at best.
    assert (some.seeds >= every.seeds).all()
    assert some.seeds.mean() < 1.005 * every.seeds.mean()
    assert some.looks.mean() < 0.85 * every.looks.mean()
    # Nor does it lose answers.
    assert np.mean(some.answer != UNKNOWN) > np.mean(every.answer != UNKNOWN) - 0.005
    if spread == 3.0:
        assert some.looks.mean() < 2 / 3 * every.looks.mean()


def test_predictive_power_by_drawing_every_seed() -> None:
    """Against the definition: a truth drawn given three seeds, seeds from that truth, and the interval of them all."""
    first, more, draws = np.array([1.9, 2.4, 1.1]), 4, 4000
    generator, mean, spread = np.random.default_rng(5), first.mean(), first.std(ddof=1)
    above = below = 0
    for _ in range(draws):
        variance = 2 * spread**2 / (generator.standard_normal(2) ** 2).sum()
        truth = generator.normal(mean, np.sqrt(variance / 3))
        values = [*first, *generator.normal(truth, np.sqrt(variance), more)]
        found = paired_difference(dict(enumerate(values)), dict.fromkeys(range(7), 0.0), CONFIDENCE)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        above += found.low > 0
        below += found.high < 2.0
    told = [float(x) for x in predictive_power(mean, spread, 3, more, CONFIDENCE, 2.0)]
    assert 0.1 < told[0] < 0.9
    assert told == pytest.approx([above / draws, below / draws], abs=4 * 0.5 / np.sqrt(draws))
    # One seed more is drawn too; nothing is left open where seeds do not differ.
    assert 0 < float(predictive_power(mean, spread, 3, 1, CONFIDENCE, 2.0)[0]) < told[0]
    assert [float(x) for x in predictive_power(1.0, 0.0, 3, 2, CONFIDENCE, 0.5)] == [1.0, 0.0]


def test_the_chance_to_decide_is_one_where_the_spread_is_not_known(make_record: MakeRecord, directory: Path) -> None:
    arms = _arms(MIN_GAIN, MIN_GAIN, 1)[:, 0]
    assert chance_to_decide(_verdict(make_record, directory, arms, 2), 1) == 1.0
    three = _verdict(make_record, directory, arms, 3)
    assert 0.0 < chance_to_decide(three, 2) < chance_to_decide(three, 12) <= 1.0
