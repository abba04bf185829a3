"""Receptive fields: which pixels a neuron can see, traced through a model while it runs."""

from dataclasses import dataclass

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

POINTWISE = {
    *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "selu", "celu", "gelu", "silu"),
    *("mish", "hardswish", "hardtanh", "softplus", "tanh", "sigmoid", "clamp", "clamp_min"),
    *("threshold", "batch_norm", "dropout", "dropout2d", "clone", "contiguous", "to"),
}
ARGUMENTS = {
    "conv2d": "input weight bias stride padding dilation",
    "max_pool2d": "input kernel_size stride padding dilation",
    "avg_pool2d": "input kernel_size stride padding",
}
SUMS = {"add", "iadd", "radd"}
CONCATENATIONS = {"cat", "concat", "concatenate"}


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a receptive field: neuron i sees pixels i*jump + low to i*jump + high.

    Both ends count, and may lie beyond the image, in its padding.
    """

    jump: int = 1
    low: int = 0
    high: int = 0

    def through(self, kernel: int, stride: int, padding: int | str, dilation: int) -> "Axis":
        """Return the axis behind a convolution or pooling (Araujo et al. 2019, Distill)."""
        reach = dilation * (kernel - 1)
        before = {"same": reach // 2, "valid": 0}.get(padding, padding)
        low, high = self.low - before * self.jump, self.high + (reach - before) * self.jump
        return Axis(self.jump * stride, low, high)

    def span(self, size: int, index: int) -> slice:
        """Return which pixels of an image of `size` pixels a neuron sees."""
        first, last = (index * self.jump + end for end in (self.low, self.high))
        return slice(max(0, first), min(size - 1, last) + 1)

    def crop(self, size: int, indices: list[int]) -> tuple[int, list[int]]:
        """Return the shortest length, and a start for each neuron, of crops that change nothing.

        A neuron computed on its crop has exactly the value and gradient that it has on the whole
        image of `size` pixels: the crop holds all it sees, keeps the strides aligned, and ends at
        the image's border wherever the neuron sees the padding.
        """
        spans = [self.span(size, i) for i in indices]
        first, last = [span.start for span in spans], [span.stop - 1 for span in spans]
        for steps in reversed(range((size - 1) // self.jump + 1)):
            length = size - steps * self.jump
            starts = [min(pixel // self.jump, steps) * self.jump for pixel in first]
            if all(start + length > end for start, end in zip(starts, last, strict=True)):
                return length, starts
        raise AssertionError("the whole image always does")


ReceptiveField = tuple[Axis, Axis]  # rows, columns


def window(
    field: ReceptiveField | None, size: tuple[int, int], row: int, column: int
) -> tuple[slice, slice]:
    """Return the rows and columns of an image that a neuron sees: all where that is not known."""
    if field is None:
        return slice(0, size[0]), slice(0, size[1])
    return field[0].span(size[0], row), field[1].span(size[1], column)


class Trace(TorchFunctionMode):
    """Note what each feature map sees of `images` (N, C, H, W), while a model runs on them.

    Known are convolution, pooling, batch norm, activations, sums and concatenations. Whatever has
    been through anything else (global pooling, attention, reshaping) has None.
    """

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.fields: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.fields[images] = Axis(), Axis()

    def field_of(self, maps: object) -> ReceptiveField | None:
        """Return the receptive field of feature maps, None where it is not known."""
        return self.fields.get(maps) if isinstance(maps, torch.Tensor) else None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run `func` and note what its result sees."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        field = self._follow(name, args, kwargs)
        result = func(*args, **kwargs)
        changed = args[0] if name == "setitem" else result
        if isinstance(changed, torch.Tensor) and name != "get":
            self.fields[changed] = field
        return result

    def _follow(self, name: str, args: tuple, kwargs: dict) -> ReceptiveField | None:
        """Return the receptive field behind the function `name`, None where it is not known."""
        arguments = [*args, *kwargs.values()]
        if name in SUMS:
            return self._union(arguments[:2])
        if name in CONCATENATIONS:
            dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
            return self._union(arguments[0]) if dim in (1, -3) else None
        field = self.field_of(arguments[0]) if arguments else None
        options = {**dict(zip(ARGUMENTS.get(name, "").split(), args, strict=False)), **kwargs}
        if field is None or options.get("training"):
            return None
        if name in POINTWISE:
            return field
        if name not in ARGUMENTS:
            return None
        kernel = options["weight"].shape[-2:] if name == "conv2d" else options["kernel_size"]
        stride = options.get("stride") or (1 if name == "conv2d" else kernel)
        sizes = (kernel, stride, options.get("padding", 0), options.get("dilation", 1))
        rows, columns = zip(*(_pair(size) for size in sizes), strict=True)
        return field[0].through(*rows), field[1].through(*columns)

    def _union(self, parts) -> ReceptiveField | None:
        fields = [self.field_of(part) for part in parts]
        if None in fields:
            return None
        union = []
        for axes in zip(*fields, strict=True):
            if len({axis.jump for axis in axes}) > 1:
                return None
            low, high = min(axis.low for axis in axes), max(axis.high for axis in axes)
            union.append(Axis(axes[0].jump, low, high))
        return union[0], union[1]


def _pair(size) -> tuple:
    if isinstance(size, int | str):
        return size, size
    return tuple(size) * 2 if len(size) == 1 else tuple(size)
