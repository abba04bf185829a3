"""One convolution written out, and how far the neurons behind several of them see."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ORANGE = "#d9772b"
COLORS = "#d9772b", "#c43a31", "#2c8a3d", "#0f7b8a", "#6b5bab"


def as_matrix(kernel: np.ndarray, side: int) -> np.ndarray:
    """Write a convolution of a `side` x `side` image, without padding, as a matrix.

    Row r holds the weights (k, k) at the pixels that output r looks at, and 0 elsewhere: the same
    k² numbers again and again, each row a little further on.
    """
    size = len(kernel)
    places = side - size + 1
    matrix = np.zeros((places, places, side, side), kernel.dtype)
    for row, column in np.ndindex(places, places):
        matrix[row, column, row : row + size, column : column + size] = kernel
    return matrix.reshape(places**2, side**2)


def draw_convolution(image: np.ndarray, kernel: np.ndarray, output: np.ndarray) -> Figure:
    """Draw image * kernel = output, and the convolution as a matrix; frames show one output."""
    matrix = as_matrix(kernel, len(image))
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=(5, 3, 3, 14))
    titles = "image x", "kernel w", "output y", "the same as a matrix, one row an output"
    row, column = divmod(output.argmax(), output.shape[1])
    size = len(kernel)
    frames = (column, row, size, size), None, (column, row, 1, 1), None
    for axes, numbers, title, frame in zip(
        panels, (image, kernel, output, matrix), titles, frames, strict=True
    ):
        most = np.abs(numbers).max()
        axes.imshow(numbers, "BrBG", vmin=-1.6 * most, vmax=1.6 * most)
        for (y, x), number in np.ndenumerate(numbers):
            if numbers is not matrix or number:
                axes.text(x, y, f"{number:g}", ha="center", va="center",
                          fontsize=10 if numbers is not matrix else 7)  # fmt: skip
        if frame:
            x, y, width, height = frame
            corner = x - 0.5, y - 0.5
            axes.add_patch(Rectangle(corner, width, height, fill=False, ec=ORANGE, lw=2.5))
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    corner = -0.5, row * output.shape[1] + column - 0.5
    panels[-1].add_patch(Rectangle(corner, matrix.shape[1], 1, fill=False, ec=ORANGE, lw=2))
    return figure


def receptive_fields(kernels: list[int]) -> list[int]:
    """Return how many pixels wide the field is that one output of each block sees.

    Block b is a convolution of `kernels[b]` and 2 x 2 pooling. Each layer of kernel k widens the
    field by (k - 1) times the distance of two neighbours, which every pooling doubles.
    """
    field, distance, fields = 1, 1, []
    for kernel in kernels:
        field += (kernel - 1) * distance + (2 - 1) * distance
        distance *= 2
        fields.append(field)
    return fields


def draw_receptive_fields(image: np.ndarray, kernels: list[int]) -> Figure:
    """Draw on an image (H, W, 3) what one output of each block sees, as frames round its middle."""
    height, width = image.shape[:2]
    fields = receptive_fields(kernels)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image)
    for block, (field, color) in enumerate(zip(fields, COLORS, strict=True), start=1):
        corner = (width - field) / 2 - 0.5, (height - field) / 2 - 0.5
        for line, weight in ("white", 4), (color, 2):
            axes.add_patch(Rectangle(corner, field, field, fill=False, ec=line, lw=weight))
        axes.plot([], [], color=color, lw=2, label=f"block {block}: {field} × {field}")
    reach = 0.65 * max(fields)
    axes.set_xlim(width / 2 - reach, width / 2 + reach)
    axes.set_ylim(height / 2 + reach, height / 2 - reach)
    axes.axis("off")
    figure.legend(loc="outside right center", frameon=False, title="pixels seen")
    return figure
