"""What a trained network is worth, on images that it was not trained on."""

from helpers.evaluate.evaluation import Evaluation, evaluate, measure, open_test_set, predict
from helpers.evaluate.intervals import Difference, compare_runs, difference_of_shares

__all__ = [
    "Difference", "Evaluation", "compare_runs", "difference_of_shares", "evaluate", "measure",
    "open_test_set", "predict",
]  # fmt: skip
