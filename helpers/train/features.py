"""Frozen features: what a frozen beginning makes of each image, computed once for all epochs.

Start with `compute`. Exact where nothing in that part is random; augmented images are looked at in
a chosen number of views.
"""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import fx, nn

from helpers.count.layers import count
from helpers.data.augment import augment, normalize
from helpers.data.batches import batches, mix_seeds
from helpers.data.images import ImageSet, send
from helpers.models.device import batch_size_without_gradients
from helpers.models.freezing import BLOCK, train_mode
from helpers.models.graph import UNFOLLOWED, fold, trace
from helpers.runs.config import Config
from helpers.runs.files import reserve
from helpers.runs.progress import tqdm
from helpers.runs.text import reason

RANDOM = ("Dropout", "DropPath", "StochasticDepth", "BatchNorm", "RReLU")  # in training mode
WORTHWHILE = 0.2  # share of the network's MACs in the frozen beginning
MEMORY = 0.25  # share of the machine's memory; more goes to a file in the run's folder


@dataclass
class FeatureSet:
    """The features of N images in one view: like an ImageSet, but `values` (N, ...)."""

    values: torch.Tensor
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fits_in_memory(self) -> bool:
        """Whether they are in memory, not in a file."""
        return not self.values.is_shared()

    def place(self, device: torch.device) -> None:
        """Move the features to the GPU when they take less than 40 % of the free memory there."""
        if device.type == "cuda" and not self.values.is_cuda:
            size = self.values.numel() * self.values.element_size()
            if size < 0.4 * torch.cuda.mem_get_info(device)[0]:
                self.values = self.values.to(device)

    def take(self, indices) -> torch.Tensor:
        """Copy the features of some images."""
        return self.values[send(torch.as_tensor(indices), self.values.device)]


