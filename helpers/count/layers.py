"""Count a network's parameters, MACs and FLOPs by formula, and again by PyTorch's own counter.

Start with `count`. A MAC is one multiplication with its addition; FLOPs are 2 x MACs.
Convolutions, dense layers and attention are counted; biases, normalisation, activations and pooling
are not, as is usual.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from helpers.runs.config import did_you_mean
from helpers.runs.progress import tqdm
from helpers.runs.text import markdown_table

COLORS = {"macs": "#0f7b8a", "params": "#d9772b"}
ROWS, BARS = 40, 24  # at most, of a table and of a figure


@dataclass(frozen=True)
class Layer:
    """One row of the count: a layer, or (after `group`) several under one name."""

    name: str  # as in model.named_modules()
    kind: str
    output: tuple[int, ...]  # shape without the batch; () when it is never called by itself
    params: int
    macs: int
    macs_seen: int  # by FlopCounterMode
    formula: str = ""  # how `macs` comes about


@dataclass(frozen=True)
class Counts:
    """What `count` found for one image."""

    params: int  # weights and biases, trainable or not
    trainable: int
    buffers: int  # running means and variances; not num_batches_tracked (Keras has none)
    macs: int  # by formula
    macs_seen: int  # by FlopCounterMode, in one pass on the meta device
    layers: list[Layer]
    outputs: dict[str, tuple[int, ...]]  # output shape of every module, containers too

    @property
    def flops(self) -> int:
        """2 x MACs: every multiplication and every addition."""
        return 2 * self.macs

    @property
    def match(self) -> bool:
        """Whether formula and FlopCounterMode agree, in total and layer by layer."""
        return self.macs == self.macs_seen and all(x.macs == x.macs_seen for x in self.layers)


Products = list[tuple[int, ...]]  # a sum of products: MACs, spelled out


def _conv2d(module: nn.Conv2d, images: torch.Tensor, output: torch.Tensor) -> Products:
    height, width = output.shape[-2:]
    channels = module.in_channels // module.groups
    return [(height, width, *module.kernel_size, channels, module.out_channels)]


def _linear(module: nn.Linear, inputs: torch.Tensor, output: torch.Tensor) -> Products:
    positions = output[..., 0].numel()
    return [((positions,) if positions > 1 else ()) + (module.in_features, module.out_features)]


def _attention(module: nn.MultiheadAttention, inputs: torch.Tensor, _) -> Products:
    width = module.embed_dim  # self-attention: four projections, scores, weighted sum
    tokens = inputs.numel() // width
    return [(4, tokens, width, width), (2, tokens, tokens, width)]


MACS = {nn.Conv2d: _conv2d, nn.Linear: _linear, nn.MultiheadAttention: _attention}


def count(model: nn.Module, image_size: int) -> Counts:
    """Count `model` for one image (3, image_size, image_size) in evaluation mode.

    Works on a copy without data (meta device): nothing is allocated, computed or changed in
    `model`. Layers without a formula here (Swin's and MaxViT's attention) take FlopCounterMode's
    figure. Heads used in training alone (GoogLeNet) add parameters but no MACs.
    """
    empty = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    empty |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    model = copy.deepcopy(model, empty).eval()  # deepcopy takes the tensors that it is given
    names = {module: name for name, module in model.named_modules()}
    outputs: dict[str, tuple[int, ...]] = {}
    products: dict[str, Products] = {}
    flops = dict.fromkeys(names, 0)  # of each module without the modules that it calls
    running: list[list[int]] = []  # of each module at work: the total before it, its callees' share

    def start(module: nn.Module, inputs: tuple) -> None:
        running.append([counter.get_total_flops(), 0])

    def record(module: nn.Module, inputs: tuple, output) -> None:
        before, inside = running.pop()
        spent = counter.get_total_flops() - before
        flops[module] += spent - inside
        if running:
            running[-1][1] += spent
        tensor = output[0] if isinstance(output, (tuple, list)) else output
        outputs[names[module]] = tuple(tensor.shape[1:])
        if type(module) in MACS:
            found = MACS[type(module)](module, inputs[0], tensor)
            products.setdefault(names[module], []).extend(found)

    for module in names:
        module.register_forward_pre_hook(start)
        module.register_forward_hook(record)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))

    layers = []
    counted: set[int] = set()  # a tensor that two layers share counts once
    for module, name in names.items():
        seen = flops[module] // 2
        own = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in counted}
        counted.update(own)
        if own or seen or not any(module.children()):
            macs, formula = seen, "by FlopCounterMode" if seen else ""
            if name in products:
                macs = sum(map(prod, products[name]))
                formula = " + ".join("·".join(map(str, factors)) for factors in products[name])
            kind, shape = type(module).__name__, outputs.get(name, ())
            layers.append(Layer(name, kind, shape, sum(own.values()), macs, seen, formula))
    return Counts(
        params=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        buffers=sum(
            buffer.numel()
            for name, buffer in model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ),
        macs=sum(layer.macs for layer in layers),
        macs_seen=counter.get_total_flops() // 2,
        layers=layers,
        outputs=outputs,
    )


@contextmanager
def without_weights() -> Iterator[None]:
    """Build any model inside without memory for its parameters: they go to the meta device.

    Unlike `torch.device("meta")`, this leaves ordinary tensors alone, which RegNet computes with.
    """
    hook = register_module_parameter_registration_hook(
        lambda module, name, parameter: nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    )
    try:
        yield
    finally:
        hook.remove()


def classifier(name: str) -> tuple[nn.Module, int, dict]:
    """Build torchvision's classifier `name` with 1000 classes and no memory for its weights.

    Returns the model, the image size of its first published weights, and what torchvision
    publishes of them ("num_params", "_ops" in GMACs). Raises ValueError for an unknown name.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"'{name}' is no torchvision classifier{did_you_mean(name, known)}")
    weights = next(iter(torchvision.models.get_model_weights(name)))
    image_size = weights.transforms().crop_size[0]
    options: dict = {"image_size": image_size} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):  # GoogLeNet's published count is without aux heads
        options = {"aux_logits": name == "inception_v3", "init_weights": False}
    with without_weights():
        model = torchvision.models.get_model(name, weights=None, **options)
    return model, image_size, weights.meta


