"""Choose what to look at: live and diverse neurons, the images that excite them, stages."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helpers.models.five_blocks import FiveBlocks
from helpers.runs.progress import tqdm
from helpers.visualize.guided import Neuron, feature_maps, spatial_layers


@dataclass(frozen=True)
class Excitations:
    """The strongest response of each channel of a layer to each image.

    `values` (N, C); `rows`, `columns` (N, C) say where on the channel's map.
    """

    layer: str
    values: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @property
    def dead(self) -> list[int]:
        """Channels that no image brings above 0."""
        return (self.values.amax(0) <= 0).nonzero()[:, 0].tolist()

    def neuron(self, channel: int) -> tuple[Neuron, int]:
        """Return the channel's strongest neuron and the image that excites it most."""
        image = self.values[:, channel].argmax().item()
        place = self.rows[image, channel].item(), self.columns[image, channel].item()
        return (channel, *place), image

    def choose(self, count: int = 10, seed: int = 0) -> list[int]:
        """Choose live channels that respond to different images, in ascending order.

        Farthest-point sampling (Gonzalez 1985): from a random live channel on, always the one
        whose responses to all images correlate least with those of any channel chosen before,
        among channels that another image excites most as long as there are any.
        Fewer than `count` where fewer live; ValueError where none does.
        """
        live = np.setdiff1d(np.arange(self.values.shape[1]), self.dead)
        if not len(live):
            raise ValueError(f"no image brings any channel of layer '{self.layer}' above 0")
        live = np.random.default_rng(seed).permutation(live)
        profiles = self.values[:, live].double().cpu()
        profiles = F.normalize(profiles - profiles.mean(0), dim=0)
        correlation = profiles.T @ profiles
        favourite = self.values[:, live].argmax(0).cpu()
        chosen = [0]
        while len(chosen) < min(count, len(live)):
            nearest = correlation[chosen].amax(0)
            nearest[torch.isin(favourite, favourite[chosen])] += 2  # correlations end at 1
            nearest[chosen] = math.inf
            chosen.append(nearest.argmin().item())
        return sorted(live[chosen].tolist())


def excitations(
    model: nn.Module, images: torch.Tensor, layer: str, batch_size: int = 64
) -> Excitations:
    """Find each channel's strongest response to each normalised image (N, 3, H, W)."""
    values, places = [], []
    for batch in tqdm(images.split(batch_size), f"Exciting {layer}", disable=None):
        maps = feature_maps(model, batch, layer)
        best = maps.flatten(2).max(2)
        values.append(best.values.cpu())
        places.append(best.indices.cpu())
    place, width = torch.cat(places), maps.shape[3]
    return Excitations(layer, torch.cat(values), place // width, place % width)


def stages(model: nn.Module, images: torch.Tensor, least: int = 1) -> list[str]:
    """Return the five blocks, or in another network the last layer at each resolution.

    Only those whose maps have at least `least` rows and columns.
    """
    shapes = spatial_layers(model, images)
    if isinstance(model, FiveBlocks):
        return [name for i in range(5) if min(shapes[name := f"blocks.{i}"][1:]) >= least]
    last = {}
    height, width = images.shape[2:]
    for name, (_, *size) in shapes.items():
        if size == [1, 1] or abs(size[0] * width - size[1] * height) > max(height, width):
            continue  # a vector, or maps with the channels last
        inner = [shape[1:] for other, shape in shapes.items() if other.startswith(name + ".")]
        adaptive = type(model.get_submodule(name)).__name__.startswith("Adaptive")
        if name and not adaptive and all(list(shape) == size for shape in inner):
            last.pop(tuple(size), None)
            last[tuple(size)] = name
    sizes = [size for size in last if min(size) >= least]
    return [last[s] for i, s in enumerate(sizes) if all(s > later for later in sizes[i + 1 :])]


def first_filters(model: nn.Module) -> tuple[str, torch.Tensor]:
    """Return the name and weights (n, 3, k, k) of the first convolution that sees the image."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return name, module.weight.detach().cpu()
    raise ValueError("the model has no convolution with three input channels, so no colour filters")
