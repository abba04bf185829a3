"""Freezing: which parameters of a network are trained, by a named strategy.

Start with `freeze`. What is frozen is a fixed function: it stays in eval mode in training.
"""

import re
from dataclasses import dataclass
from itertools import groupby

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.models.graph import UNFOLLOWED, trace
from helpers.runs.config import ConfigError, parse_freeze
from helpers.runs.text import markdown_table

# The classes that torchvision, timm and this project build their networks of, again and again.
BLOCK = re.compile(
    r"((?<!Dense)Block\d*|Bottleneck|Residual|MBConv|Fire|Inception[A-E]?|Mixed\w*|DenseLayer)"
    r"(V2)?$"
)


@dataclass(frozen=True)
class Layer:
    """One row of the table of `freeze`: a layer with weights."""

    name: str
    kind: str
    params: int
    trained: int  # of them


def freeze(model: nn.Module, strategy: str) -> list[Layer]:
    """Freeze and unfreeze parameters by a strategy of `helpers.runs.config.FREEZING`.

    Returns the layers with weights, in order. The head (`model.head_name`, given by
    `models.build`, else the last layer) is always trained. A layer is a module with weights of its
    own: convolution, dense, norm. Layers are counted from the output, parallel branches side by
    side, as Keras does; a block is a module of the repeated kind (residual, inception, fire,
    MBConv); a stage is what a network groups its blocks in, else a block. The last K include all
    that follows them. "convolutional" freezes all but the dense layers;
    "all_but_last_block_and_norms" trains the affine parameters of every batch norm. Train with
    `train_mode(model)`. Raises ConfigError where the network has no such part.
    """
    form, k = parse_freeze(strategy)
    head = head_name(model)
    chosen = _chosen(model, form, k)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen or _below(name, head))
    return layers(model)


def train_mode(model: nn.Module) -> None:
    """Put a network in training mode, but what is frozen in eval mode: it is a fixed function.

    That is every frozen batch norm, whose statistics would move otherwise, and everything in the
    frozen beginning, the modules up to the last one before the first parameter that is trained.
    """
    model.train()
    beginning: set[str] = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            break
        beginning.add(name.rpartition(".")[0])
    order = list(model.named_modules())
    last = max((place for place, (name, _) in enumerate(order) if name in beginning), default=-1)
    for place, (_, module) in enumerate(order):
        learns = any(parameter.requires_grad for parameter in module.parameters())
        norm = isinstance(module, _BatchNorm) and any(True for _ in module.parameters())
        if not learns and (norm or place <= last):
            module.eval()


def head_name(model: nn.Module) -> str:
    """Name the module that fine-tuning makes anew."""
    return getattr(model, "head_name", None) or layers(model)[-1].name


def layers(model: nn.Module) -> list[Layer]:
    """List the layers with weights, with what of them is trained now."""
    rows = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            params = sum(p.numel() for p in own)
            trained = sum(p.numel() for p in own if p.requires_grad)
            rows.append(Layer(name or "(itself)", type(module).__name__, params, trained))
    return rows


def table(rows: list[Layer], most: int = 24) -> str:
    """Tabulate what is trained and what is frozen as Markdown.

    Of more than `most` layers, neighbours of the same part and state are joined into one row.
    """
    groups = [[row] for row in rows]
    for depth in range(max(row.name.count(".") for row in rows), 0, -1):
        if len(groups) > most:
            found = groupby(rows, key=lambda row: (row.name.split(".")[:depth], row.trained > 0))
            groups = [list(group) for _, group in found]
    lines = []
    for group in groups:
        first, last = group[0], group[-1]
        name = f"`{first.name}`" + (f" … `{last.name}`" if len(group) > 1 else "")
        kind = first.kind if len(group) == 1 else f"{len(group)} layers"
        params, trained = (sum(getattr(x, f) for x in group) for f in ("params", "trained"))
        state = "trained" if trained == params else "frozen" if not trained else "partly"
        lines.append((name, kind, params, trained or "", state))
    total = (sum(row.params for row in rows), sum(row.trained for row in rows))
    lines.append(("**total**", "", *total, f"{total[1] / total[0]:.1%} trained"))
    return markdown_table(("layer", "kind", "parameters", "trained", ""), lines)


