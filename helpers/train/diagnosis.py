"""Find out why a network does not learn, with one batch and in seconds.

Those that measure take normalised images (N, 3, S, S) and labels (N,), the range test several such
batches; `draw_losses`, `draw_range_test` and `draw_layers` draw what they return. The weights are
changed by those that train.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from helpers.evaluate.figures import GRAY, GREEN, ORANGE, RED, TEAL, dress

COLORS = (TEAL, ORANGE, RED, GREEN, GRAY)
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def initial_loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean cross-entropy of a network in train mode; ln C is knowing nothing."""
    model.train()
    with torch.no_grad():
        return F.cross_entropy(model(images), labels).item()


def learn_by_heart(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    lr: float = 1e-3,
    steps: int = 60,
    loss: Loss = F.cross_entropy,
) -> list[float]:
    """Train on one batch alone and return its loss before each step (AdamW, no weight decay).

    A network without a mistake gets near 0. Ends early where the loss is no longer finite.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0)
    losses: list[float] = []
    while len(losses) < steps and (not losses or math.isfinite(losses[-1])):
        value = loss(model(images), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def range_test(
    model: nn.Module,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    low: float = 1e-5,
    high: float = 1.0,
) -> list[tuple[float, float]]:
    """Raise the learning rate from `low` to `high`, a step on each batch; return (lr, loss).

    The loss is the one before the step, smoothed as the mean of Adam is. Ends where it is four
    times the smallest one. Smith 2017, Cyclical Learning Rates, section 3.3.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), low, weight_decay=0)
    found: list[tuple[float, float]] = []
    mean = 0.0
    for step, (images, labels) in enumerate(batches):
        lr = low * (high / low) ** (step / max(1, len(batches) - 1))
        optimizer.param_groups[0]["lr"] = lr
        value = F.cross_entropy(model(images), labels)
        mean = 0.9 * mean + 0.1 * value.item()
        smooth = mean / (1 - 0.9 ** (step + 1))
        found.append((lr, smooth))
        if not math.isfinite(smooth) or smooth > 4 * min(loss for _, loss in found):
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return found


def best_rate(found: list[tuple[float, float]]) -> float:
    """Return a tenth of the rate at which a range test had its smallest loss."""
    return min(found, key=lambda row: row[1])[0] / 10


class Signal(NamedTuple):
    """What reaches a layer with weights, and what comes back.

    `inputs` is the root mean square of its inputs; `dead` the share (0 to 1) of input channels that
    are 0 everywhere in every image; `gradient` that of its weights' gradient, in units of the
    weights' own.
    """

    layer: str
    inputs: float
    dead: float
    gradient: float


def watch_layers(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[Signal]:
    """Send a batch forth and back, and say what each convolution and dense layer sees."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    seen: dict[str, tuple[float, float]] = {}

    def look(name: str):
        def hook(module, inputs):
            values = inputs[0].detach().float()
            channels = 1 if isinstance(module, nn.Conv2d) else -1
            dead = (values == 0).movedim(channels, 0).flatten(1).all(1)
            seen[name] = values.pow(2).mean().sqrt().item(), dead.float().mean().item()

        return hook

    hooks = [module.register_forward_pre_hook(look(name)) for name, module in layers.items()]
    try:
        model.train()
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
    finally:
        for hook in hooks:
            hook.remove()
    signals = []
    for name in seen:  # attention uses the weights of its last layer without running it
        size, gradient = layers[name].weight.norm().item(), layers[name].weight.grad
        change = 0.0 if gradient is None else gradient.norm().item()  # None: frozen
        signals.append(Signal(name, *seen[name], change / max(size, 1e-12)))
    model.zero_grad()
    return signals


def draw_losses(losses: dict[str, list[float]], levels: dict[str, float] | None = None) -> Figure:
    """Draw losses by step, one line a case, and named levels as thin lines."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, values), color in zip(losses.items(), COLORS, strict=False):
        axes.plot(range(len(values)), values, color=color, lw=2, label=name)
    for (name, level), style in zip((levels or {}).items(), (":", "--"), strict=False):
        axes.axhline(level, color=GRAY, lw=1, ls=style, label=name)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="step", ylabel="loss of the batch")
    return _dress(figure)


def draw_range_test(found: dict[str, list[tuple[float, float]]]) -> Figure:
    """Draw the loss against the rising learning rate, one line a case; a dot is `best_rate`."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, rows), color in zip(found.items(), COLORS, strict=False):
        rates, losses = zip(*rows, strict=True)
        axes.plot(rates, losses, color=color, lw=2, label=name)
        best = best_rate(rows)
        nearest = min(rows, key=lambda row: abs(math.log(row[0] / best)))
        axes.plot(best, nearest[1], "o", color=color, ms=8, mec="white", mew=1.5)
    smallest = min(loss for rows in found.values() for _, loss in rows)
    axes.set_ylim(0, max(2.2 * rows[0][1] for rows in found.values()) + smallest)
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="loss, smoothed")
    return _dress(figure)


def draw_layers(signals: dict[str, list[Signal]]) -> Figure:
    """Draw what reaches each layer, what is dead in it and what comes back, one line a case."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = (
        ("inputs", "size of the inputs (rms)"),
        ("dead", "input channels that are always 0"),
        ("gradient", "gradient / weights"),
    )
    for axes, (field, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for (name, rows), color in zip(signals.items(), COLORS, strict=False):
            values = [getattr(row, field) for row in rows]
            if field != "dead":  # 0 has no place on these axes; the line is broken there
                values = [value or math.nan for value in values]
            axes.plot(range(len(rows)), values, "o-", color=color, ms=4, label=name)
            names = [row.layer.removeprefix("head.").removesuffix(".conv") for row in rows]
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        if field == "dead":
            axes.set_ylim(-0.03, 1.03)
        else:
            axes.set_yscale("log")
    return _dress(figure)


def _dress(figure: Figure) -> Figure:
    for axes in figure.axes:
        dress(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return figure
