"""Measure what the machine can do, and what share of it a training step reaches, layer by layer.

    python -m benchmarks.limit [--image-size 224] [--batch-size 64] [--filters 32 64 128 256 512]

Two rates bound every layer (Williams, Waterman and Patterson 2009, the roofline model): arithmetic,
measured as a square matrix product, and memory, measured as the copy of a large tensor. A layer's
limit is the longer of its operations at the first and its least bytes at the second; its share is
limit / measured time, forward and backward. Least bytes: every input, weight and output once, and
in the backward pass the output's gradient, the input and the input's gradient once. Batch norm,
pooling and activation are listed as PyTorch's three layers, and as the one that replaces them in
training on a CPU. The network is `filters` with 3x3 kernels, without bias; the number format is
what the hardware does fast. Writes runs/benchmarks/limit.json.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measured import keep
from helpers.models.device import choose_device, choose_dtype, keep_memory
from helpers.models.five_blocks import FiveBlocks
from helpers.models.norm_pool import norm_pool
from helpers.runs.config import Config
from helpers.runs.text import markdown_table

ROUNDS = 7


def median_seconds(function: Callable[[], object]) -> float:
    """Return the median time of a call in seconds, after two calls that do not count."""
    seconds = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])[ROUNDS // 2]


def measure_rates(dtype: torch.dtype, device: torch.device) -> dict:
    """Measure the matrix rate in operations/s of `dtype` and float32, and the copy in bytes/s."""
    rates = {}
    for name, kind in {"fast": dtype, "float32": torch.float32}.items():
        size = 4096 if device.type == "cpu" else 8192
        a, b = torch.randn(2, size, size, device=device).to(kind)
        rates[name] = 2 * size**3 / median_seconds(lambda a=a, b=b: a @ b)
    source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.nbytes / median_seconds(lambda: target.copy_(source))
    return rates


def measure_layer(layer: Callable, images: torch.Tensor, weights: list[nn.Parameter]) -> dict:
    """Time a layer forward and backward; `images` needs a gradient unless it is the first input."""
    output = layer(images)
    upper = torch.randn_like(output)
    wanted = [images, *weights] if images.requires_grad else weights
    forward = median_seconds(lambda: layer(images))
    backward = median_seconds(lambda: torch.autograd.grad(output, wanted, upper, retain_graph=True))
    moved = images.nbytes + output.nbytes  # forward
    moved += upper.nbytes + images.nbytes * (2 if images.requires_grad else 1)  # backward
    return {
        "forward": forward, "backward": backward, "bytes": moved, "output": output.detach(),
    }  # fmt: skip


def measure_step(config: Config) -> tuple[dict, list[dict]]:
    """Return the machine's rates, and a row for each layer of a training step."""
    device = choose_device()
    dtype = choose_dtype(config, device)
    rates = measure_rates(dtype, device)
    model = FiveBlocks(config, 10).to(device, memory_format=torch.channels_last).train()
    size = config.image_size
    images = torch.randn(config.batch_size, 3, size, size, device=device).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    rows = []
    for number, block in enumerate(model.blocks, start=1):
        norm, pool = block.norm, nn.MaxPool2d(2)
        conv = nn.Conv2d(*block.conv.weight.shape[1::-1], 3, padding=1, bias=False).to(device)
        conv.to(dtype, memory_format=torch.channels_last)
        row = measure_layer(conv, images, [conv.weight])
        macs = conv.weight.numel() * row["output"][:, 0].numel()
        row["operations"] = 2 * macs * (3 if images.requires_grad else 2)
        rows.append({"layer": f"{number} convolution", **row})
        maps = rows[-1].pop("output").requires_grad_()

        def separate(maps, norm=norm, pool=pool):
            return F.relu(pool(norm(maps)))

        row = measure_layer(separate, maps, [norm.weight, norm.bias])
        rows.append({"layer": f"{number} norm, pool, ReLU", "operations": 0, **row})
        images = rows[-1].pop("output").requires_grad_()
        if device.type == "cpu":
            row = measure_layer(lambda maps, norm=norm: norm_pool(maps, norm, 0.0), maps,
                                [norm.weight, norm.bias])  # fmt: skip
            row.pop("output")
            rows.append({"layer": f"{number} the same as one", "operations": 0, **row})
    for row in rows:
        row["limit"] = max(row["operations"] / rates["fast"], row["bytes"] / rates["copy"])
        row["bound"] = "memory" if row["bytes"] / rates["copy"] >= row["limit"] else "arithmetic"
        row["share"] = row["limit"] / (row["forward"] + row["backward"])
    return rates, rows


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--filters", type=int, nargs=5, default=[32, 64, 128, 256, 512])
    options = parser.parse_args()
    keep_memory()
    config = Config(
        image_size=options.image_size, filters=options.filters, batch_size=options.batch_size,
        conv_bias=False, dense=[],
    )  # fmt: skip
    rates, rows = measure_step(config)
    dtype = str(choose_dtype(config, choose_device())).removeprefix("torch.")
    print(
        f"matrix product: {rates['fast'] / 1e12:.2f} TFLOP/s in {dtype}, "
        f"{rates['float32'] / 1e12:.2f} in float32; copy: {rates['copy'] / 1e9:.1f} GB/s"
    )
    times = [[f"{1e3 * row[part]:.1f}" for part in ("forward", "backward", "limit")]
             for row in rows]  # fmt: skip
    header = ("layer", "forward, ms", "backward, ms", "limit, ms", "bound by", "share of the limit")
    print(markdown_table(header, [
        (row["layer"], *three, row["bound"], f"{row['share']:.0%}")
        for row, three in zip(rows, times, strict=True)
    ]))  # fmt: skip
    for name, left_out in {"PyTorch's layers": "the same", "as one": "norm"}.items():
        chosen = [row for row in rows if left_out not in row["layer"]]
        seconds = sum(row["forward"] + row["backward"] for row in chosen)
        limit = sum(row["limit"] for row in chosen)
        print(
            f"{name}: {1e3 * seconds:.0f} ms a step, {config.batch_size / seconds:.0f} images/s; "
            f"limit {1e3 * limit:.0f} ms, share {limit / seconds:.0%}"
        )
    keep("limit", rates=rates, rows=rows, **vars(options))


if __name__ == "__main__":
    main()
