"""Count parameters and operations of networks: here, by fvcore and by ptflops; figures and seconds.

    python -m benchmarks.counting [--rounds 5]

Every counter gets a network that is already built and an input of 224 x 224 pixels. fvcore and
ptflops run the network; ours runs it without its numbers. All count multiply-adds of convolutions
and dense layers. fvcore adds norms and pooling, ptflops activations and biases, too; fvcore leaves
out convolutions with padding="same" (the five blocks') and part of attention. Writes
runs/benchmarks/counting.json.
"""

import argparse
import logging
import statistics
import time

import torch

from benchmarks.measured import keep
from helpers import models
from helpers.count.layers import count
from helpers.runs.config import Config

NETWORKS = ("five_blocks", "alexnet", "vgg16", "resnet50", "densenet121", "efficientnet_b0",
            "vit_b_16")  # fmt: skip
SIZE = 224


def count_ours(model: torch.nn.Module) -> tuple[int, int]:
    """Return parameters and multiply-adds."""
    counts = count(model, SIZE)
    return counts.params, counts.macs


def count_fvcore(model: torch.nn.Module) -> tuple[int, int]:
    """Return parameters and multiply-adds."""
    from fvcore.nn import FlopCountAnalysis, parameter_count

    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, SIZE, SIZE))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return parameter_count(model)[""], int(analysis.total())


def count_ptflops(model: torch.nn.Module) -> tuple[int, int]:
    """Return parameters and multiply-adds."""
    from ptflops import get_model_complexity_info

    macs, params = get_model_complexity_info(
        model, (3, SIZE, SIZE), as_strings=False, print_per_layer_stat=False, verbose=False
    )
    return int(params), int(macs)


COUNTERS = {"ours": count_ours, "fvcore": count_fvcore, "ptflops": count_ptflops}


def main() -> None:
    """Count each network by each counter, alternating, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    print("| network | counter | parameters | multiply-adds | seconds (median) |")
    print("| --- | --- | --- | --- | --- |")
    for name in NETWORKS:
        model = models.build(Config(model=name, image_size=SIZE), 1000).eval()
        seconds: dict[str, list[float]] = {counter: [] for counter in COUNTERS}
        found = {}
        for _ in range(options.rounds + 1):
            for counter, measure in COUNTERS.items():
                start = time.perf_counter()
                found[counter] = measure(model)
                seconds[counter].append(time.perf_counter() - start)
        for counter, (params, macs) in found.items():
            median = statistics.median(seconds[counter][1:])  # the first warms up
            rows.append({"network": name, "counter": counter, "parameters": params, "macs": macs,
                         "seconds": median})  # fmt: skip
            print(f"| {name} | {counter} | {params:,} | {macs:,} | {median:.3f} |", flush=True)
    keep("counting", rows=rows)


if __name__ == "__main__":
    main()
