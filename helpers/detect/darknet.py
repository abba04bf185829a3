"""Darknet's networks (YOLOv3, YOLOv3-tiny), read from their authors' cfg and weights.

The cfg file lists the layers, the weights file their numbers in the same order. Read into PyTorch
they run on a GPU too, and do not depend on OpenCV, whose version 5 no longer reads these files.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = {"convolutional", "maxpool", "upsample", "route", "shortcut", "yolo"}
STRIDE = 32  # the sides of an image must be multiples of it


def read_cfg(path: Path) -> list[dict[str, str]]:
    """Read a cfg file: a dict for each section, its title as "type"."""
    sections = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            sections.append({"type": line[1:-1]})
        elif "=" in line and sections:
            key, _, value = line.partition("=")
            sections[-1][key.strip()] = value.strip()
        elif line:
            raise ValueError(f"{path.name} is no Darknet cfg file (line {number}: {line[:40]!r}).")
    if not sections or sections[0]["type"] not in ("net", "network"):
        raise ValueError(f"{path.name} is no Darknet cfg file: it does not begin with [net].")
    for section in sections[1:]:
        if section["type"] not in LAYERS:
            raise ValueError(f"{path.name} has a layer [{section['type']}], which is not known "
                             f"here; known are {', '.join(sorted(LAYERS))}.")
        if section.get("activation", "linear") not in ("leaky", "linear"):
            raise ValueError(f"{path.name} has an activation {section['activation']!r}, which is "
                             "not known here; known are leaky and linear.")
    return sections


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


class Darknet(nn.Module):
    """A network of convolutions as a cfg file describes it; `load` reads its weights.

    Attributes:
        size: height and width that the cfg names; the images may have others.
        num_classes: the number of classes of its [yolo] layers.
    """

    def __init__(self, cfg: Path):
        super().__init__()
        net, *self.layers = read_cfg(cfg)
        self.size = int(net["height"]), int(net["width"])
        self.convolutions = nn.ModuleDict()
        channels = [int(net.get("channels", 3))]  # of the image, then of each layer's output
        self.num_classes = 0
        for i, layer in enumerate(self.layers):
            outputs = channels[-1]
            if layer["type"] == "convolutional":
                outputs, size = int(layer["filters"]), int(layer["size"])
                self.convolutions[str(i)] = nn.Conv2d(
                    channels[-1], outputs, size, int(layer["stride"]),
                    size // 2 if layer.get("pad") == "1" else 0)
            elif layer["type"] in ("route", "shortcut"):
                sources = _numbers(layer["layers" if layer["type"] == "route" else "from"])
                layer["sources"] = [j if j >= 0 else i + j for j in sources]
                if layer["type"] == "route":
                    outputs = sum(channels[j + 1] for j in layer["sources"])
            elif layer["type"] == "yolo":
                self.num_classes = int(layer["classes"])
            channels.append(outputs)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Read a weights file; raises ValueError where it does not fit the cfg."""
        words = np.fromfile(path, np.float32)  # a cut file may end within one
        major, minor, *_ = [*words[:2].view(np.int32), 0, 0]
        header = 5 if major * 10 + minor >= 2 else 4  # version, images seen while training
        numbers = torch.from_numpy(words[header:])
        normed = {i: self.layers[int(i)].get("batch_normalize") == "1" for i in self.convolutions}
        sizes = []
        for i, convolution in self.convolutions.items():
            sizes += [convolution.out_channels] * (4 if normed[i] else 1)
            sizes.append(convolution.weight.numel())
        if sum(sizes) != len(numbers):
            raise ValueError(f"{path.name} holds {len(numbers)} numbers and its cfg file asks for "
                             f"{sum(sizes)}: they do not belong together, or the file is cut.")
        parts = iter(numbers.split(sizes))
        for i, convolution in self.convolutions.items():
            weight, bias = convolution.weight, convolution.bias
            bias.copy_(next(parts))
            gain = torch.ones_like(bias)
            if normed[i]:  # folded into the convolution
                scale, mean, variance = next(parts), next(parts), next(parts)
                gain = scale / (variance.sqrt() + 1e-6)
                bias.sub_(mean * gain)
            weight.copy_(next(parts).view_as(weight) * gain.view(-1, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the boxes (N, K, 5 + classes) of images (N, 3, H, W) from 0 to 1.

        A row holds the box's middle x, y, its width and height in pixels, how sure it is that
        something is there, and the score of each class, from 0 to 1.
        """
        x, outputs, found = images, [], []
        for i, layer in enumerate(self.layers):
            match layer["type"]:
                case "convolutional":
                    x = self.convolutions[str(i)](x)
                    if layer["activation"] == "leaky":
                        x = F.leaky_relu(x, 0.1)
                case "maxpool":
                    size = int(layer["size"])
                    low, high = (size - 1) // 2, size // 2  # it never shrinks by more than stride
                    x = F.pad(x, (low, high, low, high), value=-torch.inf)
                    x = F.max_pool2d(x, size, int(layer["stride"]))
                case "upsample":
                    x = F.interpolate(x, scale_factor=int(layer["stride"]))
                case "route":
                    x = torch.cat([outputs[j] for j in layer["sources"]], 1)
                case "shortcut":
                    x = x + outputs[layer["sources"][0]]
                case "yolo":
                    found.append(decode(x, layer, images.shape[2] // x.shape[2]))
            outputs.append(x)
        return torch.cat(found, 1)


def decode(x: Tensor, layer: dict[str, str], stride: int) -> Tensor:
    """Return the boxes of a [yolo] layer (YOLOv3, arXiv:1804.02767, section 2.1).

    x = stride (sigmoid(t_x) + column), w = anchor_w exp(t_w), likewise y and h, and the score of a
    class = sigmoid(t_object) sigmoid(t_class).
    """
    anchors = torch.tensor(_numbers(layer["anchors"]), device=x.device).view(-1, 2)
    anchors = anchors[_numbers(layer["mask"])]
    count, _, rows, columns = x.shape
    x = x.float().view(count, len(anchors), -1, rows, columns).permute(0, 3, 4, 1, 2)
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1).to(x.device)
    middles = stride * (x[..., :2].sigmoid() + cells.view(rows, columns, 1, 2))
    sides = anchors * x[..., 2:4].exp()
    objects = x[..., 4:5].sigmoid()
    rows = torch.cat([middles, sides, objects, objects * x[..., 5:].sigmoid()], -1)
    return rows.flatten(1, 3)
