"""Time guided backpropagation of 10 CONV5 neurons at 224 px: one call here, ten calls of captum.

    python -m benchmarks.guided_backprop

Alternates both for several rounds and prints medians, their ratio and the largest deviation of the
gradients relative to the largest gradient. Writes runs/benchmarks/guided_backprop.json.
"""

import statistics
import time
import warnings

import torch
from captum.attr import NeuronGuidedBackprop
from tqdm import tqdm

from benchmarks.measured import keep
from helpers import models
from helpers.runs.config import Config
from helpers.visualize import guided_backprop
from helpers.visualize.guided import feature_maps

ROUNDS = 9
LAYER = "blocks.4.conv"
NETWORKS = {
    "5 x 32": [32] * 5,
    "5 x 64": [64] * 5,
    "32 to 512": [32, 64, 128, 256, 512],
}


def measure(filters: list[int], one_image: bool) -> dict:
    """Time both on random images; every neuron is the strongest of its channel there."""
    torch.manual_seed(0)
    model = models.build(Config(filters=filters, image_size=224), 10).eval()
    images = torch.randn(1 if one_image else 10, 3, 224, 224)
    maps = feature_maps(model, images, LAYER).expand(10, -1, -1, -1)
    width = maps.shape[3]
    neurons = [(c, *divmod(maps[c, c].argmax().item(), width)) for c in range(10)]
    method = NeuronGuidedBackprop(model, model.get_submodule(LAYER))

    def captum() -> torch.Tensor:
        each = zip(images.expand(10, -1, -1, -1), neurons, strict=True)
        return torch.cat([method.attribute(image[None].clone(), neuron) for image, neuron in each])

    def ours() -> torch.Tensor:
        return guided_backprop(model, images, LAYER, neurons)

    expected, found = captum(), ours()  # also warms both up
    seconds = {"captum": [], "ours": []}
    for _ in range(ROUNDS):
        for name, function in ("captum", captum), ("ours", ours):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "captum_ms": 1000 * medians["captum"],
        "ours_ms": 1000 * medians["ours"],
        "ratio": medians["captum"] / medians["ours"],
        "deviation": ((found - expected).abs().max() / expected.abs().max()).item(),
        "rounds": ROUNDS,
    }


def main() -> None:
    """Measure all networks, print a table, write the JSON."""
    warnings.simplefilter("ignore")  # captum announces its hooks at every call
    rows = []
    cases = [(name, one) for name in NETWORKS for one in (True, False)]
    for name, one_image in tqdm(cases, disable=None):
        row = {"filters": name, "images": 1 if one_image else 10}
        rows.append({**row, **measure(NETWORKS[name], one_image)})
    print("filters     images  captum 10 calls  ours 1 call   ratio  deviation")
    for row in rows:
        print(
            f"{row['filters']:<11} {row['images']:>6} {row['captum_ms']:>13.0f} ms "
            f"{row['ours_ms']:>9.0f} ms {row['ratio']:>6.1f}x {row['deviation']:>10.1e}"
        )
    keep("guided_backprop", rows=rows)


if __name__ == "__main__":
    main()