@dataclass
class Features:
    """A stage's features, and `rest`, the part of the network that turns them into logits."""

    rest: nn.Module
    train: list[FeatureSet]  # one a view
    val: FeatureSet
    up_to: str  # the last frozen module
    seconds: float  # that computing took

    def predict(self, config: Config, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the logits, float32 (N, C) on the CPU, of the validation images."""
        steps = -(-len(self.val) // config.batch_size)
        self.rest.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype, dtype != torch.float32):
            chunks = np.array_split(np.arange(len(self.val)), steps)
            loaded = batches(self.val, chunks, device, prepare)
            return torch.cat([self.rest(values).float() for values, _ in loaded]).cpu()

    def summary(self, images: int, epochs: int) -> dict:
        """Say what was computed and how long training `images` in `epochs` would have taken more.

        The estimate is the frozen part's own speed, measured, times the images of all epochs.
        """
        computed = sum(len(view) for view in self.train) + len(self.val)
        plain = self.seconds / computed * (images + epochs * len(self.val))
        return {
            "up_to": self.up_to,
            "shape": list(self.train[0].values.shape[1:]),
            "views": len(self.train),
            "seconds": round(self.seconds, 2),
            "saved_seconds": round(plain - self.seconds, 2),
        }


def prepare(values: torch.Tensor, _: int) -> torch.Tensor:
    """Lay maps (N, C, H, W) out with channels last; vectors stay as they are."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def compute(
    model: nn.Module, train: ImageSet, val: ImageSet, config: Config, dtype, folder: Path
) -> Features | None:
    """Compute the features of training and validation images behind the frozen beginning.

    The model is frozen already and on its device. Returns None where there is nothing to gain:
    no frozen beginning or a small one, images that change from epoch to epoch (augmentation
    without `config.feature_views`, growing images). Says so and returns None where the network
    cannot be cut, or where there is no room for the features.
    """
    views = min(config.feature_views, config.epochs) if config.augment else 1
    if config.freeze == "nothing" or not views or config.start_image_size:
        return None
    device = next(model.parameters()).device
    try:
        parts = split(model, config.image_size)
    except UNFOLLOWED as error:
        return _plain_way(f"{config.model} cannot be cut ({reason(error)})")
    if parts is None:
        return None
    beginning, rest, up_to = parts
    model.eval()
    beginning = fold(beginning)
    sample = normalize(train.take(np.arange(2)), model.mean, model.std).to(device)
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # else 3 digits on a GPU
    with torch.no_grad(), exact:
        if not torch.allclose(rest(beginning(sample)), model(sample), rtol=1e-3, atol=1e-4):
            return _plain_way(f"{config.model} in two parts is another network than in one")
    started = time.perf_counter()
    bar = tqdm(total=views * len(train) + len(val), unit="image", leave=False, disable=None,
               desc="Frozen features")  # fmt: skip

    def run(images: ImageSet, view: int):
        def prepare_images(pixels: torch.Tensor, step: int) -> torch.Tensor:
            if view >= 0:
                generator = torch.Generator().manual_seed(mix_seeds(config.seed, view, step))
                pixels = augment(pixels, config.augmentations, generator)
            return normalize(pixels, model.mean, model.std, dtype)

        steps = -(-len(images) // batch_size_without_gradients(config, device))
        chunks = np.array_split(np.arange(len(images)), steps) if steps else []
        loaded = batches(images, chunks, device, prepare_images)
        for (pixels, _), chunk in zip(loaded, chunks, strict=True):
            with torch.no_grad(), torch.autocast(device.type, dtype, dtype != torch.float32):
                yield chunk, beginning(pixels)
            bar.update(len(chunk))

    sets = []
    with bar:
        for images, count_of_views, first in (train, views, 0), (val, 1, -1):
            values = torch.empty(count_of_views, len(images), 0)
            for view in range(count_of_views):
                for chunk, found in run(images, first + view):
                    if values.shape[2:] != found.shape[1:]:
                        shape = (count_of_views, len(images), *found.shape[1:])
                        values = _room(shape, found.dtype, folder)
                        if values is None:
                            return _plain_way("there is no room for its features")
                    values[view, chunk] = found.cpu()
            sets.append([FeatureSet(one, images.labels) for one in values])
    return Features(rest, sets[0], sets[1][0], up_to, time.perf_counter() - started)


def _plain_way(why: str) -> None:
    print(f"The frozen part runs again at every epoch, which is slow: {why}")


def _room(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> torch.Tensor | None:
    """Make an empty tensor in memory, or else in a file that vanishes with it; None: no room."""
    size = int(np.prod(shape))
    if size * dtype.itemsize < MEMORY * psutil.virtual_memory().total:
        return torch.empty(shape, dtype=dtype)
    if 2 * size * dtype.itemsize > shutil.disk_usage(folder).free:
        return None
    path = folder / ".features"
    reserve(path, size * dtype.itemsize)
    values = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
    with suppress(PermissionError):  # Windows keeps a mapped file
        path.unlink()
    return values


def split(model: nn.Module, image_size: int) -> tuple[nn.Module, nn.Module, str] | None:
    """Cut a frozen network in two where a single value passes, as late as possible.

    Returns the fixed beginning, the rest (both share the model's modules) and the name of the
    beginning's last module; None where there is no such cut or where the beginning has less than a
    fifth of the MACs. Raises one of `UNFOLLOWED` where the network cannot be traced.
    """
    train_mode(model)
    graph = trace(model, whole=lambda module: bool(BLOCK.search(type(module).__name__)))
    nodes = list(graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    cut, waiting = 0, set()
    for number, node in enumerate(nodes[:-1]):
        if not _is_fixed(model, node):
            break
        waiting = {n for n in waiting | {node} if any(place[user] > number for user in n.users)}
        if waiting == {node}:
            cut = number
    if cut == 0:
        return None
    modules = [str(node.target) for node in nodes[: cut + 1] if node.op == "call_module"]
    counts = count(model, image_size)
    inside = [x for x in counts.layers if any(f"{x.name}.".startswith(f"{m}.") for m in modules)]
    if sum(layer.macs for layer in inside) < WORTHWHILE * counts.macs:
        return None
    beginning, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: cut + 1]:
        copies[node] = beginning.node_copy(node, copies.__getitem__)
    beginning.output(copies[nodes[cut]])
    copies = {nodes[cut]: rest.placeholder("features")}
    for node in nodes[cut + 1 :]:
        copies[node] = rest.node_copy(node, copies.__getitem__)
    return fx.GraphModule(model, beginning), fx.GraphModule(model, rest), modules[-1]


def _is_fixed(model: nn.Module, node: fx.Node) -> bool:
    """Say whether a step of a network in training mode learns nothing and rolls no dice."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return not getattr(model.get_submodule(owner), name).requires_grad
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        random = any(m.training and type(m).__name__.startswith(RANDOM) for m in module.modules())
        return not random and not any(p.requires_grad for p in module.parameters())
    return "dropout" not in str(node.target)
