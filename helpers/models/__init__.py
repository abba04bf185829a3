"""Networks: the five-block CNN of the assignments, and every torchvision and timm classifier.

Start with `build`; `freeze` chooses what is trained.
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from helpers.count.layers import without_weights
from helpers.models import weights, zoo
from helpers.models.five_blocks import FiveBlocks
from helpers.models.freezing import freeze, train_mode
from helpers.models.heads import initialize
from helpers.runs.config import Config, ConfigError
from helpers.runs.files import damaged
from helpers.runs.folder import TRAIN_AGAIN, Run

__all__ = ["build", "freeze", "load_weights", "rebuild", "train_mode"]


def build(config: Config, num_classes: int) -> nn.Module:
    """Build `config.model` for `num_classes`, with a new head drawn from `config.seed`.

    `five_blocks` is the assignments' network; any other name is one of torchvision's classifiers,
    or timm's where torchvision has not that name ("timm:NAME" for timm's in any case). The body
    has `config.weights`: drawn from the seed too, ImageNet's, or those of a run's best epoch.
    `model.head_name` says which module is the new head, `model.mean` and `model.std` how images are
    normalised for it. Raises ConfigError for what is not known, does not fit or has more than
    `config.max_parameters`, FileNotFoundError for missing weights.
    """
    torch.manual_seed(config.seed)
    if config.model == "five_blocks":
        model = FiveBlocks(config, num_classes)
    else:
        model = zoo.network(config, num_classes)
    total = sum(parameter.numel() for parameter in model.parameters())
    if config.max_parameters and total > config.max_parameters:
        raise ConfigError(
            f"{config.model} has {total:,} parameters, more than max_parameters = "
            f"{config.max_parameters:,}: choose a smaller network or head"
        )
    if config.init != "default":
        new = model if config.weights == "none" else model.get_submodule(model.head_name)
        new.apply(partial(initialize, scheme=config.init))
    if config.weights != "none":
        weights.load(model, config)
    model.mean, model.std = weights.normalization(config)
    return model


def load_weights(
    model: nn.Module, state: dict[str, torch.Tensor], path: Path, assign: bool = False
) -> None:
    """Load all weights of a network; raises DamagedFile where the file at `path` has others.

    With `assign` the network has these very tensors afterwards, no copies.
    """
    try:
        model.load_state_dict(state, assign=assign)
    except RuntimeError:  # a line for each tensor
        raise damaged(path, "it holds another network's weights", TRAIN_AGAIN) from None


def rebuild(run: Run) -> nn.Module:
    """Rebuild a run's network with the weights of its best epoch, in eval mode."""
    checkpoint = run.read_checkpoint("best.pt")
    config = run.config.replace(weights="none")  # all weights are in the checkpoint
    with without_weights():
        model = build(config, len(checkpoint["classes"]))
    load_weights(model, checkpoint["model"], run.folder / "best.pt", assign=True)
    if "mean" in checkpoint:
        model.mean, model.std = checkpoint["mean"], checkpoint["std"]
    else:  # of an older version
        model.mean, model.std = weights.normalization(run.config)
    return model.eval()