def compare(names: Sequence[str]) -> str:
    """Count torchvision classifiers beside torchvision's published figures, as Markdown."""
    if not names:
        raise ValueError("classifiers = [] is not possible: name at least one of torchvision's")
    rows = []
    for name in tqdm(names, desc="count", disable=None, leave=False):
        model, image_size, published = classifier(name)
        counts = count(model, image_size)
        match = (
            counts.match
            and counts.params == published["num_params"]
            and round(counts.macs / 1e9, 3) == published["_ops"]
        )
        rows.append(
            (name, image_size, counts.params, published["num_params"], counts.macs)
            + (counts.macs_seen, f"{published['_ops']} G", "yes" if match else "**no**")
        )
    header = ("classifier", "pixels", "parameters", "published", "MACs", "FlopCounterMode / 2")
    return markdown_table((*header, "published", "match"), rows)


def group(counts: Counts, most: int) -> list[Layer]:
    """Leave out layers without parameters and MACs; join by module path if more than `most`."""
    rows = [layer for layer in counts.layers if layer.params or layer.macs]
    depth = max(layer.name.count(".") for layer in rows)
    while len(rows) > most and depth > 0:
        members: dict[str, list[Layer]] = {}
        for layer in rows:
            members.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
        rows = [_join(x, name, counts.outputs.get(name, ())) for name, x in members.items()]
        depth -= 1
    return rows


def _join(layers: list[Layer], name: str, output: tuple[int, ...]) -> Layer:
    if len(layers) == 1:
        return layers[0]
    total = (sum(getattr(x, field) for x in layers) for field in ("params", "macs", "macs_seen"))
    return Layer(name, "joined", output, *total)


