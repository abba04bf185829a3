"""Networks: the five-block CNN of the assignments, and torchvision's classifiers by name."""

from collections import OrderedDict

import torch
import torchvision
from torch import nn

from helpers.config import Config, ConfigError, did_you_mean
from helpers.norm_pool import Block

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}
# Max pooling and a non-decreasing function commute exactly, and pooling first
# leaves the activation a quarter of the work.
NON_DECREASING = {"relu", "leaky_relu", "elu", "tanh"}


class FiveBlocks(nn.Module):
    """Classify images by five convolution blocks, dense layers and one output a class.

    A block is convolution, batch norm (optional), 2x2 max pooling, activation (dropout optional).
    Takes images (N, 3, S, S) with S = `config.image_size`, returns logits (N, num_classes).
    With `pooling="average"` or `start_image_size` other sizes work, too.
    """

    def __init__(self, config: Config, num_classes: int):
        super().__init__()
        channels = [3, *config.filter_list]
        self.blocks = nn.Sequential(
            *(_block(config, channels[i], channels[i + 1], config.kernel_list[i]) for i in range(5))
        )
        features = config.filter_list[-1]
        if config.pooling == "flatten":
            features *= config.feature_sizes[-1][1] ** 2
        self.head = _head(config, features, num_classes)
        if config.init != "default":
            self.apply(INITIALIZATIONS[config.init])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(images))


def _block(config: Config, in_channels: int, out_channels: int, kernel: int) -> Block:
    layers: dict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(
        in_channels, out_channels, kernel, padding=config.padding, bias=config.conv_bias
    )
    if config.batch_norm:
        layers["norm"] = nn.BatchNorm2d(out_channels)
    layers["activation"] = ACTIVATIONS[config.activation]()
    layers["pool"] = nn.MaxPool2d(2)
    if config.norm_after_pool:
        layers.move_to_end("norm")
    if config.norm_after_pool or config.activation in NON_DECREASING:
        layers.move_to_end("activation")
    if config.dropout and config.dropout_after in ("blocks", "both"):
        layers["dropout"] = nn.Dropout(config.dropout)
    return Block(layers)


def _head(config: Config, features: int, num_classes: int) -> nn.Sequential:
    layers: dict[str, nn.Module] = OrderedDict()
    if config.pooling == "average":
        layers["average"] = nn.AdaptiveAvgPool2d(1)
    elif config.start_image_size:  # smaller images leave smaller maps; the final size is unchanged
        layers["stretch"] = nn.AdaptiveAvgPool2d(config.feature_sizes[-1][1])
    layers["flatten"] = nn.Flatten()
    for number, width in enumerate(config.dense_list, start=1):
        layers[f"dense{number}"] = nn.Linear(features, width)
        layers[f"activation{number}"] = ACTIVATIONS[config.activation]()
        if config.dropout and config.dropout_after in ("dense", "both"):
            layers[f"dropout{number}"] = nn.Dropout(config.dropout)
        features = width
    layers["classifier"] = nn.Linear(features, num_classes)
    return nn.Sequential(layers)


def _kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _glorot(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


INITIALIZATIONS = {"kaiming": _kaiming, "glorot": _glorot}  # He 2015; Glorot and Bengio 2010


def build(config: Config, num_classes: int) -> nn.Module:
    """Build `config.model` for `num_classes`, with weights drawn from `config.seed`.

    `five_blocks` is the assignments' network; any other name is one of torchvision's classifiers
    (without weights). Raises ConfigError for an unknown name.
    """
    torch.manual_seed(config.seed)
    if config.model == "five_blocks":
        return FiveBlocks(config, num_classes)
    known = torchvision.models.list_models(module=torchvision.models)
    if config.model not in known:
        hint = did_you_mean(config.model, ["five_blocks", *known])
        raise ConfigError(f"model '{config.model}' is not known{hint}")
    options = {}
    if config.model in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": False}
    model = torchvision.models.get_model(
        config.model, weights=None, num_classes=num_classes, **options
    )
    if config.init != "default":
        model.apply(INITIALIZATIONS[config.init])
    return model
