"""Draw a network's inside: filters, feature maps, exciting images, guided gradients, saliency.

Functions that draw take data and return a matplotlib `Figure`; they show and write nothing. Images
are uint8 (N, 3, H, W), as people see them; maps and gradients are what `guided` and `saliency`
return.
"""

import math
import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.evaluate.figures import GRAY, ORANGE, RED, TEAL, WHITE_TO_TEAL, dress
from helpers.runs.text import for_figure
from helpers.visualize.neurons import Excitations
from helpers.visualize.receptive_field import ReceptiveField, window
from helpers.visualize.saliency import gini, mean_similarities, similarities

SIGNED = LinearSegmentedColormap.from_list("signed", [ORANGE, "#ffffff", TEAL])
INK = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#6fa9b0", "#0b3a42"])


def grid_shape(count: int) -> tuple[int, int]:
    """Return the rows and columns of the rectangle nearest to a square: 64 is 8 x 8, 48 6 x 8.

    A count without a factor pair of at most 1 : 2 gets a rectangle with empty places.
    """
    for rows in range(math.isqrt(count), 0, -1):
        if count % rows == 0 and count <= 2 * rows * rows:
            return rows, count // rows
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def mosaic(maps: np.ndarray, fill: float = np.nan) -> np.ndarray:
    """Arrange n maps (n, h, w) or (n, h, w, 3) in `grid_shape(n)`, a gap between them."""
    count, height, width = maps.shape[:3]
    rows, columns = grid_shape(count)
    gap = max(1, round(width / 12))
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *maps.shape[3:])
    result = np.full(shape, fill, np.float32)
    for i in range(count):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        result[top : top + height, left : left + width] = maps[i]
    return result


