"""Conclusions about a set of images are what counting by hand gives; ties are all named."""

import numpy as np
import pytest
from scipy.stats import chi2_contingency, hypergeom

from helpers.evaluate import conclusions
from helpers.evaluate.evaluation import Evaluation
from helpers.evaluate.intervals import BETTER, NO_EVIDENCE, difference_of_shares


def evaluation(labels, predicted, confidence=0.8):
    labels, predicted = np.array(labels), np.array(predicted)
    kinds = max(labels.max(), predicted.max()) + 1
    probabilities = np.full((len(labels), kinds), (1 - confidence) / (kinds - 1), np.float32)
    probabilities[np.arange(len(labels)), predicted] = confidence
    names = [f"kind {n}" for n in range(kinds)]
    accuracy = (labels == predicted).mean()
    return Evaluation(
        1.0, accuracy, (0, 1), 1.0, labels, predicted, probabilities, names, [""] * len(labels)
    )


def test_one_network_on_two_sets():
    seen = evaluation([0, 1] * 100, [0, 1] * 97 + [1, 0] * 3)
    unseen = evaluation([0, 1] * 30, [0, 1] * 25 + [1, 0] * 5)
    found = difference_of_shares(*seen.counts, *unseen.counts)
    assert found == difference_of_shares(194, 200, 50, 60) and found.verdict == BETTER
    assert difference_of_shares(*seen.counts, *seen.counts).verdict == NO_EVIDENCE


def test_easiest_and_hardest_classes_are_all_that_tie():
    labels = np.repeat([0, 1, 2, 3], 10)
    predicted = labels.copy()
    predicted[[0, 1, 2]] = 3
    predicted[[10, 11, 12]] = 0
    predicted[[20]] = 0
    found = conclusions.compare_classes(evaluation(labels, predicted))
    assert [row["class"] for row in found.easiest] == ["kind 3"]
    assert [row["class"] for row in found.hardest] == ["kind 0", "kind 1"]
    observed = chi2_contingency([[7, 7, 9, 10], [3, 3, 1, 0]], correction=False).statistic
    rng, mistakes = np.random.default_rng(1), np.repeat([0, 1], [33, 7])
    drawn = [rng.permutation(mistakes).reshape(4, 10).sum(1) for _ in range(4000)]
    more = [chi2_contingency([10 - w, w], correction=False).statistic >= observed - 1e-9
            for w in drawn]  # fmt: skip
    assert found.chance == pytest.approx(np.mean(more), abs=0.03) and found.chance > 0.05


def test_two_mistakes_in_one_class_are_as_rare_as_counted_by_hand():
    """Of 10 classes of 40 images: the second mistake is in the first one's class by 39 of 399."""
    labels = np.repeat(np.arange(10), 40)
    predicted = labels.copy()
    predicted[:2] = 1
    found = conclusions.compare_classes(evaluation(labels, predicted))
    assert found.chance == pytest.approx(39 / 399, abs=0.01)
    assert 10 * hypergeom(400, 40, 2).pmf(2) == pytest.approx(39 / 399)


def test_classes_without_any_error_do_not_differ():
    found = conclusions.compare_classes(evaluation([0, 1, 2], [0, 1, 2]))
    assert found.chance == 1 and len(found.easiest) == len(found.hardest) == 3


def test_commonest_mistakes_are_all_that_tie():
    labels, predicted = [0, 0, 0, 1, 1, 2, 2, 2], [1, 1, 0, 1, 0, 0, 0, 2]
    most, pairs = conclusions.commonest_mistakes(evaluation(labels, predicted))
    assert most == 2 and pairs == [("kind 0", "kind 1"), ("kind 2", "kind 0")]
    assert conclusions.commonest_mistakes(evaluation([0, 1], [0, 1])) == (0, [])


def test_overconfidence_is_confidence_minus_accuracy():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    predicted = np.where(rng.random(400) < 0.5, labels, (labels + 1) % 4)
    mean, low, high = conclusions.overconfidence(evaluation(labels, predicted, 0.9))
    assert mean == pytest.approx(0.9 - (labels == predicted).mean(), abs=1e-6)
    assert 0 < low < mean < high and high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.02)


def test_a_calibrated_network_without_a_mistake_is_not_called_unsure():
    labels = np.arange(72) % 4
    mean, low, high = conclusions.overconfidence(evaluation(labels, labels, 0.99))
    assert mean == pytest.approx(-0.01) and low == pytest.approx(-0.01) and high > 0