def _below(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def blocks(model: nn.Module) -> list[str]:
    """Name the repeated units of a network in order, the outermost where they contain others."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(_below(name, block) for block in found)
        if name and not inside and BLOCK.search(type(module).__name__):
            found.append(name)
    return found


def stages(model: nn.Module) -> list[list[str]]:
    """Group the blocks as the network does: those of one container, in a row, are a stage.

    Where all blocks are in one container, or in none, each is a stage.
    """
    grouped = groupby(blocks(model), key=lambda name: name.rpartition(".")[0] or name)
    found = [list(group) for _, group in grouped]
    return [[name] for name in found[0]] if len(found) == 1 else found


def parts(model: nn.Module) -> list[list[str]]:
    """Cut the names of the parameters into parts from the input to the head, for `layer_decay`.

    What is in front of the first stage, each stage with what follows it, the head; in a network
    without blocks each layer with weights is a part.
    """
    starts = [stage[0] for stage in stages(model)] or [layer.name for layer in layers(model)]
    head = head_name(model)
    found: list[list[str]] = [[]]
    for name, _ in model.named_parameters():
        if _below(name, head):
            continue
        if starts and _below(name, starts[0]):
            found.append([])
            starts.pop(0)
        found[-1].append(name)
    last = [name for name, _ in model.named_parameters() if _below(name, head)]
    return [part for part in [*found, last] if part]


def _last(model: nn.Module, found: list, k: int, unit: str):
    if not found:
        raise ConfigError(
            f"{type(model).__name__} is not built of {unit}: freeze all_but_last_{k}_layers, "
            f"or convolutional"
        )
    if k > len(found):
        raise ConfigError(
            f"{type(model).__name__} has {len(found)} {unit}: all_but_last_{k}_{unit} is too many"
        )
    return found[-k:]


def _chosen(model: nn.Module, form: str, k: int) -> set[str]:
    """Name the parameters that a strategy trains; those of the head may be among them."""
    names = [name for name, _ in model.named_parameters()]
    layer_of = {name: name.rpartition(".")[0] for name in names}
    if form == "nothing":
        return set(names)
    if form == "all_but_head":
        return set()
    if form == "all_but_last_K_layers":
        last = _last(model, layers_by_depth(model), k, "layers")
        return {name for name in names if layer_of[name] in last}
    if form in ("all_but_last_K_blocks", "all_but_last_K_stages"):
        unit = form.rpartition("_")[2]
        units = [[name] for name in blocks(model)] if unit == "blocks" else stages(model)
        start = _last(model, units, k, unit)[0][0]
        first = next(place for place, name in enumerate(names) if _below(name, start))
        return set(names[first:])
    if form == "all_but_last_block_and_norms":
        (block,) = _last(model, blocks(model), 1, "blocks")
        norms = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
        return {name for name in names if _below(name, block) or layer_of[name] in norms}
    head, modules = head_name(model), model.named_modules()
    dense = {name for name, module in modules
             if isinstance(module, nn.Linear) and not _below(name, head)}  # fmt: skip
    if form == "convolutional":
        return {name for name in names if layer_of[name] in dense}
    if not dense:
        raise ConfigError(
            f"{type(model).__name__} has no dense layer besides its new head, so that freezing "
            f"fully_connected freezes nothing: use freeze='nothing'"
        )
    return {name for name in names if layer_of[name] not in dense}


def layers_by_depth(model: nn.Module) -> list[str]:
    """Name the body's layers with weights, those nearest to the output last.

    The distance is that of the longest path to the output, as in Keras, so that the branches of a
    block are taken side by side. A network that cannot be traced keeps the order of its code.
    """
    head = head_name(model)
    order = [layer.name for layer in layers(model) if not _below(layer.name, head)]
    was_training = model.training
    try:
        graph = trace(model.eval())
    except UNFOLLOWED:
        return order
    finally:
        model.train(was_training)
    distance: dict[str, int] = {}
    to_output: dict[fx.Node, int] = {}
    for node in reversed(graph.nodes):
        to_output[node] = max((to_output[user] + 1 for user in node.users), default=0)
        if node.op in ("call_module", "get_attr"):
            distance[str(node.target)] = to_output[node]

    def depth(name: str) -> int:
        inside = [d for target, d in distance.items() if _below(name, target)]
        below = [d for target, d in distance.items() if target.rpartition(".")[0] == name]
        return min(inside or below or [len(to_output)])

    return sorted(order, key=depth, reverse=True)  # stable: ties keep the order of the code
