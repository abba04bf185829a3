"""What neurons respond to: feature maps, receptive fields, guided backpropagation.

A neuron is (channel, row, column) in the output of a layer named as in `model.named_modules()`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from helpers.runs.config import did_you_mean
from helpers.visualize.receptive_field import ReceptiveField, Trace

RECTIFIERS = {"relu": "ReLU", "relu6": "ReLU6", "threshold": "threshold", "clamp": "clamp(min=0)"}
OTHERS = {
    "leaky_relu": "LeakyReLU", "rrelu": "RReLU", "prelu": "PReLU", "elu": "ELU", "selu": "SELU",
    "celu": "CELU", "gelu": "GELU", "silu": "SiLU", "mish": "Mish", "hardswish": "Hardswish",
    "hardtanh": "Hardtanh", "softplus": "Softplus", "tanh": "tanh",
}  # fmt: skip
Neuron = tuple[int, int, int]


class GuidedRule(TorchFunctionMode):
    """Filter the gradient of every activation that runs inside this context by the guided rule.

    At a rectifier a gradient passes only where the forward input was positive and the gradient
    itself is positive (Springenberg et al. 2015, arXiv 1412.6806). For any other activation (GELU,
    SiLU, Mish, ELU, tanh, LeakyReLU, Hardswish, ...) the rule here is the same times the
    activation's own derivative: `grad_in = f'(x) * [x > 0] * max(grad_out, 0)`, which for f = ReLU
    is the rectifier's. It holds for modules and functions, in place or not. Sigmoid and softmax
    serve as gates and weights and keep their gradient. An activation spelled out in arithmetic
    (`x * x.sigmoid()`) or compiled by TorchScript is not seen: `counts` says what was.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run `func`; if it is an activation, filter the gradient that will reach its output."""
        kwargs = kwargs or {}
        name = _activation(func, args, kwargs)
        if name is None:
            return func(*args, **kwargs)
        positive = (args[0] if args else kwargs["input"]) > 0  # read before an in-place call writes
        output = func(*args, **kwargs)
        self.counts[name] += 1
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp(min=0) * positive)
        return output

    def describe(self) -> str:
        """Say in one sentence, for a caption, what was filtered and how."""
        if not self.counts:
            return "No activation comes before this layer: this is the plain gradient."
        names = " and ".join(f"{count} {name}" for name, count in self.counts.items())
        own = [name for name in self.counts if name in OTHERS.values()]
        rule = "a gradient passes where the forward input and the gradient are both positive"
        if own:
            rule += f", times the derivative of {' and '.join(own)} (not a rectifier)"
        return f"Guided through {names}: {rule}."


def _activation(func, args: tuple, kwargs: dict) -> str | None:
    """Return an activation's usual name, None for any other function."""
    name = getattr(func, "__name__", "").removesuffix(".default").strip("_")
    name = {"clamp_min": "clamp", "clip": "clamp"}.get(name, name)
    if name in ("clamp", "hardtanh"):
        least = args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
        if isinstance(least, int | float) and least == 0:
            return RECTIFIERS["clamp" if name == "clamp" else "relu6"]
        return OTHERS.get(name)
    return RECTIFIERS.get(name) or OTHERS.get(name)


def guided_backprop(
    model: nn.Module, images: torch.Tensor, layer: str, neurons: list[Neuron | int]
) -> torch.Tensor:
    """Return the guided gradient of each neuron with respect to its image.

    `images` are normalised, (N, 3, H, W). `neurons` are K of (channel, row, column) in the output
    of `layer`, or a channel alone for its strongest position. N = K pairs them; one image serves
    all neurons, one neuron all images. Returns max(N, K) gradients, (max(N, K), 3, H, W).

    `GuidedRule` holds at every activation on the way, modules and functions. Of each image only
    the receptive field is computed where the layers up to `layer` are all local, as the gradient
    elsewhere is 0 anyway; all neurons share one forward and one backward pass. The model works in
    eval mode and is left as it was, also after an error. A layer that runs more than once counts
    by its last run.

    Raises ValueError for an unknown layer, one without rows and columns, a neuron out of range, a
    model in half precision or one whose batch norm keeps no running statistics, and images that
    are not normalised floats.
    """
    count = max(len(images), len(neurons))
    if not count or not {len(images), len(neurons)} <= {1, count}:
        raise ValueError(
            f"{len(images)} images do not pair with {len(neurons)} neurons: give as many of each, "
            f"or one image for all neurons, or one neuron for all images"
        )
    with prepared(model, images) as images:
        look_at = images if any(isinstance(neuron, Integral) for neuron in neurons) else images[:1]
        look_at = look_at.clone(memory_format=torch.channels_last)  # faster on a CPU
        with Trace(look_at) as trace, torch.no_grad():
            maps, runs = _run_to(model, look_at, layer)
        neurons = neurons * (count // len(neurons))
        located = [_locate(neuron, maps[i % len(maps)], layer) for i, neuron in enumerate(neurons)]
        crops, tops, lefts, inside = _cut(images, located, trace.field_of(maps))
        crops.requires_grad_()
        with GuidedRule():
            maps, _ = _run_to(model, crops.clone(), layer, stop_at=runs)
        values = torch.stack([maps[(i, *neuron)] for i, neuron in enumerate(inside)])
        (gradients,) = torch.autograd.grad(values.sum(), crops)
        result = images.new_zeros(count, *images.shape[1:])
        height, width = gradients.shape[2:]
        for whole, part, top, left in zip(result, gradients, tops, lefts, strict=True):
            whole[:, top : top + height, left : left + width] = part
    return result


def receptive_field(model: nn.Module, images: torch.Tensor, layer: str) -> ReceptiveField | None:
    """Return which pixels the neurons of a layer see, None where not all layers are local."""
    with prepared(model, images[:1]) as images, Trace(images) as trace, torch.no_grad():
        return trace.field_of(_run_to(model, images, layer)[0])


def describe_rule(model: nn.Module, images: torch.Tensor, layer: str) -> str:
    """Say which activations `guided_backprop` filters on the way to `layer`, and how."""
    with prepared(model, images[:1]) as images, torch.no_grad():
        _, runs = _run_to(model, images, layer)
        with GuidedRule() as rule:
            _run_to(model, images, layer, stop_at=runs)
    return rule.describe()


def feature_maps(model: nn.Module, images: torch.Tensor, layer: str) -> torch.Tensor:
    """Return the output (N, C, rows, columns) of a layer for normalised images (N, 3, H, W)."""
    with prepared(model, images) as images, torch.no_grad():
        return _run_to(model, images, layer)[0]


def _cut(images: torch.Tensor, neurons: list[Neuron], field) -> tuple:
    """Cut each neuron's receptive field out of its image.

    Returns crops (K, 3, h, w), their tops, their lefts, and the neurons' places inside them.
    """
    channels, rows, columns = zip(*neurons, strict=True)
    tops, lefts = [0] * len(neurons), [0] * len(neurons)
    height, width = images.shape[2:]
    if field is not None:
        height, tops = field[0].crop(height, rows)
        width, lefts = field[1].crop(width, columns)
        rows = [i - top // field[0].jump for i, top in zip(rows, tops, strict=True)]
        columns = [i - left // field[1].jump for i, left in zip(columns, lefts, strict=True)]
    crops = torch.stack(
        [
            images[i % len(images), :, top : top + height, left : left + width]
            for i, (top, left) in enumerate(zip(tops, lefts, strict=True))
        ]
    )
    if crops.shape[2:] != images.shape[2:]:
        crops = crops.contiguous(memory_format=torch.channels_last)  # faster on a CPU
    return crops, tops, lefts, list(zip(channels, rows, columns, strict=True))


def _locate(neuron: Neuron | int, maps: torch.Tensor, layer: str) -> Neuron:
    """Check a neuron against the feature maps (C, rows, columns); find a channel's strongest."""
    place = (neuron,) if isinstance(neuron, Integral) else tuple(neuron)
    in_range = [0 <= i < n for i, n in zip(place, maps.shape, strict=False)]
    if len(place) not in (1, 3) or not all(in_range):
        channels, rows, columns = maps.shape
        raise ValueError(
            f"layer '{layer}' has no neuron {neuron}: give a channel, 0 to {channels - 1}, or "
            f"(channel, row, column) with rows 0 to {rows - 1} and columns 0 to {columns - 1}"
        )
    if len(place) == 1:
        place += divmod(maps[place[0]].argmax().item(), maps.shape[2])
    return place


class _Reached(Exception):
    """Ends a forward pass where nothing beyond is wanted."""


def _run_to(
    model: nn.Module, images: torch.Tensor, layer: str, stop_at: int = 0
) -> tuple[torch.Tensor, int]:
    """Return the layer's output (N, C, rows, columns) in its last run, and how often it ran.

    With `stop_at`, the forward pass ends with that run of the layer.
    """
    outputs = []

    def keep(module, inputs, output):
        outputs.append(output)
        if len(outputs) == stop_at:
            raise _Reached
        # What follows may write in place.
        return output.clone() if isinstance(output, torch.Tensor) else None

    modules = dict(model.named_modules())
    if layer not in modules:
        names = list(spatial_layers(model, images))
        raise ValueError(
            f"there is no layer '{layer}'{did_you_mean(layer, names)}; layers with feature maps: "
            f"{_some(names)}"
        )
    handle = modules[layer].register_forward_hook(keep)
    try:
        model(images)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not outputs or not _is_spatial(outputs[-1]):
        raise ValueError(
            f"layer '{layer}' gives no feature maps (channels, rows, columns); choose one of "
            f"{_some(list(spatial_layers(model, images)))}"
        )
    return outputs[-1], len(outputs)


def _is_spatial(output) -> bool:
    return isinstance(output, torch.Tensor) and output.dim() == 4


def _some(names: list[str], most: int = 40) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextmanager
def prepared(model: nn.Module, images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give the images as the model takes them; leave the model as it was afterwards.

    Inside, gradients are on, the model is in eval mode and its parameters need no gradient.
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), images)
    if first.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the model is in half precision ({first.dtype}), too coarse for gradients of single "
            f"neurons: call model.float() first"
        )
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be normalised floats (N, 3, H, W), not {images.dtype} "
            f"{tuple(images.shape)}: see helpers.data.augment.normalize"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"layer '{name}' normalises by the statistics of each batch, so that no image has "
                f"gradients of its own: build it with track_running_stats=True"
            )
    training = [(module, module.training) for module in model.modules()]
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for module, _ in training:
            module.training = False
        for parameter, _ in trainable:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield images.detach().to(first.device, first.dtype, copy=True)
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)


def spatial_layers(model: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, int, int]]:
    """Return the (channels, rows, columns) of every layer that has them, in order of execution."""
    shapes = {}

    def note(name):
        def hook(module, inputs, output):
            if _is_spatial(output):
                shapes.pop(name, None)
                shapes[name] = tuple(output.shape[1:])

        return hook

    with prepared(model, images[:1]) as images, torch.no_grad():
        modules = dict(model.named_modules()).items()
        handles = [module.register_forward_hook(note(name)) for name, module in modules]
        try:
            model(images)
        finally:
            for handle in handles:
                handle.remove()
    return shapes
