"""Sweeps: many runs from one file in wandb's own YAML."""

from helpers.sweep.runner import Sweep, preview, run, train_points

__all__ = ["Sweep", "preview", "run", "train_points"]