def draw_filters(
    weights: torch.Tensor, layer: str, before: torch.Tensor | None = None
) -> Figure:
    """Draw filters (n, 3, k, k) as images, in a grid; beside them those `before` training.

    Grey is 0, and each panel has one scale: what is strong in it is strong in the picture.
    """
    count, _, height, width = weights.shape
    panels = {"after training": weights} if before is None else {
        "before training": before, "after training": weights,
    }  # fmt: skip
    figure = Figure(figsize=(4.6 * len(panels), _height(count, 4.3) + 0.3), layout="constrained")
    factor = max(1, 24 // width)  # or the gap would be as wide as a third of a filter
    for axes, (name, filters) in zip(figure.subplots(1, len(panels), squeeze=False)[0],
                                     panels.items(), strict=True):  # fmt: skip
        largest = filters.abs().max().clamp(min=1e-12)
        pictures = (0.5 + filters / (2 * largest)).permute(0, 2, 3, 1).numpy()
        pictures = pictures.repeat(factor, 1).repeat(factor, 2)
        axes.imshow(mosaic(pictures, 1.0), interpolation="nearest")
        _number(axes, count, *pictures.shape[1:3])
        axes.set_xlabel(f"{name}, black and white are ±{largest:.2g}", fontsize=9)
    _title(
        figure,
        f"The {count} filters of {layer}",
        f"{height} × {width} pixels; grey is 0. Row plus column is the channel.",
    )
    return figure


def draw_feature_maps(image: torch.Tensor, maps: torch.Tensor, layer: str) -> Figure:
    """Draw an image (3, H, W) and all maps (C, h, w) of a layer on one scale.

    White is 0; where the layer has negative values, they are orange. The strongest hundredth of
    all values has the full colour, or a few of them would wash out the others.
    """
    count, height, width = maps.shape
    figure = Figure(figsize=(9, _height(count, 5.6)), layout="constrained")
    left, axes = figure.subplots(1, 2, width_ratios=(1, 3))
    _show(left, image, "the image")
    most = np.quantile(maps.abs().cpu().numpy(), 0.99) or 1.0  # torch 2.8's takes 16 M values
    signed = (maps.min() < 0).item()
    least, colors = (-most, SIGNED) if signed else (0, WHITE_TO_TEAL)
    shown = axes.imshow(mosaic(maps.cpu().numpy()), colors, vmin=least, vmax=most)
    _number(axes, count, height, width)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    _title(
        figure,
        f"The {count} outputs of {layer}",
        f"{height} × {width} values each, one scale for all; the largest 1 % have the full colour. "
        "Row plus column is the channel.",
    )
    return figure


def draw_strongest_maps(
    image: torch.Tensor, maps: dict[str, torch.Tensor], most: int = 8
) -> Figure:
    """Draw the `most` maps (C, h, w) with the largest value of each layer, strongest first.

    One scale a layer, from 0 (white) to the layer's largest value, which its title states.
    """
    figure = Figure(figsize=(1.15 * (most + 2), 1.45 * len(maps) + 0.8), layout="constrained")
    figure.get_layout_engine().set(hspace=0.15, rect=(0, 0, 1, 0.98))
    grid = figure.add_gridspec(len(maps), most + 2)
    _show(figure.add_subplot(grid[: min(2, len(maps)), :2]), image, "the image")
    for row, (layer, all_maps) in enumerate(maps.items()):
        order = all_maps.amax((1, 2)).argsort(descending=True)[:most].tolist()
        largest = max(all_maps.max().item(), 1e-12)
        for column, channel in enumerate(order):
            axes = figure.add_subplot(grid[row, column + 2])
            axes.imshow(all_maps[channel].cpu().numpy(), INK, vmin=0, vmax=largest)
            _frame(axes)
            axes.set_xlabel(f"{channel}", fontsize=7, color=GRAY, labelpad=2)
            if column == 0:
                count, height, width = all_maps.shape
                text = f"{layer}: {count} maps, {height} × {width}, white 0 to dark {largest:.2g}"
                place = {"xycoords": "axes fraction", "textcoords": "offset points"}
                label = axes.annotate(text, (0, 1), (0, 4), fontsize=8.5, **place)
                label.set_in_layout(False)  # or it would widen its column
    _title(
        figure,
        "The strongest feature maps of every block",
        "One scale a block. The number below a map is its channel; negative values are white.",
    )
    return figure


def draw_exciting_images(
    images: torch.Tensor,
    excited: Excitations,
    channels: list[int],
    field: ReceptiveField | None = None,
    most: int = 8,
) -> Figure:
    """Draw the images that excite each channel most, a row a channel, strongest first.

    A frame shows what the excited neuron sees of an image, where `field` is known and smaller.
    """
    most = min(most, len(images))
    figure = Figure(figsize=(1.15 * most + 0.6, 1.32 * len(channels) + 0.5), layout="constrained")
    grid = figure.subplots(len(channels), most, squeeze=False)
    for row, channel in zip(grid, channels, strict=True):
        best = excited.values[:, channel].topk(most)
        for axes, value, index in zip(row, best.values, best.indices, strict=True):
            _show(axes, images[index])
            place = excited.rows[index, channel].item(), excited.columns[index, channel].item()
            _box(axes, images[index], window(field, tuple(images.shape[2:]), *place))
            axes.set_xlabel(f"{value:.2f}", fontsize=7.5, color=GRAY, labelpad=2)
        row[0].set_ylabel(f"channel {channel}", fontsize=8.5)
    caption = (
        f"Of {len(images)} images, strongest first; the number is the channel's largest output."
    )
    if field is not None:
        sides = " × ".join(str(axis.high - axis.low + 1) for axis in field)
        caption += f" Frame: what that neuron sees, {sides} pixels and the image's border."
    _title(figure, f"The images that excite {excited.layer} most", caption)
    return figure


def draw_guided(
    images: torch.Tensor,
    gradients: torch.Tensor,
    names: list[str],
    caption: str,
    rows: int = 2,
    title: str = "Guided gradients",
    windows: list[tuple[slice, slice]] | None = None,
) -> Figure:
    """Draw K images and the gradient of a neuron beside each, in `rows` rows.

    `gradients` (K, 3, H, W) are shown in colour, grey is 0, each to its own largest value (99.8 %
    quantile); the Gini coefficient of their absolute value says how concentrated each is within
    its window, what the neuron sees of the image: all of it where `windows` is not given.
    """
    columns = math.ceil(len(images) / rows)
    size = 1.25 if columns > 1 else 1.7
    shape = (2 * size * columns + 0.2, (size + 0.42) * rows + 0.9)
    figure = Figure(figsize=shape, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, wspace=0.02)
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    windows = windows or [(slice(None), slice(None))] * len(images)
    for i, (image, gradient) in enumerate(zip(images, gradients, strict=True)):
        left, right = grid[i // columns, 2 * (i % columns) :][:2]
        _show(left, image)
        _box(left, image, windows[i])
        largest = gradient.abs().flatten().quantile(0.998).clamp(min=1e-12)
        _show(right, (0.5 + gradient / (2 * largest)).clamp(0, 1))
        left.set_title(for_figure(names[i]), loc="left", fontsize=8, pad=3)
        _measure(right, gini(gradient.abs().sum(0)[windows[i]]))
    _title(figure, title, f"{caption} Grey is 0, each gradient on its own scale.")
    return figure


def _box(axes: Axes, image: torch.Tensor, seen: tuple[slice, slice]) -> None:
    """Frame a window of an image, unless it is the whole image."""
    (top, bottom, _), (left, right, _) = (
        side.indices(length) for side, length in zip(seen, image.shape[1:], strict=True)
    )
    if (bottom - top, right - left) != tuple(image.shape[1:]):
        corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
        for color, weight in ("white", 2.4), (ORANGE, 1.2):
            axes.add_patch(Rectangle(corner, width, height, fill=False, color=color, lw=weight))


def draw_comparison(
    images: torch.Tensor, maps: dict[str, torch.Tensor], names: list[str]
) -> Figure:
    """Draw what each method (maps (N, H, W)) finds in the same images, a row an image."""
    shape = (1.5 * (1 + len(maps)), 1.72 * len(images) + 0.9)
    figure = Figure(figsize=shape, layout="constrained")
    grid = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    for row, image, name in zip(grid, images, names, strict=True):
        _show(row[0], image)
        row[0].set_xlabel("\n".join(map(for_figure, name.splitlines())), fontsize=8, labelpad=2)
    for column, (method, found) in enumerate(maps.items(), start=1):
        grid[0, column].set_title(method, fontsize=9.5)
        for axes, picture, value in zip(grid[:, column], found, gini(found), strict=True):
            _heat(axes, picture)
            _measure(axes, value)
    _title(
        figure,
        "Which pixels speak for the predicted class?",
        "White is 0, each picture on its own scale, dark from its 99.5 % quantile on.",
    )
    return figure


def draw_sanity_check(
    image: torch.Tensor, steps: dict[str, dict[str, torch.Tensor]], edges: torch.Tensor
) -> Figure:
    """Draw how each method's picture of the first image changes as the weights become random.

    `steps` is `saliency.sanity_check`'s result for N images, `edges` (N, H, W) their edges. The
    curves are the mean rank correlation with the trained network's pictures over all N images.
    """
    trained = steps["trained"]
    shape = (1.12 * (len(steps) + 1) + 0.8, 1.2 * len(trained) + 3.4)
    figure = Figure(figsize=shape, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0.02)
    ratios = [1] * len(trained) + [2]
    grid = figure.add_gridspec(len(trained) + 1, len(steps) + 1, height_ratios=ratios)
    beside = [figure.add_subplot(grid[row, 0]) for row in range(2)]
    _show(beside[0], image)
    _heat(beside[1], edges[0])
    for axes, name in zip(beside, ("the image", "its edges"), strict=True):
        axes.set_ylabel(name, fontsize=8.5)
    curve = figure.add_subplot(grid[-1, 1:])
    colors = (GRAY, RED, TEAL, ORANGE)
    for row, (method, color) in enumerate(zip(trained, colors, strict=False)):
        for column, (step, maps) in enumerate(steps.items(), start=1):
            axes = figure.add_subplot(grid[row, column])
            _heat(axes, maps[method][0], _wrapped(step) if row == 0 else None)
            if column == 1:
                axes.set_ylabel(_wrapped(method), fontsize=8.5, color=color)
        means = mean_similarities(steps, method)
        spread = np.array([
            np.nanquantile(values, (0.25, 0.75)) if np.isfinite(mean) else (np.nan, np.nan)
            for values, mean in zip(similarities(steps, method), means, strict=True)
        ])  # fmt: skip
        curve.fill_between(range(len(means)), *spread.T, color=color, alpha=0.15, lw=0)
        curve.plot(range(len(means)), means, "o-", color=color, ms=4, label=method)
    curve.set_xlim(-0.5, len(steps) - 0.5)
    curve.set_ylim(min(-0.05, curve.get_ylim()[0]), 1.05)
    curve.set_xticks(range(len(steps)), [_wrapped(step) for step in steps], fontsize=7.5)
    curve.axhline(0, color="#cccccc", lw=0.8)
    dress(curve, grid=None)
    curve.set_ylabel("rank correlation\nwith trained", fontsize=8.5)
    curve.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    _title(
        figure,
        "Does the picture depend on what was learned?",
        "From left to right the weights are made random from the output down to the layer named. "
        f"Curves: mean over {len(edges)} images, shaded their middle half; pictures: the first "
        "image, each on its own scale. A curve ends where most images have an empty picture.",
    )
    return figure


def _height(count: int, width: float) -> float:
    rows, columns = grid_shape(count)
    return width * rows / columns + 0.8


def _show(axes: Axes, image: torch.Tensor, title: str | None = None) -> None:
    axes.imshow(image.permute(1, 2, 0).cpu().numpy())
    _frame(axes)
    if title:
        axes.set_title(title, fontsize=8.5)


def _heat(axes: Axes, picture: torch.Tensor, title: str | None = None) -> None:
    largest = picture.flatten().float().quantile(0.995).item()
    axes.imshow(picture.cpu().numpy(), INK, vmin=0, vmax=max(largest, 1e-12))
    _frame(axes)
    if title:
        axes.set_title(title, fontsize=7.5)


def _measure(axes: Axes, value: torch.Tensor) -> None:
    text = "empty" if value.isnan() else f"Gini {value:.2f}"
    axes.set_xlabel(text, fontsize=7.5, color=GRAY, labelpad=2)


def _frame(axes: Axes) -> None:
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="#bbbbbb", linewidth=0.6)


def _number(axes: Axes, count: int, height: int, width: int) -> None:
    """Write numbers beside a mosaic: row plus column is the channel."""
    rows, columns = grid_shape(count)
    gap = max(1, round(width / 12))
    across = [i * (width + gap) + (width - 1) / 2 for i in range(columns)]
    down = [i * (height + gap) + (height - 1) / 2 for i in range(rows)]
    axes.set_xticks(across, range(columns), fontsize=7.5, color=GRAY)
    axes.set_yticks(down, [f"{i * columns} +" for i in range(rows)], fontsize=7.5, color=GRAY)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _title(figure: Figure, title: str, caption: str) -> None:
    figure.suptitle(title, weight="bold", fontsize=11)
    width = int(figure.get_figwidth() * 14)
    figure.supxlabel(textwrap.fill(caption, width), fontsize=8.5, color=GRAY)


def _wrapped(name: str) -> str:
    return name.replace(" ", "\n").replace(".", ".\n", name.count(".") - 1 or 1)
