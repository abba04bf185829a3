"""Intervals and verdicts are those of books and libraries, and err as rarely as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from helpers.evaluate import intervals
from helpers.evaluate.intervals import BETTER, NO_EVIDENCE, WORSE
from helpers.runs.config import Config
from helpers.runs.folder import Run


@given(total=st.integers(1, 3000), share=st.floats(0, 1))
def test_wilson_interval_is_scipys(total, share):
    right = round(share * total)
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    found = intervals.wilson_interval(right, total)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20).filter(lambda v: np.std(v) > 1e-3))
def test_mean_and_interval_is_scipys(values):
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = intervals.mean_and_interval(values)
    assert found == pytest.approx((np.mean(values), expected.low, expected.high))


def test_one_number_has_no_interval():
    mean, low, high = intervals.mean_and_interval([0.3])
    assert mean == 0.3 and np.isnan([low, high]).all()
    assert intervals.verdict(low, high) == NO_EVIDENCE


def test_verdict_in_the_words_of_what_is_compared():
    assert [intervals.verdict(*ends, "more", "less") for ends in ((1, 2), (-2, -1), (-1, 1))] == [
        "more", "less", NO_EVIDENCE,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe 1998 (independent proportions), table II, method 10
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 20), 0.6791, 1.0),
    ],
)
def test_difference_of_two_sets_is_newcombes(counts, low, high):
    found = intervals.difference_of_shares(*counts)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.verdict == BETTER


def test_difference_of_two_networks_is_newcombes():
    """The example of Newcombe 1998 (paired data): both right, one alone, other alone, neither."""
    cells = (36, 12, 2, 0)
    right, other = np.repeat([1, 1, 0, 0], cells), np.repeat([1, 0, 1, 0], cells)
    found = intervals.difference_of_networks(right, other)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)


def test_the_same_images_tell_more_than_others_would():
    """Where two networks are right on nearly the same images; apart from that they are as far."""
    cells = (55, 12, 1, 32)
    right, other = np.repeat([1, 1, 0, 0], cells), np.repeat([1, 0, 1, 0], cells)
    same = intervals.difference_of_networks(right, other)
    apart = intervals.difference_of_shares(67, 100, 56, 100)
    assert same.mean == pytest.approx(apart.mean)
    assert same.verdict == BETTER and apart.verdict == NO_EVIDENCE


@given(
    right=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    seeds=st.integers(2, 4),
)
def test_turned_round_the_verdict_turns_round(right, seeds):
    first, second = np.transpose(right)
    one, other = (
        intervals.difference_of_networks(*both) for both in ((first, second), (second, first))
    )
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert -1 - 1e-9 <= one.low <= one.mean <= one.high <= 1 + 1e-9
    runs = [dict(enumerate(np.roll(first, seed))) for seed in range(seeds)]
    others = [dict(enumerate(np.roll(second, 2 * seed))) for seed in range(seeds)]
    one, other = (
        intervals.difference_of_recipes(*both) for both in ((runs, others), (others, runs))
    )
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    turned = {BETTER: WORSE, WORSE: BETTER, NO_EVIDENCE: NO_EVIDENCE}
    assert one.verdict == turned[other.verdict]


def recipe(rights, offset=0):
    return [{offset * s + i: r for i, r in enumerate(right)} for s, right in enumerate(rights)]


def test_seeds_that_contradict_each_other_are_no_evidence():
    """Of 72 images, 16 and 6 more and 1 less are right: +22, +8 and -1 points."""
    first, second = [
        [np.arange(72) < count for count in counts] for counts in ((48, 40, 39), (32, 34, 40))
    ]
    found = intervals.difference_of_recipes(recipe(first), recipe(second))
    assert found.mean == pytest.approx(21 / 216) and found.verdict == NO_EVIDENCE
    # As wide, nearly, as the interval of the three differences alone.
    low, high = ttest_1samp([16 / 72, 6 / 72, -1 / 72], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.seeds == 3


def test_new_images_make_an_interval_that_shared_ones_widen():
    rng = np.random.default_rng(0)
    image = rng.random(300)
    first = [image < 0.8 for _ in range(3)]
    second = [image < 0.6 for _ in range(3)]  # hard for every seed
    shared = intervals.difference_of_recipes(recipe(first), recipe(second))
    one = intervals.difference_of_networks(first[0], second[0])
    assert shared.mean == pytest.approx(one.mean)
    # Equal on every seed: as sure as one network's images make it, give or take the small sample.
    assert shared.high - shared.low == pytest.approx(one.high - one.low, rel=0.25)
    apart = intervals.difference_of_recipes(recipe(first, 300), recipe(second, 300))
    assert apart.mean == pytest.approx(shared.mean) and apart.verdict == BETTER


def test_equal_runs_are_no_evidence_and_one_pair_is_not_enough():
    runs = recipe([[True, False, True]] * 2)
    assert intervals.difference_of_recipes(runs, runs).verdict == NO_EVIDENCE
    with pytest.raises(ValueError, match="two or more pairs"):
        intervals.difference_of_recipes(runs[:1], runs[:1])


def test_recipes_without_a_difference_are_called_different_in_at_most_6_of_100_cases():
    """Images and seeds both vary; `python -m benchmarks.verdicts` counts many more cases."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(500):
        image = rng.normal(0, 1, (2, 60))
        seed = rng.normal(0, 0.5, (2, 3))
        score = image[:, None] + seed[..., None] + rng.normal(0, 1, (2, 3, 60))
        wrong += intervals.difference_of_recipes(*map(recipe, score > 0)).verdict != NO_EVIDENCE
    assert wrong / 500 <= 0.06


@pytest.fixture
def write(tmp_path):
    def write(name, rights):
        run = Run(tmp_path / name)
        run.folder.mkdir()
        run.write_json("config.json", Config().model_dump())
        rows = [{"split": "val", "path": str(n), "label": "a", "predicted": "a" if r else "b"}
                for n, r in enumerate(rights)]  # fmt: skip
        run.write_predictions("val", rows)
        return run

    return write


def test_runs_are_compared_on_what_they_predicted(write):
    runs = [write(f"a{n}", [1] * 30 + [0] * 10) for n in range(3)]
    others = [write(f"b{n}", [1] * 5 + [0] * 35) for n in range(3)]
    one = intervals.compare_runs(runs[:1], others[:1])
    assert str(one).startswith("+62.5 points [") and one.verdict == BETTER and one.seeds == 0
    every = intervals.compare_runs(runs, others)
    assert every.mean == pytest.approx(0.625) and every.seeds == 3
    with pytest.raises(ValueError, match="pair of runs was not measured on the same images"):
        intervals.difference_of_recipes([{"a": True}] * 2, [{"a": True}, {"b": True}])
    with pytest.raises(ValueError, match="a0 and c were not measured on the same images"):
        intervals.compare_runs(runs[:1], [write("c", [1, 1])])
