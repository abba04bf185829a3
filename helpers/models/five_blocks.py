"""The five-block CNN of the assignments."""

import torch
from torch import nn

from helpers.models.heads import ACTIVATIONS, check_memory, dense_head
from helpers.models.norm_pool import norm_pool
from helpers.runs.config import Config

# Max pooling and a non-decreasing function commute exactly, and pooling first
# leaves the activation a quarter of the work.
NON_DECREASING = {"relu", "leaky_relu", "elu", "tanh"}


class FiveBlocks(nn.Module):
    """Classify images by five convolution blocks, dense layers and one output a class.

    Takes images (N, 3, S, S) with S = `config.image_size`, returns logits (N, num_classes).
    With `start_image_size`, or another pooling than "flatten", other sizes work, too.
    """

    def __init__(self, config: Config, num_classes: int):
        super().__init__()
        channels = [3, *config.filter_list]
        kernels = config.kernel_list
        check_memory(config, sum(channels[i] * channels[i + 1] * kernels[i] ** 2 for i in range(5)))
        self.blocks = nn.Sequential(
            *(Block(config, channels[i], channels[i + 1], kernels[i]) for i in range(5))
        )
        features, pool = config.filter_list[-1] * config.pooled_size**2, None
        if config.pooling != "flatten" or config.start_image_size:  # maps grow with the images
            pool = nn.AdaptiveAvgPool2d(config.pooled_size)
        self.head = dense_head(config, features, num_classes, pool)
        # What is new in fine-tuning: the last layer, or all dense layers.
        self.head_name = "head" if config.head == "dense" else "head.classifier"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.blocks(images)  # (N, C, S / 32, S / 32) with padding "same"
        return self.head(maps)


class Block(nn.Module):
    """Convolution, batch norm (optional), 2x2 max pooling, activation, dropout (optional).

    In training on a CPU, norm, pooling and activation run as one function (`norm_pool`) where the
    activation never decreases: the same results in half the time. Hooks on these three layers are
    then not called.
    """

    def __init__(self, config: Config, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=config.padding, bias=config.conv_bias
        )
        self.norm = nn.BatchNorm2d(out_channels) if config.batch_norm else None
        self.pool = nn.MaxPool2d(2)
        self.activation = ACTIVATIONS[config.activation]()
        drops = config.dropout and config.dropout_after in ("blocks", "both")
        self.dropout = nn.Dropout(config.dropout) if drops else None
        self.fuse = True  # False: layer by layer, for comparisons
        self.norm_after_pool = config.norm_after_pool
        self.pool_first = config.norm_after_pool or config.activation in NON_DECREASING

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.conv(maps)
        if self._fuses(maps):
            maps = self._norm_pool_activation(maps)
        else:
            if self.norm and not self.norm_after_pool:
                maps = self.norm(maps)
            if not self.pool_first:
                maps = self.activation(maps)
            maps = self.pool(maps)
            if self.norm and self.norm_after_pool:
                maps = self.norm(maps)
            if self.pool_first:
                maps = self.activation(maps)
        return self.dropout(maps) if self.dropout else maps

    def _fuses(self, maps: torch.Tensor) -> bool:
        possible = maps.device.type == "cpu" and maps.dtype in (torch.float32, torch.bfloat16)
        learning = self.norm is not None and self.norm.training
        return self.fuse and possible and learning and self.pool_first

    def _norm_pool_activation(self, maps: torch.Tensor) -> torch.Tensor:
        if isinstance(self.activation, nn.ReLU | nn.LeakyReLU):
            slope = getattr(self.activation, "negative_slope", 0.0)
            return norm_pool(maps, self.norm, slope, self.norm_after_pool)
        return self.activation(norm_pool(maps, self.norm, 1.0, self.norm_after_pool))
