"""counts.json: what was counted of a network, for those who read it without the network."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from torch import nn

from helpers.count.algebra import Operations
from helpers.count.layers import Counts
from helpers.runs.files import write_json


def write_counts(
    folder: Path, model: nn.Module, counts: Counts, operations: Sequence[Operations] = ()
) -> None:
    """Write counts.json: what `count` found for a network, and for each of its modules by name.

    "body" is all but the new head; "left_out_biases" are those that convolutions without a bias
    would have. `operations` are the five blocks' by R1's (CS6910) convention.
    """
    whole, head = _tally(model), _tally(model.get_submodule(model.head_name))
    parts = {"body": {name: whole[name] - head[name] for name in whole}}
    parts |= {name: _tally(module) for name, module in model.named_modules() if name}
    content = whole | {"trainable": counts.trainable, "macs": counts.macs, "flops": counts.flops}
    content |= {f"{n}.{key}": x for n, tally in parts.items() for key, x in tally.items() if x}
    content |= {f"{name}.outputs": prod(shape) for name, shape in counts.outputs.items() if name}
    if operations:
        content |= {f"cs6910.{entry.layer}": entry.reported for entry in operations}
        content["cs6910"] = sum(entry.reported for entry in operations)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "counts.json", content)


def _tally(module: nn.Module) -> dict[str, int]:
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.bias is None]
    statistics = ("running_mean", "running_var")
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "moving_statistics": sum(
            b.numel() for name, b in module.named_buffers() if name.endswith(statistics)
        ),
        "left_out_biases": sum(m.out_channels for m in convolutions),
    }
