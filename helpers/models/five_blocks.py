"""The five-block CNN of the assignments."""

from collections import OrderedDict

import torch
from torch import nn

from helpers.config import Config
from helpers.models.heads import ACTIVATIONS, dense_head
from helpers.models.norm_pool import Block

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
        pool = None
        if config.pooling == "average":
            pool = nn.AdaptiveAvgPool2d(1)
        elif config.start_image_size:  # smaller images leave smaller maps; the last ones fit
            pool = nn.AdaptiveAvgPool2d(config.feature_sizes[-1][1])
        self.head = dense_head(config, features, num_classes, pool)
        # What is new in fine-tuning: the last layer, or all dense layers.
        self.head_name = "head" if config.head == "dense" else "head.classifier"

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