def table(counts: Counts) -> str:
    """Tabulate layer, output shape, parameters, MACs and FLOPs as Markdown, at most `ROWS` rows."""
    layers = counts.layers if len(counts.layers) <= ROWS else group(counts, ROWS)
    rows = [
        (x.name or x.kind, x.kind, _shape(x.output), x.params or "", x.formula or x.macs or "")
        + (2 * x.macs or "", 2 * x.macs_seen or "")
        + (_match(x.macs == x.macs_seen) if x.macs else "",)
        for x in layers
    ]
    total = ("**total**", "", "", counts.params, counts.macs, counts.flops, 2 * counts.macs_seen)
    header = ("layer", "kind", "output", "parameters", "MACs", "FLOPs", "FlopCounterMode", "match")
    return markdown_table(header, [*rows, (*total, _match(counts.match))])


def figure(counts: Counts) -> Figure:
    """Draw each layer's share of the MACs and of the parameters as bars, first layer on top.

    Layers under 0.1 % of both are joined into one bar; more than `BARS` are joined by module.
    """
    rows = group(counts, BARS)
    small = [x for x in rows if max(x.macs / counts.macs, x.params / counts.params) < 1e-3]
    if len(small) > 1:
        rows = [x for x in rows if x not in small]
        rows.append(_join(small, f"{len(small)} smaller layers", ()))
    drawing = Figure(figsize=(9.5, 0.6 + 0.42 * len(rows)), layout="constrained")
    left, right = drawing.subplots(1, 2, sharey=True)
    for axes, field, title in (left, "macs", "MACs"), (right, "params", "parameters"):
        numbers = [getattr(x, field) for x in rows]
        top = max(numbers)
        axes.barh(range(len(rows)), top, color="#f1f1ee", height=0.62)
        axes.barh(range(len(rows)), numbers, color=COLORS[field], height=0.62)
        for y, number in enumerate(numbers):
            axes.text(top * 1.02, y, _share(number, sum(numbers)), va="center", fontsize=9)
        axes.set_title(f"{sum(numbers):,} {title}", loc="left", fontsize=11, weight="bold")
        axes.set(xlim=(0, top * 1.42), ylim=(len(rows) - 0.5, -0.5), xticks=[])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    left.set_yticks(range(len(rows)), [x.name or x.kind for x in rows], fontsize=9)
    for y, (row, label) in enumerate(zip(rows, left.get_yticklabels(), strict=True)):
        if row.output:
            label.set_verticalalignment("bottom")
            left.annotate(
                _shape(row.output), (0, y), (-3.5, 0), textcoords="offset points",
                ha="right", va="top", fontsize=7.5, color="#777777",
            )  # fmt: skip
    return drawing


def _share(number: int, total: int) -> str:
    if not number:
        return "0"
    amount = EngFormatter(places=1)(number) if number >= 1000 else str(number)
    percent = 100 * number / total
    return f"{amount} · {percent:.1f} %" if percent >= 0.1 else f"{amount} · <0.1 %"


def describe(counts: Counts) -> str:
    """Say in a sentence which bar of `figure` computes most and which holds most parameters."""
    rows = group(counts, BARS)
    slowest, largest = max(rows, key=lambda x: x.macs), max(rows, key=lambda x: x.params)
    return (
        f"`{slowest.name}` computes most, {slowest.macs / counts.macs:.1%} of {counts.macs:,} "
        f"MACs, with {slowest.params / counts.params:.1%} of the parameters; "
        f"`{largest.name}` holds most, {largest.params / counts.params:.1%} of {counts.params:,} "
        f"parameters, for {largest.macs / counts.macs:.1%} of the MACs."
    )


def match_table(pairs: dict[str, tuple[int, int]]) -> str:
    """Set expected and seen numbers, by name, side by side as Markdown, with match."""
    rows = [(name, *pair, _match(pair[0] == pair[1])) for name, pair in pairs.items()]
    return markdown_table(("", "expected", "seen", "match"), rows)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "—"


def _match(same: bool) -> str:
    return "yes" if same else "**no**"
