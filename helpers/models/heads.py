"""Heads: what turns a feature map or a vector of features into one output a class."""

import itertools
from collections import OrderedDict

import psutil
import torch
from torch import nn

from helpers.runs.config import Config, ConfigError

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


def check_memory(config: Config, weights: int) -> None:
    """Refuse what can never be trained here: weights, gradients and two moments in 32 bits."""
    needed, there = 16 * weights, psutil.virtual_memory().total
    if needed > there:
        raise ConfigError(
            f"{config.model} would have {weights:,} weights in these layers, which take "
            f"{needed / 1e9:,.0f} GB in training, and there are {there / 1e9:,.0f} GB here: choose "
            f"fewer filters or dense units"
        )


class SquareRoot(nn.Module):
    """Take the square root of the size of each value, and keep its sign.

    Averages of maps are mostly small and now and then large; their roots are more alike, which a
    linear layer learns from better (Perronnin, Sanchez and Mensink 2010, "power normalization").
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.sign() * (values.abs() + 1e-6).sqrt()  # at 0 the slope stays finite


def dense_head(config: Config, features: int, num_classes: int, pool=None) -> nn.Sequential:
    """Make pooling, flatten, square root, batch norm, hidden dense layers, and the last layer.

    `features` is what is left after `pool` (a module; None: nothing to pool) and flattening.
    """
    widths = [features, *config.dense_list, num_classes]
    check_memory(config, sum(width * wider for width, wider in itertools.pairwise(widths)))
    layers: dict[str, nn.Module] = {"pool": pool} if pool else {}
    layers["flatten"] = nn.Flatten()
    if config.head_sqrt:
        layers["sqrt"] = SquareRoot()
    if config.head_norm:
        layers["norm"] = nn.BatchNorm1d(features)
    for number, width in enumerate(config.dense_list, start=1):
        layers[f"dense{number}"] = nn.Linear(features, width)
        if config.dense_norm:
            layers[f"norm{number}"] = nn.BatchNorm1d(width)
        layers[f"activation{number}"] = ACTIVATIONS[config.activation]()
        if config.dropout and config.dropout_after in ("dense", "both"):
            layers[f"dropout{number}"] = nn.Dropout(config.dropout)
        features = width
    if config.head_activation != "none":
        layers["activation"] = ACTIVATIONS[config.head_activation]()
    layers["classifier"] = nn.Linear(features, num_classes)
    return nn.Sequential(OrderedDict(layers | _behind(config)))


def linear_head(config: Config, old: nn.Linear | nn.Conv2d, num_classes: int) -> nn.Sequential:
    """Make a new last layer in place of `old`, with `config.dropout` in front of it."""
    on_maps = isinstance(old, nn.Conv2d)
    features = old.in_channels if on_maps else old.in_features
    layers: dict[str, nn.Module] = {"sqrt": SquareRoot()} if config.head_sqrt else {}
    if config.head_norm:
        layers["norm"] = nn.BatchNorm2d(features) if on_maps else nn.BatchNorm1d(features)
    if config.dropout:
        layers["dropout"] = nn.Dropout(config.dropout)
    if config.head_activation != "none":
        layers["activation"] = ACTIVATIONS[config.head_activation]()
    last = nn.Conv2d(features, num_classes, 1) if on_maps else nn.Linear(features, num_classes)
    layers["classifier"] = last
    return nn.Sequential(OrderedDict(layers | _behind(config)))


def _behind(config: Config) -> dict[str, nn.Module]:
    """Make what works on the logits themselves: an activation and dropout, unusual as they are."""
    layers: dict[str, nn.Module] = {}
    if config.logits_activation != "none":
        layers["logits_activation"] = ACTIVATIONS[config.logits_activation]()
    if config.logits_dropout:
        layers["logits_dropout"] = nn.Dropout(config.logits_dropout)
    return layers


def initialize(module: nn.Module, scheme: str) -> None:
    """Draw a layer's weights anew: He et al. 2015, or Glorot and Bengio 2010; biases are 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        if scheme == "kaiming":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        else:
            nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
