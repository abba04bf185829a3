"""What a trained network is worth, on images that it was not trained on."""

from helpers.evaluate.evaluation import Evaluation, evaluate, measure, open_test_set, predict

__all__ = ["Evaluation", "evaluate", "measure", "open_test_set", "predict"]
