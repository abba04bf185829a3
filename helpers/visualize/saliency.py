"""Which pixels matter to a network: several methods on the same images, and a test of them.

Every method explains one logit of each image and gives maps (N, H, W) that are never negative.
"""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from helpers.runs.progress import tqdm
from helpers.visualize.guided import GuidedRule, prepared

METHODS = "gradient", "guided backprop", "Grad-CAM", "integrated gradients", "occlusion"


def explain(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    layer: str,
    methods: tuple[str, ...] = METHODS,
) -> dict[str, torch.Tensor]:
    """Return, for each method, which pixels of normalised images speak for their target logit.

    `targets` (N,) are class indices; `layer` is the one whose maps Grad-CAM weighs, usually the
    last with rows and columns. Gradients and integrated gradients are the sum over colours of
    their absolute value; Grad-CAM and occlusion keep what speaks for the class. What is taken away
    by integrated gradients and occlusion becomes 0, the normalisation's mean colour.

    Simonyan et al. 2014 (1312.6034), Springenberg et al. 2015 (1412.6806), Selvaraju et al. 2017
    (1610.02391), Sundararajan et al. 2017 (1703.01365), Zeiler and Fergus 2014 (1311.2901).
    All but guided backpropagation come from captum, whose own knows no other activation than
    `nn.ReLU` modules.
    """
    try:
        from captum import attr
    except ImportError:
        raise ImportError("the comparison needs captum: pip install captum") from None
    height, width = images.shape[2:]
    window = max(1, height // 8), max(1, width // 8)
    stride = max(1, window[0] // 2), max(1, window[1] // 2)

    def grad_cam(images):
        maps = attr.LayerGradCam(model, model.get_submodule(layer)).attribute(images, targets)
        return F.interpolate(maps.detach().relu(), (height, width), mode="bilinear")

    def integrated(images):
        method = attr.IntegratedGradients(model)
        return method.attribute(images, 0, targets, n_steps=32, internal_batch_size=64)

    def occlusion(images):
        method = attr.Occlusion(model)
        return method.attribute(
            images, (3, *window), (3, *stride), 0, targets, perturbations_per_eval=8
        ).relu()

    functions = {
        "gradient": lambda images: attr.Saliency(model).attribute(images, targets, abs=False),
        "guided backprop": lambda images: guided_logit(model, images, targets),
        "Grad-CAM": grad_cam,
        "integrated gradients": integrated,
        "occlusion": occlusion,
    }
    with prepared(model, images) as images:
        targets = targets.to(images.device)
        return {
            name: functions[name](images.clone().requires_grad_()).detach().abs().sum(1).cpu()
            for name in methods
        }


def guided_logit(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the guided gradient (N, 3, H, W) of each image's target logit."""
    with prepared(model, images) as images:
        images.requires_grad_()
        with GuidedRule():
            logits = model(images.clone())
        chosen = logits.gather(1, targets.to(images.device)[:, None])
        return torch.autograd.grad(chosen.sum(), images)[0]


def gini(maps: torch.Tensor) -> torch.Tensor:
    """Return how concentrated each map (..., H, W) is: 0 even, near 1 in one pixel, NaN if empty.

    On the CPU. The Gini coefficient, of the measures of sparsity that Hurley and Rickard compare
    (2009, 0811.4706) the only one that has all six properties that they ask of it.
    """
    values = maps.cpu().abs().flatten(-2).sort(-1).values.double()
    count = values.shape[-1]
    rank = torch.arange(1, count + 1, dtype=torch.float64)
    weighted = (values * (2 * rank - count - 1)).sum(-1)
    return weighted / (count * values.sum(-1))


def similarity(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Return Spearman's rank correlation of each pair of maps (N, H, W); NaN where one is flat."""
    return np.array(
        [
            spearmanr(a.flatten(), b.flatten()).statistic if a.std() > 0 < b.std() else np.nan
            for a, b in zip(first.cpu().numpy(), second.cpu().numpy(), strict=True)
        ]
    )


def edges(images: torch.Tensor) -> torch.Tensor:
    """Return the edges (N, H, W) of images (N, 3, H, W) by Sobel's filter: no network at all."""
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=images.device)
    kernels = torch.stack([sobel, sobel.T])[:, None]
    gray = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(gray, kernels.to(images.dtype)).norm(dim=1)


def randomised(model: nn.Module, seed: int, steps: int = 8) -> Iterator[tuple[str, nn.Module]]:
    """Yield copies whose weights are random from the output down to a named layer, and on.

    The cascade of Adebayo et al. 2018 (1810.03292), in at most `steps` steps. A layer is randomised
    by its own `reset_parameters`; in the last copy all are that have one (a transformer's class
    token, for one, has none).
    """
    model = copy.deepcopy(model)
    groups: list[list[str]] = [[]]  # a layer with a weight matrix, after the norms behind it
    for name, module in reversed(list(model.named_modules())):
        if hasattr(module, "reset_parameters"):
            groups[-1].append(name)
            if getattr(module, "weight", None) is not None and module.weight.dim() > 1:
                groups.append([])
    groups = [group for group in groups if group]
    stops = np.linspace(0, len(groups), min(steps, len(groups)) + 1).round().astype(int)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start, stop in zip(stops[:-1], stops[1:], strict=True):
            for name in sum(groups[start:stop], []):
                model.get_submodule(name).reset_parameters()
            yield groups[stop - 1][-1], copy.deepcopy(model)


def sanity_check(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor, layer: str, seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    """Explain the same images while the weights are randomised from the output down.

    Returns {step: {method: maps (N, H, W)}}, first the trained network, then each layer down to
    which the weights are random; a method that shows what was learned must change.
    """
    methods = METHODS[:-1]
    steps = {"trained": explain(model, images, targets, layer, methods)}
    for name, copied in tqdm(randomised(model, seed), "Randomising", disable=None, leave=False):
        steps[name] = explain(copied, images, targets, layer, methods)
    return steps


def similarities(steps: dict[str, dict[str, torch.Tensor]], method: str) -> np.ndarray:
    """Return the rank correlation of each step's maps with the trained network's (steps, N).

    NaN where one of the two maps is the same everywhere.
    """
    trained = steps["trained"][method]
    return np.array([similarity(trained, maps[method]) for maps in steps.values()])


def mean_similarities(steps: dict[str, dict[str, torch.Tensor]], method: str) -> list[float]:
    """Return the mean of each step's `similarities`, NaN where half of the maps have none."""
    return [
        float(np.nanmean(values)) if np.isfinite(values).mean() > 0.5 else math.nan
        for values in similarities(steps, method)
    ]


def similarity_to_edges(
    steps: dict[str, dict[str, torch.Tensor]], edges: torch.Tensor
) -> dict[str, float]:
    """Return, for each method, the mean rank correlation of the trained network's maps and edges.

    Maps that are the same everywhere are left out.
    """
    return {
        method: float(np.nanmean(similarity(maps, edges)))
        for method, maps in steps["trained"].items()
    }
