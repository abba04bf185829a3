"""Training: one loop for every network and data set of this project."""

from helpers.train.loop import TrainingDiverged, choose_run, fit, train

__all__ = ["TrainingDiverged", "choose_run", "fit", "train"]
